"""The actor that holds a worker process on a node of the cluster, and forwards messages between it and the run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray

from imgcls_search import own_code, terminal
from imgcls_search.errors import UserError, disk_trouble
from imgcls_search.executors import processes
from imgcls_search.executors.ray.fork_server import ForkServer, fork_key
from imgcls_search.executors.ray.parcels import JobParcel, Piece, RemoteFolder, own_folder
from imgcls_search.executors.worker_process import WorkerProcess
from imgcls_search.models import weights_files
from imgcls_search.protocol import Event, Failed, Message

SILENCE_SECONDS = 5.0
"""How long a station waits for news before it sends an empty report."""


@dataclass(frozen=True, kw_only=True)
class News:
    """An event, and the files that go with it."""

    number: int
    event: Event
    files: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class StationReport:
    """A station's report to the run."""

    heard: int
    """The number of the last message that it has taken."""

    news: Sequence[News]
    node: str
    ip: str
    is_shared: bool
    """Whether it sees the studies' folder."""


@dataclass(frozen=True, kw_only=True)
class StudyLocation:
    """How a station finds the run's files."""

    folder: str
    """Where the run was started; relative paths in a configuration start there."""

    root: str
    """The studies' folder."""

    marker: str
    """A file in that folder."""

    token: str
    """The unique content of that file."""

    weights: str = ""
    """The folders in which the run looks for pretrained weights."""

    code_folders: str = ""
    """The folders of the user's own modules."""

    code: Mapping[str, str] = field(default_factory=dict)
    """The digests of the sources of user functions on the run's machine."""

    def is_here(self) -> bool:
        """Tell whether this machine sees the studies' folder."""
        try:
            return Path(self.marker).read_text() == self.token
        except OSError:
            return False


def _refuse_other_code(location: StudyLocation) -> None:
    """Refuse user functions whose source here differs from that on the run's machine.

    Raises:
        UserError: one does, or cannot be found here.
    """
    for function, digest in location.code.items():
        if own_code.digest(function) != digest:
            raise UserError(f"{function}: its source is another one on this node; put the same module there")


class Station:
    """A Ray actor. Messages and events are numbered, so that each counts once, even if lost or doubled on the way."""

    def __init__(self, name: str, devices: Sequence[str], location: StudyLocation) -> None:
        """Start the worker process."""
        # Ray keeps an actor's output in log files, which people read too.
        terminal.show_plain_warnings()
        with contextlib.suppress(OSError):
            os.chdir(location.folder)
        if location.weights:
            # For the worker process, which inherits it; an existing cluster does not have the run's variables.
            os.environ[weights_files.VARIABLE] = location.weights
        if location.code_folders:
            os.environ[own_code.VARIABLE] = location.code_folders
        _refuse_other_code(location)
        # The worker process would otherwise run Ray's own main module again, and import Ray.
        sys.modules["__main__"].__dict__.pop("__file__", None)
        context = ray.get_runtime_context()
        self.node, self.ip = context.get_node_id(), ray.util.get_node_ip_address()
        self.folder = None if location.is_here() else RemoteFolder(Path(location.root), name)
        start: Callable[..., tuple[Any, Connection]] = processes.start
        if sys.platform.startswith("linux"):
            start = ForkServer(own_folder(), fork_key(location.token, self.node)).start
        self.worker = WorkerProcess(f"{name}@{self.ip}", devices, start)
        self.watched: list[int] = []
        self.heard = self.number = 0
        self.news: deque[News] = deque()
        self.bell = asyncio.Event()
        self.one_at_a_time = asyncio.Lock()

    async def listen(self, known: int) -> StationReport:
        """Return the news after the event of a number; at once if there are any, or for -1."""
        self._watch()
        while self.news and self.news[0].number <= known:
            self.news.popleft()
        if not self.news and known >= 0:
            self.bell = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.bell.wait(), SILENCE_SECONDS)
        return StationReport(
            heard=self.heard, news=list(self.news), node=self.node, ip=self.ip, is_shared=self.folder is None
        )

    async def hear(self, messages: Sequence[tuple[int, JobParcel | Message]]) -> None:
        """Take numbered messages, each only once."""
        async with self.one_at_a_time:
            for number, message in messages:
                if number > self.heard:
                    self.heard = number
                    await self._take(message)

    async def end(self) -> None:
        """End the worker process, and delete everything but the images."""
        self.worker.kill()
        if self.folder is not None:
            self.folder.clear()

    async def _take(self, message: JobParcel | Message) -> None:
        if not isinstance(message, JobParcel):
            self.worker.tell(message)
            return
        job = message.job
        try:
            if self.folder is not None:
                job = await asyncio.to_thread(self.folder.take, message)
        except OSError as error:
            trouble = disk_trouble(error)
            self._add(Failed(trial=job.trial, kind="disk" if trouble else "error", reason=trouble or str(error)))
            return

        # It may be a new process, whose connection may have the old one's number.
        self._unwatch()
        self.worker.take(job)
        self._watch()

    def _watch(self) -> None:
        """Make the event loop call `_receive` when the worker sends something."""
        if not self.watched:
            for connection in self.worker.connections:
                self.watched.append(connection.fileno())
                asyncio.get_running_loop().add_reader(connection.fileno(), self._receive, connection)

    def _unwatch(self) -> None:
        for number in self.watched:
            asyncio.get_running_loop().remove_reader(number)
        self.watched = []

    def _receive(self, connection: Connection) -> None:
        self._unwatch()
        event = self.worker.receive(connection)
        self._watch()
        if event is not None:
            self._add(event)

    def _add(self, event: Event) -> None:
        self.number += 1
        files = self.folder.pack(event) if self.folder is not None else []
        self.news.append(News(number=self.number, event=event, files=files))
        self.bell.set()
