"""Use earlier studies: predict which configurations of a space are good, and check whether that holds here.

Each earlier study ranks its trials by how far they trained and by their value there. A Gaussian process over the
settings that the two spaces share predicts that rank for any configuration. A search begins with the best predicted
configurations of all studies (a greedy portfolio). Later, each study is weighted by how well its predictions rank the
search's own results, with 0 if they do not (compare Feurer et al. 2018, Ranking-Weighted Gaussian Process Ensemble).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from imgcls_search.config import Scalar
from imgcls_search.space import Parameter, Space
from imgcls_search.strategy.encoding import CHOICE_SCALE, MISSING, Encoding, place_of
from imgcls_search.strategy.surrogate import matern, squared_distances

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imgcls_search.strategy.encoding import Array

RACERS = 8
"""Configurations of the portfolio that a search begins with."""

SPARE = 35
"""Spare configurations, for those that cannot be built or exceed a limit."""

POOL = 2000
"""Random configurations that are predicted once, and that the portfolio is chosen from."""

PROMISING = 400
"""About this many of them are considered for the portfolio."""

DRAWS = 128
"""Random draws of their possible scores, over all studies."""

DIFFERENCE_VARIANCE = 0.2
"""Variance of the difference between another task and a study, where the total variance is 1."""

MOST_TRIALS = 100
"""Most trials to learn from in each study: half of them the best, the others spread evenly over the ranking."""

NOISE = 0.3
"""Variance of the noise in a trial's rank, where the total variance is 1."""

FEWEST = 8
"""Trials of this search that are needed before the studies are judged by them."""


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """A trial of an earlier study."""

    settings: Mapping[str, Scalar]
    """Settings that the space searches now, by path, whatever ranges they had in the earlier study."""

    reached: float
    """Share of a full training."""

    value: float
    """Its value there; larger is better."""


@dataclass(frozen=True, kw_only=True)
class EarlierStudy:
    """Configurations and scores of an earlier study."""

    name: str
    trials: Sequence[EarlierTrial]


class StudyPredictor:
    """Predictions of one earlier study for configurations: above 0 means better than most."""

    def __init__(self, encoding: Encoding, study: EarlierStudy) -> None:
        """Fit to its trials; settings of the space that it never varied are ignored."""
        import numpy as np
        from scipy.linalg import cho_factor, cho_solve

        scores = normal_scores([(trial.reached, trial.value) for trial in study.trials])
        chosen = _few(scores)
        trials, scores = [study.trials[index] for index in chosen], scores[chosen]
        rows = np.array([_row(encoding.parameters, trial.settings) for trial in trials])
        self.columns = np.flatnonzero(np.ptp(rows, axis=0) > 1e-9)
        self.rows = rows[:, self.columns]
        self.unknown = _unknown_branches(encoding, trials)
        self.mean = float(scores.mean())
        self.scale = 0.5 * math.sqrt(max(len(self.columns), 1) / 3)
        covariance = (1 - NOISE) * self._likeness(self.rows)
        covariance[np.diag_indices_from(covariance)] += NOISE
        self.factor = cho_factor(covariance, lower=True)
        self.weights = cho_solve(self.factor, scores - self.mean)
        self.encoding = encoding

    @property
    def says_anything(self) -> bool:
        """True if it varied a setting that the space searches."""
        return len(self.columns) > 0

    def predict(self, points: Array, rows: Array) -> Array:
        """Return the expected normal scores of points; `rows` are their encoded rows."""
        import numpy as np

        expected = (1 - NOISE) * self._likeness(rows[:, self.columns]) @ self.weights + self.mean
        for place, names in self.unknown:
            count = len(self.encoding.parameters[place].choices)
            stretches = np.minimum(np.floor(points[:, place] * count), count - 1)
            expected[np.isin(stretches, names)] = 0.0
        return np.asarray(expected)

    def covariance(self, rows: Array) -> Array:
        """Return the joint posterior covariance of rows."""
        import numpy as np
        from scipy.linalg import solve_triangular

        chosen = rows[:, self.columns] / self.scale
        explained = solve_triangular(self.factor[0], (1 - NOISE) * self._likeness(rows[:, self.columns]).T, lower=True)
        return np.asarray((1 - NOISE) * matern(squared_distances(chosen, chosen)) - explained.T @ explained)

    def _likeness(self, rows: Array) -> Array:
        return matern(squared_distances(rows / self.scale, self.rows / self.scale))


