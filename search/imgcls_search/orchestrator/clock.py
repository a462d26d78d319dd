"""The time that one call of `run` has taken, on the executor's clock, and its remaining time and budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from imgcls_search.orchestrator.endings import SAVING_SECONDS, Deadline
from imgcls_search.protocol import Event, Executor
from imgcls_search.strategy.closing import RemainingBudget
from imgcls_search.study.endings import Ending
from imgcls_search.study.record import Record
from imgcls_search.study.settings import StudySettings
from imgcls_search.trial import Trial

QUIET_SECONDS = 1.0
"""How long events may follow each other before the run looks whether a trial is over its time."""


@dataclass(kw_only=True)
class RunClock:
    """The time of one call."""

    executor: Executor
    settings: StudySettings
    record: Record
    deadline: Deadline | None = None
    """When the search must end, whatever its settings allow."""

    idle_seconds: float = 0.0
    """How long the run process waited for events."""

    def __post_init__(self) -> None:
        """Start the clock."""
        self.started_at = self.stopped_at = self.quiet_at = self.now()

    def now(self) -> float:
        """Return the executor's time, seconds."""
        return self.executor.clock()

    def note_stop(self) -> None:
        """Note that workers are asked to stop now."""
        self.stopped_at = self.now()

    def listen(self, patience: float) -> Event | None:
        """Wait for an event, at most `patience` seconds; return None without waiting if none has been missing for long.

        Epochs shorter than the patience would otherwise keep the run from looking at its time limits.
        """
        before = self.now()
        event = self.executor.next_event(0 if before - self.quiet_at > QUIET_SECONDS else patience)
        after = self.now()
        self.idle_seconds += after - before
        if event is None:
            self.quiet_at = after
        return event

    def seconds(self) -> float:
        """Return how long this call has taken."""
        return self.now() - self.started_at

    def seconds_left(self) -> float:
        """Return how much time this call has left; infinite without a limit."""
        timeout = self.settings.timeout
        left = math.inf if timeout is None else timeout - self.seconds()
        return left if self.deadline is None else min(left, self.deadline(self.record) - self.now())

    def is_overdue(self, stopping: Ending | None) -> bool:
        """Tell whether workers that were asked to stop at a deadline take too long."""
        is_late = self.now() - self.stopped_at > SAVING_SECONDS
        return self.deadline is not None and stopping == "timeout" and is_late

    def remaining_budget(self, working: Iterable[Trial]) -> RemainingBudget | None:
        """Return the budget that is left after running trials have used their part, or None without a budget."""
        most, seconds = self.settings.max_epochs, self.seconds_left()
        if most is None and math.isinf(seconds):
            return None
        spoken_for = sum(trial.epoch for trial in self.record.trials)
        spoken_for += sum(trial.until - trial.epoch for trial in working)
        return RemainingBudget(epochs=math.inf if most is None else most - spoken_for, seconds=seconds)
