"""From draws to trials: find the next configuration that is new, can be built and keeps the limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.errors import NoResultError
from imgcls_search.signature import build
from imgcls_search.space import Space
from imgcls_search.strategy.draws import draw_evenly, draw_random, draw_start, draw_unseen
from imgcls_search.strategy.earlier import EarlierStudy
from imgcls_search.strategy.race import RACES, Race, make_race
from imgcls_search.strategy.rungs import Pruner
from imgcls_search.strategy.samplers import SAMPLERS, Sampler, teach
from imgcls_search.strategy.view import Ended, View
from imgcls_search.trial import Candidate, Rejection, Trial

MeasureSizes = Callable[[TrialConfig], "Generator[None, None, Mapping[str, float] | str]"]
"""Yields while it waits, then returns the sizes of a configuration, or briefly why it cannot be a trial."""

PATIENCE = 20
"""Draws from the sampler before other methods take over: by then it repeats itself."""

MOST_DRAWS = 200
"""Draws for one trial before the search gives up."""

LEAST_FIT = 0.02
"""The share of all draws that must be valid, checked after `MOST_DRAWS`: a search is no way to find rarer ones."""

NOVEL_TRIALS = 3
"""Every second trial of a study that grew takes a new value of a choice until this many have tried it: samplers that
have seen hundreds of trials without it give it next to no chance."""

REPEATED_FIT = "the same fit as an earlier trial"

MOST_COMBINATIONS = 20_000
"""Most combinations of a space to list when looking for a new one."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A candidate that may become a trial, its sizes, and the candidates that were rejected before it."""

    candidate: Candidate
    sizes: Mapping[str, float]
    rejections: tuple[Rejection, ...]


class Proposer:
    """Draws from the sampler until a configuration can be trained."""

    def __init__(
        self,
        space: Space,
        sampler: Sampler,
        seed: int,
        measure_sizes: MeasureSizes,
        *,
        starts_race: bool = False,
        novel: Sequence[tuple[str, Scalar]] = (),
    ) -> None:
        """`measure_sizes` checks limits and impossible combinations without training.

        `novel` are the values of choices that were added when the study was extended, by their paths.
        `starts_race` says whether start configurations are in the race that earlier studies begin, see `race`.
        """
        self.space = space
        self.sampler = sampler
        self.seed = seed
        self.measure_sizes = measure_sizes
        self.starts_race = starts_race
        known = {parameter.path: parameter for parameter in space.parameters()}
        # Other values come from damage: no draw could have them.
        self.novel = [
            {**dict(known[path].when), path: value}
            for path, value in novel
            if path in known and value in known[path].choices
        ]
        self.ended: Ended = {}
        self.seen: set[TrialConfig] = set()
        """The essence of each trial's configuration; in a large study this set takes long to build."""
        self.num_seen = 0
        combinations = space.num_combinations()
        self.is_countable = combinations is not None and combinations <= MOST_COMBINATIONS

    def proposals(self, trials: Sequence[Trial]) -> Iterator[Proposal | None]:
        """Draw for the next trial, step by step: yield None until a candidate is valid, then yield that candidate.

        It ends without a proposal when every combination of the space was tried or rejected. The last trial counts as
        if it had just begun, so that a draw gives the same result while that trial runs and after a restart.

        Raises:
            NoResultError: too few draws keep the limits and can be built.
        """
        number = len(trials)
        trials = [*trials[:-1], *(trial.as_begun() for trial in trials[-1:])]
        self.seen.update(trial.candidate.config.essence for trial in trials[self.num_seen :])
        self.num_seen = len(trials)
        earlier = [rejection for trial in trials for rejection in trial.rejected_before]
        rejections: list[Rejection] = []
        rejected: set[TrialConfig] = set()
        for attempt in range(MOST_DRAWS):
            candidate = self._draw(View(self.space, trials, rejections, self.seed, self.ended), number, attempt)
            if candidate is None:
                break
            essence = candidate.config.essence
            if essence in self.seen and attempt >= PATIENCE and candidate.config.is_fitted:
                # Otherwise it would be drawn again: only settings that change nothing are new.
                rejections.append(
                    Rejection(params=candidate.params, distributions=candidate.distributions, reason=REPEATED_FIT)
                )
            elif essence not in self.seen and candidate.config not in rejected:
                answer = yield from self.measure_sizes(candidate.config)
                if not isinstance(answer, str):
                    yield Proposal(candidate=candidate, sizes=answer, rejections=tuple(rejections))
                    return
                rejected.add(candidate.config)
                rejections.append(
                    Rejection(params=candidate.params, distributions=candidate.distributions, reason=answer)
                )
            drawn = number + len(earlier) + len(rejections)
            if drawn >= MOST_DRAWS and number < LEAST_FIT * drawn:
                raise NoResultError(_too_little_fits(number, [*earlier, *rejections]))
            yield None
        if rejections and not (self.is_countable and trials):
            raise NoResultError(_too_little_fits(number, [*earlier, *rejections]))

    def _draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        if attempt == 0 and number < len(self.space.start):
            start = draw_start(view, self.space.start[number], number)
            return replace(start, sampler_state=RACES) if self.starts_race else start
        if attempt == 0 and number % 2 and (given := self._untried(view)) is not None:
            return draw_evenly(view, number, attempt, given)
        if attempt < PATIENCE:
            return self.sampler.draw(view, number, attempt)
        if self.is_countable:
            return draw_unseen(view, number)
        return draw_random(view, number, attempt)

    def _untried(self, view: View) -> Mapping[str, Scalar] | None:
        """Return a value that few trials have tried since it was added, with the branches that it belongs to."""
        for given in self.novel:
            drawn = [trial.candidate for trial in view.trials if given.items() <= trial.candidate.params.items()]
            refused = [each for each in view.all_rejections() if given.items() <= each.params.items()]
            if len(drawn) + len(refused) < NOVEL_TRIALS:
                return given
        return None


def _too_little_fits(number: int, rejections: Sequence[Rejection]) -> str:
    counts = Counter(rejection.reason for rejection in rejections).most_common(3)
    shown = "; ".join(f"{count} x {reason}" for reason, count in counts)
    drawn = number + len(rejections)
    return (
        f"only {number} of {drawn} configurations that were drawn can be trials: {shown}; "
        "see where they fail: imgcls-search check"
    )


def make_proposer(
    space: Space,
    pruner: Pruner,
    sign: int,
    *,
    seed: int,
    measure_sizes: MeasureSizes,
    sampler: Sampler | None = None,
    earlier: Sequence[EarlierStudy] = (),
    novel: Sequence[tuple[str, Scalar]] = (),
) -> tuple[Proposer, Race | None]:
    """Return the proposer of a search, and the race that begins it if it knows earlier studies.

    `sampler` replaces the space's own; `sign` is 1 if the first objective is maximized, -1 otherwise.
    """
    sampler = sampler or build(SAMPLERS, space.sampler, space=space)
    race = make_race(pruner, teach(sampler, space, earlier), sign)
    return Proposer(space, sampler, seed, measure_sizes, starts_race=race is not None, novel=novel), race
