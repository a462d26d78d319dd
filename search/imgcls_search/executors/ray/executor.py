"""Trials on the nodes of a Ray cluster: one actor per slot, which lives for many trials."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imgcls_search import own_code
from imgcls_search.errors import ClusterError
from imgcls_search.executors.ray import cluster, parcels
from imgcls_search.executors.ray.cluster import Layout
from imgcls_search.executors.ray.fork_server import ForkServer, fork_key
from imgcls_search.executors.ray.parcels import JobParcel
from imgcls_search.executors.ray.station import Station, StationReport, StudyLocation
from imgcls_search.executors.slots import Slot, SlotsExecutor
from imgcls_search.models import weights_files
from imgcls_search.protocol import Event, Failed, Job, Message, Stopped, WorkerDied

PATIENCE_SECONDS = 15.0
"""A worker that sends nothing for this long, not even an empty report, counts as lost."""

LISTENING_SECONDS = 1.0
"""The run listens at least this often while it works."""

RETRY_SECONDS = 0.5
"""How long to wait before asking a station again that could not be reached."""

MOST_FAILED_STARTS = 3
"""Actors of one slot that may die in a row before they report anything."""

END_SECONDS = 2.0
"""How long an actor may take to end its worker process before it is killed."""

WAITING_SECONDS = 5.0
"""How often to report that a job waits for a worker, so that this does not count as silence of its trial."""


class RayExecutor(SlotsExecutor["_RaySlot"]):
    """Runs jobs in actors; a dead one is replaced at once, wherever Ray finds room for it."""

    def __init__(
        self,
        layout: Layout,
        folder: Path,
        say: Callable[[str], None],
        *,
        node: str | None = None,
        code: Mapping[str, str] | None = None,
    ) -> None:
        """Ask Ray for the workers of a layout, all on one `node` if it is named.

        `code` holds the digests of user functions, which must be the same there. `folder` is the study's; nodes that
        see it work in it, and files are sent to and from the others.
        """
        self.root = folder.parent.resolve()
        self.say = say
        self.images: dict[str, Mapping[str, list[Any]]] = {}
        """Decoded images that were put into the object store, by their folder."""
        self.known_nodes = {entry["NodeID"] for entry in ray.nodes()}
        self.waiting: Job | None = None
        """A job that came while no worker could take it."""
        self.told_at = self.listened_at = self.clock()
        self.marker = folder.resolve() / "meeting"
        token = secrets.token_hex(16)
        self.marker.write_text(token)
        location = StudyLocation(
            folder=str(Path.cwd()),
            root=str(self.root),
            marker=str(self.marker),
            token=token,
            weights=os.environ.get(weights_files.VARIABLE, ""),
            code_folders=os.environ.get(own_code.VARIABLE, ""),
            code=dict(code or {}),
        )
        self.end_lent: Callable[[], None] | None = None
        if sys.platform.startswith("linux"):
            here = ray.get_runtime_context().get_node_id()
            self.end_lent = ForkServer(parcels.own_folder(), fork_key(token, here)).lend()
        placed = NodeAffinitySchedulingStrategy(node, soft=False) if node else "SPREAD"
        actor = ray.remote(Station).options(**layout.resources, scheduling_strategy=placed, max_restarts=0)

        def hire(name: str) -> Any:
            return actor.remote(name, layout.devices, location)

        super().__init__([_RaySlot(f"worker-{index}", hire, self._parcel) for index in range(layout.count)])

    def free_slots(self) -> int:
        """Return how many workers are free; while there is no worker at all, one job is accepted too."""
        if self.waiting is not None:
            return 0
        nobody = self.alone is None and not any(slot.is_ready for slot in self.workers)
        return super().free_slots() or int(nobody)

    def start(self, job: Job) -> None:
        """Hand a job to a free worker, or keep it until there is one."""
        job = replace(
            job,
            checkpoint=_absolute(job.checkpoint),
            log=_absolute(job.log),
            artifact=_absolute(job.artifact),
            pictures=_absolute(job.pictures),
            teacher=_absolute(job.teacher) if job.teacher else None,
            backbones=tuple(map(_absolute, job.backbones)),
        )
        if job.kind == "train" and not self._fit_for(job):
            self._keep(job)
        else:
            super().start(job)

    def _keep(self, job: Job) -> None:
        """Keep a job until a worker that can do it is free, or fail it if there is no such worker."""
        if job.config.is_pretraining and all(slot.is_ready and not slot.is_shared for slot in self.workers):
            reason = f"no node of the cluster sees {self.root}, where the images to pretrain on are"
            self.events.append(Failed(trial=job.trial, kind="error", reason=reason))
        else:
            self.waiting = job

    def _fit_for(self, job: Job) -> list[_RaySlot]:
        """Return the free workers that can do a job: images to pretrain on are not sent to nodes."""
        return [slot for slot in self._free() if slot.is_shared or not job.config.is_pretraining]

    def _choose(self, job: Job, free: Sequence[_RaySlot]) -> _RaySlot:
        return super()._choose(job, self._fit_for(job) if job.config.is_pretraining else free)

    def stop(self, trial: int) -> None:
        """Ask the worker of a trial to save and stop."""
        if self._is_waiting(trial):
            self.waiting = None
            self.events.append(Stopped(trial=trial))
        super().stop(trial)

    def kill(self, trial: int, reason: str) -> None:
        """End the actor of a trial at once; a `WorkerDied` event with the reason follows."""
        if self._is_waiting(trial):
            self.waiting = None
            self.events.append(WorkerDied(trial=trial, reason=reason))
        super().kill(trial, reason)

    def clock(self) -> float:
        """Return seconds since an arbitrary moment."""
        return time.monotonic()

    def close(self) -> None:
        """End all workers now."""
        self.marker.unlink(missing_ok=True)
        for slot in self.workers:
            slot.end()
        if self.end_lent is not None:
            self.end_lent()

    def _is_waiting(self, trial: int) -> bool:
        return self.waiting is not None and self.waiting.trial == trial

    def _listen(self, timeout: float) -> None:
        now = self.clock()
        for slot in self.workers:
            slot.ask_again(now)
        by_reply = {slot.reply: slot for slot in self.workers if slot.reply is not None}
        if not by_reply:
            time.sleep(min(timeout, RETRY_SECONDS))
            return
        ray.wait(list(by_reply), num_returns=1, timeout=timeout)
        ready, _ = ray.wait(list(by_reply), num_returns=len(by_reply), timeout=0)
        for reply in ready:
            self._open(by_reply[reply], reply)
        self._look_after([by_reply[reply] for reply in ready])

    def _open(self, slot: _RaySlot, reply: Any) -> None:
        try:
            report: StationReport = ray.get(reply)
        except (ActorUnavailableError, ObjectLostError):
            # The network may recover; nothing is lost, since messages are repeated until they are answered.
            slot.ask_later(self.clock())
        except RayActorError as error:
            self._lose(slot, _why(error))
        else:
            self._read(slot, report)

    def _read(self, slot: _RaySlot, report: StationReport) -> None:
        if report.node not in self.known_nodes:
            cluster.refuse_strangers([report.node])
            self.known_nodes.add(report.node)
        for event in slot.read(report, self.root):
            self._take_in(event)
        if self.waiting is not None:
            job, self.waiting = self.waiting, None
            if free := self._fit_for(job):
                self.events.append(Event(trial=job.trial))
                free[0].take(job)
            else:
                self._keep(job)
        self._attend_alone()

    def _look_after(self, heard: Sequence[_RaySlot]) -> None:
        """Replace workers that have been silent for too long."""
        # A run that was suspended, or waited for a lock, has not listened meanwhile.
        seconds = min(self.clock() - self.listened_at, LISTENING_SECONDS)
        self.listened_at = self.clock()
        for slot in self.workers:
            slot.silence += 0 if slot in heard else seconds
            if slot.is_ready and slot.silence > PATIENCE_SECONDS:
                self._lose(slot, f"nothing was heard of it for {PATIENCE_SECONDS:g} s")
        if self.waiting is not None and self.clock() - self.told_at > WAITING_SECONDS:
            self.told_at = self.clock()
            self.events.append(Event(trial=self.waiting.trial))

    def _lose(self, slot: _RaySlot, why: str) -> None:
        """Report an actor's death, and ask for another one."""
        if not slot.is_ready:
            slot.failed_starts += 1
            if slot.failed_starts == MOST_FAILED_STARTS:
                raise ClusterError(f"--cluster: {slot.name} cannot be started ({why})")
        job, label = slot.job, slot.label
        self.say(f"{label} was lost: {why}")
        slot.replace()
        if job is not None:
            self._take_in(WorkerDied(trial=job.trial, worker=label, reason=f"{label} died ({why})"))

    def _parcel(self, job: Job, *, is_shared: bool, is_new_there: bool) -> JobParcel:
        """Return a job with the files that its node cannot read."""
        if is_shared:
            return JobParcel(job=job)
        paths = [job.teacher, job.checkpoint, job.artifact, *job.backbones] if is_new_there else []
        files = [parcels.below(self.root, Path(path)) for path in paths if path and Path(path).is_file()]
        return JobParcel(job=job, files=files, images=self._images(Path(job.data["folder"])))

    def _images(self, folder: Path) -> Mapping[str, list[Any]]:
        if str(folder) not in self.images:
            self.say(f"nodes that do not see {self.root} get the decoded images through Ray's object store")
            self.images[str(folder)] = {
                path.name: [ray.put(chunk) for chunk in parcels.chunks(path)] for path in sorted(folder.iterdir())
            }
        return self.images[str(folder)]


