"""The next trial: a new one, drawn and measured before a worker is free, or a paused one that is resumed instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError, NoResultError, SpaceError
from imgcls_search.orchestrator.context import Assistant, SearchContext
from imgcls_search.space import start_of
from imgcls_search.strategy.closing import RemainingBudget, best_paused, is_kept_for_running, to_finish_now
from imgcls_search.strategy.draws import draw_start
from imgcls_search.strategy.propose import Proposal, Proposer
from imgcls_search.strategy.race import Race, races
from imgcls_search.strategy.view import View
from imgcls_search.study import requests
from imgcls_search.study.foreign_trials import ForeignTrial
from imgcls_search.study.trial_attributes import strategy_of
from imgcls_search.trial import Trial

if TYPE_CHECKING:
    from imgcls_search.strategy.rungs import Pruner

LOOK_SECONDS = 1.0
"""How long a request may go unnoticed when no other trial is to be drawn."""

POLL_SECONDS = 0.2
"""How long a Ctrl-C may go unnoticed."""


class Upcoming:
    """Draws new trials one ahead, and promotes paused ones."""

    def __init__(
        self,
        context: SearchContext,
        proposer: Proposer,
        pruner: Pruner,
        helper: Assistant,
        *,
        remaining: Callable[[], RemainingBudget | None],
        is_timing: Callable[[], bool],
        is_stopping: Callable[[], bool] = lambda: False,
        race: Race | None = None,
    ) -> None:
        """`remaining` returns what is left of a budget, `is_timing` whether a measurement forbids other computation.

        `is_stopping` returns whether the search begins no more trials, which a signal may decide at any moment.
        """
        self.context = context
        self.record = context.record
        self.proposer = proposer
        self.pruner = pruner
        self.helper = helper
        self.remaining = remaining
        self.is_timing = is_timing
        self.is_stopping = is_stopping
        self.strategy = strategy_of(context.space.study["sampler"], context.space.study["pruner"])
        self.race = race
        self.drawn: Trial | None = None
        """The next new trial, drawn and measured but not yet recorded."""
        self.claimed: ForeignTrial | None = None
        """The waiting trial that becomes the next one, if any."""
        self.drawing: Iterator[None] | None = None
        """The drawing in progress, if any."""
        self.basis: list[int] = []
        """Where the other trials stood when the next new trial was drawn."""
        self.is_exhausted = False
        self.takes_requests = False
        """Whether this run takes a request that is added now."""
        self.look_for_requests_at = 0.0
        """When to check again for requests if no other trial is to be drawn."""

    def take_requests(self, takes: bool) -> None:
        """Announce whether this run takes requests from now on."""
        if takes != self.takes_requests:
            self.record.set_fact("takes_requests", takes)
            self.takes_requests = takes

    def is_asked(self) -> bool:
        """Tell whether there is a request that is still to be tried."""
        self.record.read_requests()
        return bool(requests.pending(self.record))

    def next(self) -> Trial | None:
        """Record and return the trial that a free worker should take, or None if there is none now."""
        while self.drawing is not None and not self.is_stopping():
            # A promotion now would change the basis on which the next trial is drawn.
            self.look_ahead()
            self.helper.wait(POLL_SECONDS)
        if self.is_stopping():
            return None
        remaining = self.remaining()
        if remaining is not None:
            trials, epochs = self.record.trials, self.context.epochs
            if (last := to_finish_now(trials, epochs, self.context.sign, remaining)) is not None:
                self._forget_outdated()
                return self.finish(last)
            if is_kept_for_running(trials, epochs, remaining):
                return None
        if (promoted := self._promote()) is not None:
            self._forget_outdated()
            return promoted
        while True:
            self.complete_drawing()
            if self.drawn is None or self.is_stopping():
                return None
            if (trial := self._new_trial()) is not None:
                return trial

    def complete_drawing(self) -> None:
        """Draw the next new trial, if another one may be drawn now."""
        while self.can_look_ahead() and not self.is_stopping():
            self.look_ahead()
            self.helper.wait(POLL_SECONDS)

    def _promote(self) -> Trial | None:
        """Return a paused trial that is promoted, racers first."""
        trials = self.record.trials
        if self.race is not None:
            is_last_drawn = self.is_exhausted or self.record.num_drawn >= self.context.settings.trials
            if (racer := self.race.next(trials, is_last_drawn=is_last_drawn)) is not None:
                self.record.set_plan(racer[0], until=racer[1], paused=False)
                return racer[0]
            if self.race.is_on(trials, is_last_drawn=is_last_drawn):
                return None
        promoted = self.pruner.promote(trials)
        if promoted is not None:
            self.record.set_plan(promoted, until=self.pruner.milestone(promoted, trials), paused=False)
        return promoted

    def _forget_outdated(self) -> None:
        """Forget a new trial that was drawn before the latest results, while a promoted trial trains.

        A run that is killed in that time draws from these results when it is resumed.
        """
        is_sampled = self.drawn is not None and self.claimed is None and self.drawn.request is None
        if is_sampled and self.basis != self._standings():
            self.drawn = None

    def _standings(self) -> list[int]:
        """Return where all trials but the last stand: what a draw depends on."""
        return [trial.decided_at for trial in self.record.trials[:-1]]

    def best_paused(self) -> Trial | None:
        """Return the best paused trial, to train to its end, if no trial is complete."""
        paused = [trial for trial in self.record.trials if trial.state == "paused"]
        if not paused or any(trial.state == "complete" for trial in self.record.trials):
            return None
        best = best_paused(paused, self.context.sign)
        return self.finish(best) if best is not None else None

    def finish(self, trial: Trial) -> Trial:
        """Let a paused trial train to its end."""
        self.record.set_plan(trial, until=trial.last_epoch(self.context.epochs), paused=False)
        return trial

    def can_look_ahead(self) -> bool:
        """Tell whether another new trial may be drawn now."""
        return self.drawn is None and (self._is_wanted() or self._is_asked_for()) and not self.is_timing()

    def _is_wanted(self) -> bool:
        return not self.is_exhausted and self.record.num_drawn < self.context.settings.trials

    def _is_asked_for(self) -> bool:
        """Tell whether there is a request, which is tried in addition to `study.trials`."""
        if self._is_wanted() or time.monotonic() < self.look_for_requests_at:
            return bool(requests.pending(self.record))
        self.look_for_requests_at = time.monotonic() + LOOK_SECONDS
        return self.is_asked()

    def look_ahead(self) -> None:
        """Take one step towards the next new trial, so that it is ready before a worker is free."""
        if not self.can_look_ahead():
            return
        if self.drawing is None:
            self.drawing = self._draw()
        if next(self.drawing, "over") == "over":
            self.drawing = None

    def _draw(self) -> Iterator[None]:
        """Draw and measure candidates, one per step, until one can be the next trial."""
        try:
            if (yield from self._draw_asked()) or not self._is_wanted():
                return
            self.basis = self._standings()
            for proposal in self.proposer.proposals(self.record.trials):
                if proposal is not None:
                    self.drawn = self._trial_of(proposal)
                    return
                yield
        except NoResultError as error:
            if not self.record.trials:
                raise
            self.context.say(str(error))
        self.is_exhausted = True

    def _draw_asked(self) -> Generator[None, None, bool]:
        """Make the next trial from a request or a waiting trial; return False if none can be tried."""
        # The space's own start configurations come first: they are matched to trials by position.
        if self._is_wanted() and len(self.record.trials) < len(self.context.space.start):
            return False
        self.record.look_again()
        for request in requests.pending(self.record):
            answer = yield from self._proposal_of(request["params"])
            if not isinstance(answer, str):
                self.drawn = replace(self._trial_of(answer), request=request["id"])
                return True
            self.record.refuse_request(request["id"], answer)
            self.context.say(f"request {request['id']}: cannot be tried: {answer}")
        return (yield from self._draw_waiting()) if self._is_wanted() else False

    def _draw_waiting(self) -> Generator[None, None, bool]:
        """Make the next trial from one that others have enqueued; return False if none can be tried."""
        for foreign in [other for other in self.record.foreign_trials.values() if other.state == "waiting"]:
            answer = yield from self._proposal_of(foreign.params)
            if not isinstance(answer, str):
                self.drawn, self.claimed = replace(self._trial_of(answer), number=foreign.number), foreign
                return True
            self.record.refuse(foreign, answer)
            self.context.say(f"trial {foreign.number}: was waiting to be tried, and failed: {answer}")
        return False

    def _proposal_of(self, given: Mapping[str, Any]) -> Generator[None, None, Proposal | str]:
        """Return the proposal for a request, or why it cannot be tried."""
        space = self.context.space
        try:
            params = start_of(given, space.root)
        except SpaceError as error:
            return "; ".join(str(error).splitlines())
        view = View(space, self.record.trials, [], self.context.settings.seed)
        candidate = draw_start(view, params, len(self.record.trials))
        sizes = yield from self.proposer.measure_sizes(candidate.config)
        return sizes if isinstance(sizes, str) else Proposal(candidate=candidate, sizes=sizes, rejections=())

    def _trial_of(self, proposal: Proposal) -> Trial:
        return Trial(
            number=self.record.next_number,
            candidate=proposal.candidate,
            seed=_training_seed(self.context.settings.seed, len(self.record.trials)),
            sizes=proposal.sizes,
            metric=self.context.space.objectives[0][0],
            rejected_before=proposal.rejections,
            strategy=self.strategy,
        )

    def _new_trial(self) -> Trial | None:
        """Record the next new trial; return None if it waited in the study and someone else has taken it."""
        trial, self.drawn = self.drawn, None
        claimed, self.claimed = self.claimed, None
        assert trial is not None
        is_asked_for = claimed is not None or trial.request is not None
        trial.until = self._first_milestone(trial, is_asked_for=is_asked_for)
        if claimed is None:
            self.record.add(trial)
            if trial.request is not None:
                self.context.say(f"trial {trial.number}: starts, for request {trial.request}")
        elif not self.record.claim(claimed, trial):
            return None
        else:
            self.context.say(f"trial {trial.number}: starts; it was waiting in the study")
        # A deleted study of the same name may have left a log.
        self.context.files.log(trial.number).unlink(missing_ok=True)
        return trial

    def _first_milestone(self, trial: Trial, *, is_asked_for: bool) -> int:
        last = trial.last_epoch(self.context.epochs)
        if self.race is not None and races(trial):
            return min(self.race.rungs[0], last)
        # A configuration known to be good trains to its end, whatever its early epochs show: all others must beat it.
        is_start = is_asked_for or len(self.record.trials) < len(self.context.space.start)
        return last if is_start else min(self.pruner.milestone(trial, self.record.trials), last)


def sizes_within_limits(
    context: SearchContext, helper: Assistant, config: TrialConfig, num_classes: int
) -> Generator[None, None, Mapping[str, float] | str]:
    """Return the sizes of a configuration, or why it cannot be a trial; yield while they are being measured."""
    try:
        shape = InputShape.of(config.section("image"), num_classes)
        sizes = yield from helper.measuring(config, shape)
    except BuildError as error:
        return str(error)
    for name, limit in context.space.limits.items():
        if sizes.get(name, 0) > limit:
            return f"limits.{name}: over {limit:g}"
    return sizes


def _training_seed(study_seed: int, number: int) -> int:
    """Return the seed of a trial's training: different for each trial, the same after a restart."""
    import numpy as np

    return int(np.random.SeedSequence([study_seed, number, 1]).generate_state(1)[0] // 2)
