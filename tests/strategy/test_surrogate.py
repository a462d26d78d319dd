"""The surrogate of partial curves and its parts, against references and its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from imgcls_search.strategy import surrogate as code
from imgcls_search.strategy.surrogate import (
    FIT_POINTS,
    MEAN_CURVE,
    PRIOR_LOGS,
    Points,
    Surrogate,
    expected_improvement,
    matern,
    squash,
    times_of,
)
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process.kernels import Matern

EPOCHS = 27


def curves(trials: int = 8) -> Points:
    """Return two or three values on the curve of each trial."""
    rng = np.random.default_rng(0)
    rows = rng.random((trials, 3))
    shown = [(index, epoch) for index in range(trials) for epoch in ((3, 9) if index % 2 else (3, 9, EPOCHS))]
    values = [math.sin(3 * rows[index, 0]) + 0.1 * epoch + 0.1 * rng.standard_normal() for index, epoch in shown]
    return Points(
        rows=rows,
        owners=np.arange(10, 10 + trials, dtype=float),
        which=np.array([index for index, _ in shown]),
        times=times_of([epoch for _, epoch in shown], EPOCHS),
        values=squash(np.array(values)),
    )


def covariance(
    given: Surrogate, rows: list[np.ndarray], owners: list[np.ndarray], times: list[np.ndarray]
) -> np.ndarray:
    """Return the covariance of two lists of points as the module defines it, one product at a time."""
    a, b = (each / given.scales for each in rows)
    near = np.exp(-0.5 * ((times[0][:, None] - times[1][None]) / given.fade) ** 2)
    like = Matern(nu=2.5)(a, b)
    same = owners[0][:, None] == owners[1][None]
    return np.asarray(given.shared * like + (given.fading * like + given.own * same + given.mean) * near)


def conditioned(
    prior: np.ndarray, cross: np.ndarray, known: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the covariance of normal variables, given the values of others."""
    gain = cross @ np.linalg.inv(known)
    return gain @ values, prior - gain @ cross.T


@pytest.fixture(scope="module")
def fitted() -> Surrogate:
    return Surrogate(curves(), np.random.default_rng(0))


