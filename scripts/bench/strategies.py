"""Compare search strategies on learning curves (LCBench), with the run loop of a real search.

    python scripts/bench/strategies.py --lcbench data/lcbench                  # the 17 tasks for development
    python scripts/bench/strategies.py --lcbench data/lcbench --tasks held-out --seeds 12 --processes 2
    python scripts/bench/strategies.py --lcbench data/lcbench --tasks 3945 --seeds 2 --methods default tpe+median
    python scripts/bench/strategies.py --lcbench data/lcbench --epochs 8 --trainings 12    # few short trainings
    python scripts/bench/strategies.py --lcbench data/lcbench --methods "after 4" --judge "after 4"    # earlier studies

The folder contains `model.onnx` and `encoding.json` of the LCBench surrogate (YAHPO Gym, slds-lmu/yahpo_data). The
budget is 20 full trainings of 52 epochs, counted in epochs (`--epochs 8`: the same trainings, reported in 8 steps). The
score of a method is the best validation accuracy of a FULLY trained trial, averaged over seeds. Its speed is how many
times fewer epochs it needs than random search to reach random search's final mean, whose expectation is exact for 2,000
random trainings. Writes a table, `strategies.json` and the picture `strategies.png`. Needs onnxruntime, and matplotlib
for the picture.

`after 4` is the default with four earlier studies. Each has 50 random trials under `asha` on another development task,
chosen by the seed. `half misleading` means that half of these studies have inverted accuracies. The other methods learn
from no earlier study.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import geometric_mean, mean, median, stdev
from typing import Any

import frame
import numpy as np
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.pools import expected_best
from imgcls_search.jobs.replay import replay, table_catalog
from imgcls_search.space import parse
from imgcls_search.strategy.earlier import EarlierStudy, EarlierTrial

EPOCHS = 52
"""Epochs of a full training in the surrogate."""

DEVELOPMENT = [
    "3945",
    "34539",
    "126026",
    "146212",
    "167152",
    "167168",
    "167184",
    "167190",
    "167201",
    "168330",
    "168335",
    "168908",
    "189354",
    "189865",
    "189873",
    "189906",
    "189909",
]
HELD_OUT = [
    "7593",
    "126025",
    "126029",
    "167104",
    "167149",
    "167161",
    "167181",
    "167185",
    "167200",
    "168329",
    "168331",
    "168868",
    "168910",
    "189862",
    "189866",
    "189905",
    "189908",
]
NAMES = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
SPACE = """
config:
  batch_size: {int: [16, 512], log: true}
  learning_rate: {float: [1e-4, 1e-1], log: true}
  momentum: {float: [0.1, 0.99]}
  weight_decay: {float: [1e-5, 1e-1]}
  num_layers: {int: [1, 5]}
  max_units: {int: [64, 1024], log: true}
  max_dropout: {float: [0.0, 1.0]}
training: {epochs: %d}
"""
METHODS: Mapping[str, tuple[str, str]] = {
    "random": ("random", "none"),
    "random x5": ("random", "none"),
    "tpe": ("tpe", "none"),
    "tpe+median": ("tpe", "median"),
    "tpe+hyperband": ("tpe", "{hyperband: {min_epochs: 2, eta: 3}}"),
    "random+halving": ("random", "{halving: {min_epochs: 2, eta: 3}}"),
    "top-k after 1": ("random", "1"),
    "top-k after 5": ("random", "5"),
    "random+asha": ("random", "{asha: {min_epochs: 2, eta: 3}}"),
    "curves+brackets": ("curves", "brackets"),
    "default": ("auto", "asha"),
    "first rung 2": ("auto", "{asha: {min_epochs: 2}}"),
    "after 1": ("auto", "asha"),
    "after 4": ("auto", "asha"),
    "after 16": ("auto", "asha"),
    "after 4, half misleading": ("auto", "asha"),
    "after 16, half misleading": ("auto", "asha"),
}
"""Sampler and pruner; `median` decides like Optuna's `MedianPruner()` with its defaults, as the tests check."""

GOAL_POOL = 2000
"""Random full trainings per task from which the result of random search is computed; a dozen runs are too noisy."""

EARLIER_TRIALS = 50
"""Trials of each earlier study."""

REPEATS = 3
"""Number of different earlier studies per task; the seed chooses one."""

JUDGED = "default"
"""The method that is judged by default."""


