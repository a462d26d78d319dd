"""Estimate the time of a search from a few epochs of a few random trials."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from imgcls_search.config import TrialConfig
from imgcls_search.errors import NoResultError
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs import expected_pretrainings
from imgcls_search.orchestrator.begin import run
from imgcls_search.orchestrator.search import Search, Watcher
from imgcls_search.space import Space
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.pruners import make_pruner
from imgcls_search.strategy.rungs import Pruner, expected_epochs
from imgcls_search.strategy.view import View
from imgcls_search.study import endings
from imgcls_search.study.record import Record
from imgcls_search.training.resolution import resolution_of
from imgcls_search.trial import Trial
from imgcls_search.worker import head_plan

CALIBRATION = {
    "study.objectives": "{accuracy: maximize}",
    "study.sampler": "random",
    "study.pruner": "{asha: {min_epochs: 2}}",
    **dict.fromkeys(endings.LIMITS, "null"),
    "study.pictures": "false",
    "start": "[]",
}
"""Settings for trials that are only timed."""

DRAWS = 20
"""Number of random configurations that are checked for epochs of the head alone."""


@dataclass(frozen=True, kw_only=True)
class ExpectedTime:
    """The expected time of a search."""

    workers: int
    measured_trials: int
    measured_epochs: int
    epoch_seconds: float
    """Mean over the measured trials of an epoch after the first, or of the first if there was only one."""

    fastest_seconds: float
    slowest_seconds: float
    epochs_of_full_trial: int
    epochs_of_trial: float
    """Expected with the space's pruner; those of a full trial if that cannot be predicted."""

    trials: int
    seconds: float
    """Seconds of all `study.trials`."""

    timeout: float | None
    trials_in_timeout: int | None
    pretrained_networks: int = 0
    """Number of distinct networks that the trials start from."""

    pretraining_epochs: int = 0
    pretraining_seconds: float = 0.0
    """Seconds to pretrain all these networks, which are included in `seconds`."""


def timed_as(space: Space) -> dict[str, str]:
    """Return the settings for trials that are only timed: they train beyond the epochs of the head alone."""
    heads = max((_head_epochs(config) for config in _some(space)), default=0)
    settings = {**CALIBRATION, **expected_pretrainings.timed_as(space)}
    if space.is_of_pretraining:
        del settings["study.objectives"]
    if not 0 < heads < space.first().training_epochs:
        return settings
    return {**settings, "study.pruner": f"{{asha: {{min_epochs: {heads + 2}}}}}"}


def _some(space: Space) -> Iterator[TrialConfig]:
    return (draw_random(View(space, [], [], 0), number, 0).config for number in range(DRAWS))


def _head_epochs(config: TrialConfig) -> int:
    """Return how many first epochs of a training use stored features, which takes a fraction of the time."""
    found = head_plan.plan(config)
    return found.epochs if found is not None and not config.is_fitted else 0


def plan(space: Space, calibration: Space, root: Path, watcher: Watcher) -> ExpectedTime:
    """Train a few random trials for a few epochs, and estimate the rest; only the decoded images are kept.

    Raises:
        NoResultError: no epoch was completed.
    """
    images = image_cache(root)
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=root) as folder:
        image_cache(Path(folder)).symlink_to(images.resolve(), target_is_directory=True)
        counting = _Counting(watcher)
        record = run(calibration, Path(folder), counting).record
        return work_out(space, record, max(1, counting.workers))


