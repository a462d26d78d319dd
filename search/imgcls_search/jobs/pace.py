"""How far several trainings are that belong to one command, and how long the rest of them takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from imgcls_search.protocol import Job


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch that ended, and how far all trainings of the command are with it."""

    training: str
    """Which training it is of, in words: `seed 2/3`."""

    number: int
    of: int
    metrics: Mapping[str, float]
    val_images: int | None
    """How many images its scores are from."""

    done: int
    """Epochs of all trainings."""

    total: int
    seconds_left: float


class Pace:
    """Counts the epochs of several trainings, and measures how fast they come."""

    def __init__(self, epochs: int) -> None:
        """Nothing is trained yet; `epochs` are to come."""
        self.total = epochs
        self.reached: dict[str, int] = {}
        """The last epoch of each training, by its checkpoint."""

        self.trained = 0
        self.started = time.monotonic()

    def begins(self, job: Job, epoch: int) -> None:
        """Record that a training starts, or resumes after an epoch."""
        self.reached[job.checkpoint] = epoch

    def ended(self, job: Job, training: str, metrics: Mapping[str, float]) -> Epoch:
        """Return an epoch that was trained now, with the time left."""
        self.trained += 1
        self.begins(job, int(metrics["epoch"]))
        done = sum(self.reached.values())
        return Epoch(
            training=training,
            number=int(metrics["epoch"]),
            of=job.until_epoch,
            metrics=metrics,
            val_images=sum(job.data.get("folds", [])) or job.data.get("counts", {}).get("val"),
            done=done,
            total=self.total,
            seconds_left=(time.monotonic() - self.started) / self.trained * max(0, self.total - done),
        )


def numbered(what: str, count: int) -> list[str]:
    """Return names for several trainings: `seed 1/3` and so on."""
    return [f"{what} {number}/{count}" for number in range(1, count + 1)]
