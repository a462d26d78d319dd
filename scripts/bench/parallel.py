"""Measure searches with many workers on learning curves (LCBench): do draws repeat each other, and at what cost?

    python scripts/bench/parallel.py --lcbench data/lcbench                         # 1, 8 and 64 workers, minutes
    python scripts/bench/parallel.py --lcbench data/lcbench --workers 512 --tasks 3945 --seeds 1
    python scripts/bench/parallel.py --lcbench data/lcbench --samplers curves tpe random --workers 8 64

The folder contains `model.onnx` and `encoding.json`, as for `strategies.py`. Trials run in parallel on a simulated
clock, where an epoch takes 0.5 to 2 seconds, depending on the configuration. The budget of a search is the epochs of 20
full trainings, and the same again for every 8 workers beyond the first 8. Each row shows: `at equal epochs`, how many
times fewer epochs than random search (all fully trained, with as many workers) the sampler needs for random search's
result; `by the clock`, the same in simulated time; `beside`, the median distance of a draw to the nearest trial without
results / that of random draws; `repeats`, the number of draws that repeat an earlier one; and the processor time of a
draw in milliseconds. Writes parallel.json.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import geometric_mean, mean, median
from typing import Any

import frame
import numpy as np
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.replay import replay, table_catalog
from imgcls_search.signature import build
from imgcls_search.space import Space, parse
from imgcls_search.strategy.encoding import Encoding
from imgcls_search.strategy.samplers import SAMPLERS, Sampler
from imgcls_search.strategy.view import View
from imgcls_search.trial import Candidate
from strategies import EPOCHS, SPACE, Curves

TASKS = ["3945", "126026", "167168", "168335", "189354", "189906"]
TRAININGS = 20
WORKERS_OF_BUDGET = 8
"""The budget is `TRAININGS` full trainings for up to this many workers."""


class Timed:
    """Curves whose epochs take different times."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return the accuracy of an epoch and its seconds."""
        return {**self.curves.at(config, epoch), "seconds": seconds_of(config)}


def seconds_of(config: TrialConfig) -> float:
    """Return the seconds of an epoch, 0.5 to 2, which depend only on the configuration."""
    return 0.5 * 4 ** (int(config.digest()[:8], 16) / 16**8)


class Watched:
    """A sampler that also records the distance of each draw to running trials without results."""

    def __init__(self, sampler: Sampler, space: Space) -> None:
        self.sampler = sampler
        self.encoding = Encoding(space)
        self.rows: dict[int, Any] = {}
        self.seen: set[TrialConfig] = set()
        self.distances: list[float] = []
        self.repeats = 0
        self.seconds = 0.0
        self.count = 0

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return the sampler's draw, and record its time and distance."""
        began = time.process_time()
        found = self.sampler.draw(view, number, attempt)
        self.seconds += time.process_time() - began
        self.count += 1
        if found is not None:
            self._note(view, number, found)
        return found

    def _note(self, view: View, number: int, found: Candidate) -> None:
        self.repeats += found.config in self.seen
        self.seen.add(found.config)
        row = self.encoding.rows([found.params])[0]
        self.rows[number] = row
        waiting = [
            self.rows[trial.number]
            for trial in view.trials
            if trial.state == "running" and not trial.judged and trial.number in self.rows
        ]
        if waiting:
            self.distances.append(float(np.sqrt(((np.array(waiting) - row) ** 2).sum(axis=1)).min()))


def run_one(asked: tuple[Path, str, str, str, int, int, float]) -> dict[str, Any]:
    """Run one search."""
    folder, task, sampler, pruner, workers, seed, share = asked
    epochs = round(share * TRAININGS * EPOCHS * max(1, workers / WORKERS_OF_BUDGET))
    study = f"{{name: bench, sampler: {sampler}, seed: {seed}, trials: 100000, max_epochs: {epochs}, pruner: {pruner}}}"
    space = parse(f"study: {study}\n{SPACE % EPOCHS}", table_catalog(), source="parallel")
    watched = Watched(build(SAMPLERS, space.sampler, space=space), space)
    outcome, steps = replay(space, Timed(Curves(folder, task, EPOCHS)), workers=workers, sampler=watched)
    return {
        "task": task,
        "sampler": f"{sampler}+{pruner}",
        "workers": workers,
        "seed": seed,
        "epochs": epochs,
        "bests": steps.bests,
        "moments": steps.moments,
        "seconds": steps.seconds,
        "distance": median(watched.distances) if watched.distances else float("nan"),
        "repeats": watched.repeats,
        "trials": len(outcome.record.trials),
        "milliseconds": 1000 * watched.seconds / max(1, watched.count),
    }


def speed(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], *, by_clock: bool) -> float:
    """Return how many times less a method needs for random search's mean result; 0 if it never reaches it."""
    goal = mean(run["bests"][-1][1] for run in theirs)
    spent = mean(run["seconds"] if by_clock else run["epochs"] for run in theirs)
    marks = np.linspace(0, spent, 2001)[1:]
    curves = []
    for run in ours:
        at = run["moments"] if by_clock else [epochs for epochs, _ in run["bests"]]
        found = np.zeros(len(marks))
        for moment, (_, value) in zip(at, run["bests"], strict=True):
            found[marks >= moment] = value
        curves.append(found)
    reached = np.flatnonzero(np.mean(curves, axis=0) >= goal)
    return float(spent / marks[reached[0]]) if len(reached) else 0.0


def main() -> None:
    """Run all searches and print a row for each sampler and number of workers."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--lcbench", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--samplers", nargs="+", default=["auto", "tpe"])
    parser.add_argument("--pruner", default="asha")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--share", type=float, default=1.0, help="of the budget")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    methods = [("random", "none"), *((sampler, arguments.pruner) for sampler in arguments.samplers)]
    asked = [
        (arguments.lcbench, task, *method, workers, seed, arguments.share)
        for workers in arguments.workers
        for task in arguments.tasks
        for method in methods
        for seed in range(arguments.seeds)
    ]
    with frame.results("parallel", arguments.out) as written:
        with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(run_one, asked))
        written["rows"] = table(found, arguments.workers, arguments.tasks, methods)


def table(
    found: Sequence[Mapping[str, Any]],
    workers_of: Sequence[int],
    tasks: Sequence[str],
    methods: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Return a row for each sampler and number of workers, and print it."""
    rows = []
    for workers in workers_of:
        here = [run for run in found if run["workers"] == workers]
        base = {t: [r for r in here if r["task"] == t and r["sampler"] == "random+none"] for t in tasks}
        beside = mean(run["distance"] for runs in base.values() for run in runs)
        for sampler, pruner in methods:
            name = f"{sampler}+{pruner}"
            mine = {t: [r for r in here if r["task"] == t and r["sampler"] == name] for t in tasks}
            runs = [run for each in mine.values() for run in each]
            row = {"workers": workers, "sampler": name}
            for label, by_clock in (("at equal epochs", False), ("by the clock", True)):
                speeds = [speed(mine[task], base[task], by_clock=by_clock) for task in tasks]
                row[label] = median(speeds)
                row[f"{label}, geometric mean"] = geometric_mean(speeds) if min(speeds) > 0 else 0.0
            row["beside"] = mean(run["distance"] for run in runs) / beside
            row["repeats"] = sum(run["repeats"] for run in runs)
            row["trials"] = mean(run["trials"] for run in runs)
            row["milliseconds"] = mean(run["milliseconds"] for run in runs)
            rows.append(row)
            shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
            print(", ".join(f"{key} {value}" for key, value in zip(row, shown, strict=True)), flush=True)
    return rows


if __name__ == "__main__":
    main()