def work_out(space: Space, record: Record, workers: int) -> ExpectedTime:
    """Estimate the time of a search from the epochs of a record.

    Raises:
        NoResultError: the record has no epoch.
    """
    begun = [trial for trial in record.trials if trial.epoch]
    if not begun:
        raise NoResultError("no epoch was completed, so nothing can be planned")
    times = [_seconds(_epochs_of(trial)) for trial in begun]
    epochs = space.first().epochs
    pruner = make_pruner(space.pruner, space.first(), 1)
    several = len(space.objectives) > 1
    each = float(epochs) if several else expected_epochs(pruner, epochs)
    a_trial = _seconds_of_trial(begun, pruner, each, is_cut=not several)
    timeout = space.study["timeout"]
    pretraining = expected_pretrainings.expected(space)
    before = 0.0
    if pretraining is not None:
        side_by_side = max(1, min(workers, pretraining.networks))
        before = pretraining.epochs * _seconds_of_pretraining(record) / side_by_side
    return ExpectedTime(
        workers=workers,
        measured_trials=len(times),
        measured_epochs=sum(trial.epoch for trial in record.trials),
        epoch_seconds=mean(times),
        fastest_seconds=min(times),
        slowest_seconds=max(times),
        epochs_of_full_trial=epochs,
        epochs_of_trial=each,
        trials=space.study["trials"],
        seconds=before + space.study["trials"] * a_trial / workers,
        timeout=timeout,
        trials_in_timeout=None if timeout is None else int(max(0.0, timeout - before) * workers / a_trial),
        pretrained_networks=0 if pretraining is None else pretraining.networks,
        pretraining_epochs=0 if pretraining is None else pretraining.epochs,
        pretraining_seconds=before,
    )


def _seconds_of_pretraining(record: Record) -> float:
    """Return the mean seconds of the timed pretraining epochs."""
    timed = [known for known in record.facts.get("backbones", {}).values() if known.get("epoch")]
    epochs = sum(known["epoch"] for known in timed)
    return sum(known["seconds"] for known in timed) / epochs if epochs else 0.0


def _epochs_of(trial: Trial) -> Sequence[Mapping[str, float]]:
    """Return the epochs of a trial; if its images grow, scale the seconds of each epoch to the mean image size."""
    config = trial.candidate.config
    resolution = resolution_of(config)
    if not resolution.until:
        return trial.epochs
    work = [resolution.work(epoch, config.training_epochs) for epoch in range(config.training_epochs)]
    # Each fold begins with small images again.
    shares = [mean(work) / work[place % len(work)] for place in range(len(trial.epochs))]
    return [{**epoch, "seconds": epoch["seconds"] * share} for epoch, share in zip(trial.epochs, shares, strict=True)]


def _seconds(epochs: Sequence[Mapping[str, float]]) -> float:
    # The first epoch of a process compiles and warms up.
    return mean(epoch["seconds"] for epoch in epochs[1:] or epochs)


def _seconds_of_trial(begun: Sequence[Trial], pruner: Pruner, epochs: float, *, is_cut: bool) -> float:
    """Return the seconds of a trial of `epochs` expected epochs; `is_cut` says whether the pruner stops some early.

    Assumes the share of fitted heads of the begun trials; epochs of the head alone are timed separately.
    """
    fits = [sum(epoch["seconds"] for epoch in trial.epochs) for trial in begun if trial.candidate.is_fitted]
    trained = [trial for trial in begun if not trial.candidate.is_fitted]
    if not trained:
        return mean(fits)
    lengths = [_head_epochs(trial.candidate.config) if _is_whole(trial.candidate.config) else 0 for trial in trained]
    early = [_seconds(_epochs_of(trial)[:heads]) for trial, heads in zip(trained, lengths, strict=True) if heads]
    late = [
        _seconds(rest) for trial, heads in zip(trained, lengths, strict=True) if (rest := _epochs_of(trial)[heads:])
    ]
    heads = round(mean(lengths))
    in_heads = expected_epochs(pruner, heads) if is_cut and heads else float(heads)
    if not late or not early:
        training = epochs * mean(late or early)
    else:
        training = in_heads * mean(early) + (epochs - in_heads) * mean(late)
    return (sum(fits) + len(trained) * training) / len(begun)


def _is_whole(config: TrialConfig) -> bool:
    """Tell whether a configuration fine-tunes without folds: each fold would start with its head again."""
    return "training" in config.tree and config.folds == 1 and "finetune" in config.tree


class _Counting:
    """Forwards events, and records how many trials run in parallel."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.workers = 0

    def say(self, text: str) -> None:
        self.watcher.say(text)

    def decoding(self, done: int, total: int) -> None:
        self.watcher.decoding(done, total)

    def changed(self, search: Search) -> None:
        self.workers = max(self.workers, len(search.working) + search.executor.free_slots())
        self.watcher.changed(search)
