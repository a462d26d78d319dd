"""Run searches on recorded curves: the same loop, strategy and record, in milliseconds per trial.

`replay` runs any space on any `Curves`; `replay_study` shows what another strategy would have cost and found on the
curves of an existing study.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgcls_search.catalog import strategy
from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape, Prepared
from imgcls_search.errors import StudyError
from imgcls_search.executors.replay import Curves, ReplayExecutor
from imgcls_search.measures import bounds, sign_of
from imgcls_search.orchestrator.begin import Outcome
from imgcls_search.orchestrator.search import Search
from imgcls_search.signature import Arg, Catalog, Fields, Leaf, build, read
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.earlier import EarlierStudy
from imgcls_search.strategy.encoding import Encoding
from imgcls_search.strategy.samplers import SAMPLERS, Sampler
from imgcls_search.strategy.view import View
from imgcls_search.study.endings import Ending
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.memory import record_in_memory
from imgcls_search.study.record import Record
from imgcls_search.study.settings import Limits, StudySettings
from imgcls_search.trial import MEASURED, SIZES, Candidate, Trial
from imgcls_search.words import counted

OPEN_VALUE = Leaf(arg=Arg("anything that the curves know"), types=(bool, int, float, str), items=(int, float, str))


def table_catalog(metrics: Mapping[str, str] | None = None) -> Catalog:
    """Return the catalog of spaces for curves other than trainings: any parameters under `config`, and the epochs.

    study: {objectives: {accuracy: maximize}}
    config: {lr: {float: [1e-4, 1e-1], log: true}, layers: {int: [1, 5]}}
    training: {epochs: 52}
    """
    epochs = Leaf(arg=Arg("epochs of a full training", ge=1, fixed=True), types=(int,))
    study = read(StudySettings)
    return Catalog(
        config=Fields(fields={"config": Fields(others=OPEN_VALUE), "training": Fields(fields={"epochs": epochs})}),
        study=Fields(fields={**study.fields, **strategy()}, doc=study.doc),
        limits=read(Limits),
        metrics=metrics or {"accuracy": "what the curves call accuracy", **SIZES},
    )


def replay(
    space: Space,
    curves: Curves,
    *,
    workers: int = 1,
    sampler: Sampler | None = None,
    sizes: Mapping[TrialConfig, Mapping[str, float]] | None = None,
    earlier: Sequence[EarlierStudy] = (),
) -> tuple[Outcome, Steps]:
    """Run a search on curves without leaving files behind, and return its outcome and its steps.

    It learns only from the `earlier` studies, not from those on disk.
    """
    steps = Steps()
    # No timeouts: the clock of a replay jumps, and nothing in it hangs.
    space = replace(space, study={**space.study, "epoch_timeout": None, "trial_timeout": None})
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            space=space,
            files=StudyFiles(Path(folder), space.name),
            record=record_in_memory(space.name, space.objectives),
            executor=ReplayExecutor(curves, workers),
            helper=Idle(),
            watcher=steps,
            num_classes=0,
            sampler=sampler,
            measure_sizes=_Known(sizes or {}),
            earlier=earlier,
        )
        search.files.log(0).parent.mkdir(parents=True)
        ending: Ending = search.run()
        steps.seconds = search.executor.clock()
        return Outcome(ending=ending, record=search.record), steps


@dataclass
class Steps:
    """Watches a replay, and records the best complete trial's value by the epochs of all trials."""

    bests: list[tuple[int, float]] = field(default_factory=list)
    """Epochs trained, and the first objective's best value from then on."""

    moments: list[float] = field(default_factory=list)
    """When each of them was reached, on the clock of the trainings."""

    seconds: float = 0.0
    """Time that the trainings would have taken."""

    said: list[str] = field(default_factory=list)
    completed: set[int] = field(default_factory=set)

    def say(self, text: str) -> None:
        """Store a line."""
        self.said.append(text)

    def decoding(self, done: int, total: int) -> None:
        """Do nothing: there are no images."""

    def changed(self, search: Search) -> None:
        """Record a new best."""
        for trial in search.record.trials:
            if trial.state == "complete" and trial.number not in self.completed:
                self.completed.add(trial.number)
                self._note(search, trial)

    def _note(self, search: Search, trial: Trial) -> None:
        (value, *_) = trial.values or ()
        # Skip the NaN of a diverged trial: no later value would ever exceed it.
        if not math.isnan(value) and (not self.bests or search.sign * value > search.sign * self.bests[-1][1]):
            self.bests.append((sum(each.epoch for each in search.record.trials), value))
            self.moments.append(search.executor.clock())


