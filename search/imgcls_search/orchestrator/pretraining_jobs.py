"""Make the pretrained networks of a search, once and by separate jobs, while the trials that start from them wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcls_search import durations
from imgcls_search.errors import StudyError, UserError, first_line
from imgcls_search.orchestrator.backbones import Backbone, BackboneFinder, BackboneStore, job_of
from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.orchestrator.faults import Faults, parts_after, without_memory
from imgcls_search.protocol import (
    CheckpointSaved,
    EpochEnded,
    Event,
    Executor,
    Failed,
    MilestoneReached,
    Notice,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.study.database import SAFE
from imgcls_search.study.facts import KnownBackbone
from imgcls_search.trial import Trial
from imgcls_search.words import counted

if TYPE_CHECKING:
    from filelock import FileLock

FIRST_NUMBER = -2
"""Jobs of pretrainings have negative numbers, downwards from here; -1 means no trial."""

WAITING_EACH = 2
"""Most new trials per worker that may wait for a network."""

WAITING_AT_LEAST = 4
"""Trials that may wait in any case. Later ones are drawn when more results are known."""

NOTED_SECONDS = 5.0
"""The progress of a pretraining is stored at most this often."""


@dataclass(kw_only=True)
class _RunningPretraining:
    """A pretraining in progress."""

    backbone: Backbone
    lock: FileLock
    heard_at: float
    epoch: int = 0
    seconds: float = 0.0
    deaths: int = 0
    micro_batches: int = 1
    noted_at: float = 0.0
    is_running: bool = True
    """False while it waits for a worker again."""


@dataclass(kw_only=True)
class PretrainingJobs:
    """Makes the pretrained networks that trials wait for."""

    context: SearchContext
    executor: Executor
    finder: BackboneFinder | None
    """Finds the networks that trials start from; None if nothing is trained."""

    faults: Faults

    waiting: list[Trial] = field(default_factory=list)
    """Trials that wait for their networks."""

    wanted: dict[str, Backbone] = field(default_factory=dict)
    """Networks that this process has not started to make, in order of request."""

    making: dict[int, _RunningPretraining] = field(default_factory=dict)
    """Pretrainings in progress, by number."""

    failed: dict[str, str] = field(default_factory=dict)
    """Why networks cannot be made, by key."""

    used: dict[str, Backbone] = field(default_factory=dict)
    """Networks that trials of this call started from."""

    told: set[str] = field(default_factory=set)
    next_number: int = FIRST_NUMBER

    def __post_init__(self) -> None:
        """Find the folder of the networks."""
        self.store = BackboneStore(self.context.files.root)
        self.told |= set(self.finder.lines if self.finder is not None else ())

    # Called by the search.

    def is_busy(self, *, stopping: bool) -> bool:
        """Tell whether workers run pretrainings, or trials wait for a network."""
        return any(each.is_running for each in self.making.values()) or (bool(self.waiting) and not stopping)

    def may_draw(self, workers: int) -> bool:
        """Tell whether another new trial may be drawn, which might wait too."""
        return len(self.waiting) < max(WAITING_AT_LEAST, WAITING_EACH * workers)

    def files_of(self, trial: Trial) -> tuple[str, ...]:
        """Return the weights files of the networks that a trial starts from."""
        return tuple(str(self.store.path(each.key)) for each in self._needed_by(trial))

    def must_wait(self, trial: Trial) -> bool:
        """Tell whether a trial cannot be trained now: it waits for its networks, or has failed.

        Raises:
            UserError: every trial would fail in the same way.
            NoResultError: several trials in a row failed in the same way.
        """
        try:
            needed = self._needed_by(trial)
        except UserError as error:
            self.faults.fail(trial, first_line(error))
            return True
        for reason in (self.failed[each.key] for each in needed if each.key in self.failed):
            self.faults.fail(trial, f"its pretraining failed: {reason}")
            return True
        if self._request(needed):
            self.waiting.append(trial)
            return True
        self._use(needed)
        return False

    def released(self) -> list[Trial]:
        """Return the trials that no longer have to wait: all their networks are ready, or one failed."""
        # A trial may have been ended from outside.
        waiting = [trial for trial in self.waiting if trial.is_open]
        ready = [trial for trial in waiting if self._is_over(trial)]
        self.waiting = [trial for trial in waiting if trial not in ready]
        return ready

    def start_one(self) -> bool:
        """Start the next pretraining on a free worker; return False if there is none, or other processes make them all.

        Raises:
            StudyError: the folder of the networks cannot be written.
        """
        for number, each in self.making.items():
            if not each.is_running:
                self._start(number, each)
                return True
        for key, backbone in list(self.wanted.items()):
            lock = self.store.taken(key)
            if lock is None:
                self._say_once(f"{key}-elsewhere", f"pretraining {backbone.what}: another process is training it")
                continue
            del self.wanted[key]
            if self.store.has(key):
                # Another process has made it meanwhile.
                lock.release()
                continue
            self.store.clear_leftovers(key)
            number, self.next_number = self.next_number, self.next_number - 1
            self.making[number] = _RunningPretraining(backbone=backbone, lock=lock, heard_at=0.0)
            self._start(number, self.making[number])
            return True
        return False

    def handles(self, event: Event) -> bool:
        """Handle an event of a pretraining; return False for an event of a trial.

        Raises:
            StudyError: the disk is full.
        """
        if event.trial > FIRST_NUMBER:
            return False
        # A pretraining that was given up may still send events.
        if (making := self.making.get(event.trial)) is not None:
            making.heard_at = self.executor.clock()
            self._take(event, event.trial, making)
        return True

    def enforce_time_limit(self) -> None:
        """Kill the worker of a pretraining that hangs; it resumes on another from its last checkpoint."""
        for number, each in list(self.making.items()):
            if each.is_running:
                reason = self.faults.over_epoch_time(self.executor.clock() - each.heard_at)
                if reason is not None:
                    self.executor.kill(number, reason)

    def stop(self) -> None:
        """Ask the workers of all pretrainings to save and stop."""
        for number, each in self.making.items():
            if each.is_running:
                self.executor.stop(number)

    def close(self) -> None:
        """Leave unfinished pretrainings to other processes."""
        for each in self.making.values():
            each.lock.release()
        self.making.clear()

    # The jobs.

    def _start(self, number: int, making: _RunningPretraining) -> None:
        backbone = making.backbone
        making.heard_at, making.is_running = self.executor.clock(), True
        if backbone.key not in self.told:
            waiting = ", ".join(str(trial.number) for trial in self.waiting if backbone in self._needed_by(trial))
            self._say_once(backbone.key, f"pretraining {backbone.what}; trial {waiting or '-'} waits")
        self.executor.start(job_of(backbone, self.store, number, micro_batches=making.micro_batches))

    def _take(self, event: Event, number: int, making: _RunningPretraining) -> None:
        match event:
            case Started(history=history, dropped=dropped):
                if dropped:
                    self.context.say(f"pretraining {making.backbone.what}: {dropped}; it starts over")
                making.epoch, making.seconds = len(history), sum(epoch["seconds"] for epoch in history)
                if making.epoch:
                    self.context.say(f"pretraining {making.backbone.what}: resumes after epoch {making.epoch}")
                self._note(making, state="making", force=True)
            case Notice(text=text):
                self.context.say(f"pretraining {making.backbone.what}: {text}")
            case CheckpointSaved():
                making.deaths = 0
            case EpochEnded(metrics=metrics):
                making.epoch = int(metrics["epoch"])
                making.seconds += metrics["seconds"]
                self._note(making, state="making")
            case MilestoneReached():
                self._finish(number, making)
            case Stopped():
                making.is_running = False
            case Failed():
                making.is_running = False
                self._take_failure(event, number, making)
            case WorkerDied(reason=reason, is_out_of_memory=is_out_of_memory):
                making.is_running = False
                self._take_death(reason, is_out_of_memory, number, making)

    def _finish(self, number: int, making: _RunningPretraining) -> None:
        key = making.backbone.key
        digest = self.store.finish(key)
        self._note(making, state="made", force=True, sha256=digest)
        self._release(number)
        took = durations.show(round(making.seconds, 1))
        self.context.say(f"pretraining {making.backbone.what}: done, its epochs took {took}")
        needed = {each.key for trial in self.context.record.trials if trial.is_open for each in self._known_for(trial)}
        gone = self.store.tidy(self.context.settings.disk_gb * 1e9, {key, *needed})
        if gone:
            self.context.say(
                f"deleted, to stay within study.disk_gb: {counted('pretrained network', len(gone))}, unused for longest"
            )

    def _take_failure(self, event: Failed, number: int, making: _RunningPretraining) -> None:
        if event.kind == "disk":
            raise StudyError(f"pretraining {making.backbone.what}: {event.reason}; {SAFE}")
        if event.kind != "out_of_memory":
            self._give_up(event.reason, number, making)
        elif not self._shrink(making):
            self._give_up(self._without_memory(event.reason, making), number, making)

    def _take_death(self, reason: str, is_out_of_memory: bool, number: int, making: _RunningPretraining) -> None:
        # A full disk must not end the search here.
        with contextlib.suppress(OSError), self.store.log(making.backbone.key).open("a") as log:
            log.write(f"{reason}\n")
        making.deaths += 1
        if is_out_of_memory:
            if not self._shrink(making):
                self._give_up(self._without_memory(reason, making), number, making)
        elif making.deaths > self.context.settings.retries:
            self._give_up(f"{reason}, {making.deaths} times without a new checkpoint", number, making)
        else:
            self.context.say(f"pretraining {making.backbone.what}: {reason}; it resumes from its last checkpoint")

    def _shrink(self, making: _RunningPretraining) -> bool:
        """Continue a pretraining with smaller micro-batches, if its loss allows them."""
        parts = parts_after(making.backbone.config, making.micro_batches)
        if parts is None:
            return False
        making.micro_batches = parts
        self.context.say(
            f"pretraining {making.backbone.what}: out of memory; it continues with each batch in {parts} parts"
        )
        return True

    def _without_memory(self, reason: str, making: _RunningPretraining) -> str:
        return without_memory(making.backbone.config, reason, making.micro_batches)

    def _give_up(self, reason: str, number: int, making: _RunningPretraining) -> None:
        key = making.backbone.key
        self.failed[key] = reason
        self._note(making, state="failed", force=True, reason=reason)
        self._release(number)
        self.context.say(f"pretraining {making.backbone.what} failed: {reason} (log: {self.store.log(key)})")

    def _release(self, number: int) -> None:
        self.making.pop(number).lock.release()

    # The state of the networks.

    def _needed_by(self, trial: Trial) -> tuple[Backbone, ...]:
        config = trial.candidate.config
        if self.finder is None or not config.needs_backbone:
            return ()
        found = self.finder.of(config, self.finder.helper.prepare(config))
        for line in self.finder.lines:
            self._say_once(line, line)
        return found

    def _known_for(self, trial: Trial) -> tuple[Backbone, ...]:
        with contextlib.suppress(UserError):
            return self._needed_by(trial)
        return ()

    def _is_over(self, trial: Trial) -> bool:
        # A network that was ready may have been deleted while another was made.
        needed = self._needed_by(trial)
        return any(each.key in self.failed for each in needed) or not self._request(needed)

    def _request(self, needed: Iterable[Backbone]) -> bool:
        """Request the networks that are missing; return True if there are any."""
        missing = [each for each in needed if not self.store.has(each.key)]
        for each in missing:
            if each.key not in self.wanted and not self._is_made_here(each.key):
                self.wanted[each.key] = each
        return bool(missing)

    def _is_made_here(self, key: str) -> bool:
        return any(each.backbone.key == key for each in self.making.values())

    def _use(self, needed: Iterable[Backbone]) -> None:
        """Record the networks that a trial starts from, unless the study has them already."""
        for each in needed:
            if each.key not in self.used:
                self.used[each.key] = each
                if self._known_backbones().get(each.key, {}).get("state") != "made":
                    self._set(each.key, each.fact(state="made", sha256=self.store.finish(each.key)))

    def _note(self, making: _RunningPretraining, *, state: str, force: bool = False, **more: str) -> None:
        now = self.executor.clock()
        if force or now - making.noted_at >= NOTED_SECONDS:
            making.noted_at = now
            known = making.backbone.fact(state=state, epoch=making.epoch, seconds=round(making.seconds, 3), **more)
            self._set(making.backbone.key, known)

    def _set(self, key: str, known: KnownBackbone) -> None:
        self.context.record.set_fact("backbones", {**self._known_backbones(), key: known})

    def _known_backbones(self) -> Mapping[str, KnownBackbone]:
        return self.context.record.facts.get("backbones", {})

    def _say_once(self, about: str, text: str) -> None:
        if about not in self.told:
            self.told.add(about)
            self.context.say(text)