class Knowledge:
    """Combined predictions of all earlier studies for a space."""

    def __init__(self, space: Space, studies: Sequence[EarlierStudy], seed: int) -> None:
        """`seed` decides which random configurations are considered."""
        self.encoding = Encoding(space)
        found = [StudyPredictor(self.encoding, study) for study in studies if len(study.trials) > 1]
        self.predictors = [each for each in found if each.says_anything]
        self.seed = seed
        self.known: dict[int, Array] = {}
        """Predictions of each study for the search's own trials, by number."""

    @cached_property
    def pool(self) -> Array:
        """Random points of the space."""
        import numpy as np

        points = np.random.default_rng([self.seed, 11]).random((POOL, len(self.encoding.parameters)))
        self.encoding.reach(points)
        return np.asarray(points)

    @cached_property
    def expected(self) -> Array:
        """Predictions of each study for the pool, [points, studies], in standard deviations from its mean."""
        import numpy as np

        raw, (centre, spread) = self._raw(self.pool), self._scale
        return np.asarray((raw - centre) / spread)

    @cached_property
    def _scale(self) -> tuple[Array, Array]:
        raw = self._raw(self.pool)
        return raw.mean(axis=0), raw.std(axis=0) + 1e-9

    @cached_property
    def portfolio(self) -> Array:
        """Points that begin a search: each one adds most to the expected best of those before it.

        Random draws model a study's own uncertainty, and that another task differs from it.
        """
        import numpy as np

        chances, promising = self._chances()
        best = np.full(chances.shape[1], -np.inf)
        chosen: list[int] = []
        for _ in range(min(RACERS + SPARE, len(promising))):
            gains = np.maximum(chances, best).mean(axis=1)
            gains[chosen] = -np.inf
            chosen.append(int(gains.argmax()))
            best = np.maximum(best, chances[chosen[-1]])
        return np.asarray(self.pool[promising[chosen]])

    def _chances(self) -> tuple[Array, NDArray[np.intp]]:
        """Return draws of the scores that promising points of the pool may have, [points, draws], and their indices."""
        import numpy as np

        promising = self._promising()
        points = self.pool[promising]
        rows = self.encoding.rows_at(points)
        scale = 0.5 * math.sqrt(max(rows.shape[1], 1) / 3)
        other = DIFFERENCE_VARIANCE * matern(squared_distances(rows / scale, rows / scale))
        rng = np.random.default_rng([self.seed, 13])
        count = max(4, DRAWS // len(self.predictors))
        _, spread = self._scale
        found = []
        for index, each in enumerate(self.predictors):
            covariance = each.covariance(rows) / spread[index] ** 2 + other
            draws = _root(covariance) @ rng.standard_normal((len(points), count))
            found.append(self.expected[promising, index][:, None] + draws)
        return np.hstack(found), promising

    def _promising(self) -> NDArray[np.intp]:
        """Return the indices of points in the pool that all studies together, or one of them, rate highly."""
        import numpy as np

        together = np.argsort(-self.expected.mean(axis=1), kind="stable")[: PROMISING // 4]
        share = max(10, 3 * PROMISING // 4 // len(self.predictors))
        alone = np.argsort(-self.expected, axis=0, kind="stable")[:share]
        return np.unique(np.concatenate([together, alone.ravel()]))

    def predict(self, points: Array) -> Array:
        """Return each study's predictions for points, [points, studies], in standard deviations over the pool."""
        import numpy as np

        centre, spread = self._scale
        return np.asarray((self._raw(points) - centre) / spread)

    def weights(self, expected: Array, scores: Array) -> Array:
        """Return the weight of each study: how well its predictions rank trials with these scores, 0 if they do not."""
        import numpy as np

        count = len(scores)
        if count < FEWEST:
            return np.full(expected.shape[1], 0.5)
        from scipy.stats import rankdata

        ranks = rankdata(scores)
        theirs = np.apply_along_axis(rankdata, 0, expected)
        # A study that expects the same of all trials has no correlation.
        with np.errstate(invalid="ignore"):
            agreement = np.array([np.corrcoef(ranks, theirs[:, index])[0, 1] for index in range(theirs.shape[1])])
        return np.where(np.isfinite(agreement) & (agreement > 1 / math.sqrt(count)), agreement, 0.0)

    def _raw(self, points: Array) -> Array:
        import numpy as np

        rows = self.encoding.rows_at(points)
        return np.stack([each.predict(points, rows) for each in self.predictors], axis=1)


def _root(covariance: Array) -> Array:
    """Return a lower triangular root of a covariance, even if rounding left it indefinite, as equal points can."""
    import numpy as np

    # Relative to its size: a study with nearly constant predictions has a large one, in its own deviations.
    little = 1e-6 * max(1.0, float(np.abs(np.diag(covariance)).max()))
    for more in range(8):
        with contextlib.suppress(np.linalg.LinAlgError):
            return np.asarray(np.linalg.cholesky(covariance + little * 10**more * np.eye(len(covariance))))
    # By now only the diagonal matters.
    return np.asarray(np.diag(np.sqrt(np.abs(np.diag(covariance)) + little)))


def normal_scores(results: Sequence[tuple[float, float]]) -> Array:
    """Return the normal scores of results by rank; larger ones are better, equal ones share a score."""
    import numpy as np
    from scipy.special import ndtri
    from scipy.stats import rankdata

    order = {result: place for place, result in enumerate(sorted(set(results)))}
    ranks = rankdata([order[result] for result in results])
    return np.asarray(ndtri((ranks - 0.5) / len(results)))


def _few(scores: Array) -> NDArray[np.intp]:
    """Return the indices of the trials to learn from."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    if len(order) <= MOST_TRIALS:
        return order
    half = MOST_TRIALS // 2
    others = order[half:]
    return np.concatenate([order[:half], others[np.linspace(0, len(others) - 1, MOST_TRIALS - half).astype(int)]])


def _row(parameters: Sequence[Parameter], settings: Mapping[str, Scalar]) -> list[float]:
    """Return settings as a row of `Encoding.rows_at`; values outside the space's range stay out of range."""
    row: list[float] = []
    for parameter in parameters:
        if parameter.num_values == 1:
            continue
        place = place_of(parameter, settings.get(parameter.path))
        if parameter.choices:
            at = -1 if math.isnan(place) else int(place * len(parameter.choices))
            row += [CHOICE_SCALE * (at == index) for index in range(len(parameter.choices))]
        else:
            row.append(MISSING if math.isnan(place) else min(max(place, -1.0), 2.0))
    return row


def _unknown_branches(encoding: Encoding, trials: Sequence[EarlierTrial]) -> list[tuple[int, list[int]]]:
    """Return the branches that a study never took: it predicts nothing about settings below them."""
    parents = {parent for conditions in encoding.conditions for parent, _ in conditions}
    found = []
    for place in sorted(parents):
        parameter = encoding.parameters[place]
        seen = {trial.settings.get(parameter.path) for trial in trials} - {None}
        missing = [index for index, name in enumerate(parameter.choices) if name not in seen]
        if missing:
            found.append((place, missing))
    return found
