"""All steps from images to a model in one call: auto."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.drafting import FlipsName, sets_flips, split
from imgcls_search.api.options import (
    Duration,
    PathLikeText,
    changes_of,
    images_of,
    refuse_other,
    seconds_of,
    with_settings,
)
from imgcls_search.api.searching import STUDIES, stop_as_asked
from imgcls_search.api.session import session
from imgcls_search.api.study import Study
from imgcls_search.errors import refuse_idle

if TYPE_CHECKING:
    from imgcls_search.api.model import Model
    from imgcls_search.automatic.automatic import Auto
    from imgcls_search.automatic.finding import AutoFinding
    from imgcls_search.views.screens import Screens


@dataclass(frozen=True, kw_only=True)
class AutoResult:
    """The result of `auto`."""

    study: Study
    facts: AutoFinding
    """Scores with their intervals, baselines, decisions, times, and the files, as plain values."""

    @property
    def folder(self) -> Path:
        """The folder of the model, for `load_model`."""
        return Path(self.facts["files"]["bundle"])

    @property
    def report(self) -> Path | None:
        """The report; None if the time ended before it was written."""
        found = self.facts["files"].get("report")
        return None if found is None else Path(found)

    def load_model(self) -> Model:
        """Return the model, ready to predict."""
        from imgcls_search.api.model import load_model

        return load_model(self.folder)

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        chosen, test = self.facts["chosen"], self.facts["test"]
        rows = [("validation", self.facts["metric"], f"{self.facts['validation']['score']:.4g}")]
        if test is not None:
            rows.append(("test", test["metric"], f"{test['score']:.4g}"))
        rows += [(entry["name"], entry["metric"], f"{entry['score']:.4g}") for entry in self.facts["baselines"]]
        title = f"Trial {chosen['trial']} of {chosen['trials']} in study {self.study.name}"
        return card(title, [f"model: {self.folder}"], table(("on", "metric", "score"), rows))


def auto(
    data: PathLikeText,
    time: Duration | None = None,
    *,
    output: PathLikeText | None = None,
    flips: FlipsName | None = None,
    group: str | None = None,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    studies: PathLikeText = STUDIES,
    storage: str | None = None,
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> AutoResult:
    """Turn images into a deployable model in a given time: draft, search, confirm, bundle and report.

    Args:
        data: A folder, a table, or a data set such as `digits`.
        time: Total over all calls: seconds, or a text such as `1h30m`; default: that of the earlier call, or an hour.
        output: The folder for all results; default: auto-NAME in the working folder.
        flips: Which mirrored images keep their class: `none` (default), `horizontal` or `both`.
        group: Keep groups in one split: a table's column, or a regular expression on a folder's paths.
        changes: Values of the space to set yourself, by path.
        skip_unreadable: Leave out images that cannot be read.
        workers: Trials at a time.
        cluster: Search on a Ray cluster: `auto`, `local` or `HOST:PORT`.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument or the images are not usable.
        NoResultError: The time ended before there was a trial to use.
        KeyboardInterrupt: The search was interrupted; the same call resumes it.
    """
    if flips is not None:
        refuse_other("flips", flips, ("none", "horizontal", "both"))
    given = changes_of(changes)
    is_set = sets_flips(given, flips)
    seconds = None if time is None else seconds_of(time, "--time")
    with session(progress, weights_dir, uses_torch=True) as screens:
        from imgcls_search.automatic.ledger import interruptible
        from imgcls_search.automatic.request import Interrupted

        work = prepare(
            data,
            seconds,
            screens,
            output=None if output is None else Path(output),
            flips=flips,
            ask_flips=lambda: None if is_set else "none",
            group=group,
            changes=given,
            skip_unreadable=skip_unreadable,
            workers=workers,
            cluster=cluster,
            studies=Path(studies),
            storage=storage,
            started=clock.monotonic(),
        )
        ending = ""
        try:
            with interruptible():
                found = deliver(work)
        except Interrupted as stop:
            ending = stop.ending
    stop_as_asked(ending)
    assert work.files is not None
    return AutoResult(study=Study(work.files), facts=found)


def prepare(
    data: PathLikeText,
    seconds: float | None,
    screens: Screens,
    *,
    output: Path | None,
    flips: FlipsName | None,
    ask_flips: Callable[[], FlipsName | None],
    group: str | None,
    changes: list[tuple[str, str]],
    skip_unreadable: bool,
    workers: int | None,
    cluster: str | None,
    studies: Path,
    storage: str | None,
    started: float,
) -> Auto:
    """Determine the progress of earlier calls, and refuse contradictions.

    Raises:
        UserError: an argument, a folder or the images are not usable.
    """
    of_data, others = split(changes)
    component = images_of(data, group, of_data, skip_unreadable=skip_unreadable)
    # These also apply to a space that an earlier call wrote.
    others += of_data
    if group is not None:
        others.append((f"{component.path}.group", json.dumps(group)))
    if skip_unreadable:
        others.append((f"{component.path}.skip_unreadable", "true"))
    others = with_settings(others, workers=workers)
    refuse_idle({"--set study.timeout": dict(others).get("study.timeout")}, "in auto, which keeps to --time")
    from imgcls_search.automatic.automatic import Auto
    from imgcls_search.automatic.request import Request
    from imgcls_search.executors import processes

    work = Auto(
        Request(
            component=component,
            seconds=seconds,
            out=output,
            flips=flips,
            ask_flips=ask_flips,
            studies=studies,
            storage=storage,
            cluster=cluster,
            changes=others,
            started=started,
        ),
        screens,
    )
    # Another process imports torch while this one examines the images.
    processes.warm_up()
    return work


def deliver(work: Auto) -> AutoFinding:
    """Run the missing steps, and return the results.

    Raises:
        UserError: an argument, a folder or the images are not usable.
        NoResultError: the time ended before there was a usable trial.
        Interrupted, KeyboardInterrupt: it was interrupted.
    """
    from imgcls_search.automatic.finding import describe

    made = work.run()
    found = describe(made)
    work.ledger.save()
    found["time"]["spent"] = dict(work.ledger.fact["spent"])
    return found
