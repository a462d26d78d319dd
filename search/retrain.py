"""A configuration trained for good: several seeds, then the sealed test split."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from search import teachers
from search.config import TrialConfig
from search.data import Prepared
from search.errors import NoResultError, StudyError, UserError
from search.executors.helper import Helper
from search.executors.local import LocalExecutor, usable_slots
from search.export import now, write_text
from search.faults import more_parts
from search.protocol import EpochEnded, Event, Failed, Job, MilestoneReached, Portion, Scored, Started, WorkerDied
from search.study.files import StudyFiles
from search.study.record import load
from search.trial import compresses

MOST_DEATHS = 2
"""Workers that may die under one seed before the training is given up."""


class TrainingWatcher(Protocol):
    """Somebody who looks on."""

    def say(self, text: str) -> None:
        """Take a line that a person should see."""

    def decoding(self, done: int, total: int) -> None:
        """Take notice of images being decoded."""

    def epoch_ended(self, seed: int, metrics: Mapping[str, float], epochs: int) -> None:
        """Take notice of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train, how often and where the results go."""

    config: TrialConfig
    seeds: Sequence[int]
    portion: Portion
    out: Path
    studies: Path
    """Where studies and decoded images lie."""

    origin: Mapping[str, Any] | None
    """The study and trial that the configuration was exported from, where that is known."""


def train(training: Training, watcher: TrainingWatcher) -> dict[str, Any]:
    """Train with every seed, save the weights, open the test split once and write `metrics.json`.

    Raises:
        UserError: the configuration, the data or the folder is not fit for it.
        NoResultError: a training diverged or failed.
    """
    _claim(training.out)
    with ExitStack() as stack:
        helper = Helper(training.studies)
        stack.callback(helper.close)
        devices = helper.devices(training.config.section("training")["device"])
        executor = LocalExecutor(usable_slots(devices, None, len(training.seeds)))
        stack.callback(executor.close)
        data = helper.prepare(training.config, watcher.decoding)
        helper.measure(training.config, data.shape)
        taught = teachers.settle_one(training.config, training.studies, training.origin, data, helper)
        histories = _train_all(training, data, taught[0] if taught is not None else None, executor, watcher)
        versions = helper.versions()
    # From here on the test split is open; that is written down where the search can be asked about it.
    opening = {"by": "train", "at": now(), "seeds": list(training.seeds), "portion": training.portion}
    is_noted = _note_opening(training, opening)
    report = _report(training, data, histories, versions)
    if taught is not None:
        report["teacher"] = taught[1]
    report["test_openings"] = [{**opening, "noted_in_study": is_noted}]
    write_text(training.out / "metrics.json", json.dumps(report, indent=2) + "\n")
    return report


def weights_path(out: Path, seed: int) -> Path:
    """Return where the weights of a seed are saved."""
    return out / f"seed-{seed}.pt"


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean, the standard deviation and the half-width of the 95 % interval (Student's t) of some values."""
    from scipy.stats import t

    n = len(values)
    std = statistics.stdev(values) if n > 1 else None
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n) if std is not None else None
    return {"mean": statistics.fmean(values), "std": std, "ci95": half}


def _claim(out: Path) -> None:
    if (out / "metrics.json").exists():
        raise StudyError(f"{out}: holds the results of a training already; choose another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error


def _train_all(
    training: Training, data: Prepared, teacher: str | None, executor: LocalExecutor, watcher: TrainingWatcher
) -> dict[int, list[dict[str, float]]]:
    histories: dict[int, list[dict[str, float]]] = {seed: [] for seed in training.seeds}
    waiting = list(training.seeds)
    deaths = dict.fromkeys(training.seeds, 0)
    unfinished = set(training.seeds)
    parts = dict.fromkeys(training.seeds, 1)
    epochs: int = training.config.section("training")["epochs"]
    batch_size: int = training.config.section("training")["batch_size"]
    while unfinished:
        while waiting and executor.free_slots():
            seed = waiting.pop(0)
            executor.start(replace(_job(training, data, teacher, seed, epochs), micro_batches=parts[seed]))
        event = executor.next_event(0.5)
        if event is None:
            continue
        seed = event.trial
        match event:
            case Started(history=history):
                histories[seed] = [dict(metrics) for metrics in history]
            case EpochEnded(metrics=metrics):
                histories[seed].append(dict(metrics))
                watcher.epoch_ended(seed, metrics, epochs)
            case Scored(metrics=metrics):
                # As it is deployed, and so what it is worth.
                histories[seed].append({**histories[seed][-1], **metrics})
            case MilestoneReached():
                unfinished.discard(seed)
            case Failed(kind="out_of_memory", reason=reason) | WorkerDied(is_out_of_memory=True, reason=reason) if (
                more := more_parts(batch_size, parts[seed])
            ):
                parts[seed] = more
                watcher.say(f"seed {seed}: {reason}; it goes on with {more} micro-batches a batch")
                waiting.insert(0, seed)
            case Failed(reason=reason):
                raise NoResultError(f"seed {seed}: {reason} (log: {training.out / f'seed-{seed}.log'})")
            case WorkerDied(reason=reason):
                deaths[seed] += 1
                if deaths[seed] > MOST_DEATHS:
                    raise NoResultError(f"seed {seed}: {reason}, {deaths[seed]} times")
                watcher.say(f"seed {seed}: {reason}; it goes on from its last checkpoint")
                waiting.insert(0, seed)
            case Event():
                pass
    return histories


def _job(training: Training, data: Prepared, teacher: str | None, seed: int, epochs: int) -> Job:
    exports = compresses(training.config)
    return Job(
        trial=seed,
        config=training.config,
        data=data.to_dict(),
        seed=seed,
        portion=training.portion,
        until_epoch=epochs,
        from_epoch=0,
        checkpoint=str(weights_path(training.out, seed)),
        log=str(training.out / f"seed-{seed}.log"),
        is_scored=exports,
        artifact=str(weights_path(training.out, seed).with_suffix(".onnx")) if exports else "",
        teacher=teacher,
    )


def _report(
    training: Training,
    data: Prepared,
    histories: Mapping[int, Sequence[Mapping[str, float]]],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    # Imported when the workers are done: until then this process needs no torch.
    from search.evaluate import measure_on, read_network

    test: dict[int, dict[str, float]] = {}
    for seed in training.seeds:
        path = weights_path(training.out, seed)
        network, config, known = read_network(path)
        # What starts from pretrained weights is normalised as they are.
        seen = replace(data, mean=known.mean, std=known.std)
        test[seed] = measure_on(network, config, seen, "test").metrics
    names = list(test[training.seeds[0]])
    return {
        "config": training.config.to_dict(),
        "origin": dict(training.origin) if training.origin is not None else None,
        "trained_on": training.portion,
        "seeds": list(training.seeds),
        "images": dict(data.counts),
        "fingerprint": data.fingerprint,
        "validation": {str(seed): dict(history[-1]) for seed, history in histories.items() if history},
        "test": {str(seed): metrics for seed, metrics in test.items()},
        "summary": {name: interval([test[seed][name] for seed in training.seeds]) for name in names},
        "versions": dict(versions),
    }


def _note_opening(training: Training, opening: Mapping[str, Any]) -> bool:
    """Record in the study that its test split was opened; False where the study cannot be found."""
    if training.origin is None:
        return False
    try:
        record = load(StudyFiles(training.studies, training.origin["study"]))
    except StudyError:
        return False
    openings = [*record.facts.get("test_openings", []), {**opening, "trial": training.origin["trial"]}]
    record.set_fact("test_openings", openings)
    return True
