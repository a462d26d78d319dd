"""Measure the writer: the time that a trial takes in the run process besides training, compared with plain Optuna.

python scripts/bench/overhead.py                              10, 1,000 and 10,000 trials in the study: some minutes
python scripts/bench/overhead.py --trials 1000 --samplers tpe --repeat 30
python scripts/bench/overhead.py --trials --coordination      only the run's share of simulated trials of 5 s and 60 s

A trial is: draw 10 parameters, record it, report 10 epochs, ask the pruner, end it. `ours` uses the proposer, the
record and the pruner of a search; `plain` is ask, 10 suggestions, 10 reports with should_prune, and tell on Optuna's
default SQLite storage, with the same sampler and successive halving with the same rungs. The two alternate.
Before the measurement, both databases are filled with the same trials by inserting rows into Optuna's tables, which
takes seconds. Every filled trial has 10 epochs and is complete. (Plain Optuna's pruner compares trials by attributes
that it stores on them; these trials have none, so it has less to do.) Model sizes, which ours looks up, are not
measured here. Writes overhead.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import frame
import imgcls_search.orchestrator.begin
import imgcls_search.orchestrator.engines
import optuna
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.signature import build
from imgcls_search.space import Space, parse
from imgcls_search.strategy.propose import Proposer
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.rungs import Pruner
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.study import database
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.trial import SIZES, Trial
from optuna.storages import RDBStorage
from simulation import (
    EPOCHS,
    SPACE,
    Nobody,
    Simulated,
    attributes_like_the_record,
    curve,
    fill,
    make_trials,
    new_record,
)

MOST_OF_PLAIN = 0.4
"""Upper bound of our time per trial / plain Optuna's, at 1,000 trials."""

MOST_OF_WALL = {5.0: 0.05, 60.0: 0.01}
"""Upper bounds of the run process's share of the wall time, by seconds per trial."""


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with frame.results("overhead", arguments.out) as results:
        results["writer"] = [
            measure_writer(sampler, held, arguments.repeat)
            for held in arguments.trials
            for sampler in arguments.samplers
        ]
        if arguments.coordination:
            results["coordination"] = [
                measure_coordination(seconds, arguments.workers, arguments.coordination_trials)
                for seconds in MOST_OF_WALL
            ]


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument(
        "--trials", type=int, nargs="*", default=[10, 1000, 10_000], help="trials in the study; default: 10 1000 10000"
    )
    parser.add_argument("--samplers", nargs="+", choices=["random", "tpe"], default=["random", "tpe"])
    parser.add_argument("--repeat", type=int, default=15, help="measured trials a side; default: 15")
    parser.add_argument("--coordination", action="store_true", help="also the run's share of simulated searches")
    parser.add_argument("--coordination-trials", type=int, default=40, help="of a simulated search; default: 40")
    parser.add_argument("--workers", type=int, default=2, help="of a simulated search; default: 2")
    return parser.parse_args()


