"""Why a call of `run` ends: a budget is spent, a target is reached, or someone stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.study import best, outlook
from imgcls_search.study.activity import progress_of
from imgcls_search.study.endings import Ending
from imgcls_search.study.facts import Run
from imgcls_search.study.record import Record

Deadline = Callable[[Record], float]
"""Returns the time at which a search must end, on the executor's clock, given its record."""

SAVING_SECONDS = 5.0
"""How long workers may take to save at a deadline; after that, work since the last checkpoint is lost."""


def reached_end(context: SearchContext, seconds: float) -> Ending | None:
    """Return why a search is over after these seconds of this call, or None if it is not."""
    settings, trials = context.settings, context.record.trials
    if settings.timeout is not None and seconds > settings.timeout:
        return "timeout"
    if settings.max_epochs is not None and sum(trial.epoch for trial in trials) >= settings.max_epochs:
        return "epochs"
    if settings.target is not None and _has_reached(context, settings.target):
        return "target"
    if settings.min_gain is not None:
        found = outlook.outlook(context.record)
        if found is not None and found.gain < settings.min_gain:
            return "gain"
    return None


def _has_reached(context: SearchContext, target: float) -> bool:
    """Tell whether a complete trial within all limits is as good as the target."""
    return any(
        trial.values is not None and context.sign * trial.values[0] >= context.sign * target
        for trial in best.feasible(context.record)
    )


@contextmanager
def stopping_on_signals(stop: Callable[[Ending], bool]) -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request to stop.

    On a second signal, `stop` returns False, which ends the run at once. Only the main thread can handle signals: in
    other threads, change nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if not stop("interrupted" if number == signal.SIGINT else "terminated"):
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # SIGHUP: the terminal or the connection to it was closed; `nohup` makes a program ignore it.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note_run(record: Record, ending: Ending, seconds: float, idle: float) -> None:
    """Record how a call ended, how long it took, and how much of that time the run process was not idle."""
    progress = progress_of(record)
    run = Run(
        seconds=round(seconds, 3),
        writer_seconds=round(seconds - idle, 3),
        ending=ending,
        trials=progress["trials"],
        epochs=progress["epochs"],
    )
    record.append_fact("runs", run)
