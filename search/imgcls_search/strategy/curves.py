"""A sampler that learns from partial curves: it draws what a surrogate expects to end above the best known."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imgcls_search.measures import sign_of
from imgcls_search.space import Space
from imgcls_search.strategy.avoided import AvoidedPoints
from imgcls_search.strategy.changes import Changes
from imgcls_search.strategy.draws import draw_evenly, fixed_candidate
from imgcls_search.strategy.earlier import RACERS, Knowledge, normal_scores
from imgcls_search.strategy.encoding import Encoding
from imgcls_search.strategy.race import RACES
from imgcls_search.strategy.surrogate import Points, Surrogate, expected_improvement, squash, times_of
from imgcls_search.strategy.view import View
from imgcls_search.trial import MEASURED, SIZES, Candidate, Trial

if TYPE_CHECKING:
    from imgcls_search.strategy.encoding import Array

CANDIDATES = 300
"""Random configurations that a draw chooses from."""

NEIGHBOURS = 150
"""Configurations near the best trials that it chooses from too."""

MOST_TRIALS = 400
"""Most trials to learn from, half of them the best and the others random: the time grows with the cube."""

BEST_TRIALS = 6
FEWEST_TRIALS = 8
"""Trials that must have reached an epoch before a draw may learn only from it and later ones."""

STEP = 0.1
"""How far neighbours are moved: a share of a number's range, and the probability that a choice is drawn again."""

EXPECTED_SHARE = 0.5
"""Share of the random configurations that are taken from those that earlier studies expect most of."""

EVEN_ONE_IN = 4
"""One of this many racers is drawn evenly."""

BELOW_ONE = 1 - 1e-9
"""The largest coordinate of a point."""

KNOWN_LATE = frozenset({*SIZES, *MEASURED})
"""Objectives that are not among the metrics of an epoch."""

SortKey = tuple[int, float, int]
"""The last epoch that counts and the value there, both negated so that less is better, and the trial's number."""


