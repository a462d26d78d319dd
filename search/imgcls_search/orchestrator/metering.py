"""Measure the cost of a search: how long each device was in use, and how workers spent their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgcls_search.protocol import (
    EpochEnded,
    Event,
    Executor,
    Failed,
    Job,
    MilestoneReached,
    Scored,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.study.facts import UsageFact
from imgcls_search.study.record import Record
from imgcls_search.study.usage import Spent

SAVE_SECONDS = 10.0
"""Measurements are written to the study at least this often, and whenever a job ends."""

ENDS = (MilestoneReached, Stopped, Failed, WorkerDied)


@dataclass
class _MeteredJob:
    """A job on a worker."""

    job: Job
    spent: Spent
    """Its current activity."""

    epoch: int = 0
    worker: str = ""
    unnamed: float = 0.0
    """Seconds before its worker was known."""


class MeteredExecutor:
    """An executor that measures the time of another one; it changes nothing else."""

    def __init__(
        self,
        executor: Executor,
        record: Record,
        *,
        workers: int,
        devices_of: Callable[[str], Sequence[str]],
        since: float,
    ) -> None:
        """`devices_of` returns the devices of a worker by its name; workers have waited for images since `since`."""
        self.executor, self.record, self.workers, self.devices_of = executor, record, workers, devices_of
        known = record.facts.get("usage") or UsageFact(devices={}, workers={})
        self.devices, self.spent = dict(known["devices"]), dict(known["workers"])
        self.jobs: dict[int, _MeteredJob] = {}
        self.why_free: Spent = "idle"
        """Why workers are free while the run waits for events."""
        self.at, self.saved_at = since, self.clock()
        self.count_time("images")

    def count_time(self, why_free: Spent) -> None:
        """Count the time since the last call; `why_free` says why workers had no job."""
        now = self.clock()
        seconds, self.at = now - self.at, now
        timed = any(each.spent == "timing" for each in self.jobs.values())
        for each in self.jobs.values():
            # While a latency is measured, all other jobs pause.
            self._add("timing" if timed else each.spent, seconds)
            each.unnamed += seconds
            self._add_to_devices(each)
        self._add(why_free, seconds * max(0, self.workers - len(self.jobs)))

    def _add(self, spent: Spent, seconds: float) -> None:
        if seconds > 0:
            self.spent[spent] = self.spent.get(spent, 0.0) + seconds

    def _add_to_devices(self, each: _MeteredJob) -> None:
        """Add the seconds of a job to the devices of its worker, once that is known."""
        if each.worker and each.unnamed > 0:
            for device in self.devices_of(each.worker):
                self.devices[device] = self.devices.get(device, 0.0) + each.unnamed
            each.unnamed = 0.0

    def save(self) -> None:
        """Write the measurements to the study."""
        self.saved_at = self.clock()
        devices, workers = (
            {name: round(seconds, 3) for name, seconds in measured.items()} for measured in (self.devices, self.spent)
        )
        self.record.set_fact("usage", UsageFact(devices=devices, workers=workers))

    def free_slots(self) -> int:
        """Return how many jobs could start now."""
        return self.executor.free_slots()

    def start(self, job: Job) -> None:
        """Hand a job to a free slot."""
        self.count_time("decision")
        kinds: dict[str, Spent] = {"time": "timing", "draw": "pictures"}
        self.jobs[job.trial] = _MeteredJob(job, kinds.get(job.kind, "start"), epoch=job.from_epoch)
        self.executor.start(job)

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event, or None after `timeout` seconds without one."""
        self.count_time("decision")
        event = self.executor.next_event(timeout)
        self.count_time(self.why_free)
        is_end = event is not None and self._take(event)
        if is_end or self.clock() - self.saved_at > SAVE_SECONDS:
            self.save()
        return event

    def _take(self, event: Event) -> bool:
        """Update a job by an event; return whether the job ended."""
        each = self.jobs.get(event.trial)
        if each is None:
            return False
        each.worker = event.worker or each.worker
        match event:
            case Started(history=history):
                each.epoch = len(history)
                each.spent = self._training_or_after(each)
            case EpochEnded(metrics=metrics):
                each.epoch = int(metrics["epoch"])
                each.spent = self._training_or_after(each)
            case Scored():
                each.spent = "decision"
            case _:
                pass
        self._add_to_devices(each)
        if isinstance(event, ENDS):
            del self.jobs[event.trial]
            return True
        return False

    def _training_or_after(self, each: _MeteredJob) -> Spent:
        if each.epoch >= each.job.until_epoch:
            return "exporting"
        return "pretraining" if each.job.config.is_pretraining else "training"

    def stop(self, trial: int) -> None:
        """Ask the worker of a trial to save and stop."""
        self.executor.stop(trial)

    def kill(self, trial: int, reason: str) -> None:
        """End the worker of a trial at once."""
        self.executor.kill(trial, reason)

    def clock(self) -> float:
        """Return seconds on the executor's clock."""
        return self.executor.clock()

    def close(self) -> None:
        """End all workers now."""
        self.executor.close()
