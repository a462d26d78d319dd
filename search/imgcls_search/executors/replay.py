"""Replay recorded curves instead of trainings, on a simulated clock."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import count
from typing import Protocol

from imgcls_search.config import TrialConfig
from imgcls_search.protocol import EpochEnded, Event, Failed, Job, MilestoneReached, Started, Stopped


class Curves(Protocol):
    """The metrics of every configuration in every epoch: a table, a surrogate, a formula, or a finished study.

    A complete example, an accuracy that rises by a formula:

        class Saturating:
            def at(self, config, epoch):
                rate = config.section("config")["lr"]
                return {"accuracy": 1 - 0.5 ** (epoch * rate), "seconds": 1.0}
    """

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return the metrics of an epoch, counted from 1; `seconds` is how long it takes, 1 if it is left out."""


class ReplayExecutor:
    """Answers jobs from curves at once; its clock shows how long they would take on `workers` workers."""

    def __init__(self, curves: Curves, workers: int = 1) -> None:
        """Answer from `curves` as if `workers` trials ran in parallel."""
        self.curves = curves
        self.workers = workers
        self.now = 0.0
        self.jobs: dict[int, Job] = {}
        self.stopped: set[int] = set()
        self.order = count()
        self.queue: list[tuple[float, int, Event]] = []

    def free_slots(self) -> int:
        """Return how many jobs could start now."""
        return self.workers - len(self.jobs)

    def start(self, job: Job) -> None:
        """Take a job; its first epoch ends when its duration has passed on the clock."""
        self.jobs[job.trial] = job
        history = [self._metrics(job, epoch) for epoch in range(1, job.from_epoch + 1)]
        self._later(0.0, Started(trial=job.trial, worker="replay", history=history))
        self._train(job, job.from_epoch + 1)

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event and set the clock to it; return None at once if no job is running."""
        if not self.queue:
            return None
        self.now, _, event = heapq.heappop(self.queue)
        job = self.jobs[event.trial]
        if isinstance(event, (MilestoneReached, Failed)):
            del self.jobs[event.trial]
        elif isinstance(event, EpochEnded):
            return self._after_epoch(event, job)
        return event

    def stop(self, trial: int) -> None:
        """Stop a trial after the epoch that it is in; a `Stopped` event follows."""
        self.stopped.add(trial)

    def kill(self, trial: int, reason: str) -> None:
        """Do nothing: no curve hangs."""

    def clock(self) -> float:
        """Return the seconds that the trainings would have taken so far."""
        return self.now

    def close(self) -> None:
        """Forget all jobs."""
        self.jobs.clear()
        self.queue.clear()

    def _after_epoch(self, event: EpochEnded, job: Job) -> Event:
        epoch = int(event.metrics["epoch"])
        if event.trial in self.stopped:
            # The current epoch is lost, as when a worker is stopped.
            self.stopped.discard(event.trial)
            del self.jobs[event.trial]
            return Stopped(trial=event.trial, worker="replay")
        if epoch == job.until_epoch:
            self._later(0.0, MilestoneReached(trial=event.trial, worker="replay"))
        else:
            self._train(job, epoch + 1)
        return event

    def _train(self, job: Job, epoch: int) -> None:
        metrics = self._metrics(job, epoch)
        self._later(metrics["seconds"], EpochEnded(trial=job.trial, worker="replay", metrics=metrics))

    def _metrics(self, job: Job, epoch: int) -> dict[str, float]:
        return {"epoch": float(epoch), "seconds": 1.0, **self.curves.at(job.config, epoch)}

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self.queue, (self.now + seconds, next(self.order), event))
