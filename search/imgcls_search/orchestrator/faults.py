"""Handle a trial whose training or worker failed: retry it a few times, or let it fail.

A training that ran out of memory continues with smaller micro-batches, a worker that died is replaced, and a loss that
is not a number prunes its trial, so that the sampler learns from it. Everything else fails the trial. The trial records
each trouble with its reason.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

from imgcls_search import durations
from imgcls_search.config import TrialConfig
from imgcls_search.errors import NoResultError, StudyError, UserError
from imgcls_search.protocol import FEWEST_IMAGES, Failed, WorkerDied
from imgcls_search.study.database import SAFE
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.settings import StudySettings
from imgcls_search.trial import Trial

SAME_FAILURES = 3
"""Trials that may fail in a row for the same reason, without a milestone in between, before the search stops."""


def more_parts(batch_size: int, parts: int) -> int | None:
    """Return twice as many micro-batches per batch, or None if they would hold too few images."""
    return 2 * parts if batch_size // (2 * parts) >= FEWEST_IMAGES else None


def parts_after(config: TrialConfig, parts: int) -> int | None:
    """Return how many micro-batches a training that ran out of memory may continue with, or None if it cannot."""
    return None if config.needs_whole_batches else more_parts(config.batch_size, parts)


def without_memory(config: TrialConfig, reason: str, parts: int) -> str:
    """Return why a training that ran out of memory cannot continue, and what helps."""
    if config.needs_whole_batches:
        path = f"{config.component('pretrain').path}.batch_size"
        return (
            f"{reason}; the loss compares all images of a batch, so the batch cannot be split: set {path} "
            f"below {config.batch_size}, or a smaller image.size"
        )
    return f"{reason} (with micro-batches of {math.ceil(config.batch_size / parts)} images)"


class Faults:
    """Decides about trials in trouble, and stops a search whose trials keep failing."""

    def __init__(self, record: Record, files: StudyFiles, settings: StudySettings, say: Callable[[str], None]) -> None:
        """`say` shows a line to the user."""
        self.record = record
        self.files = files
        self.settings = settings
        self.say = say
        self.failures: list[str] = []

    def note_progress(self) -> None:
        """Reset the count of identical failures: a trial reached a milestone."""
        self.failures.clear()

    def over_trial_time(self, trial: Trial, seconds: float) -> str | None:
        """Return why a trial that was silent for these seconds is over its time, or None; a retry does not help."""
        limit = self.settings.trial_timeout
        if limit is None or seconds + sum(epoch["seconds"] for epoch in trial.epochs) <= limit:
            return None
        return f"trained longer than study.trial_timeout: {durations.show(limit, exact=True)}"

    def over_epoch_time(self, seconds: float) -> str | None:
        """Return why a silence of these seconds is too long for an epoch, or None."""
        limit = self.settings.epoch_timeout
        if limit is None or seconds <= limit:
            return None
        return f"an epoch took longer than study.epoch_timeout: {durations.show(limit, exact=True)}"

    def take(self, trial: Trial, event: Failed | WorkerDied) -> bool:
        """Decide about a trial in trouble; return True to try it again, see `take_failure` and `take_death`."""
        return self.take_failure(trial, event) if isinstance(event, Failed) else self.take_death(trial, event)

    def take_failure(self, trial: Trial, event: Failed) -> bool:
        """Decide about a trial whose training failed; return True to retry it.

        Raises:
            UserError: every trial would fail in the same way.
            StudyError: the disk is full; the trial stays open, to resume from its last checkpoint.
            NoResultError: several trials in a row failed in the same way.
        """
        if event.kind == "disk":
            raise StudyError(f"trial {trial.number}: {event.reason}; {SAFE}")
        if event.kind == "out_of_memory":
            return self._shrink(trial, event.reason)
        if event.kind == "diverged":
            self._note_trouble(trial, event.reason)
            self.record.prune(trial, event.reason)
            return False
        self.fail(trial, event.reason, is_everybodys=event.kind == "setup")
        return False

    def take_death(self, trial: Trial, event: WorkerDied) -> bool:
        """Decide about a trial whose worker died; return True to resume it from its last checkpoint.

        Raises:
            NoResultError: several trials in a row failed in the same way.
        """
        # The trial has the reason too, so a full disk must not end the search here.
        with contextlib.suppress(OSError), self.files.log(trial.number).open("a") as log:
            log.write(f"{event.reason}\n")
        if event.is_out_of_memory:
            return self._shrink(trial, event.reason)
        trial.deaths += 1
        if trial.deaths > self.settings.retries:
            self.fail(trial, f"{event.reason}, {trial.deaths} times without a new checkpoint")
            return False
        self._note_trouble(trial, event.reason)
        self.record.note(trial, deaths=trial.deaths)
        self.say(f"trial {trial.number}: {event.reason}; it resumes from its last checkpoint")
        return trial.is_open

    def note_dropped(self, trial: Trial, reason: str) -> None:
        """Record and report that a trial starts again because its checkpoint cannot be used."""
        self._note_trouble(trial, reason)
        self.say(f"trial {trial.number}: {reason}; it trains from the start again")

    def fail(self, trial: Trial, reason: str, *, is_everybodys: bool = False) -> None:
        """End a trial as failed.

        Raises:
            UserError: every trial would fail in the same way.
            NoResultError: several trials in a row failed in the same way.
        """
        self.record.fail(trial, reason)
        self.say(f"trial {trial.number} failed: {reason} (traceback: {self.files.log(trial.number)})")
        if is_everybodys:
            raise UserError(f"trial {trial.number}: {reason}")
        self.failures.append(reason)
        if self.failures[-SAME_FAILURES:] == [reason] * SAME_FAILURES:
            raise NoResultError(
                f"{SAME_FAILURES} trials in a row failed in the same way, the last is trial {trial.number}: {reason}"
            )

    def _shrink(self, trial: Trial, reason: str) -> bool:
        """Continue a trial with micro-batches of half the size, as long as they hold enough images."""
        config = trial.candidate.config
        parts = parts_after(config, trial.micro_batches)
        if parts is None:
            self.fail(trial, without_memory(config, reason, trial.micro_batches))
            return False
        trial.micro_batches = parts
        self._note_trouble(trial, reason)
        self.record.note(trial, micro_batches=parts)
        each = math.ceil(config.batch_size / parts)
        self.say(f"trial {trial.number}: {reason}; it continues with micro-batches of {each} images")
        return trial.is_open

    def _note_trouble(self, trial: Trial, reason: str) -> None:
        trial.troubles.append(reason)
        self.record.note(trial, troubles=trial.troubles)
