"""Fill studies with trials in seconds, and simulate workers: for benchmarks and load tests."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from imgcls_search.protocol import CheckpointSaved, EpochEnded, Event, Job, MilestoneReached, Started, Stopped
from imgcls_search.space import Space
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.view import View
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.rows import Rows
from imgcls_search.trial import SIZES, Trial
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState

Attributes = Callable[[Trial], Mapping[str, str]]
"""Returns the attributes to store with a trial: names and JSON texts."""

EPOCHS = 10
DIFFERENT = 2000
"""Largest number of different configurations."""

SPACE = """
study: {{trials: 100000, sampler: {sampler}, pruner: {{halving: {{min_epochs: 2, eta: 3}}}}}}
data: {{digits: {{}}}}
augment: {{crop_padding: {{int: [0, 2]}}}}
model:
  vit:
    patch_size: {{choice: [2, 4]}}
    width: {{int: [32, 96], step: 32}}
    depth: {{int: [2, 6]}}
    mlp_ratio: {{choice: [2, 4]}}
    dropout: {{float: [0.0, 0.2]}}
optimizer: {{adamw: {{lr: {{float: [1e-4, 1e-2], log: true}}, weight_decay: {{float: [0.0, 0.3]}}}}}}
loss: {{cross_entropy: {{label_smoothing: {{float: [0.0, 0.2]}}}}}}
training: {{epochs: {epochs}, batch_size: {{choice: [32, 64]}}}}
"""
"""A space with ten parameters."""


def curve(quality: float) -> list[dict[str, float]]:
    """Return the metrics of a trial's epochs in the form in which a worker reports them."""
    return [
        {
            "epoch": epoch,
            "train_loss": 2.3 / epoch,
            "accuracy": quality * (1 - 1 / (epoch + 1)),
            "macro_f1": quality * (1 - 1 / (epoch + 1)),
            "loss": 2.3 / epoch,
            "top5_accuracy": 0.9,
            "seconds": 1.2345,
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def make_trials(space: Space, count: int) -> list[Trial]:
    """Return complete trials of random configurations; these repeat, because drawing one takes 1 ms."""
    view = View(space, [], [], seed=1)
    candidates = [draw_random(view, number, 0) for number in range(min(count, DIFFERENT))]
    quality = random.Random(0)  # noqa: S311
    trials = []
    for number in range(count):
        trial = Trial(
            number=number,
            candidate=candidates[number % DIFFERENT],
            seed=number,
            sizes=dict.fromkeys(SIZES, 123_456),
            metric="accuracy",
            state="complete",
            epochs=curve(quality.random()),
            judged=EPOCHS,
            until=EPOCHS,
        )
        trial.values = (trial.epochs[-1]["accuracy"],)
        trials.append(trial)
    return trials


def fill(storage: RDBStorage | Rows, study: optuna.Study, trials: Sequence[Trial], attributes: Attributes) -> None:
    """Append trials to the only study of a database by inserting rows into Optuna's tables.

    With `add_trials`, 10,000 trials would take minutes.
    """
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    there = len(study.get_trials(deepcopy=False))
    rows: dict[Any, list[dict[str, Any]]] = {}
    for number, trial in enumerate(trials, start=there):
        key = {"trial_id": number + 1}
        rows.setdefault(models.TrialModel, []).append(
            {
                **key,
                "number": number,
                "study_id": study._study_id,
                "state": TrialState.COMPLETE,
                "datetime_start": now,
                "datetime_complete": now,
            }
        )
        for name, distribution in trial.candidate.distributions.items():
            value = distribution.to_internal_repr(trial.candidate.params[name])
            text = distribution_to_json(distribution)
            rows.setdefault(models.TrialParamModel, []).append(
                {**key, "param_name": name, "param_value": value, "distribution_json": text}
            )
        for step, metrics in enumerate(trial.epochs, start=1):
            rows.setdefault(models.TrialIntermediateValueModel, []).append(
                {
                    **key,
                    "step": step,
                    "intermediate_value": metrics["accuracy"],
                    "intermediate_value_type": models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE,
                }
            )
        rows.setdefault(models.TrialValueModel, []).append(
            {
                **key,
                "objective": 0,
                "value": trial.epochs[-1]["accuracy"],
                "value_type": models.TrialValueModel.TrialValueType.FINITE,
            }
        )
        for name, text in attributes(trial).items():
            rows.setdefault(models.TrialUserAttributeModel, []).append({**key, "key": name, "value_json": text})
    with storage.engine.begin() as connection:
        for model, found in rows.items():
            connection.execute(sqlalchemy.insert(model.__table__), found)


def attributes_like_the_record(folder: Path, space: Space) -> Attributes:
    """Write one trial with the record, and return a function that makes the same attributes for other trials."""
    record = new_record(folder, space, "template")
    (trial,) = make_trials(space, 1)
    epochs, values = trial.epochs, trial.values
    trial.epochs, trial.values, trial.state = [], None, "running"
    record.add(trial)
    for metrics in epochs:
        record.add_epoch(trial, metrics)
    record.set_plan(trial, until=EPOCHS, paused=False)
    record.complete(trial, values or ())
    kept = record.study.get_trials()[0].user_attrs

    def of(other: Trial) -> dict[str, str]:
        own = {"config": other.candidate.config.to_dict(), "epochs": other.epochs, "seed": other.seed}
        return {name: json.dumps(own.get(name, value)) for name, value in kept.items()}

    return of


def new_record(folder: Path, space: Space, name: str) -> Record:
    """Create an empty study."""
    files = StudyFiles(folder, name)
    files.make()
    return records.create(files, space.objectives, {"space": records.to_json(space.document)})


class Simulated:
    """An executor with simulated trials and a clock that skips all waiting."""

    def __init__(self, workers: int, seconds: float, epochs: int) -> None:
        self.workers, self.epoch_seconds = workers, seconds / epochs
        self.skipped = 0.0
        self.busy: dict[int, bool] = {}
        self.coming: list[tuple[float, int, Event]] = []
        self.order = itertools.count()

    def free_slots(self) -> int:
        """Return how many jobs could start now."""
        return self.workers - len(self.busy)

    def start(self, job: Job) -> None:
        """Schedule the events of a trial."""
        self.busy[job.trial] = True
        now = self.clock()
        history = curve(1 / (1 + job.seed % 7))[: job.from_epoch]
        self._later(now, Started(trial=job.trial, history=history, worker="worker-0"))
        for metrics in curve(1 / (1 + job.seed % 7))[job.from_epoch : job.until_epoch]:
            now += self.epoch_seconds
            self._later(now, CheckpointSaved(trial=job.trial, epoch=int(metrics["epoch"])))
            entry = {**metrics, "seconds": self.epoch_seconds}
            self._later(now, EpochEnded(trial=job.trial, metrics=entry))
        self._later(now, MilestoneReached(trial=job.trial))

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event; advance the clock instead of waiting."""
        now = self.clock()
        if not self.coming or self.coming[0][0] > now + timeout:
            self.skipped += timeout
            return None
        due, _, event = heapq.heappop(self.coming)
        self.skipped += max(0.0, due - now)
        if isinstance(event, (MilestoneReached, Stopped)):
            self.busy.pop(event.trial, None)
        return event

    def stop(self, trial: int) -> None:
        """End a trial now."""
        self.coming = [entry for entry in self.coming if entry[2].trial != trial]
        heapq.heapify(self.coming)
        self._later(self.clock(), Stopped(trial=trial))

    def kill(self, trial: int, reason: str) -> None:
        """Raise an error: simulated epochs do not hang, so no trial needs to be killed."""
        raise NotImplementedError

    def clock(self) -> float:
        """Return real time plus the skipped time."""
        return time.perf_counter() + self.skipped

    def close(self) -> None:
        """Do nothing: there are no processes."""

    def _later(self, due: float, event: Event) -> None:
        heapq.heappush(self.coming, (due, next(self.order), event))


class Nobody:
    """A watcher that does nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def decoding(self, done: int, total: int) -> None:
        """Do nothing."""

    def changed(self, search: Any) -> None:
        """Do nothing."""
