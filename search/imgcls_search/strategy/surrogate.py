"""A Gaussian process over (configuration, epoch) that predicts where curves end.

The covariance of two points is the product of a Matern 5/2 kernel over the configuration, with a length scale for each
column, and the sum of a part that all epochs share and a part that fades over the logarithm of the epoch (Swersky et
al. 2014 for the idea; the posterior is exact, as there are few points). Length scales and amplitudes maximise the
posterior density on at most `FIT_POINTS` points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FIT_POINTS = 90
"""Most points to fit the length scales on: the time grows with the cube."""

FIT_STEPS = 8
"""Steps of that fit. It always starts from the priors' centres, so that draws depend only on the record."""

MOST_WAITING = 200
"""Most open trials without results that a draw avoids."""

PRIOR_LOGS = (("fade", 0.6, 0.3), ("shared", 0.3, 0.7), ("fading", 0.5, 0.7), ("own", 0.15, 0.7), ("noise", 0.02, 0.7))
"""Name, centre, and deviation of the logarithm: of the epochs' length scale, the variances, and the noise."""

MEAN_CURVE = ("mean", 0.5, 0.7)
ROOT5 = math.sqrt(5.0)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Values on the curves of trials."""

    rows: Array
    """Encoded configurations, [trials, columns]."""

    owners: Array
    """The number of the trial of each row."""

    which: NDArray[np.intp]
    """The row of each point."""

    times: Array
    """Logarithms of the points' epochs over that of the last, times 2."""

    values: Array
    """Values of the points, larger is better; see `squash`."""


def squash(values: Array) -> Array:
    """Scale values to mean 0 and deviation 1; differences near the best grow, and bad values become alike."""
    import numpy as np

    top = values.max()
    spread = max(float(top - np.quantile(values, 0.75)), 1e-3 * (abs(float(top)) + 1e-9))
    squashed = -np.log1p((top - values) / spread)
    return np.asarray((squashed - squashed.mean()) / (squashed.std() + 1e-9))


def times_of(epochs: Sequence[int] | Array, last: int) -> Array:
    """Convert epochs to the time scale of the surrogate."""
    import numpy as np

    return np.asarray(2 * np.log(np.asarray(epochs, dtype=float)) / math.log(max(last, 2)))


class Surrogate:
    """Predicts the last epoch of configurations, also from their own curves if they have one."""

    def __init__(self, points: Points, rng: np.random.Generator) -> None:
        """Fit to points; `rng` chooses those that the length scales are fitted on."""
        import numpy as np
        from scipy.linalg import cho_solve, cholesky

        self.points = points
        theta, width = _fit(_subset(points, rng)), points.rows.shape[1]
        self.scales = np.exp(theta[:width])
        self.fade, self.shared, self.fading, self.own, self.noise, self.mean = np.exp(theta[width:])
        # Trials and epochs are fewer than points, each of which belongs to one trial and one epoch.
        epochs, at = np.unique(points.times, return_inverse=True)
        near = self._near(epochs, epochs)[np.ix_(at, at)]
        steady, fading = self._likeness(points.rows, points.owners)
        pairs = np.ix_(points.which, points.which)
        covariance = steady[pairs] + fading[pairs] * near
        covariance[np.diag_indices_from(covariance)] += self.noise + 1e-8
        self.factor = cholesky(covariance, lower=True, check_finite=False)
        self.weights = cho_solve((self.factor, True), points.values, check_finite=False)

    def means(self, rows: Array, owners: Array, time: float) -> Array:
        """Return only the means, in half the time."""
        import numpy as np

        return np.asarray(self._across(rows, owners, time) @ self.weights)

    def predict(self, rows: Array, owners: Array, time: float) -> tuple[Array, Array]:
        """Return means and deviations at a time; an owner without points is a configuration never tried."""
        import numpy as np
        from scipy.linalg import solve_triangular

        cross = self._across(rows, owners, time)
        explained = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        variance = self.shared + self.fading + self.own + self.mean - (explained**2).sum(axis=0)
        return cross @ self.weights, np.sqrt(np.maximum(variance, 1e-9))

    def predict_beside(self, rows: Array, waiting: Array, time: float) -> tuple[Array, Array, float]:
        """Return means and deviations of untried configurations, and the largest mean of those `waiting`.

        A waiting one, without results yet, counts as if it had shown the mean: near it little is left to learn. Of
        many, only those expected to be best count, as the time grows with the cube.
        """
        import numpy as np
        from scipy.linalg import cholesky, solve_triangular

        expected = self.means(waiting, np.full(len(waiting), -1.0), time)
        kept = np.sort(np.argsort(-expected, kind="stable")[:MOST_WAITING])
        both = np.concatenate([waiting[kept], rows])
        cross = self._across(both, np.full(len(both), -1.0), time)
        explained = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        ours, theirs = explained[:, len(kept) :], explained[:, : len(kept)]
        near = (self.shared + self.fading) * self._alike(both, waiting[kept]) + self.mean - explained.T @ theirs
        among = near[: len(kept)]
        among[np.diag_indices_from(among)] += self.noise + 1e-6
        known = solve_triangular(
            cholesky(among, lower=True, check_finite=False), near[len(kept) :].T, lower=True, check_finite=False
        )
        variance = self.shared + self.fading + self.mean - (ours**2).sum(axis=0) - (known**2).sum(axis=0)
        means = cross[len(kept) :] @ self.weights
        return means, np.sqrt(np.maximum(variance, 1e-9)), float(expected.max())

    def _alike(self, rows: Array, others: Array) -> Array:
        return matern(squared_distances(rows / self.scales, others / self.scales))

    def _across(self, rows: Array, owners: Array, time: float) -> Array:
        """Return the covariance of configurations at one time with the known points, [rows, points]."""
        import numpy as np

        steady, fading = self._likeness(rows, owners)
        near = self._near(np.array([time]), self.points.times)
        return np.asarray(steady[:, self.points.which] + fading[:, self.points.which] * near)

    def _likeness(self, rows: Array, owners: Array) -> tuple[Array, Array]:
        """Return two parts of the covariance with known configurations: one constant, one fading over epochs."""
        like = self._alike(rows, self.points.rows)
        same = owners[:, None] == self.points.owners[None]
        return self.shared * like, self.fading * like + self.own * same + self.mean

    def _near(self, times: Array, others: Array) -> Array:
        import numpy as np

        return np.asarray(np.exp(-0.5 * ((times[:, None] - others[None]) / self.fade) ** 2))