class Idle:
    """Replaces the helper process: there are no images, and nothing to build."""

    is_measuring = False

    def prepare(self, config: TrialConfig) -> Prepared:
        """Return an empty data set."""
        return Prepared(
            fingerprint="", classes=(), image_size=0, channels=0, counts={}, class_counts=(), mean=(), std=(), folder=""
        )

    def measuring(self, config: TrialConfig, shape: InputShape) -> Generator[None, None, dict[str, float]]:
        """Return no sizes."""
        yield from ()
        return dict.fromkeys(SIZES, 0.0)

    def wait(self, seconds: float | None) -> None:
        """Return immediately."""


class _Known:
    """Returns known sizes, or zeros for other configurations."""

    def __init__(self, sizes: Mapping[TrialConfig, Mapping[str, float]]) -> None:
        self.sizes = sizes

    def __call__(self, config: TrialConfig) -> Generator[None, None, Mapping[str, float] | str]:
        yield from ()
        return self.sizes.get(config, dict.fromkeys(SIZES, 0.0))


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Cost and result of a strategy on a study's curves."""

    strategy: str
    trials: int
    complete: int
    epochs: int
    extended: int
    """Epochs that were never trained, taken from the most similar complete trial."""

    seconds: float
    best: float | None
    bests: tuple[tuple[int, float], ...]


def replay_study(record: Record, space: Space, *, workers: int = 1) -> Replayed:
    """Run a strategy on the curves of a study; only the study's configurations can be drawn.

    Raises:
        StudyError: the study has too few curves of uncompressed networks, or an objective that no curve contains.
    """
    refuse_measured(record)
    pool = [trial for trial in record.trials if trial.epoch and not trial.compresses]
    if len(pool) < 2 or not any(trial.state == "complete" and not trial.candidate.is_fitted for trial in pool):
        raise StudyError(
            f"study {record.study.study_name!r} has {counted('uncompressed trial', len(pool))} with epochs; a replay "
            "needs at least 2, one of them complete"
        )
    curves = Recorded(pool)
    sizes = {trial.candidate.config: trial.sizes for trial in pool}
    sampler = FromPool(build(SAMPLERS, space.sampler, space=space), [trial.candidate for trial in pool], space)
    space = replace(space, study={**space.study, "trials": len(pool), "timeout": None}, start=())
    outcome, steps = replay(space, curves, workers=workers, sampler=sampler, sizes=sizes)
    trials = outcome.record.trials
    return Replayed(
        strategy=f"{space.sampler.name} + {space.pruner.name}",
        trials=len(trials),
        complete=sum(trial.state == "complete" for trial in trials),
        epochs=sum(trial.epoch for trial in trials),
        extended=curves.num_extended(trials),
        seconds=steps.seconds,
        best=steps.bests[-1][1] if steps.bests else None,
        bests=tuple(steps.bests),
    )


def refuse_measured(record: Record) -> None:
    """Refuse a study with objectives that no curve contains.

    Raises:
        StudyError: an objective is measured only on exported networks.
    """
    measured = [metric for metric, _ in record.objectives if metric in MEASURED]
    if measured:
        raise StudyError(
            f"study {record.study.study_name!r} has objectives that only exported networks show, which no curve holds: "
            f"{', '.join(measured)}"
        )


def as_it_was(record: Record) -> Replayed:
    """Return the cost and result of the study itself, in the order of its trials."""
    sign = sign_of(record.objectives[0][1])
    bests: list[tuple[int, float]] = []
    spent = 0
    for trial in record.trials:
        spent += trial.epoch
        if trial.state == "complete" and trial.values:
            value = trial.values[0]
            if not math.isnan(value) and (not bests or sign * value > sign * bests[-1][1]):
                bests.append((spent, value))
    return Replayed(
        strategy="as it was",
        trials=len(record.trials),
        complete=sum(trial.state == "complete" for trial in record.trials),
        epochs=spent,
        extended=0,
        seconds=sum(epoch["seconds"] for trial in record.trials for epoch in trial.epochs),
        best=bests[-1][1] if bests else None,
        bests=tuple(bests),
    )


