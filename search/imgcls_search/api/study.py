"""A study as an object: what was found, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imgcls_search.api.frames import card, flat, frame_of, table
from imgcls_search.api.options import (
    PathLikeText,
    as_data,
    changes_of,
    component_of_data,
    refuse_below,
    refuse_other,
    study_files_of,
)
from imgcls_search.api.report import Report
from imgcls_search.api.session import session
from imgcls_search.api.trial import Trial
from imgcls_search.api.writing import write_bundle, write_configuration, write_report
from imgcls_search.errors import UserError
from imgcls_search.rounding import measured, pairs

if TYPE_CHECKING:
    import pandas as pd

    from imgcls_search.api.ensembles import Ensemble
    from imgcls_search.api.replaying import Replays, Strategy
    from imgcls_search.deploy.views import ViewsName
    from imgcls_search.jobs.bundle.deliver import Format
    from imgcls_search.study.files import StudyFiles
    from imgcls_search.study.record import Record
    from imgcls_search.study.summary import Summary

SHOWN_TRIALS = 10
"""In a notebook."""


class Study:
    """A study; each property and method reads the database when you use it."""

    def __init__(self, files: StudyFiles) -> None:
        """Make a study of its files; use `open_study`, `run` or `auto` instead."""
        # A program may change its working folder afterwards, as notebooks do.
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
        """Return the Pareto front: the trials that no other beats in every objective; with one objective, the best.

        Raises:
            NoResultError: No trial is complete.
        """
        from imgcls_search.study.best import front

        record = self._record()
        return [Trial.of(trial, record) for trial in front(record)]

    def trials(self, top: int | None = None, family: str | None = None) -> pd.DataFrame:
        """Return the trials as a pandas frame with a row each: state, values, sizes, metrics and parameters.

        Columns of parameters begin with `params.`, those of sizes with `sizes.`, of metrics with `metrics.`.

        Args:
            top: Return only this many, best first.
            family: Return only trials of this family of networks.

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

    def confirm(
        self,
        top: int = 3,
        seeds: int = 3,
        *,
        trial: int | None = None,
        again: bool = False,
        pretrain: bool = False,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> dict[str, Any]:
        """Retrain the best trials with new seeds, choose by their mean, then score the winner on the test split once.

        Args:
            top: How many of the best trials to retrain.
            seeds: New seeds per trial; as many more score the winner.
            trial: Retrain this trial only.
            again: Confirm again; this opens the test split once more.
            pretrain: Pretrain again for each seed, if trials pretrain.
            data: Where the images are now, if they moved.
            weights_dir: Look for pretrained weights there first.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument or the study is not usable.
            NoResultError: No trial is complete, or a training failed.
        """
        from imgcls_search.jobs.confirm import confirm

        refuse_below("top", top, 1)
        refuse_below("seeds", seeds, 2)
        moved_to = component_of_data(None if data is None else as_data(data))
        with session(progress, weights_dir, uses_torch=True) as screens, screens.training() as screen:
            found = confirm(
                self.files,
                top=top,
                seeds=seeds,
                again=again,
                watcher=screen,
                trial=trial,
                data=moved_to,
                pretrains=pretrain,
            )
        return {"study": self.name, **found}

    def reproduce(
        self,
        trial: int,
        seeds: int = 3,
        *,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> dict[str, Any]:
        """Retrain a trial, and compare the result with its record.

        Raises:
            UserError: There is no such trial, or its images have changed.
        """
        from imgcls_search.jobs.reproduce import reproduce

        refuse_below("seeds", seeds, 2)
        moved_to = component_of_data(None if data is None else as_data(data))
        with session(progress, weights_dir, uses_torch=True) as screens, screens.training() as screen:
            return dict(reproduce(self.files, trial, seeds=seeds, watcher=screen, moved_to=moved_to))

    def report(
        self,
        path: PathLikeText | None = None,
        *,
        trial: int | None = None,
        ablation: bool = False,
        seeds: int = 3,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Report:
        """Write a report of the study as one HTML page, which a notebook shows.

        Args:
            path: The page to write; by default `report.html` in the study's folder.
            trial: The trial that the page is about; default: the best.
            ablation: Retrain the steps from the first setting to the winner.
            seeds: New seeds per step of the ablation.
            data: Where the images are now, if they moved; only with `ablation`.
            weights_dir: Look for pretrained weights there first.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument or the study is not usable, or the file cannot be written.
            NoResultError: No trial is complete.
        """
        refuse_below("seeds", seeds, 1)
        output = self.folder / "report.html" if path is None else Path(path)
        with session(progress, weights_dir, uses_torch=True) as screens:
            write_report(
                self.files,
                output,
                screens,
                trial=trial,
                ablation=ablation,
                seeds=seeds,
                data=None if data is None else as_data(data),
            )
        return Report(path=output, study=self.name)

    def export(
        self,
        path: PathLikeText,
        *,
        trial: int | None = None,
        target_precision: float | None = None,
        tta: ViewsName = "none",
        format: Format = "onnx",  # noqa: A002 - as the command's option
        data: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Path:
        """Write the trained network as a folder that `load_model` reads; with a path ending in `.yaml`, its settings.

        Args:
            path: The folder, or the YAML file, to write.
            trial: The number of a trial; default: the best.
            target_precision: Answer only if confident enough that this share of the answers is right.
            tta: Average these views of an image: `none`, `mirror`, `shift` or `mirror_shift`.
            format: `onnx`, or `openvino` or `executorch`, which need the extra of that name.
            data: Where the images are now, if they moved.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument, the study or the path is not usable.
            NoResultError: No trial is complete.
        """
        refuse_other("format", format, ("onnx", "openvino", "executorch"))
        output = Path(path)
        if output.suffix in (".yaml", ".yml"):
            if target_precision is not None or tta != "none" or format != "onnx" or data is not None:
                raise UserError(
                    f"{output}: target_precision, tta, format and data go with a folder, not with a YAML file"
                )
            write_configuration(self.files, output, trial)
            return output
        with session(progress, uses_torch=True) as screens:
            from imgcls_search.jobs.bundle.weights import from_trial

            moved_to = component_of_data(None if data is None else as_data(data))
            trained = from_trial(self.files, trial, moved_to)
            write_bundle(
                trained,
                output,
                self.files.root,
                screens,
                moved=moved_to is not None,
                target_precision=target_precision,
                tta=tta,
                to=format,
            )
        return output

    def ensemble(
        self,
        picks: int = 5,
        *,
        trial: int | None = None,
        output: PathLikeText | None = None,
        bundle: PathLikeText | None = None,
        distill: PathLikeText | None = None,
        student: int | None = None,
        test: bool = False,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Ensemble:
        """Combine the best networks of the study into one model, picked on the validation images.

        Args:
            picks: Pick at most this many networks; one may be picked several times.
            trial: Start from this trial, and compare with it; default: the best.
            output: The weights file to write; default: `ensemble.pt` in the study's folder.
            bundle: Also write the model as a folder that `load_model` reads.
            distill: Also train one network that learns from the ensemble, and write it into this folder.
            student: The trial whose configuration learns, with `distill`; default: `trial`.
            test: Score the ensemble and the best trial on the sealed test split.
            data: Where the images are now, if they moved.
            weights_dir: Look for pretrained weights there first.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument, the study or its images are not usable.
            NoResultError: No trial is complete, or a training failed.
        """
        from imgcls_search.api.ensembles import combine

        refuse_below("picks", picks, 2)
        with session(progress, weights_dir, uses_torch=True) as screens:
            return combine(
                self.files,
                screens,
                picks=picks,
                trial=trial,
                output=_path(output),
                bundle=_path(bundle),
                distill=_path(distill),
                student=student,
                test=test,
                data=None if data is None else as_data(data),
            )

    def replay(
        self,
        samplers: Strategy | Sequence[Strategy] = (),
        pruners: Strategy | Sequence[Strategy] = (),
        *,
        workers: int = 1,
        seed: int | None = None,
        seeds: int | None = None,
        share: float = 0.67,
        max_epochs: int | None = None,
    ) -> Replays:
        """Replay other strategies on the curves of the study: what they would have cost and found, without training.

        Args:
            samplers: A sampler as in a space, such as `random` or `{"tpe": {...}}`, or several; default: the study's.
            pruners: A pruner, or several; each sampler is combined with each pruner.
            workers: Simulate this many trials at a time.
            seed: Draw with another seed.
            seeds: Compare on this many random parts of the study, with 90 % intervals.
            share: With `seeds`, the share of the configurations in each part.
            max_epochs: With `seeds`, the epochs of each search; default: a third of a part's.

        Raises:
            UserError: An argument is not usable.
            StudyError: The study has too few curves.
        """
        from imgcls_search.api.replaying import replay_strategies, strategies_of

        refuse_below("workers", workers, 1)
        for name, value, least in (("seed", seed, 0), ("seeds", seeds, 2), ("max_epochs", max_epochs, 1)):
            if value is not None:
                refuse_below(name, value, least)
        if not 0.01 <= share <= 1:
            raise UserError(f"share: {share!r} is not allowed; allowed: 0.01 to 1")
        return replay_strategies(
            self.files,
            strategies_of(samplers, "study.sampler"),
            strategies_of(pruners, "study.pruner"),
            workers=workers,
            seed=seed,
            seeds=seeds,
            share=share,
            max_epochs=max_epochs,
        )

    def try_setting(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the study to try a setting: the current run, or the next one, trains it to the end.

        Values that you leave out come from the best trial that has them.

        Args:
            changes: Values of the space to set, by path, such as `{"optimizer.adamw.lr": 3e-3}`.

        Raises:
            UserError: The space has no such setting, or nothing is named.
        """
        from dataclasses import asdict

        from imgcls_search.jobs.asking import ask

        return asdict(ask(self.files, changes_of(changes)))

    def copy(self, to: PathLikeText, *, with_folder: bool = False) -> str:
        """Copy the study at one moment, even while a run writes it; return the name of the copy's place.

        Args:
            to: A file, a folder (ending in a slash), or the address of a PostgreSQL database; nothing is replaced.
            with_folder: Copy checkpoints and logs too; `to` is then a folder.

        Raises:
            StudyError: The place is taken.
            UserError: The place is not usable.
        """
        from imgcls_search.api.housekeeping import copy

        return copy(self.files, str(to), with_folder=with_folder)

    def why_nothing(self) -> str:
        """Return in a sentence how trials ended, for a study without a best one."""
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
        from imgcls_search.views.browse import trial_rows

        record = self._record()
        found = summarise(record)
        counts = ", ".join(f"{count} {state}" for state, count in found["trials"].items() if count)
        rows = trial_rows(record, top=SHOWN_TRIALS, family=None)
        cells = [
            (
                row["trial"],
                row["state"],
                row["epochs"],
                pairs(row["values"], record.val_images),
                measured("params", row["sizes"]["params"]) if "params" in row["sizes"] else "",
                ", ".join(f"{name}={_short(value)}" for name, value in row["params"].items()),
            )
            for row in rows
        ]
        confirmed = record.facts.get("confirmed")
        trust = "not confirmed" if confirmed is None else f"confirmed: trial {confirmed['chosen']}"
        headings = ("trial", "state", "epochs", "value", "parameters", "settings")
        return card(f"Study {self.name}", (found["stands"], f"trials: {counts}", trust), table(headings, cells))


def open_study(name: str, *, studies: PathLikeText = Path("studies"), storage: str | None = None) -> Study:
    """Open a study that exists, by its name.

    Args:
        name: The name of the study, for example `vit-digits`.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.

    Raises:
        StudyError: There is no such study; the message suggests similar names.
    """
    files = study_files_of(name, studies, storage)
    files.must_exist()
    return Study(files)


def studies(folder: PathLikeText = Path("studies"), *, storage: str | None = None) -> list[dict[str, Any]]:
    """List the studies of a folder or a database: state, best trial, and whether it was confirmed.

    A study that cannot be read is listed with its `problem`.

    Raises:
        StudyError: The database cannot be reached.
    """
    from imgcls_search.study.address import settle
    from imgcls_search.views.browse import list_studies

    return list_studies(Path(folder), settle(storage))


def _path(given: PathLikeText | None) -> Path | None:
    return None if given is None else Path(given)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a typed mapping as a plain one."""
    return cast("Mapping[str, Any]", value)
