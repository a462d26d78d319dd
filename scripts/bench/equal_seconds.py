"""Shared by the benchmarks of recipes: trainings of equal processor time, paired by seed, and confidence intervals."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, describe, open_test
from imgcls_search.errors import StoppedError
from imgcls_search.training.device import settle_in
from imgcls_search.training.evaluation import evaluate
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit, train_epoch
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, pipeline
from scipy import stats

LEVEL = 0.95
MOST_EPOCHS = 1000


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: a configuration whose number of epochs follows from the available time."""

    name: str
    config: Callable[[int], TrialConfig]
    """Returns the configuration of a training with a number of epochs."""

    stages: Callable[[int], Sequence[int]] = lambda epochs: [0] * epochs
    """Returns a number for each epoch of a training; epochs with the same number take the same time."""


class Bench:
    """Trains arms on one thread for equal processor time."""

    def __init__(self, cache: Path, seconds: float, rounds: int = 5) -> None:
        """Store the settings; epochs are timed in `rounds` rounds to find how many fit into the seconds."""
        settle_in("cpu")
        self.cache, self.seconds, self.rounds = cache, seconds, rounds
        self._known: dict[str, tuple[Prepared, ImageSet]] = {}

    def images(self, config: TrialConfig) -> tuple[Prepared, ImageSet]:
        """Return the images of a configuration and those of its test split; decode them only once."""
        key = config.digest("data", "image")
        if key not in self._known:
            data = pipeline.prepare_data(config, self.cache)
            test = open_test(describe(config.component("data"), self.cache), data)
            self._known[key] = data, image_sets.on_device(test, data, "cpu")
        return self._known[key]

    def session(self, config: TrialConfig, seed: int) -> tuple[Session, ImageSet, ImageSet | None]:
        """Return a session with its training and validation images."""
        data, _ = self.images(config)
        train, validation = image_sets.image_sets(data, "train", "cpu")
        return pipeline.new_session(config, data, seed=seed, device="cpu"), train, validation

    def epochs_of(self, arms: Sequence[Arm], steps: int = 5) -> dict[str, int]:
        """Return for each arm the number of epochs whose time is closest to the seconds.

        Each kind of epoch is timed right after an epoch of the first arm, and the median ratio of the two counts:
        unlike the processor's speed, it hardly depends on other work on the machine. The ratios are multiplied by the
        seconds of the first arm's fastest epoch.
        """
        first, *_ = arms
        # Take a training of many epochs, so that it includes all stages.
        kinds = [(arm, stage, arm.stages(100).index(stage)) for arm in arms for stage in sorted(set(arm.stages(100)))]
        ratios: dict[tuple[str, int], list[float]] = {(arm.name, stage): [] for arm, stage, _ in kinds}
        units = []
        for _ in range(self.rounds):
            for arm, stage, epoch in kinds:
                units.append(self._time(first.config(100), 0, steps))
                ratios[arm.name, stage].append(self._time(arm.config(100), epoch, steps) / units[-1])
        costs = {kind: min(units) * statistics.median(found) for kind, found in ratios.items()}
        return {
            arm.name: _nearest(arm, {stage: cost for (name, stage), cost in costs.items() if name == arm.name}, self)
            for arm in arms
        }

    def _time(self, config: TrialConfig, epoch: int, steps: int) -> float:
        """Return the seconds of an epoch, estimated from a few training steps and one evaluation."""
        session, train, validation = self.session(config, 0)
        session.history = [{}] * epoch
        # The first step allocates buffers and optimizer state.
        _take_steps(session, train, 1)
        started = time.process_time()
        taken = _take_steps(session, train, steps)
        training = (time.process_time() - started) / taken * math.ceil(len(train) / session.recipe.batch_size)
        started = time.process_time()
        if validation is not None:
            evaluate(session.model, validation)
        return training + time.process_time() - started

    def train(self, arm: Arm, epochs: int, seed: int) -> dict[str, Any]:
        """Train, and return the test accuracy and the processor time."""
        config = arm.config(epochs)
        session, train, validation = self.session(config, seed)
        started = time.process_time()
        history = list(fit(session, train, validation, until_epoch=epochs))
        seconds = time.process_time() - started
        _, test = self.images(config)
        return {
            "arm": arm.name,
            "seed": seed,
            "epochs": epochs,
            "seconds": round(seconds, 2),
            "validation": [round(epoch["accuracy"], 4) for epoch in history],
            "test": round(evaluate(session.deployed, test)["accuracy"], 4),
        }