class Recorded:
    """The curves of a study; a stopped one continues like the complete trial with the nearest value at that epoch."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        """Use trials with at least one epoch; at least one must be complete, and not a fitted head."""
        self.trials = {trial.candidate.config: trial for trial in trials}
        complete = [trial for trial in trials if trial.state == "complete" and not trial.candidate.is_fitted]
        self.epochs = max(trial.epoch for trial in complete)
        # One that was ended from outside may be shorter.
        self.complete = [trial for trial in complete if trial.epoch == self.epochs]

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return the metrics of a configuration's trial at an epoch, recorded or estimated.

        Raises:
            StudyError: no complete trial has as many epochs.
        """
        trial = self.trials[config]
        if epoch <= trial.epoch:
            return trial.epochs[epoch - 1]
        if epoch > self.epochs:
            raise StudyError(f"no complete trial has epoch {epoch}; the longest has {counted('epoch', self.epochs)}")
        last, value = trial.epochs[-1], trial.value_at(trial.epoch)
        model = min(self.complete, key=lambda other: _gap(other.value_at(trial.epoch), value))
        here, there = model.epochs[trial.epoch - 1], model.epochs[epoch - 1]
        gained = {name: last[name] + there[name] - here[name] for name in last if name in here and name in there}
        # Keep metrics within bounds, for example an accuracy at 1.
        bounded = {name: _within(bounds(name), value) for name, value in gained.items()}
        return {**last, **bounded, "epoch": float(epoch), "seconds": last["seconds"]}

    def num_extended(self, trials: Sequence[Trial]) -> int:
        """Return how many epochs of a replay were never trained."""
        return sum(max(0, trial.epoch - self.trials[trial.candidate.config].epoch) for trial in trials)


def _gap(one: float, other: float) -> float:
    """Return how far two values are apart; NaN is far from all."""
    gap = abs(one - other)
    return math.inf if math.isnan(gap) else gap


def _within(found: tuple[float, float] | None, value: float) -> float:
    """Clip a value to the bounds of its measure."""
    low, high = found or (-math.inf, math.inf)
    return value if math.isnan(value) else min(max(value, low), high)


class FromPool:
    """Draws the configuration of a pool that is nearest to a sampler's draw and was not drawn yet."""

    def __init__(self, sampler: Sampler, pool: Sequence[Candidate], space: Space) -> None:
        """`pool` are the configurations that can be drawn."""
        self.sampler = sampler
        self.pool = list({candidate.config: candidate for candidate in pool}.values())
        self.encoding = Encoding(space)
        self.rows = self.encoding.rows([candidate.params for candidate in self.pool])
        self.places = {candidate.config: place for place, candidate in enumerate(self.pool)}
        self.drawn: dict[int, int] = {}
        """Pool index of each trial seen so far, by trial number."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return the nearest configuration left, None if there is none."""
        import numpy as np

        for trial in view.trials:
            if trial.number not in self.drawn:
                self.drawn[trial.number] = self.places[trial.candidate.config]
        wanted = self.sampler.draw(view, number, attempt) or draw_random(view, number, attempt)
        if len(self.drawn) >= len(self.pool):
            return None
        far = ((self.rows - self.encoding.rows([wanted.params])) ** 2).sum(axis=1)
        far[list(self.drawn.values())] = np.inf
        nearest = self.pool[int(far.argmin())]
        return replace(wanted, **{name: getattr(nearest, name) for name in _DRAWN})


_DRAWN = ("params", "distributions", "config")


def space_of(record: Record, catalog: Catalog, overrides: Sequence[tuple[str, str]]) -> Space:
    """Return the space of a study with the changes of `--set`, without its start configurations and limits.

    Raises:
        SpaceError: a change is not valid in a space.
    """
    sections: Mapping[str, object] = record.fact("space")
    document = {name: section for name, section in sections.items() if name not in ("start", "limits")}
    rules: Mapping[str, object] = record.fact("space")["study"]
    study = {name: value for name, value in rules.items() if name in ("name", "seed", "sampler", "pruner")}
    document["study"] = {**study, "objectives": dict(record.objectives)}
    return parse(json.dumps(document), catalog, source=f"study {record.study.study_name}", overrides=overrides)
