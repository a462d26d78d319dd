"""How far a budget will go, from a few epochs of a few random trials."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from imgcls_search.errors import NoResultError
from imgcls_search.executors.helper import image_cache
from imgcls_search.orchestrator.begin import run
from imgcls_search.orchestrator.search import Search, Watcher
from imgcls_search.space import Space
from imgcls_search.strategy.pruners import expected_epochs, make_pruner
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

CALIBRATION = {
    "study.objectives": "{accuracy: maximize}",
    "study.sampler": "random",
    "study.pruner": "{asha: {min_epochs: 2}}",
    "study.timeout": "null",
    "study.target": "null",
    "study.min_gain": "null",
    "study.pictures": "false",
    "start": "[]",
}
"""What the trials that are only timed are searched with."""


@dataclass(frozen=True, kw_only=True)
class Plan:
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


def plan(space: Space, calibration: Space, root: Path, watcher: Watcher) -> Plan:
    """Train a few random trials for a few epochs, keep nothing but the decoded images, and work out the rest.

    Raises:
        NoResultError: no epoch came to its end.
    """
    images = image_cache(root)
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=root) as folder:
        image_cache(Path(folder)).symlink_to(images.resolve(), target_is_directory=True)
        counting = _Counting(watcher)
        record = run(calibration, Path(folder), counting).record
        return work_out(space, record, max(1, counting.workers))


def work_out(space: Space, record: Record, workers: int) -> Plan:
    """Return the plan that the epochs of a record allow.

    Raises:
        NoResultError: it has none.
    """
    times = [_seconds(trial) for trial in record.trials if trial.epoch]
    if not times:
        raise NoResultError("no epoch came to its end, so that nothing can be planned")
    epochs = space.first().epochs
    pruner = make_pruner(space.pruner, space.first(), 1)
    several = len(space.objectives) > 1
    each = float(epochs) if several else expected_epochs(pruner, epochs)
    a_trial = each * mean(times)
    timeout = space.study["timeout"]
    return Plan(
        workers=workers,
        measured_trials=len(times),
        measured_epochs=sum(trial.epoch for trial in record.trials),
        epoch_seconds=mean(times),
        fastest_seconds=min(times),
        slowest_seconds=max(times),
        epochs_of_full_trial=epochs,
        epochs_of_trial=each,
        trials=space.study["trials"],
        seconds=space.study["trials"] * a_trial / workers,
        timeout=timeout,
        trials_in_timeout=None if timeout is None else int(timeout * workers / a_trial),
    )


def _seconds(trial: Trial) -> float:
    # The first epoch of a process compiles and warms up.
    return mean(epoch["seconds"] for epoch in trial.epochs[1:] or trial.epochs)


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
