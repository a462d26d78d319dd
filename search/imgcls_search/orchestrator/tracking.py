"""The trackers of a search, `study.log`: hand changes to their processes, which the search never waits for."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from imgcls_search.errors import writing
from imgcls_search.executors import processes
from imgcls_search.orchestrator.search import Search, Watcher
from imgcls_search.space import Space
from imgcls_search.space.writer import dump
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trackers.messages import End, EpochMeasured, Message, TrackedStudy, TrialBegan, TrialEnded
from imgcls_search.trackers.settings import wanted
from imgcls_search.trial import Trial
from imgcls_search.words import counted

CLOSING_SECONDS = 15.0
"""Time for trackers to accept the rest at the end of a search."""


@contextmanager
def tracked(space: Space, files: StudyFiles, record: Record, watcher: Watcher) -> Iterator[Watcher]:
    """Yield a watcher that also reports to the trackers of a space.

    Raises:
        UserError: the package of a tracker is not installed, or its settings are wrong.
    """
    chosen = wanted(space.study.get("log", {}))
    if not chosen:
        yield watcher
        return
    study = TrackedStudy(name=files.name, identity=_identity(record), notes=_notes(space, record))
    trackers = [TrackerProcess.start(name, settings, study, files) for name, settings in chosen.items()]
    tracked_watcher = TrackedWatcher(watcher, trackers, space.named_metrics)
    try:
        yield tracked_watcher
    finally:
        tracked_watcher.tell(record)
        for line in close(trackers):
            watcher.say(line)


class TrackerProcess:
    """The run's side of one tracker."""

    def __init__(self, place: str, process: BaseProcess | None, connection: Connection) -> None:
        """Start to send and to listen; `place` is the tracker's section, `process` the one at the other end."""
        self.place, self.process, self.connection = place, process, connection
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.unsaid: int | None = None
        self.has_ended = threading.Event()
        # In threads: a full pipe would block the search.
        threading.Thread(target=self._send, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    @classmethod
    def start(cls, name: str, settings: Mapping[str, Any], study: TrackedStudy, files: StudyFiles) -> TrackerProcess:
        """Start the process of a tracker, which keeps its notes in the folder of the study."""
        noted = files.folder / f"log-{name}.json"
        with writing(noted):
            noted.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"study.log.{name}", *processes.start(_work, f"log {name}", name, settings, study, noted))

    def tell(self, message: Message) -> None:
        """Queue a message without blocking."""
        self.outbox.put(message)

    def _send(self) -> None:
        while True:
            message = self.outbox.get()
            # The process is gone; `_listen` reports that.
            with contextlib.suppress(OSError):
                self.connection.send(message)
            if isinstance(message, End):
                return

    def _listen(self) -> None:
        try:
            while True:
                kind, said = self.connection.recv()
                if kind == "end":
                    self.unsaid = said
                    break
                self.lines.put(
                    f"{self.place}: {said}; the search continues and tries again later"
                    if kind == "trouble"
                    else f"{self.place}: works again, and everything missed was sent"
                )
        except (EOFError, OSError):
            self.lines.put(f"{self.place}: its process died; the search continues without it")
        self.has_ended.set()

    def close(self, seconds: float) -> Iterator[str]:
        """Give it `seconds` to accept the rest; yield lines for the user."""
        self.tell(End())
        self.has_ended.wait(seconds)
        while not self.lines.empty():
            yield self.lines.get()
        if not self.has_ended.is_set():
            yield f"{self.place}: did not accept everything within {CLOSING_SECONDS:g} s; the next run sends the rest"
        elif self.unsaid:
            yield f"{self.place}: {counted('message', self.unsaid)} not sent; the next run sends what is missing"
        if self.process is not None:
            self.process.kill()
            self.process.join()


def close(trackers: list[TrackerProcess]) -> Iterator[str]:
    """End all trackers, within the time for one; yield lines for the user."""
    ending = time.monotonic() + CLOSING_SECONDS
    for tracker in trackers:
        yield from tracker.close(max(0.0, ending - time.monotonic()))


class TrackedWatcher:
    """A watcher that forwards to another one, and tells trackers what has changed in the study."""

    def __init__(self, watcher: Watcher, trackers: list[TrackerProcess], named: tuple[str, ...]) -> None:
        """`named` are the metrics of objectives and limits, which are logged even if they are of one class."""
        self.watcher, self.trackers, self.named = watcher, trackers, named
        self.begun: set[int] = set()
        """Trials that the trackers were told about."""

        self.open: dict[int, int] = {}
        """How many epochs they know of each trial that has not ended."""

    def say(self, text: str) -> None:
        """Show a line."""
        self.watcher.say(text)

    def decoding(self, done: int, total: int) -> None:
        """Show images being decoded."""
        self.watcher.decoding(done, total)

    def changed(self, search: Search) -> None:
        """Tell the trackers what has changed, and show their replies."""
        self.tell(search.record)
        for tracker in self.trackers:
            while not tracker.lines.empty():
                self.watcher.say(tracker.lines.get())
        self.watcher.changed(search)

    def tell(self, record: Record) -> None:
        """Tell the trackers what is new to them in this run; they recognise what they had before."""
        new = [] if len(self.begun) == len(record.trials) else record.trials
        for trial in new:
            if trial.number not in self.begun:
                self.begun.add(trial.number)
                self.open[trial.number] = 0
                self._send(_began(trial))
        for number, epochs in list(self.open.items()):
            trial = record.by_number[number]
            for epoch, metrics in enumerate(trial.epochs[epochs:], start=epochs + 1):
                self._send(EpochMeasured(trial=number, epoch=epoch, metrics=self._chosen(metrics)))
            self.open[number] = trial.epoch
            if not trial.is_open:
                self._send(_ended(trial, record))
                del self.open[number]

    def _chosen(self, metrics: Mapping[str, float]) -> dict[str, float]:
        # Metrics of each class would be thousands of curves.
        return {name: value for name, value in metrics.items() if name in self.named or ":" not in name}

    def _send(self, message: Message) -> None:
        for tracker in self.trackers:
            tracker.tell(message)


def _began(trial: Trial) -> TrialBegan:
    config = trial.candidate.config
    return TrialBegan(trial=trial.number, params=dict(trial.candidate.params), config=dump(config))


def _ended(trial: Trial, record: Record) -> TrialEnded:
    names = [name for name, _ in record.objectives]
    values = {**trial.sizes, **dict(zip(names, trial.values or (), strict=False))}
    pictures: dict[str, Path] = {}
    if record.files is not None:
        files = {name: record.files.pictures / key for key, name in (trial.pictures or {}).items()}
        pictures = {name: file for name, file in files.items() if file.is_file() and not file.is_symlink()}
    return TrialEnded(
        trial=trial.number, state=trial.state, values=values, reason=trial.reason or "", pictures=pictures
    )


def _identity(record: Record) -> str:
    """Return the id of a study for trackers, which stays when its folder moves or another study takes its name."""
    if "known_as" not in record.facts:
        record.set_fact("known_as", uuid.uuid4().hex[:12])
    return record.facts["known_as"]


def _notes(space: Space, record: Record) -> dict[str, str]:
    objectives = ", ".join(f"{name} {direction}" for name, direction in record.objectives)
    return {"space": Path(space.source).name, "objectives": objectives}


def _work(connection: Connection, name: str, settings: Mapping[str, Any], study: TrackedStudy, noted: Path) -> None:
    from imgcls_search.trackers.process import main

    main(connection, name, settings, study, noted)