def expected_improvement(means: Array, deviations: Array, best: float) -> Array:
    """Return how much above `best` normal variables are expected to be, counting 0 for values below it."""
    import numpy as np
    from scipy.special import ndtr

    z = (means - best) / deviations
    return np.asarray(deviations * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)))


def squared_distances(a: Array, b: Array) -> Array:
    """Return the squared distances between rows, [rows of a, rows of b]."""
    import numpy as np

    return np.asarray(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0))


def matern(squares: Array) -> Array:
    """Return the Matern 5/2 covariance at squared distances."""
    import numpy as np

    distance = np.sqrt(squares + 1e-12)
    return np.asarray((1 + ROOT5 * distance + 5 / 3 * squares) * np.exp(-ROOT5 * distance))


def _subset(points: Points, rng: np.random.Generator) -> Points:
    import numpy as np

    if len(points.values) <= FIT_POINTS:
        return points
    chosen = np.sort(rng.permutation(len(points.values))[:FIT_POINTS])
    return replace(points, which=points.which[chosen], times=points.times[chosen], values=points.values[chosen])


def _fit(points: Points) -> Array:
    """Return logarithms: one length scale per column, then those of `PRIOR_LOGS` and `MEAN_CURVE`."""
    import numpy as np
    from scipy.optimize import minimize

    width = points.rows.shape[1]
    rest = (*PRIOR_LOGS, MEAN_CURVE)
    centre = np.array([math.log(0.5 * math.sqrt(max(width, 1) / 3))] * width + [math.log(c) for _, c, _ in rest])
    deviation = np.array([0.8] * width + [spread for _, _, spread in rest])
    loss = _Loss(points, centre, deviation)
    bounds = list(zip(centre - 3 * deviation, centre + 3 * deviation, strict=True))
    options = {"maxiter": FIT_STEPS, "maxfun": FIT_STEPS + 4}
    return np.asarray(minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)


class _Loss:
    """The negative log posterior density of the logarithms, with its gradient."""

    def __init__(self, points: Points, centre: Array, deviation: Array) -> None:
        import numpy as np

        self.centre, self.deviation, self.values = centre, deviation, points.values
        rows = points.rows[points.which]
        count, self.width = rows.shape
        self.gaps = np.moveaxis((rows[:, None] - rows[None]) ** 2, 2, 0).reshape(self.width, -1)
        self.times = (points.times[:, None] - points.times[None]) ** 2
        self.same = (points.which[:, None] == points.which[None]).astype(float)
        self.eye = np.eye(count)

    def __call__(self, theta: Array) -> tuple[float, Array]:
        import numpy as np
        from scipy.linalg import LinAlgError, cho_solve, cholesky

        inverse_squares = np.exp(-2 * theta[: self.width])
        squares = (inverse_squares @ self.gaps).reshape(self.times.shape)
        fade, shared, fading, own, noise, mean = np.exp(theta[self.width :])
        near, like = np.exp(-0.5 * self.times / fade**2), matern(squares)
        covariance = (shared + fading * near) * like + (own * self.same + mean) * near + (noise + 1e-8) * self.eye
        try:
            factor = cholesky(covariance, lower=True, check_finite=False)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        weights = cho_solve((factor, True), self.values, check_finite=False)
        inverse = cho_solve((factor, True), self.eye, check_finite=False)
        slope = 0.5 * (inverse - np.outer(weights, weights))
        distance = np.sqrt(squares + 1e-12)
        by_square = slope * (shared + fading * near) * (5 / 3) * (1 + ROOT5 * distance) * np.exp(-ROOT5 * distance)
        by_near = slope * near
        gradient = np.concatenate(
            [
                (self.gaps @ by_square.ravel()) * inverse_squares,
                [
                    ((fading * like + own * self.same + mean) * by_near * self.times).sum() / fade**2,
                    shared * (slope * like).sum(),
                    fading * (by_near * like).sum(),
                    own * (by_near * self.same).sum(),
                    noise * np.trace(slope),
                    mean * by_near.sum(),
                ],
            ]
        )
        away = (theta - self.centre) / self.deviation
        value = 0.5 * self.values @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        return float(value), gradient + away / self.deviation
