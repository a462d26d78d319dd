"""Replay other strategies on the recorded curves of a study: replay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from imgcls_search import durations
from imgcls_search.api.options import changes_of
from imgcls_search.errors import refuse_idle
from imgcls_search.rounding import measured
from imgcls_search.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from imgcls_search.jobs.pools import Estimate
    from imgcls_search.jobs.replay import Replayed
    from imgcls_search.jobs.replay_pools import Comparison
    from imgcls_search.study.files import StudyFiles

SHARE = 0.67
"""Share of the configurations in each part, by default."""

Strategy = str | Mapping[str, Any]
"""A sampler or a pruner in the form of a space: a name, or `{name: {setting: value}}`."""


@dataclass(frozen=True, kw_only=True)
class Replays:
    """The cost and the findings of strategies on the curves of a study."""

    study: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """One row per strategy, as the command prints it."""

    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    """The same as plain values."""

    def frame(self) -> pd.DataFrame:
        """Return a pandas frame with a row for each strategy.

        Raises:
            UserError: pandas is not installed.
        """
        from imgcls_search.api.frames import frame_of

        rows = self.facts["replays"] if "replays" in self.facts else [_flat(one) for one in self.facts["strategies"]]
        return frame_of(rows, [name for name in rows[0] if name != "bests"], "frame()")

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        return card(f"Replays of {self.study}", self.notes, table(self.headings, self.rows))


def replay_strategies(
    files: StudyFiles,
    samplers: Sequence[str],
    pruners: Sequence[str],
    *,
    workers: int,
    seed: int | None,
    seeds: int | None,
    share: float | None,
    max_epochs: int | None,
) -> Replays:
    """Replay each sampler, in the form of a space, with each pruner; by default those of the study.

    Raises:
        UserError: an argument is not allowed.
        StudyError: the study has too few curves.
    """
    if seeds is None:
        refuse_idle({"--share": share, "--max-epochs": max_epochs}, "without --seeds")
    else:
        refuse_idle({"--seed": seed}, "together with --seeds, which uses seeds 0, 1, ...")
    from imgcls_search.catalog import catalog
    from imgcls_search.jobs.replay import as_it_was, replay_study, space_of
    from imgcls_search.jobs.replay_pools import compare
    from imgcls_search.study.record import load

    record = load(files)
    own = record.fact("space")["study"]
    spaces = []
    for sampler in samplers or [json.dumps(own["sampler"])]:
        for pruner in pruners or [json.dumps(own["pruner"])]:
            changes = [("study.sampler", sampler), ("study.pruner", pruner)]
            if seed is not None:
                changes.append(("study.seed", str(seed)))
            spaces.append(space_of(record, catalog(), changes))
    if seeds is not None:
        parts = compare(record, spaces, seeds=seeds, share=share or SHARE, max_epochs=max_epochs, workers=workers)
        return _of_parts(files.recorded_as, parts)
    found = [as_it_was(record), *(replay_study(record, space, workers=workers) for space in spaces)]
    return Replays(
        study=files.recorded_as,
        headings=("strategy", "trials", "complete", "epochs", "extended", "best", "found after", "time"),
        rows=tuple(_cells(each, record.objectives[0][0], record.val_images) for each in found),
        notes=(
            "extended: epochs that were never trained, guessed from complete trials; found after: epochs; time: of "
            "training",
        ),
        facts={"study": files.recorded_as, "replays": [asdict(each) for each in found]},
    )


def strategies_of(given: Strategy | Sequence[Strategy], path: str) -> list[str]:
    """Return samplers or pruners in the form of `--sampler` and `--pruner`.

    Raises:
        SpaceError: a value is not a plain one.
    """
    several = [given] if isinstance(given, (str, Mapping)) else list(given)
    return [value for one in several for _, value in changes_of({path: one})]


def _of_parts(study: str, found: Comparison) -> Replays:
    return Replays(
        study=study,
        headings=("strategy", "over random search", "times as fast", "over the first strategy"),
        rows=tuple(
            (each.strategy, _within(each.over_random), _within(each.times_as_fast, 2), _within(each.over_first))
            for each in found.strategies
        ),
        notes=(
            f"{found.seeds} parts of {found.configurations} configurations; {found.max_epochs} epochs for each search, "
            f"{counted('full training', found.trainings)} of random search",
            "in brackets: the 90 % interval; -: a search finished no trial",
        ),
        facts={"study": study, **asdict(found)},
    )


def _within(found: Estimate | None, digits: int = 4) -> str:
    if found is None:
        return "-"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _cells(found: Replayed, metric: str, images: int | None) -> tuple[str, ...]:
    best = "-" if found.best is None else measured(metric, found.best, images)
    after = str(found.bests[-1][0]) if found.bests else "-"
    counts = (found.trials, found.complete, found.epochs, found.extended)
    return (found.strategy, *map(str, counts), best, after, durations.show(found.seconds))


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a strategy with a column for each bound of its intervals."""
    row: dict[str, Any] = {}
    for name, value in found.items():
        row |= {f"{name}.{bound}": one for bound, one in value.items()} if isinstance(value, Mapping) else {name: value}
    return row