def known_part(given: Surrogate) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows, owners, times and covariance of the known points."""
    points = given.points
    rows, owners = points.rows[points.which], points.owners[points.which]
    found = covariance(given, [rows] * 2, [owners] * 2, [points.times] * 2)
    return rows, owners, points.times, found + (given.noise + 1e-8) * np.eye(len(rows))


def test_matern_is_that_of_scikit_learn() -> None:
    rows = np.random.default_rng(0).random((6, 2))
    squares = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    assert np.allclose(matern(squares), Matern(nu=2.5)(rows))


def test_expected_improvement_is_the_integral_over_what_is_above_the_best() -> None:
    means, deviations, best = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.2, 2.0]), 0.4
    grid = np.linspace(-20, 20, 400_001)
    expected = [
        float((np.maximum(grid - best, 0) * norm.pdf(grid, mean, deviation)).sum() * (grid[1] - grid[0]))
        for mean, deviation in zip(means, deviations, strict=True)
    ]
    assert expected_improvement(means, deviations, best) == pytest.approx(expected, rel=1e-4)


def test_epochs_are_on_a_logarithmic_scale_that_ends_at_two() -> None:
    assert times_of([1, 3, 9, 27], 27) == pytest.approx([0, 2 / 3, 4 / 3, 2])
    assert times_of([1], 1) == pytest.approx([0])


def test_squashing_keeps_the_order_and_widens_differences_near_the_best() -> None:
    found = squash(np.array([0.1, 0.5, 0.7, 0.8, 0.9]))
    assert (found.mean(), found.std()) == pytest.approx((0, 1))
    # In units of the distance from the best to the upper quarter, 0.1: log1p of 8, 4, 2, 1 and 0.
    depths = -np.log([9, 5, 3, 2, 1])
    assert found == pytest.approx((depths - depths.mean()) / depths.std())
    # If more than a quarter is equally good, a thousandth of that value is the unit.
    depths = -np.log([501, 1, 1, 1])
    assert squash(np.array([1.0, 2.0, 2.0, 2.0])) == pytest.approx((depths - depths.mean()) / depths.std())
    assert squash(np.zeros(3)).tolist() == [0, 0, 0]


def test_density_is_that_of_the_values_times_the_priors() -> None:
    given, centre, deviation = curves(), np.full(9, -0.4), np.full(9, 0.7)
    theta = np.random.default_rng(1).normal(-0.5, 0.3, 9)
    fade, shared, fading, own, noise, mean = np.exp(theta[3:])
    rows, times = given.rows[given.which] / np.exp(theta[:3]), given.times
    near = np.exp(-0.5 * ((times[:, None] - times[None]) / fade) ** 2)
    like, same = Matern(nu=2.5)(rows), given.which[:, None] == given.which[None]
    among = shared * like + (fading * like + own * same + mean) * near + (noise + 1e-8) * np.eye(len(times))
    density = multivariate_normal(cov=among).logpdf(given.values) + len(times) / 2 * math.log(2 * math.pi)
    prior = 0.5 * (((theta + 0.4) / 0.7) ** 2).sum()
    assert code._Loss(given, centre, deviation)(theta)[0] == pytest.approx(prior - density)


def test_fit_is_nearer_to_the_best_density_than_the_centres_are() -> None:
    given = curves()
    centre = np.array([math.log(0.5)] * 3 + [math.log(middle) for _, middle, _ in (*PRIOR_LOGS, MEAN_CURVE)])
    deviation = np.array([0.8] * 3 + [spread for *_, spread in (*PRIOR_LOGS, MEAN_CURVE)])
    loss = code._Loss(given, centre, deviation)
    found = code._fit(given)
    assert loss(found)[0] < loss(centre)[0] - 1
    assert np.abs(loss(found)[1]).max() < 0.2 * np.abs(loss(centre)[1]).max()


def test_lengths_are_fitted_on_a_part_of_many_points_and_all_of_them_are_known() -> None:
    many = curves(40)
    part = code._subset(many, np.random.default_rng(0))
    assert len(part.values) == len(part.times) == len(part.which) == FIT_POINTS
    assert set(zip(part.which, part.times, part.values, strict=True)) <= set(
        zip(many.which, many.times, many.values, strict=True)
    )
    few = curves(36)
    assert len(few.values) == FIT_POINTS
    assert code._subset(few, np.random.default_rng(0)) is few


def test_predictions_are_those_of_the_definition(fitted: Surrogate) -> None:
    rows, owners, times, known = known_part(fitted)
    values = fitted.points.values
    asked = np.concatenate([np.random.default_rng(5).random((4, 3)), fitted.points.rows[:2]])
    # Four new configurations, and the ends of two whose curves are known in part.
    new = np.array([-1.0, -1.0, -1.0, -1.0, *fitted.points.owners[:2]])
    at = np.full(6, 2.0)
    cross = covariance(fitted, [asked, rows], [new, owners], [at, times])
    own = np.diag([fitted.shared + fitted.fading + fitted.own + fitted.mean] * 6)
    means, variance = conditioned(own, cross, known, values)
    found, deviations = fitted.predict(asked, new, 2.0)
    assert found == pytest.approx(means)
    assert fitted.means(asked, new, 2.0) == pytest.approx(means)
    assert deviations == pytest.approx(np.sqrt(np.diag(variance)))


def test_beside_waiting_trials_less_is_unknown_as_if_they_had_shown_their_means(fitted: Surrogate) -> None:
    rows, owners, times, known = known_part(fitted)
    rng = np.random.default_rng(6)
    asked, waiting = rng.random((5, 3)), rng.random((3, 3))
    both, at = np.concatenate([waiting, asked]), np.full(8, 2.0)
    nobody = np.full(8, -1.0)
    cross = covariance(fitted, [both, rows], [nobody, owners], [at, times])
    # No trial's own deviation: that of another configuration tells nothing.
    among = (fitted.shared + fitted.fading) * Matern(nu=2.5)(both / fitted.scales) + fitted.mean
    means, left = conditioned(among, cross, known, fitted.points.values)
    seen = left[:3, :3] + (fitted.noise + 1e-6) * np.eye(3)
    _, beside = conditioned(left[3:, 3:], left[3:, :3], seen, np.zeros(3))
    found, deviations, best = fitted.predict_beside(asked, waiting, 2.0)
    assert found == pytest.approx(means[3:])
    assert deviations == pytest.approx(np.sqrt(np.diag(beside)))
    assert best == pytest.approx(means[:3].max())


def test_of_many_waiting_trials_those_that_promise_most_count(
    fitted: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    asked, waiting = rng.random((5, 3)), rng.random((9, 3))
    means = fitted.means(waiting, np.full(9, -1.0), 2.0)
    monkeypatch.setattr(code, "MOST_WAITING", 4)
    of_all = fitted.predict_beside(asked, waiting, 2.0)
    of_best = fitted.predict_beside(asked, waiting[np.argsort(-means)[:4]], 2.0)
    assert of_all[1] == pytest.approx(of_best[1])
    assert of_all[2] == of_best[2]
