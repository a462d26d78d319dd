"""Figures over many replays: exact expectations, speeds, paired differences and their intervals."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import mean

import numpy as np
import pytest
from imgcls_search.jobs.pools import (
    PoolSearch,
    difference,
    end_of,
    estimate,
    expected_best,
    gains,
    speed,
    speed_of,
)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_expectation_of_the_best_is_that_over_all_draws(count: int, sign: int) -> None:
    values = [0.3, 0.1, 0.7, 0.7, 0.2]
    best = max if sign == 1 else min
    assert expected_best(values, count, sign) == pytest.approx(
        mean(best(drawn) for drawn in combinations(values, count))
    )


def test_values_without_order_count_as_the_worst() -> None:
    assert expected_best([math.nan, 0.2, 0.8], 1) == pytest.approx((0.2 + 0.2 + 0.8) / 3)
    assert expected_best([math.nan, 0.2, 0.8], 1, -1) == pytest.approx((0.8 + 0.2 + 0.8) / 3)
    with pytest.raises(ValueError, match="of 4 of 3"):
        expected_best([math.nan, 0.2, 0.8], 4)
    with pytest.raises(ValueError, match="0 of them known"):
        expected_best([math.nan], 1)


def test_speed_is_told_by_when_the_mean_comes_to_random_searchs_end() -> None:
    early = PoolSearch(bests=[(10, 0.4), (20, 0.6)], expected=0.5)
    late = PoolSearch(bests=[(40, 0.7)], expected=0.5)
    shown = gains([early, late], 100)
    # Before the second one has anything there is no mean; from then on it is above.
    assert np.isnan(shown.mean(axis=0)[39])
    assert speed(shown.mean(axis=0)) == 100 / 40
    assert speed(gains([early], 100)[0]) == 100 / 20
    assert speed(gains([PoolSearch(bests=[(10, 0.4)], expected=0.5)], 100)[0]) == 0
    # Smaller is better.
    assert speed(gains([PoolSearch(bests=[(25, 0.4)], expected=0.5)], 100, -1)[0]) == 4


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        found = estimate(random.normal(3.0, 1.0, size=30), lambda drawn: float(drawn.mean()))
        held += found.low <= 3.0 <= found.high
    # 54 are expected; 45 or fewer would be a chance of one in a thousand.
    assert held >= 46


def test_pairs_tell_what_single_means_cannot() -> None:
    random = np.random.default_rng(1)
    pools = [float(value) for value in random.normal(0.5, 0.2, size=40)]
    ours = [PoolSearch(bests=[(5, pool + 0.02 + 0.005 * random.random())], expected=0.5) for pool in pools]
    others = [PoolSearch(bests=[(5, pool)], expected=0.5) for pool in pools]
    apart = [end_of(several, 10) for several in (ours, others)]
    assert apart[0].low < apart[1].high
    assert difference(ours, others, 10).low > 0
    assert difference(others, ours, 10).low < 0
    # Again the same: nothing is left to chance.
    assert difference(ours, others, 10) == difference(ours, others, 10)
    assert speed_of(ours, 10).low <= speed_of(ours, 10).value <= speed_of(ours, 10).high
