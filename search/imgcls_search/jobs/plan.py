"""How far a budget will go, from a few epochs of a few random trials."""

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
"""What the trials that are only timed are searched with."""

DRAWS = 20
"""Random configurations that are looked at for epochs of heads alone."""


@dataclass(frozen=True, kw_only=True)
class ExpectedTime:
    """What a search will take."""

    workers: int
    measured_trials: int
    measured_epochs: int
    epoch_seconds: float
    """Mean over the measured trials of an epoch after the first, or of the first where there was one only."""

    fastest_seconds: float
    slowest_seconds: float
    epochs_of_full_trial: int
    epochs_of_trial: float
    """Expected with the space's pruner; those of a full trial where that cannot be told before."""

    trials: int
    seconds: float
    """Of all `study.trials`."""

    timeout: float | None
    trials_in_timeout: int | None
    pretrained_networks: int = 0
    """Distinct ones that the trials start from."""

    pretraining_epochs: int = 0
    pretraining_seconds: float = 0.0
    """Of all these networks; they are part of `seconds`."""


def timed_as(space: Space) -> dict[str, str]:
    """Return what the trials that are only timed are searched with: they pass the epochs of their heads alone."""
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
    """Return how many epochs of a training, the first, read kept features, which takes a fraction of the time."""
    found = head_plan.plan(config)
    return found.epochs if found is not None and not config.is_fitted else 0


def plan(space: Space, calibration: Space, root: Path, watcher: Watcher) -> ExpectedTime:
    """Train a few random trials for a few epochs, keep nothing but the decoded images, and work out the rest.

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
    """Return the plan that the epochs of a record allow.

    Raises:
        NoResultError: it has none.
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
    """Return how long an epoch of a pretraining takes, by those that were timed."""
    timed = [known for known in record.facts.get("backbones", {}).values() if known.get("epoch")]
    epochs = sum(known["epoch"] for known in timed)
    return sum(known["seconds"] for known in timed) / epochs if epochs else 0.0


def _epochs_of(trial: Trial) -> Sequence[Mapping[str, float]]:
    """Return the epochs of a trial; of one whose images grow, each as long as its epochs are in the mean."""
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
    """Return how long a trial of `epochs` expected epochs takes; `is_cut` says whether the pruner ends some early.

    Fits are as frequent as among those that were begun; epochs of heads alone take their own time.
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
    """Tell whether a configuration trains without folds, which begin with their heads again and again."""
    return "training" in config.tree and config.folds == 1 and "finetune" in config.tree


class _Counting:
    """Passes on what happens, and notes how many trials run side by side."""

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