class _RaySlot(Slot):
    """The run's end of one actor. Messages are numbered and repeated until the actor has them."""

    def __init__(self, name: str, hire: Callable[[str], Any], parcel: Callable[..., JobParcel]) -> None:
        super().__init__(name)
        self.hire = hire
        self.parcel = parcel
        self.failed_starts = 0
        self._begin()

    def _begin(self) -> None:
        self.label = self.name
        self.is_ready = False
        self.is_shared = True
        self.trial_there = -1
        self.silence = 0.0
        self.said = self.known = 0
        self.unheard: list[tuple[int, Any]] = []
        self.retry_at: float | None = None
        self.actor = self.hire(self.name)
        # Answered as soon as the actor is alive.
        self.reply: Any = self.actor.listen.remote(-1)

    def tell(self, message: Message) -> None:
        """Send a message."""
        told: JobParcel | Message = message
        if isinstance(message, Job):
            told = self.parcel(message, is_shared=self.is_shared, is_new_there=self.trial_there != message.trial)
            self.trial_there = message.trial
        self.said += 1
        self.unheard.append((self.said, told))
        self.actor.hear.remote(self.unheard[-1:])

    def read(self, report: StationReport, root: Path) -> list[Event]:
        """Write the files that came with the new events of a report, and return these events."""
        self.is_ready, self.is_shared, self.label = True, report.is_shared, f"{self.name}@{report.ip}"
        self.silence, self.failed_starts = 0.0, 0
        self.unheard = [entry for entry in self.unheard if entry[0] > report.heard]
        fresh = [news for news in report.news if news.number > self.known]
        for news in fresh:
            parcels.write(root, news.files)
            self.known = news.number
            self.note(news.event)
        self.reply = self.actor.listen.remote(self.known)
        return [news.event for news in fresh]

    def ask_later(self, now: float) -> None:
        """Schedule a retry, since the actor could not be reached."""
        self.reply, self.retry_at = None, now + RETRY_SECONDS

    def ask_again(self, now: float) -> None:
        """Repeat messages that may be lost, if it is time for it."""
        if self.retry_at is not None and now >= self.retry_at:
            self.retry_at = None
            if self.unheard:
                self.actor.hear.remote(self.unheard)
            self.reply = self.actor.listen.remote(self.known)

    def kill(self) -> None:
        """End the actor and its worker now; another takes their place."""
        self.end()
        self.replace()

    def end(self) -> None:
        """End the actor and its worker now."""
        # Otherwise the worker process would outlive a killed actor until it notices.
        ray.wait([self.actor.end.remote()], timeout=END_SECONDS if self.is_ready else 0)
        ray.kill(self.actor)

    def replace(self) -> None:
        """Ask for another actor in place of one that is dead or cannot be reached."""
        with contextlib.suppress(ValueError):
            ray.kill(self.actor)
        self.job = None
        self.must_pause = self.is_paused = False
        self._begin()


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def _why(error: RayActorError) -> str:
    """Return briefly why an actor is dead."""
    text = str(error)
    if "node has died" in text:
        return "its node was lost"
    if "worker process has died" in text:
        return "its process was killed, or crashed"
    return text.strip().split("\n")[-1]
