"""Track the progress of a command's trainings, and estimate the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from imgcls_search.protocol import Job


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A finished epoch, and the progress of all trainings of the command."""

    training: str
    """Name of its training, for example `seed 2/3`."""

    number: int
    of: int
    metrics: Mapping[str, float]
    val_images: int | None
    """Number of images that its scores are from."""

    done: int
    """Finished epochs of all trainings."""

    total: int
    seconds_left: float


class Pace:
    """Counts the epochs of several trainings, and measures their speed."""

    def __init__(self, epochs: int) -> None:
        """Start before the first epoch; `epochs` is the total of all trainings."""
        self.total = epochs
        self.reached: dict[str, int] = {}
        """The last epoch of each training, by its checkpoint."""

        self.trained = 0
        self.started = time.monotonic()

    def begins(self, job: Job, epoch: int) -> None:
        """Record that a training starts, or resumes after an epoch."""
        self.reached[job.checkpoint] = epoch

    def ended(self, job: Job, training: str, metrics: Mapping[str, float]) -> Epoch:
        """Record a finished epoch, and return it with the time left."""
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