def earlier_of(method: str) -> tuple[int, int]:
    """Return how many earlier studies a method learns from, and how many of them mislead."""
    if not method.startswith("after "):
        return 0, 0
    count = int(method.removeprefix("after ").split(",")[0])
    return count, count // 2 if "misleading" in method else 0


@dataclass(frozen=True)
class Budget:
    """The budget of a search."""

    epochs: int
    """Number of epochs in which a full training is reported."""

    trainings: int

    @property
    def total(self) -> int:
        """Epochs of all trials together."""
        return self.epochs * self.trainings


class Curves:
    """The curves of one task; the surrogate computes all epochs of a configuration at once."""

    def __init__(self, folder: Path, task: str, epochs: int) -> None:
        self.epochs = epochs
        self.session = _session(folder)
        self.task = json.loads((folder / "encoding.json").read_text())
        self.task = self.task.get("OpenML_task_id", self.task)[task]
        self.known: dict[TrialConfig, list[float]] = {}

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return the validation accuracy of an epoch."""
        return {"accuracy": self.curve(config)[round(epoch * EPOCHS / self.epochs) - 1]}

    def curve(self, config: TrialConfig) -> list[float]:
        """Return the accuracies of all epochs in the surrogate."""
        if config not in self.known:
            self.known[config] = self._ask(config, range(1, EPOCHS + 1))
        return self.known[config]

    def last(self, config: TrialConfig) -> float:
        """Return the accuracy of the last epoch."""
        return self._ask(config, [EPOCHS])[0]

    def _ask(self, config: TrialConfig, epochs: Sequence[int]) -> list[float]:
        row = [config.section("config")[name] for name in NAMES]
        asked = np.array([[epoch, *row] for epoch in epochs], np.float32)
        tasks = np.full((len(epochs), 1), self.task, np.int32)
        answers = self.session.run(None, {"x_cat": tasks, "x_cont": asked})[0]
        return [float(value) / 100 for value in answers[:, 1]]


class TurnedAround:
    """Inverted curves: the best configuration is the worst."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return 1 minus the accuracy."""
        return {"accuracy": 1 - self.curves.at(config, epoch)["accuracy"]}


@cache
def earlier_study(folder: Path, task: str, epochs: int, repeat: int, misleads: bool) -> EarlierStudy:
    """Return a study of random trials under `asha` on a task."""
    curves = Curves(folder, task, epochs)
    study = f"study: {{name: earlier, sampler: random, seed: {1000 + repeat}, trials: {EARLIER_TRIALS}, pruner: asha}}"
    space = parse(f"{study}\n{SPACE % epochs}", table_catalog(), source=task)
    outcome, _ = replay(space, TurnedAround(curves) if misleads else curves)
    trials = [
        EarlierTrial(settings=trial.candidate.params, reached=trial.epoch / epochs, value=trial.value_at(trial.epoch))
        for trial in outcome.record.trials
        if trial.epoch
    ]
    return EarlierStudy(name=task, trials=trials)


def earlier_studies(folder: Path, task: str, epochs: int, method: str, seed: int) -> list[EarlierStudy]:
    """Return the studies that a method learns from: of other development tasks, chosen by the seed."""
    count, misleading = earlier_of(method)
    known = json.loads((folder / "encoding.json").read_text())
    known = known.get("OpenML_task_id", known)
    others = [other for other in DEVELOPMENT if other != task and other in known]
    chosen = np.random.default_rng([int(task), count, seed]).permutation(others)[:count]
    repeat = seed % REPEATS
    return [earlier_study(folder, str(other), epochs, repeat, index < misleading) for index, other in enumerate(chosen)]


@cache
def random_configs(count: int) -> Sequence[TrialConfig]:
    """Return random draws of the space, the same for all tasks."""
    from imgcls_search.strategy.draws import draw_random
    from imgcls_search.strategy.view import View

    view = View(parse(f"study: {{name: goal}}\n{SPACE % EPOCHS}", table_catalog(), source="goal"), [], [], seed=0)
    return [draw_random(view, number, 0).config for number in range(count)]


def goal_of(folder: Path, task: str, trainings: int) -> float:
    """Return the exact expectation of the best of `trainings` random full trainings of a task."""
    curves = Curves(folder, task, EPOCHS)
    return expected_best([curves.last(config) for config in random_configs(GOAL_POOL)], trainings)


@cache
def _session(folder: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options)


