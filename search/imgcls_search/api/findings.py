"""The findings of a study: its state, its trials and the best of them, at the time of each access."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.frames import card, flat, frame_of, table
from imgcls_search.api.trial import Trial

if TYPE_CHECKING:
    import pandas as pd

    from imgcls_search.study.files import StudyFiles
    from imgcls_search.study.record import Record
    from imgcls_search.study.summary import Summary

SHOWN_TRIALS = 10
"""Number of trials shown in a notebook."""


class Findings:
    """The readable part of a study."""

    def __init__(self, files: StudyFiles) -> None:
        """Create a study from its files; use `open_study`, `run` or `auto` instead."""
        # The program may change its working folder later, as notebooks do.
        self.files = replace(files, root=files.root.absolute())

    @property
    def name(self) -> str:
        """The name of the study."""
        return self.files.recorded_as

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints and logs."""
        return self.files.folder

    @property
    def status(self) -> Summary:
        """The state of the study: trials by state, rejections, failures, and the best so far."""
        from imgcls_search.study.summary import summarise

        return summarise(self._record())

    @property
    def best(self) -> Trial:
        """The best trial; with several objectives there may be several, see `front`.

        Raises:
            NoResultError: No trial is complete.
            StudyError: Several trials are on the Pareto front.
        """
        from imgcls_search.study.best import the_best

        record = self._record()
        return Trial.of(the_best(record), record)

    @property
    def confirmed(self) -> dict[str, Any] | None:
        """The result of the last confirmation; None if the study was not confirmed."""
        found = self._record().facts.get("confirmed")
        return None if found is None else dict(found)

    def trial(self, number: int) -> Trial:
        """Return a trial by its number.

        Raises:
            StudyError: There is no such trial.
        """
        from imgcls_search.jobs.export import find_trial

        record = self._record()
        return Trial.of(find_trial(record, number), record)

    def front(self) -> list[Trial]:
        """Return the Pareto front: the trials that no other trial beats in every objective; with one objective, the
        best.

        Raises:
            NoResultError: No trial is complete.
        """
        from imgcls_search.study.best import front

        record = self._record()
        return [Trial.of(trial, record) for trial in front(record)]

    def trials(self, top: int | None = None, family: str | None = None) -> pd.DataFrame:
        """Return the trials as a pandas frame with one row each: state, values, sizes, metrics and parameters.

        Columns of parameters begin with `params.`, those of sizes with `sizes.`, of metrics with `metrics.`.

        Args:
            top: Return only this many, best first.
            family: Return only trials of this model family.

        Raises:
            UserError: pandas is not installed, or no trial is of the family.
        """
        from imgcls_search.views.browse import trial_rows

        record = self._record()
        sections = {"values": "", "params": "params.", "sizes": "sizes.", "metrics": "metrics."}
        rows = [flat(row, sections) for row in trial_rows(record, top=top, family=family)]
        first = ["trial", "state", "family", *(metric for metric, _ in record.objectives), "epochs"]
        columns = dict.fromkeys([*first, *(name for row in rows for name in row)])
        return frame_of(rows, list(columns), "trials()")

    def why_nothing(self) -> str:
        """Return a sentence on how trials ended, for a study without a best one."""
        found = self.status
        reasons = [failure["reason"] or "" for failure in found["failures"]]
        return "; ".join([found["stands"], *reasons[:1]])

    def _record(self) -> Record:
        from imgcls_search.study.record import load

        return load(self.files)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, in {str(self.files.address or self.files.root)!r})"

    def _repr_html_(self) -> str:
        from imgcls_search.study.summary import summarise
        from imgcls_search.views.browse import COLUMNS, cells_of, trial_rows

        record = self._record()
        found = summarise(record)
        counts = ", ".join(f"{count} {state}" for state, count in found["trials"].items() if count)
        rows = trial_rows(record, top=SHOWN_TRIALS, family=None)
        cells = [cells_of(row, record.val_images) for row in rows]
        confirmed = record.facts.get("confirmed")
        trust = "not confirmed" if confirmed is None else f"confirmed: trial {confirmed['chosen']}"
        return card(f"Study {self.name}", (found["stands"], f"trials: {counts}", trust), table(COLUMNS, cells))
