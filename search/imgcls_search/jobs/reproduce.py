"""Retrain a trial from its study's record, and compare the two epoch by epoch."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from imgcls_search.catalog import catalog
from imgcls_search.confidence import t_quantile
from imgcls_search.config import Component
from imgcls_search.errors import SearchError, StudyError, first_line
from imgcls_search.jobs.confirm import fresh_seeds
from imgcls_search.jobs.export import find_trial
from imgcls_search.jobs.pace import numbered
from imgcls_search.jobs.pretrained import PretrainedNetworks
from imgcls_search.jobs.trainer import Trainer, TrainingWatcher
from imgcls_search.measures import main_measure
from imgcls_search.orchestrator import code_used, study_data, teachers, weights_used
from imgcls_search.protocol import Job
from imgcls_search.space import dump, parse
from imgcls_search.space.comparison import differences
from imgcls_search.study.activity import shown_state
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

Verdict = Literal["identical", "within noise", "different"]


class Reproduction(TypedDict):
    """Comparison of a retrained trial with its record."""

    study: str
    trial: int
    verdict: Verdict
    epochs: int
    metric: str
    then: float
    now: float
    """Metric of the last epoch, like `then`."""

    margin: float
    """How much seeds alone change the metric."""

    noise: list[float]
    val_images: int | None
    first_different_epoch: int | None
    differs: list[str]
    """Changes since the original training, as text."""


def reproduce(
    files: StudyFiles, trial_number: int, *, seeds: int, watcher: TrainingWatcher, moved_to: Component | None = None
) -> Reproduction:
    """Retrain a trial with its seed to its last epoch, and compare it with the record.

    If it is not identical, this many other seeds are trained too: a difference within their spread is noise.
    `moved_to` says where the study's images are now.

    Raises:
        StudyError: there is no such study or trial, or it has no epoch.
        NoResultError: the training failed.
    """
    record = study_data.load_with_images(files, moved_to)
    trial = find_trial(record, trial_number)
    if not trial.epochs:
        state = shown_state(trial, record)
        raise StudyError(f"trial {trial.number} is {state} and has no epoch to compare with")
    study_data.must_be_there(trial.candidate.config.component("data"))
    with Trainer(files.root, watcher) as trainer, tempfile.TemporaryDirectory(prefix="imgcls-search-") as folder:
        config, helper = trial.candidate.config, trainer.helper
        devices = trainer.hire(config, seeds)
        data = trainer.images(config)
        if moved_to is not None:
            study_data.refuse_other(record, config, data, helper)

        pretrained = PretrainedNetworks.of_study(trainer, files, record)
        needed = pretrained.needed_by(config, data)
        pretrained.make(needed)

        def train(chosen: Sequence[int], names: Sequence[str]) -> list[list[dict[str, float]]]:
            jobs = [
                Job(
                    trial=number,
                    config=config,
                    data=data.to_dict(),
                    seed=seed,
                    portion="train",
                    until_epoch=trial.epoch,
                    from_epoch=0,
                    checkpoint=f"{folder}/{number}-{seed}.pt",
                    log=f"{folder}/{number}-{seed}.log",
                    micro_batches=trial.micro_batches,
                    teacher=teachers.path_of(config, files, record.facts.get("teachers", {})),
                    backbones=pretrained.files_of(needed),
                    metrics=record.named_metrics,
                )
                for number, seed in enumerate(chosen)
            ]
            return trainer.train(jobs, names)

        (again,) = train([trial.seed], [f"trial {trial_number}"])
        first = _first_difference(trial.epochs, again)
        noise: list[float] = []
        if first is not None:
            watcher.say(f"epoch {first} differs; {seeds} other seeds show how much seeds alone change")
            noise = [
                history[-1][_metric(trial)]
                for history in train(fresh_seeds(record, seeds), numbered("other seed", seeds))
            ]
        is_same = helper.has_prints(config, study_data.prints_of(record))
        now_is = record.fact("data")["fingerprint"] if is_same else data.fingerprint
        changes = _changes(record, trial, now_is, helper.versions(), helper.hardware(devices[0]))
        used = weights_used.of_config(config, data.shape, helper)
        changes += weights_used.differing(record.facts.get("weights", {}), used)
        changes += pretrained.differing(record, needed)
    then, now = trial.epochs[-1][_metric(trial)], again[-1][_metric(trial)]
    margin = t_quantile(len(noise) - 1) * math.sqrt(2) * statistics.stdev(noise) if len(noise) > 1 else 0.0
    verdict: Verdict = "different" if abs(then - now) > margin else "within noise"
    return {
        "study": files.name,
        "trial": trial.number,
        "verdict": "identical" if first is None else verdict,
        "epochs": trial.epoch,
        "metric": _metric(trial),
        "then": then,
        "now": now,
        "margin": margin,
        "noise": noise,
        "val_images": record.val_images,
        "first_different_epoch": first,
        "differs": changes,
    }


def _metric(trial: Trial) -> str:
    # Epochs have no sizes and latencies.
    return trial.metric if trial.metric in trial.epochs[-1] else main_measure(trial.epochs[-1])


def _first_difference(then: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]) -> int | None:
    for epoch, (old, new) in enumerate(zip(then, now, strict=True), start=1):
        # Compare only old metrics: earlier versions measured fewer after the last epoch.
        if any(new.get(name) != value for name, value in old.items() if name != "seconds"):
            return epoch
    return None


def _changes(record: Record, trial: Trial, fingerprint: str, versions: Mapping[str, str], hardware: str) -> list[str]:
    """Return what has changed: the configuration as this version reads it, images, versions, code, hardware."""
    found = []
    try:
        read = parse(dump(trial.candidate.config, comments=[]), catalog(), source=f"trial-{trial.number}.yaml").config()
        if trial.candidate.config.is_pretraining:
            read = read.pretraining()
        # Settings of later versions do not count if their values change nothing.
        is_same = trial.candidate.config.digest() == read.digest()
        changed = [] if is_same else differences(trial.candidate.config.to_dict(), read.to_dict())
        found += [f"config: {change}" for change in changed]
    except SearchError as error:
        found.append(f"config: this version cannot read it ({first_line(error)})")
    if record.fact("data")["fingerprint"] != fingerprint:
        found.append(f"data: fingerprint was {record.facts['data']['fingerprint']}, is now {fingerprint}")
    old = record.facts.get("versions", {})
    found += [
        f"{name}: was {old.get(name, 'not there')}, is now {versions.get(name, 'not there')}"
        for name in dict.fromkeys([*old, *versions])
        if old.get(name) != versions.get(name)
    ]
    found += code_used.of_record(record)
    if (then := record.facts.get("hardware")) not in (None, hardware):
        found.append(f"hardware: was {then}, is now {hardware}")
    return found