def measure_writer(sampler: str, held: int, repeat: int) -> dict[str, Any]:
    """Measure both sides alternately on studies that already have `held` trials."""
    space = parse(SPACE.format(sampler=sampler, epochs=EPOCHS), catalog(), source="bench_overhead")
    with tempfile.TemporaryDirectory() as folder:
        trials = make_trials(space, held)
        ours = Ours(space, Path(folder), trials)
        plain = Plain(space, Path(folder), trials)
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        parts: dict[str, list[float]] = {"draw": [], "add": [], "epochs": [], "decide": []}
        # The first turn is a warm-up. Each trial is better than the one before, so that none is pruned.
        for turn in range(repeat + 1):
            metrics = curve(1 + turn / 1000)
            found = ours.trial(metrics)
            started = time.perf_counter()
            plain.trial(metrics)
            elapsed = time.perf_counter() - started
            if turn:
                seconds["plain"].append(elapsed)
                seconds["ours"].append(sum(found.values()))
                for part, value in found.items():
                    parts[part].append(value)
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["plain"])
    asked = MOST_OF_PLAIN if held == 1000 else None
    result = {
        "sampler": sampler,
        "trials_in_study": held,
        "repeat": repeat,
        "milliseconds": {side: frame.spread([1000 * s for s in found], 2) for side, found in seconds.items()},
        "milliseconds_of_ours": {part: round(1000 * statistics.median(found), 2) for part, found in parts.items()},
        "ours_over_plain": round(ratio, 4),
        "ours_over_plain_by_turn": frame.spread(
            [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
        ),
        "asked_at_most": asked,
    }
    milliseconds = result["milliseconds"]
    print(
        f"{held:6} trials in the study, {sampler:6}: ours {milliseconds['ours']['median']:8.1f} ms a trial "
        f"({', '.join(f'{part} {value:.1f}' for part, value in result['milliseconds_of_ours'].items())}), "
        f"plain Optuna {milliseconds['plain']['median']:8.1f} ms, ratio {ratio:.2f} "
        f"{frame.verdict(ratio, at_most=asked)}"
    )
    return result


def must_continue(does: bool) -> None:
    """Check that a trial continues: every measured trial is better than all before it, so none may be pruned."""
    if not does:
        raise RuntimeError("a trial was pruned; the sides no longer do the same")


def known_sizes(config: TrialConfig) -> Generator[None, None, Mapping[str, float]]:
    """Return fixed sizes without waiting."""
    yield from ()
    return dict.fromkeys(SIZES, 123_456)


class Ours:
    """One side: the objects that a search uses, without training."""

    def __init__(self, space: Space, folder: Path, trials: Sequence[Trial]) -> None:
        record = new_record(folder, space, "ours")
        storage = database.open_storage(StudyFiles(folder, "ours").database)
        fill(storage, record.study, trials, attributes_like_the_record(folder, space))
        storage.engine.dispose()
        # Read everything once, like a resumed search.
        self.record = records.load(StudyFiles(folder, "ours"))
        self.space = space
        sampler = build(SAMPLERS, space.sampler, space=space)
        self.proposer = Proposer(space, sampler, 0, known_sizes)
        self.pruner: Pruner = build(PRUNERS, space.pruner, epochs=EPOCHS, sign=1)

    def trial(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Do one trial and return the seconds of its parts."""
        clock = [time.perf_counter()]
        proposal = next(found for found in self.proposer.proposals(self.record.trials) if found is not None)
        clock.append(time.perf_counter())
        number = len(self.record.trials)
        trial = Trial(
            number=number,
            candidate=proposal.candidate,
            seed=number,
            sizes=proposal.sizes,
            metric="accuracy",
            rejected_before=proposal.rejections,
        )
        trial.until = self.pruner.milestone(trial)
        self.record.add(trial)
        self.record.note(trial, worker="worker-0", log="trial.log")
        clock.append(time.perf_counter())
        deciding = 0.0
        for entry in metrics:
            self.record.add_epoch(trial, entry)
            if trial.epoch == trial.until:
                started = time.perf_counter()
                self._decide(trial)
                deciding += time.perf_counter() - started
        clock.append(time.perf_counter())
        draw, add, rest = (after - before for before, after in itertools.pairwise(clock))
        return {"draw": draw, "add": add, "epochs": rest - deciding, "decide": deciding}

    def _decide(self, trial: Trial) -> None:
        if trial.epoch == EPOCHS:
            self.record.complete(trial, [trial.epochs[-1]["accuracy"]])
            return
        must_continue(self.pruner.judge(trial, self.record.trials) == "continue")
        self.record.set_plan(trial, until=self.pruner.milestone(trial), paused=False)
        self.pruner.promote(self.record.trials)


class Plain:
    """The other side: Optuna as in its tutorial."""

    def __init__(self, space: Space, folder: Path, trials: Sequence[Trial]) -> None:
        storage = RDBStorage(f"sqlite:///{folder / 'plain.db'}")
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
        self.space = space
        self.study = optuna.create_study(
            storage=storage, direction="maximize", sampler=samplers[space.sampler.name](seed=0), pruner=pruner
        )
        fill(storage, self.study, trials, lambda trial: {})

    def trial(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """Do one trial."""
        trial = self.study.ask()
        self.space.sample(trial)
        for step, entry in enumerate(metrics, start=1):
            trial.report(entry["accuracy"], step)
            must_continue(not trial.should_prune())
        self.study.tell(trial, metrics[-1]["accuracy"])


def measure_coordination(seconds: float, workers: int, count: int) -> dict[str, Any]:
    """Run a real search on simulated workers; return the share of the wall time in which the run process works.

    Everything except training is real: sampling, model sizes from the helper process, the database, decisions. No
    workers compete for the cores, so this measures the amount of work, not its duration beside busy workers.
    """
    shares = {}
    for pruner in ("halving", "none"):
        overrides = [("study.trials", str(count)), ("study.workers", str(workers)), ("study.pruner", pruner)]
        text = SPACE.format(sampler="tpe", epochs=EPOCHS)
        space = parse(text, catalog(), source="bench_overhead", overrides=overrides)
        simulated = mock.patch.object(
            imgcls_search.orchestrator.engines,
            "LocalExecutor",
            lambda devices: Simulated(len(devices), seconds, EPOCHS),
        )
        with tempfile.TemporaryDirectory() as folder, simulated:
            outcome = imgcls_search.orchestrator.begin.run(space, Path(folder), Nobody())
        (call,) = outcome.record.facts["runs"]
        shares[pruner] = round(call["writer_seconds"] / call["seconds"], 5)
    most = MOST_OF_WALL[seconds]
    print(
        f"coordination, {count} simulated trials of {seconds:g} s, {workers} workers, tpe: "
        f"{100 * shares['none']:.2f} % of the wall time (with halving, whose trials are mostly shorter: "
        f"{100 * shares['halving']:.2f} %) {frame.verdict(shares['none'], at_most=most)}"
    )
    return {"trial_seconds": seconds, "workers": workers, "trials": count, "share": shares, "asked_at_most": most}


if __name__ == "__main__":
    main()
