"""The process of one tracker: it receives messages, forwards them, and retries later what failed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imgcls_search import atomic
from imgcls_search.errors import first_line
from imgcls_search.trackers.clients import CLIENTS, Client
from imgcls_search.trackers.messages import End, EpochMeasured, Message, TrackedStudy, TrialBegan, TrialEnded

AGAIN_SECONDS = 30.0
"""How long to wait before retrying a tracker that did not answer."""

MOST_WAITING = 200_000
"""Most messages that are kept for it meanwhile."""

MOST_LETTERS = 300
"""Most characters of a tracker's error to report."""

SAVE_SECONDS = 5.0
"""How often progress is saved: if a run is killed, at most this much is sent twice."""


@dataclass
class Logged:
    """The parts of a study that a tracker already has, by trial."""

    runs: dict[str, str] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, file: Path, target: Mapping[str, Any]) -> Logged:
        """Read a file; if it is for another target, it counts as empty."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["target"] == dict(target):
                runs, epochs, ended = dict(known["runs"]), dict(known["epochs"]), list(known["ended"])
                numbers = [*epochs.values(), *ended]
                if all(isinstance(run, str) for run in runs.values()) and all(type(each) is int for each in numbers):
                    return cls(runs=runs, epochs=epochs, ended=set(ended))
        return cls()

    def write(self, file: Path, target: Mapping[str, Any]) -> None:
        """Write the file, as a whole or not at all."""
        # If this fails, messages are logged twice at worst.
        with contextlib.suppress(OSError):
            ended = {"runs": self.runs, "epochs": self.epochs, "ended": sorted(self.ended)}
            atomic.write_text(file, json.dumps({"target": dict(target), **ended}))

    def has(self, message: Message) -> bool:
        """Tell whether the tracker already has what a message says."""
        match message:
            case TrialBegan(trial=trial):
                return trial in self.ended
            case EpochMeasured(trial=trial, epoch=epoch):
                return trial in self.ended or epoch <= self.epochs.get(str(trial), 0)
            case TrialEnded(trial=trial):
                return trial in self.ended
        return False


def main(connection: Connection, name: str, settings: Mapping[str, Any], study: TrackedStudy, file: Path) -> None:
    """Forward messages until the run ends or dies."""
    # Silence the tracker's own output; errors go to the run.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    logging.disable(logging.CRITICAL)
    TrackerQueue(connection, CLIENTS[name], settings, study, file).work()


class TrackerQueue:
    """Keeps messages until the tracker has accepted them."""

    def __init__(
        self,
        connection: Connection,
        make: Callable[[Mapping[str, Any], TrackedStudy], Client],
        settings: Mapping[str, Any],
        study: TrackedStudy,
        file: Path,
    ) -> None:
        self.connection, self.make, self.settings, self.study, self.file = connection, make, settings, study, file
        self.logged = Logged.read(file, self._target)
        self.waiting: deque[Message] = deque(maxlen=MOST_WAITING)
        self.client: Client | None = None
        self.open: dict[int, str] = {}
        """Runs of this process, by trial."""

        self.is_ending = False
        self.not_before = self.saved_at = 0.0
        self.is_troubled = False

    @property
    def _target(self) -> dict[str, Any]:
        return {**self.settings, "study": self.study.identity}

    def work(self) -> None:
        """Work until everything is sent, or the run is gone."""
        while not (self.is_ending and not self.waiting):
            try:
                self._listen()
            except (EOFError, OSError):
                # The run is gone: send what is left, if the tracker accepts it now.
                self.is_ending = True
            if self.waiting and time.monotonic() >= self.not_before:
                self._hand_on()
                if self.is_ending and self.is_troubled:
                    break
        if self.client is not None:
            with contextlib.suppress(Exception):
                self.client.close()
        self.logged.write(self.file, self._target)
        self._tell(("end", len(self.waiting)))

    def _listen(self) -> None:
        """Take messages from the run; wait for them if there is nothing else to do."""
        patience = None if not self.waiting else max(0.0, min(self.not_before - time.monotonic(), AGAIN_SECONDS))
        while not self.is_ending and self.connection.poll(patience):
            message: Message = self.connection.recv()
            if isinstance(message, End):
                self.is_ending, self.not_before = True, 0.0
            elif not self.logged.has(message):
                self.waiting.append(message)
            patience = 0.0

    def _hand_on(self) -> None:
        try:
            if self.client is None:
                self.client = self.make(self.settings, self.study)
            while self.waiting:
                self._say(self.client, self.waiting[0])
                self.waiting.popleft()
                if time.monotonic() - self.saved_at > SAVE_SECONDS:
                    self.saved_at = time.monotonic()
                    self.logged.write(self.file, self._target)
                if self.connection.poll(0) and not self.is_ending:
                    break
        # A tracker may raise anything, and must not end the search.
        except Exception as error:
            self.not_before = time.monotonic() + AGAIN_SECONDS
            if not self.is_troubled:
                self._tell(("trouble", first_line(error).rstrip(".")[:MOST_LETTERS]))
            self.is_troubled = True
            return
        if self.is_troubled:
            self._tell(("well", ""))
        self.is_troubled = False

    def _say(self, client: Client, message: Message) -> None:
        match message:
            case TrialBegan(trial=trial):
                self.open[trial] = client.begin(message, self.logged.runs.get(str(trial)))
                self.logged.runs[str(trial)] = self.open[trial]
            case EpochMeasured(trial=trial, epoch=epoch):
                client.measure(self.open[trial], message)
                self.logged.epochs[str(trial)] = epoch
            case TrialEnded(trial=trial):
                client.end(self.open.pop(trial), message)
                self.logged.ended.add(trial)
                self.logged.runs.pop(str(trial), None)
                self.logged.epochs.pop(str(trial), None)

    def _tell(self, what: tuple[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(what)
