"""The common part of executors with real workers: which are free, who has which trial, and jobs that must run alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from imgcls_search.protocol import (
    Continue,
    Event,
    Failed,
    Job,
    Message,
    MilestoneReached,
    Pause,
    Paused,
    Stop,
    Stopped,
    WorkerDied,
)

_ENDS = (MilestoneReached, Stopped, Failed, WorkerDied)
"""The last events of a job."""


class Slot:
    """An executor's end of one worker."""

    is_ready = True
    """False until there is a worker that can take a job."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.job: Job | None = None
        self.must_pause = False
        self.is_paused = False
        self.last_trial = -1

    def take(self, job: Job) -> None:
        """Hand a job to the worker."""
        self.job, self.last_trial = job, job.trial
        self.must_pause = self.is_paused = False
        self.tell(job)

    def pause(self) -> None:
        """Ask the worker to pause between two steps; it replies, unless its job ends first."""
        self.must_pause = True
        self.tell(Pause())

    def resume(self) -> None:
        """Let a worker that was asked to pause continue."""
        if self.must_pause:
            self.must_pause = self.is_paused = False
            self.tell(Continue())

    def note(self, event: Event) -> None:
        """Update the slot's state from a worker event."""
        if isinstance(event, Paused):
            # Unless it was told to continue in the meantime.
            self.is_paused = self.must_pause
        elif isinstance(event, _ENDS):
            self.job = None

    def tell(self, message: Message) -> None:
        """Send a message to the worker; if it is dead, listening to it notices that."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the worker now."""
        raise NotImplementedError


AnySlot = TypeVar("AnySlot", bound=Slot)


class SlotsExecutor(Generic[AnySlot]):
    """Hands jobs to slots; subclasses define what a slot is and how to listen to it."""

    def __init__(self, slots: Sequence[AnySlot]) -> None:
        self.workers = slots
        self.events: deque[Event] = deque()
        self.alone: Job | None = None
        """A job that must run alone: it runs, or waits until all others pause."""
        self.alone_worker: AnySlot | None = None

    def free_slots(self) -> int:
        """Return how many workers have nothing to do; none is free while a job runs alone."""
        return len(self._free()) if self.alone is None else 0

    def start(self, job: Job) -> None:
        """Hand a job to a free worker, preferably to the one that had the trial last."""
        if job.kind == "time":
            self.alone = job
            for busy in (slot for slot in self.workers if slot.job is not None):
                busy.pause()
            self._attend_alone()
            return
        free = self._free()
        assert free, "start was called without a free slot"
        self._choose(job, free).take(job)

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event, or None after `timeout` seconds without one."""
        if not self.events:
            self._listen(timeout)
        return self.events.popleft() if self.events else None

    def stop(self, trial: int) -> None:
        """Ask the worker of a trial to save and stop."""
        if self.alone is not None and self.alone.trial == trial and self.alone_worker is None:
            self.events.append(Stopped(trial=trial))
            self._end_alone()
        for slot in self._of(trial):
            slot.tell(Stop())

    def kill(self, trial: int, reason: str) -> None:
        """End the worker of a trial at once; a `WorkerDied` event with the reason follows."""
        for slot in self._of(trial):
            slot.kill()
            self.events.append(WorkerDied(trial=trial, worker=slot.name, reason=reason))
        self._attend_alone()

    def _choose(self, job: Job, free: Sequence[AnySlot]) -> AnySlot:
        return next((slot for slot in free if slot.last_trial == job.trial), free[0])

    def _free(self) -> list[AnySlot]:
        return [slot for slot in self.workers if slot.job is None and slot.is_ready]

    def _of(self, trial: int) -> list[AnySlot]:
        return [slot for slot in self.workers if slot.job is not None and slot.job.trial == trial]

    def _listen(self, timeout: float) -> None:
        """Wait at most these seconds for events, and pass those of the workers to `_take_in`."""
        raise NotImplementedError

    def _take_in(self, event: Event | None) -> None:
        """Handle an event of a worker; None if it died without a job."""
        if event is not None and not isinstance(event, Paused):
            self.events.append(event)
        self._attend_alone()

    def _attend_alone(self) -> None:
        """Start the job that must run alone once all others pause; let them continue when it has ended."""
        if self.alone is None:
            return
        if self.alone_worker is not None:
            if self.alone_worker.job is None:
                self._end_alone()
        elif all(slot.job is None or slot.is_paused for slot in self.workers) and self._free():
            self.alone_worker = self._free()[0]
            self.alone_worker.take(self.alone)

    def _end_alone(self) -> None:
        self.alone = self.alone_worker = None
        for slot in self.workers:
            slot.resume()