def run_one(asked: tuple[Path, Budget, str, str, int]) -> dict[str, Any]:
    """Run one method on one task with one seed."""
    folder, given, task, method, seed = asked
    curves, (sampler, pruner) = Curves(folder, task, given.epochs), METHODS[method]
    budget = given.total * (5 if method == "random x5" else 1)
    screened = int(pruner) if pruner.isdigit() else None
    study = f"study: {{name: bench, sampler: {sampler}, seed: {seed}, trials: 1000, max_epochs: {budget}, pruner: "
    space = parse(f"{study}{'none' if screened else pruner}}}\n{SPACE % given.epochs}", table_catalog(), source=method)
    began = time.process_time()
    if screened:
        # Half of the budget screens configurations; then the best of them are trained one after another.
        space = replace(space, study={**space.study, "trials": budget // 2 // screened, "max_epochs": None})
        bests, trials = top_k(space, curves, screened, budget), budget // 2 // screened
    else:
        outcome, steps = replay(space, curves, earlier=earlier_studies(folder, task, given.epochs, method, seed))
        bests, trials = steps.bests, len(outcome.record.trials)
    thinking = (time.process_time() - began) / trials
    return {"task": task, "method": method, "seed": seed, "bests": bests, "trials": trials, "seconds": thinking}


def top_k(space: Any, curves: Curves, screened: int, budget: int) -> list[tuple[int, float]]:
    """Return the best-so-far of a common manual strategy: train everything for a few epochs, then finish the best."""
    from imgcls_search.strategy.draws import draw_random
    from imgcls_search.strategy.view import View

    configs = [draw_random(View(space, [], [], space.study["seed"]), n, 0).config for n in range(space.study["trials"])]
    configs.sort(key=lambda config: -curves.at(config, screened)["accuracy"])
    spent, bests = len(configs) * screened, []
    for config in configs:
        spent += curves.epochs - screened
        if spent > budget:
            break
        value = curves.at(config, curves.epochs)["accuracy"]
        if not bests or value > bests[-1][1]:
            bests.append((spent, value))
    return bests


def curve_of(bests: Sequence[tuple[int, float]], budget: int) -> list[float]:
    """Return the best value after each number of epochs, NaN before the first value."""
    found = np.full(budget + 1, np.nan)
    for spent, value in bests:
        found[spent:] = value
    return list(found)


def summarise(
    results: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    methods: Sequence[str],
    budget: int,
    goals: Mapping[str, float],
) -> dict[str, Any]:
    """Return for each method and task the final mean, its standard error and the speed-up over random search.

    `goals` are the expected results of random search with the budget.
    """
    curves = {
        (method, task): np.array(
            [curve_of(r["bests"], 5 * budget) for r in results if r["task"] == task and r["method"] == method]
        )
        for method in methods
        for task in tasks
    }
    found: dict[str, Any] = {method: {} for method in methods}
    for (method, task), each in curves.items():
        at = 5 * budget if method == "random x5" else budget
        finals, means = each[:, at], each.mean(axis=0)
        reached = np.flatnonzero(means[: at + 1] >= goals[task])
        error = float(finals.std(ddof=1) / len(finals) ** 0.5) if len(finals) > 1 else 0.0
        speed = budget / int(reached[0]) if len(reached) else 0.0
        found[method][task] = {"mean": float(finals.mean()), "error": error, "speed": speed}
    return found


def verdicts(found: Mapping[str, Any], tasks: Sequence[str], judged: str = JUDGED) -> dict[str, Any]:
    """Return the figures of the judged method that the project has goals for."""
    ours = found[judged]
    speeds = [ours[task]["speed"] for task in tasks]
    answer: dict[str, Any] = {"median_speed": median(speeds), "worst_speed": min(speeds)}
    if min(speeds) > 0:
        answer["geometric_mean_speed"] = geometric_mean(speeds)
    if "random x5" in found:
        answer["at_least_random_x5"] = sum(ours[t]["mean"] >= found["random x5"][t]["mean"] for t in tasks)
    if "tpe+median" in found:
        answer["better_than_optuna_on"] = sum(is_worse(found["tpe+median"][t], ours[t]) for t in tasks)
        answer["worse_than_optuna_on"] = [t for t in tasks if is_worse(ours[t], found["tpe+median"][t])]
    return answer


def is_worse(ours: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Return whether a mean is below another one by more than two standard errors of their difference."""
    return ours["mean"] < other["mean"] - 2 * (ours["error"] ** 2 + other["error"] ** 2) ** 0.5


def show(found: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """Print the table: accuracy after the budget and, in parentheses, the speed-up."""
    print("task".ljust(16) + "".join(name.rjust(18) for name in found))
    for task in tasks:
        cells = (f"{found[m][task]['mean']:.4f} ({found[m][task]['speed']:.1f}x)" for m in found)
        print(task.ljust(16) + "".join(cell.rjust(18) for cell in cells))
    for label, pick in (("median speed", median), ("worst speed", min)):
        cells = (f"{pick([found[m][t]['speed'] for t in tasks]):.2f}x" for m in found)
        print(label.ljust(16) + "".join(cell.rjust(18) for cell in cells))


def draw(
    results: Sequence[Mapping[str, Any]], tasks: Sequence[str], methods: Sequence[str], budget: int, path: Path
) -> None:
    """Draw the best value so far against epochs, one panel per task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for task, axis in zip(tasks, axes.flat, strict=False):
        for method in methods:
            if method != "random x5":
                several = [curve_of(r["bests"], budget) for r in results if _is(r, task, method)]
                axis.plot(np.mean(several, axis=0), label=method)
        axis.set_title(task)
    axes.flat[0].legend(fontsize=6)
    figure.supxlabel("epochs of all trials together")
    figure.supylabel("best fully trained validation accuracy, mean over seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"written: {path}")


def _is(result: Mapping[str, Any], task: str, method: str) -> bool:
    return bool(result["task"] == task and result["method"] == method)


def collect(asked: Sequence[tuple[Path, Budget, str, str, int]], processes: int, log: Path) -> list[dict[str, Any]]:
    """Run everything that is not in the log yet and append each result, so that a stopped run can resume."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    keys = {(r["task"], r["method"], r["seed"]) for r in done}
    left = [each for each in asked if each[2:] not in keys]
    # If a process dies, this pool ends with an error; multiprocessing.Pool would wait forever.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool, log.open("a") as file:
        for ended in as_completed([pool.submit(run_one, each) for each in left]):
            result = ended.result()
            file.write(json.dumps(result) + "\n")
            file.flush()
            done.append(result)
            print(f"{len(done)}/{len(asked)}: {result['method']} on {result['task']}", flush=True)
    return [r for r in done if (r["task"], r["method"], r["seed"]) in {each[2:] for each in asked}]


def main() -> None:
    """Run the benchmark."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--lcbench", type=Path, required=True, help="the folder with model.onnx and encoding.json")
    parser.add_argument("--tasks", nargs="+", default=["development"], help="development, held-out, or task ids")
    alone = [method for method in METHODS if not earlier_of(method)[0]]
    parser.add_argument("--methods", nargs="+", default=alone, choices=list(METHODS))
    parser.add_argument("--judge", default=JUDGED, choices=list(METHODS), help="what the figures at the end are of")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"that report a training; default: {EPOCHS}")
    parser.add_argument("--trainings", type=int, default=20, help="full ones that the budget is for; default: 20")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    groups = {"development": DEVELOPMENT, "held-out": HELD_OUT}
    tasks = [task for name in given.tasks for task in groups.get(name, [name])]
    methods = [name for name in METHODS if name in {*given.methods, "random", given.judge}]
    budget = Budget(given.epochs, given.trainings)
    asked = [(given.lcbench, budget, t, m, s) for t in tasks for m in methods for s in range(given.seeds)]
    given.out.mkdir(parents=True, exist_ok=True)
    with frame.results("strategies", given.out) as written:
        results = collect(asked, given.processes, given.out / "strategies.jsonl")
        goals = {task: goal_of(given.lcbench, task, given.trainings) for task in tasks}
        found = summarise(results, tasks, methods, budget.total, goals)
        show(found, tasks)
        thinking = [1e3 * r["seconds"] for r in results if r["method"] == given.judge]
        ends = {**verdicts(found, tasks, given.judge), "ms_a_trial": round(mean(thinking), 1)}
        ends["ms_a_trial_deviation"] = round(stdev(thinking), 1) if len(thinking) > 1 else 0.0
        print(json.dumps(ends))
        written |= {
            "seeds": given.seeds,
            "tasks": tasks,
            "budget": vars(budget),
            "goals": goals,
            "methods": found,
            "verdicts": ends,
        }
    draw(results, tasks, methods, budget.total, given.out / "strategies.png")


if __name__ == "__main__":
    main()
