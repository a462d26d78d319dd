"""Intervals and optimism on noisy synthetic tables, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_search.confidence import difference, estimate, interval, optimism, share_interval

SEARCHES, TRIALS, TOP, SEEDS, NOISE = 3000, 40, 3, 3, 0.01


@pytest.fixture(scope="module")
def searches() -> dict[str, np.ndarray]:
    """Return for many searches what confirm would say, beside the truth."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(SEARCHES):
        true = random.normal(0.9, 0.01, TRIALS)
        searched = true + random.normal(0, NOISE, TRIALS)
        best = np.argsort(-searched)[:TOP]
        choosing = {trial: random.normal(true[trial], NOISE, SEEDS) for trial in best}
        chosen = max(best, key=lambda trial: choosing[trial].mean())
        fresh = random.normal(true[chosen], NOISE, SEEDS)
        found = estimate(fresh.tolist(), choosing[chosen].tolist())
        naive = interval(choosing[chosen].tolist())
        luck = optimism(float(searched[chosen]), found, 1)
        rows.append((found.mean, found.half, naive["mean"], naive["ci95"], luck.mean, searched[chosen], true[chosen]))
    names = ("mean", "half", "naive", "naive_half", "luck", "searched", "true")
    return dict(zip(names, np.array(rows).T, strict=True))


def test_interval_of_the_chosen_one_covers_at_its_rate(searches: dict[str, np.ndarray]) -> None:
    covered = np.mean(np.abs(searches["mean"] - searches["true"]) <= searches["half"])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / SEARCHES))


def test_confirmed_score_has_no_optimism_and_the_searched_one_has(searches: dict[str, np.ndarray]) -> None:
    error = NOISE / np.sqrt(SEEDS * SEARCHES)
    assert np.mean(searches["mean"] - searches["true"]) == pytest.approx(0, abs=3 * error)
    luck = np.mean(searches["searched"] - searches["true"])
    assert luck > 0.5 * NOISE
    assert np.mean(searches["luck"]) == pytest.approx(luck, abs=3 * error)
    # The mean by which it was chosen is lucky too; that is why other seeds measure it.
    assert np.mean(searches["naive"] - searches["true"]) > 5 * error


def test_shares_are_covered_too() -> None:
    seen = np.random.default_rng(1).binomial(200, 0.97, 4000)
    covered = np.mean([low <= 0.97 <= high for low, high in (share_interval(count / 200, 200) for count in seen)])
    assert 0.93 < covered < 0.98
    assert share_interval(1.0, 216) == (pytest.approx(0.9825, abs=1e-3), 1.0)


def test_difference_is_welchs() -> None:
    from scipy.stats import ttest_ind

    first, second = [0.9, 0.92, 0.91, 0.95], [0.88, 0.9, 0.85]
    low, high = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = difference(first, second)
    assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))
    assert difference([1.0, 1.0], [1.0, 1.0]).half == 0
