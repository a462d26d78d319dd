"""A trial trained again from what its study holds, and compared epoch by epoch."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from imgcls_search.catalog import catalog
from imgcls_search.confidence import t_quantile
from imgcls_search.errors import SearchError, StudyError
from imgcls_search.executors.helper import Helper
from imgcls_search.executors.local import LocalExecutor, usable_slots
from imgcls_search.jobs.confirm import fresh_seeds
from imgcls_search.jobs.export import find_trial
from imgcls_search.jobs.retrain import TrainingWatcher, train_jobs
from imgcls_search.orchestrator import teachers
from imgcls_search.protocol import Job
from imgcls_search.space import dump, parse
from imgcls_search.space.comparison import differences
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load
from imgcls_search.trial import Trial

Verdict = Literal["identical", "within noise", "different"]


def reproduce(files: StudyFiles, number: int, *, seeds: int, watcher: TrainingWatcher) -> dict[str, Any]:
    """Train a trial again with its seed to its last epoch, and tell how that compares with what is recorded.

    Where it is not identical, so many other seeds are trained as well: what differs by no more than they do is noise.

    Raises:
        StudyError: there is no such study or trial, or it has no epoch.
        NoResultError: the training failed.
    """
    record = load(files)
    trial = find_trial(record, number)
    if not trial.epochs:
        raise StudyError(f"trial {number} is {trial.state} and has no epoch to compare with")
    with ExitStack() as stack:
        helper = Helper(files.root)
        stack.callback(helper.close)
        config = trial.candidate.config
        devices = helper.devices(config.section("training")["device"])
        executor = LocalExecutor(usable_slots(devices, None, seeds))
        stack.callback(executor.close)
        data = helper.prepare(config, watcher.decoding, watcher.say)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgcls-search-")))

        def train(chosen: Sequence[int]) -> list[list[dict[str, float]]]:
            jobs = [
                Job(
                    trial=place,
                    config=config,
                    data=data.to_dict(),
                    seed=seed,
                    portion="train",
                    until_epoch=trial.epoch,
                    from_epoch=0,
                    checkpoint=str(folder / f"{place}-{seed}.pt"),
                    log=str(folder / f"{place}-{seed}.log"),
                    micro_batches=trial.micro_batches,
                    teacher=teachers.path_of(config, files, record.facts.get("teachers", {})),
                )
                for place, seed in enumerate(chosen)
            ]
            found = train_jobs(jobs, executor, watcher)
            return [found[place] for place in range(len(chosen))]

        (again,) = train([trial.seed])
        first = _first_difference(trial.epochs, again)
        noise: list[float] = []
        if first is not None:
            watcher.say(f"epoch {first} differs; {seeds} other seeds show how much seeds alone change")
            noise = [history[-1][_metric(trial)] for history in train(fresh_seeds(record, seeds))]
        known = record.fact("data")["fingerprint"]
        now_is = known if helper.has_fingerprint(config, known) else data.fingerprint
        changes = _changes(record, trial, now_is, helper.versions(), helper.hardware(devices[0]))
    then, now = trial.epochs[-1][_metric(trial)], again[-1][_metric(trial)]
    margin = t_quantile(len(noise) - 1) * math.sqrt(2) * statistics.stdev(noise) if len(noise) > 1 else 0.0
    verdict: Verdict = "different" if abs(then - now) > margin else "within noise"
    return {
        "study": files.name,
        "trial": number,
        "verdict": "identical" if first is None else verdict,
        "epochs": trial.epoch,
        "metric": _metric(trial),
        "then": then,
        "now": now,
        "margin": margin,
        "first_different_epoch": first,
        "differs": changes,
    }


def _metric(trial: Trial) -> str:
    # Sizes and latencies are no matter of training; every epoch has an accuracy.
    return trial.metric if trial.metric in trial.epochs[-1] else "accuracy"


def _first_difference(then: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]) -> int | None:
    for epoch, (old, new) in enumerate(zip(then, now, strict=True), start=1):
        if {**old, "seconds": 0} != {**new, "seconds": 0}:
            return epoch
    return None


def _changes(record: Record, trial: Trial, fingerprint: str, versions: Mapping[str, str], hardware: str) -> list[str]:
    """Return what is not as it was: the configuration as this version reads it, the images, versions, the hardware."""
    found = []
    try:
        read = parse(dump(trial.candidate.config, comments=[]), catalog(), source=f"trial-{trial.number}.yaml").config()
        changed = differences(trial.candidate.config.to_dict(), read.to_dict())
        found += [f"config: {change}" for change in changed]
    except SearchError as error:
        found.append(f"config: this version cannot read it ({str(error).splitlines()[0]})")
    if record.fact("data")["fingerprint"] != fingerprint:
        found.append(f"data: fingerprint was {record.facts['data']['fingerprint']}, is now {fingerprint}")
    old = record.facts.get("versions", {})
    found += [
        f"{name}: was {old.get(name, 'not there')}, is now {versions.get(name, 'not there')}"
        for name in dict.fromkeys([*old, *versions])
        if old.get(name) != versions.get(name)
    ]
    if (then := record.facts.get("hardware")) not in (None, hardware):
        found.append(f"hardware: was {then}, is now {hardware}")
    return found