class CurveSampler:
    """Draws evenly at first and occasionally later, otherwise by expected improvement at the last epoch."""

    def __init__(self, space: Space, *, epochs: int, n_startup_trials: int, random_share: float) -> None:
        """`epochs` is the epoch at which the end of a curve is predicted."""
        self.epochs = epochs
        self.n_startup_trials = n_startup_trials
        self.random_share = random_share
        self.num_racers = min(RACERS, n_startup_trials)
        self.encoding = Encoding(space)
        self.places: dict[int, list[float]] = {}
        """The points of the trials seen so far, by number."""

        self.changes = Changes()
        self.sort_keys: dict[int, SortKey] = {}
        self.ordered: list[SortKey] = []
        """All sort keys, the best first; in a large study, sorting them for each draw would take long."""

        self.avoided = AvoidedPoints(space, self.encoding)
        """Points that the current draw avoids."""

        self.knowledge: Knowledge | None = None
        """Predictions of earlier studies for the space."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return a candidate."""
        import numpy as np

        rng = np.random.default_rng(view.derive(number, attempt, 7))
        sign = sign_of(view.space.objectives[0][1])
        if (racer := self._racer(view, number, attempt)) is not None:
            return racer
        is_even = rng.random() < self.random_share
        if is_even or (self.knowledge is None and number < self.n_startup_trials):
            return draw_evenly(view, number, attempt)
        self._look(view.trials, sign)
        if len(self.ordered) < 3:
            return draw_evenly(view, number, attempt)
        sort_keys = _few(self.ordered, rng)
        # By number: trials that no search made may have numbers in between.
        by_number = {trial.number: trial for trial in view.trials}
        shown = [by_number[number] for *_, number in sort_keys]
        known = np.array([self._place(trial) for trial in shown])
        say = self._say(shown, known, sign)
        if self.knowledge is not None and number < self.n_startup_trials + len(view.space.start):
            return self._begun(view, number, attempt, has_say=say is not None)
        several = self._candidates(sort_keys, known, rng)
        self.avoided.look(view, self.sort_keys, self._place)
        if say is None:
            chosen = several[self._choose(shown, known, several, sign, rng)]
        else:
            chosen = self._choose_knowing(shown, known, several, sign, rng, say)
        return fixed_candidate(view, self.encoding.params_at(chosen))

    def _racer(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return the next configuration of the portfolio, or at times an even draw, until the race is full.

        Even draws help if earlier studies mislead.
        """
        place = number - len(view.space.start)
        if self.knowledge is None or place >= self.num_racers:
            return None
        # Each attempt so far was a rejection or a repeat.
        index = max(place, 0) + attempt + sum(len(trial.rejected_before) for trial in view.trials)
        if place % EVEN_ONE_IN == EVEN_ONE_IN - 1 or index >= len(self.knowledge.portfolio):
            return replace(draw_evenly(view, number, attempt), sampler_state=RACES)
        point = self.knowledge.portfolio[index]
        return replace(fixed_candidate(view, self.encoding.params_at(point)), sampler_state=RACES)

    def _begun(self, view: View, number: int, attempt: int, *, has_say: bool) -> Candidate:
        """Draw after the race, before the surrogate decides: from the rest of the portfolio, and evenly.

        A surrogate that has seen little but a few promising configurations would stay close to them.
        """
        assert self.knowledge is not None
        index = number + attempt + sum(len(trial.rejected_before) for trial in view.trials)
        if has_say and number % 2 and index < len(self.knowledge.portfolio):
            return fixed_candidate(view, self.encoding.params_at(self.knowledge.portfolio[index]))
        return draw_evenly(view, number, attempt)

    def _say(self, shown: Sequence[Trial], known: Array, sign: int) -> tuple[Array, Array] | None:
        """Return the weight of each earlier study, and its predictions for the trials; None if all weights are 0."""
        import numpy as np

        knowledge = self.knowledge
        if knowledge is None:
            return None
        new = [index for index, trial in enumerate(shown) if trial.number not in knowledge.known]
        if new:
            expected = knowledge.predict(known[new])
            knowledge.known.update((shown[index].number, row) for index, row in zip(new, expected, strict=True))
        theirs = np.array([knowledge.known[trial.number] for trial in shown])
        rungs = [_rung(trial, self.epochs) for trial in shown]
        results = [(rung, sign * _value(trial, rung, self.epochs)) for trial, rung in zip(shown, rungs, strict=True)]
        weights = knowledge.weights(theirs, normal_scores(results))
        return (weights, theirs) if weights.any() else None

    def _choose_knowing(
        self, shown: Sequence[Trial], known: Array, several: Array, sign: int, rng: Any, say: tuple[Array, Array]
    ) -> Array:
        """Return the point with the largest expected improvement, using the predictions of earlier studies."""
        import numpy as np

        assert self.knowledge is not None
        weights, theirs = say
        share = weights**2 / (weights**2).sum()
        pooled = self.knowledge.expected @ share
        num_best = round(EXPECTED_SHARE * CANDIDATES)
        best = np.argsort(-pooled, kind="stable")[:num_best]
        others = rng.choice(len(pooled), CANDIDATES - num_best, replace=False)
        chosen, beside = np.concatenate([best, others]), several[CANDIDATES:]
        points = np.concatenate([self.knowledge.pool[chosen], beside])
        prior = np.concatenate([pooled[chosen], self.knowledge.predict(beside) @ share])
        trust = float(weights.max())
        waiting = (
            trust * (self.knowledge.predict(self.avoided.waiting) @ share) if len(self.avoided.waiting) else prior[:0]
        )
        columns = (trust * (theirs @ share), trust * prior, waiting)
        index = self._choose(shown, known, points, sign, rng, columns=columns)
        return np.asarray(points[index])

    def _look(self, trials: Sequence[Trial], sign: int) -> None:
        for trial, _ in self.changes.take(trials):
            if (known := self.sort_keys.pop(trial.number, None)) is not None:
                del self.ordered[bisect_left(self.ordered, known)]
            if (new := _sort_key(trial, sign, self.epochs)) is not None:
                self.sort_keys[trial.number] = new
                insort(self.ordered, new)

    def _place(self, trial: Trial) -> list[float]:
        if trial.number not in self.places:
            self.places[trial.number] = self.encoding.point(trial.candidate.params)
        return self.places[trial.number]

    def _choose(
        self,
        shown: Sequence[Trial],
        known: Array,
        several: Array,
        sign: int,
        rng: Any,
        columns: tuple[Array, Array, Array] | None = None,
    ) -> int:
        """Return the index of the point with the largest expected improvement over the known trials.

        `columns` are an extra column for the rows of known trials, of points to choose from, and of waiting trials.
        """
        import numpy as np

        rows, others = self.encoding.rows_at(known), self.encoding.rows_at(several)
        taken, waiting = self.avoided.are_taken(others), self.encoding.rows_at(self.avoided.waiting)
        if columns is not None:
            rows, others, waiting = (
                np.column_stack(pair) for pair in zip((rows, others, waiting), columns, strict=True)
            )
        points = self._points(shown, rows, sign, rng)
        surrogate = Surrogate(points, rng)
        time = float(times_of([self.epochs], self.epochs)[0])
        best = float(surrogate.means(rows, points.owners, time).max())
        if len(waiting):
            means, deviations, beside = surrogate.predict_beside(others, waiting, time)
            best = max(best, beside)
        else:
            means, deviations = surrogate.predict(others, np.full(len(several), -1.0), time)
        return int(np.where(taken, -1.0, expected_improvement(means, deviations, best)).argmax())

    def _points(self, shown: Sequence[Trial], rows: Array, sign: int, rng: Any) -> Points:
        import numpy as np

        ends = [_rung(trial, self.epochs) for trial in shown]
        rungs = sorted(set(ends))
        shows = {
            rung: [
                index
                for index, trial in enumerate(shown)
                if rung <= ends[index] and math.isfinite(_value(trial, rung, self.epochs))
            ]
            for rung in rungs
        }
        # Early epochs help if they rank trials as the last one does, and mislead if late bloomers win. Nobody knows
        # which of the two holds, so each draw leaves out a random number of early rungs.
        known_well = [rung for rung in rungs if len(shows[rung]) >= FEWEST_TRIALS]
        first = known_well[int(rng.integers(len(known_well)))] if known_well else 0
        places = sorted((index, rung) for rung in rungs if rung >= first for index in shows[rung])
        values = np.array([sign * _value(shown[index], rung, self.epochs) for index, rung in places])
        return Points(
            rows=rows,
            owners=np.array([trial.number for trial in shown], dtype=float),
            which=np.array([index for index, _ in places]),
            times=times_of([rung for _, rung in places], self.epochs),
            values=squash(values),
        )

    def _candidates(self, sort_keys: Sequence[SortKey], known: Array, rng: Any) -> Array:
        """Return random points, and points near the best trials."""
        import numpy as np

        parameters = self.encoding.parameters
        best = sorted(range(len(known)), key=lambda index: sort_keys[index])[:BEST_TRIALS]
        points = rng.random((CANDIDATES + NEIGHBOURS, len(parameters)))
        centres = known[best][rng.integers(len(best), size=NEIGHBOURS)]
        moved = centres + STEP * rng.standard_normal(centres.shape)
        is_choice = np.array([bool(parameter.choices) for parameter in parameters], dtype=bool)
        stays = ~np.isnan(centres) & (~is_choice | (rng.random(centres.shape) >= STEP))
        beside = np.where(is_choice, centres, np.clip(moved, 0, BELOW_ONE))
        # A coordinate that a centre's branch does not have stays random, like a choice that is drawn again.
        points[CANDIDATES:] = np.where(stays, beside, points[CANDIDATES:])
        self.encoding.reach(points)
        return np.asarray(points)


def _few(ordered: Sequence[SortKey], rng: Any) -> Sequence[SortKey]:
    """Return the sort keys to learn from, ordered by number."""
    few = ordered
    if len(ordered) > MOST_TRIALS:
        best, others = ordered[: MOST_TRIALS // 2], ordered[MOST_TRIALS // 2 :]
        chosen = rng.choice(len(others), MOST_TRIALS - len(best), replace=False)
        few = [*best, *(others[index] for index in chosen)]
    return sorted(few, key=lambda entry: entry[-1])


def _sort_key(trial: Trial, sign: int, epochs: int) -> SortKey | None:
    """Return the sort key of a trial, the best first; None for a trial without results."""
    rung = _rung(trial, epochs)
    value = _value(trial, rung, epochs) if rung else math.nan
    return (-rung, -sign * value, trial.number) if math.isfinite(value) else None


def _rung(trial: Trial, epochs: int) -> int:
    """Return the last epoch that counts: for an open trial the last one that was judged, whatever came after it.

    A fitted head counts as fully trained after its single epoch, and a trial whose objective no epoch measures, such as
    a latency, once it is complete.
    """
    if trial.candidate.is_fitted or trial.metric in KNOWN_LATE:
        return epochs if trial.state == "complete" else 0
    return (
        trial.judged if trial.is_open and trial.has_value_at(trial.judged) else 0 if trial.is_open else trial.last_shown
    )


def _value(trial: Trial, rung: int, epochs: int) -> float:
    """Return the value of a trial at a rung, NaN if it has none."""
    if trial.metric in KNOWN_LATE:
        return trial.first_value if rung == epochs and trial.values else math.nan
    if trial.candidate.is_fitted:
        return trial.value_at(trial.last_shown) if rung == epochs and trial.last_shown else math.nan
    return trial.value_at(rung) if trial.has_value_at(rung) else math.nan
