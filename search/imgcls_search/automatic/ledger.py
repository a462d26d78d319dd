"""The account of `auto`'s time: how much was given, what each step took over all calls, and how much is left.

The account is a fact of the study. Until there is a study, it is a file in `auto`'s output folder, where it also marks
the folder as `auto`'s.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

from imgcls_search import atomic
from imgcls_search.errors import OutOfTimeError, UserError, writing
from imgcls_search.study.database import damaged
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import AutoFact
from imgcls_search.study.shape import is_of

Step = Literal["init", "baseline", "search", "confirm", "bundle", "report"]
"""In order; `baseline` is the part of the search until the first score."""

SAVE_SECONDS = 2.0
"""A killed call loses at most these seconds of the account while its step reports progress."""

RING_AGAIN_SECONDS = 3.0
"""Raise the timeout again after these seconds, in case a library swallowed it."""

MOST_START_SECONDS = 60.0
"""No program takes longer to start; a longer time means a wrong clock."""

MOST_SECONDS = 1e10
"""Larger times in a file mean that it is damaged."""

FILE = "time.json"


class Ledger:
    """Counts the seconds of one call on top of those of earlier ones."""

    def __init__(self, fact: AutoFact, file: Path, started: float) -> None:
        """Continue an account; `started` is when this call began, by `time.monotonic`."""
        self.fact: AutoFact = {**fact, "spent": dict(fact.get("spent", {}))}
        self.file = file
        self.step: Step = "init"
        self.since = started
        self.saved_at = -SAVE_SECONDS
        self.record: Record | None = None
        """The study, once there is one."""

    @property
    def spent(self) -> float:
        """Seconds that all calls have taken so far."""
        return sum(self.fact["spent"].values()) + time.monotonic() - self.since

    @property
    def left(self) -> float:
        """Seconds that are left; negative when the time is over."""
        return self.fact["given"] - self.spent

    @property
    def end(self) -> float:
        """When the time is over, by `time.monotonic`."""
        return time.monotonic() + self.left

    def begin(self, step: Step) -> None:
        """Begin a step; the time from now on counts for it."""
        self._book()
        self.step = step
        self.save()

    def keep_in(self, record: Record) -> None:
        """Keep the account in a study from now on."""
        self.record = record
        self.save()
        self.file.unlink(missing_ok=True)

    def save_sometimes(self) -> None:
        """Save the account if the last save is at least `SAVE_SECONDS` old."""
        if time.monotonic() - self.saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the current account.

        Raises:
            UserError, StudyError: it cannot be written.
        """
        self._book()
        self.saved_at = time.monotonic()
        if self.record is not None:
            self.record.set_fact("auto", cast(AutoFact, json.loads(json.dumps(self.fact))))
        else:
            with writing(self.file):
                atomic.write_text(self.file, json.dumps(self.fact, indent=1) + "\n")

    def _book(self) -> None:
        now = time.monotonic()
        self.fact["spent"][self.step] = self.fact["spent"].get(self.step, 0.0) + now - self.since
        self.since = now


def process_began() -> float:
    """Return when this process started, by `time.monotonic`; the current time if the system does not say."""
    now = time.monotonic()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # Split after the program's name, which may contain anything; the 20th field is the start in ticks since boot.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return now - min(max(0.0, age), MOST_START_SECONDS)
    return now


def read_file(file: Path) -> AutoFact | None:
    """Return the account in an earlier call's file, None if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if not is_of(found, AutoFact) or not _is_account(found):
        raise UserError(f"{file}: damaged; delete it to start counting the time again")
    return cast(AutoFact, found)


def known_account(found: AutoFact, place: str) -> AutoFact:
    """Return the account in a study.

    Raises:
        StudyError: it is damaged.
    """
    if not _is_account(found):
        raise damaged(place, "the study's account of the time of auto is not one")
    return found


def _is_account(found: Any) -> bool:
    """Tell whether an account has the times that `Ledger` always writes, none too large for a clock."""
    if "given" not in found or "spent" not in found:
        return False
    return all(0 <= number < MOST_SECONDS for number in (found["given"], *found["spent"].values()))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in this block; otherwise it ends the program without a message."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ending_at(moment: float) -> Iterator[None]:
    """Raise OutOfTimeError in this block at a moment of `time.monotonic`, whatever code is running.

    This works only in the main thread and on systems with alarms; elsewhere a step ends late.
    """
    if (
        math.isinf(moment)
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError("the time is over")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, moment - time.monotonic()), RING_AGAIN_SECONDS)
    try:
        yield
    except Exception as error:
        # SQLAlchemy wraps exceptions that are raised while it builds a statement.
        if isinstance(error.__cause__, OutOfTimeError):
            raise error.__cause__ from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
