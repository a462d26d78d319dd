"""Thresholds of confidence: exact bounds, the smallest that keeps a promise, and what is left."""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_search.training.refusing import (
    answered_from,
    fewest_images,
    lower_bound,
    risk_coverage,
    smallest_threshold,
    table,
)
from scipy.stats import binomtest


@pytest.mark.parametrize(("right", "count"), [(299, 299), (298, 299), (0, 7), (1, 1), (50, 75)])
def test_the_bound_is_the_exact_one(right: int, count: int) -> None:
    exact = binomtest(right, count, alternative="greater").proportion_ci(0.95, method="exact")
    assert lower_bound(right, count) == pytest.approx(exact.low, abs=1e-12)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_so_many_images_are_just_enough(target: float) -> None:
    needed = fewest_images(target)
    assert lower_bound(needed, needed) >= target > lower_bound(needed - 1, needed - 1)


def test_a_promise_of_99_percent_needs_299_of_299() -> None:
    assert fewest_images(0.99) == 299


def test_the_threshold_is_the_smallest_that_keeps_the_promise() -> None:
    rng = np.random.default_rng(0)
    # Rounded, so that some are equal.
    confidence = rng.uniform(0.2, 1, 800).round(2)
    right = rng.random(800) < confidence**0.5
    found = smallest_threshold(confidence, right, 0.9)
    assert found is not None
    kept = [
        level
        for level in np.unique(confidence)
        if lower_bound(int(right[confidence >= level].sum()), int((confidence >= level).sum())) >= 0.9
    ]
    assert found.threshold == pytest.approx(min(kept), rel=1e-6)
    assert found.threshold < min(kept)
    assert found == answered_from(confidence, right, found.threshold)
    assert found.lower >= 0.9
    assert smallest_threshold(confidence, np.zeros(800, dtype=bool), 0.9) is None


def test_risk_and_coverage_are_those_of_each_threshold() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.6])
    right = np.array([True, True, False, False])
    coverage, risk = risk_coverage(confidence, right)
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 3, 0.5])
    assert [row.answered for row in table(confidence, right)][:3] == [4, 4, 4]