def _take_steps(session: Session, train: ImageSet, most: int) -> int:
    """Take at most `most` steps of an epoch; return how many were taken."""
    asked = 0

    def is_enough() -> bool:
        nonlocal asked
        asked += 1
        return asked > most

    with contextlib.suppress(StoppedError):
        train_epoch(session, train, is_enough)
    return min(asked, most)


def _nearest(arm: Arm, costs: Mapping[int, float], bench: Bench) -> int:
    """Return the number of epochs whose cost is closest to the seconds."""
    seconds = bench.seconds
    epochs, before, cost = 0, 0.0, 0.0
    while cost < seconds and epochs < MOST_EPOCHS:
        epochs, before = epochs + 1, cost
        cost = sum(costs[stage] for stage in arm.stages(epochs))
    return epochs if epochs == 1 or cost - seconds < seconds - before else epochs - 1


def compare(file: Path, bench: Bench, arms: Sequence[Arm], seeds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train every arm with every seed, write each result to the file, and return the differences to the first arm.

    If the file has results with the same settings, resume from them.
    """
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("settings") != settings:
        known = {"settings": dict(settings), "trainings": []}
    for seed in range(seeds):
        for arm in arms:
            if any((one["arm"], one["seed"]) == (arm.name, seed) for one in known["trainings"]):
                continue
            if "epochs" not in known:
                known["epochs"] = bench.epochs_of(arms)
                print(f"epochs: {known['epochs']}", flush=True)
            known["trainings"].append(bench.train(arm, known["epochs"][arm.name], seed))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known, indent=1) + "\n")
            print({name: value for name, value in known["trainings"][-1].items() if name != "validation"}, flush=True)
    return {**known, "arms": {arm.name: summary(known["trainings"], arms[0].name, arm.name) for arm in arms}}


def summary(trainings: Sequence[Mapping[str, Any]], first: str, name: str) -> dict[str, Any]:
    """Return the mean accuracy of an arm and its difference to the first arm, with a 95 % interval."""
    of = {(one["arm"], one["seed"]): one for one in trainings}
    seeds = [seed for arm, seed in of if arm == name and (first, seed) in of]
    found = [of[name, seed]["test"] for seed in seeds]
    differences = [of[name, seed]["test"] - of[first, seed]["test"] for seed in seeds]
    ratios = [of[name, seed]["seconds"] / of[first, seed]["seconds"] for seed in seeds]
    result = {
        "n": len(seeds),
        "mean": round(statistics.fmean(found), 4),
        "std": round(statistics.stdev(found), 4) if len(found) > 1 else None,
        "epochs": of[name, seeds[0]]["epochs"],
        "seconds_over_first": round(statistics.fmean(ratios), 3),
    }
    if name != first:
        result["difference"] = round(statistics.fmean(differences), 4)
        result["interval"] = [round(end, 4) for end in interval(differences)]
        result["wins"] = sum(difference > 0 for difference in differences)
    return result


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences, by Student's t."""
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return -math.inf, math.inf
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean - reach, mean + reach


def show(name: str, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the results."""
    for arm, found in arms.items():
        line = f"{name}, {arm}: test accuracy {found['mean']:.4f} (std {found['std']}), {found['epochs']} epochs, "
        line += f"seconds / first {found['seconds_over_first']:.2f}, n {found['n']}"
        if "difference" in found:
            low, high = found["interval"]
            line += f"; difference {found['difference']:+.4f} (95 % {low:+.4f} to {high:+.4f}), wins {found['wins']}"
        print(line)
