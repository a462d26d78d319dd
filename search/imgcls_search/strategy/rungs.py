"""Pruners that decide at rungs: epochs at which a trial stops, or is paused until it is among the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Literal, Protocol

from imgcls_search.strategy.ladder import Ladder
from imgcls_search.trial import Trial

Decision = Literal["continue", "pause", "prune"]


class Pruner(Protocol):
    """Decides how far each trial may train."""

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the epoch that a trial at `trial.epoch` may train up to next, given the results of others."""

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Decide on a trial that reached a milestone before its last epoch."""

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return a paused trial to promote, if there is one."""


@dataclass(frozen=True, kw_only=True)
class RunToEnd:
    """Lets every trial train to its last epoch."""

    epochs: int

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the last epoch."""
        return self.epochs

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Let the trial continue."""
        return "continue"

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return None: no trial is ever paused."""
        return None


@dataclass(frozen=True, kw_only=True)
class Rungs(RunToEnd):
    """Epochs, each about eta times the one before, at which one in eta trials passes."""

    rungs: tuple[int, ...]
    """In ascending order, all below `epochs`."""

    eta: int
    sign: int
    """1 if larger values are better, -1 if smaller ones are."""

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next rung, or the last epoch when no rung is left."""
        return next((rung for rung in self.rungs if rung > trial.epoch), self.epochs)


@dataclass(frozen=True, kw_only=True)
class Stopping(Rungs):
    """Successive halving that stops: at a rung, a trial outside the best 1/eta seen there so far ends."""

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Prune a trial unless it is among the best 1/eta, which always include at least one."""
        there = [other for other in others if other.number != trial.number and other.was_judged_at(trial.epoch)]
        value = self.sign * trial.value_at(trial.epoch)
        better = sum(self.sign * other.value_at(trial.epoch) > value for other in there)
        return "continue" if better < max(1, (len(there) + 1) // self.eta) else "prune"


@dataclass(frozen=True, kw_only=True)
class Promoting(Rungs):
    """Asynchronous successive halving that resumes: a trial pauses at each rung until among its best 1/eta."""

    ladder: Ladder = field(init=False, repr=False, compare=False)
    """A cache between promotions; everything in it follows from the trials."""

    def __post_init__(self) -> None:
        """Start without trials."""
        object.__setattr__(self, "ladder", Ladder(self.eta, self.sign))

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Pause the trial; `promote` resumes it as soon as it is good enough."""
        return "pause"

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best paused trial of the highest rung that has one among its best 1/eta."""
        return self.ladder.promote(trials)


@dataclass(frozen=True, kw_only=True)
class TwoBrackets(Promoting):
    """Promotion with a second bracket: one in `every` trials skips the first rung, whose ranking may mislead."""

    every: int

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next rung."""
        if trial.epoch == 0 and trial.number % self.every == self.every - 1:
            return next(iter(self.rungs[1:]), self.epochs)
        return super().milestone(trial)


@dataclass(frozen=True, kw_only=True)
class Brackets:
    """Hyperband: trials take turns between halvings that start at different rungs, each judged in its own."""

    brackets: tuple[Stopping, ...]

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next rung of the trial's bracket."""
        return self._of(trial).milestone(trial, others)

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Judge a trial among the trials of its bracket."""
        mine = self._of(trial)
        return mine.judge(trial, [other for other in others if self._of(other) is mine])

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return None: no trial is ever paused."""
        return None

    def _of(self, trial: Trial) -> Stopping:
        turns = self.turns
        return turns[trial.number % len(turns)]

    @property
    def turns(self) -> list[Stopping]:
        """The brackets that trials take in turn."""
        # A bracket that starts at eta times more epochs gets fewer trials, so that all get about the same epochs.
        starts = [next(iter(bracket.rungs), bracket.epochs) for bracket in self.brackets]
        each = zip(self.brackets, starts, strict=True)
        return [bracket for bracket, start in each for _ in range(max(1, round(starts[-1] / start)))]


def expected_epochs(pruner: Pruner, epochs: int) -> float:
    """Return how many of the first `epochs` epochs a trial trains on average if one in eta passes each rung.

    All of them for other pruners.
    """
    match pruner:
        case Brackets(turns=turns):
            return mean(expected_epochs(bracket, epochs) for bracket in turns)
        case TwoBrackets(rungs=rungs, eta=eta, every=every):
            return ((every - 1) * _expected(rungs, eta, epochs) + _expected(rungs[1:], eta, epochs)) / every
        case Rungs(rungs=rungs, eta=eta):
            return _expected(rungs, eta, epochs)
    return float(epochs)


def _expected(rungs: Sequence[int], eta: int, epochs: int) -> float:
    steps = zip((0, *rungs), (*rungs, epochs), strict=True)
    # Rungs beyond these epochs do not count.
    return sum(
        (min(until, epochs) - min(start, epochs)) / float(eta) ** passed for passed, (start, until) in enumerate(steps)
    )
