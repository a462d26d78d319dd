"""Measured numbers have the digits that mean something, and no others."""

from __future__ import annotations

import math

import pytest
from imgcls_search.rounding import estimated, gained, measured, rounded, share, size, spread


@pytest.mark.parametrize(
    ("value", "images", "shown"),
    [
        (0.873456, 10, "0.9"),
        (0.87, 100, "0.87"),
        (0.953704, 216, "0.954"),
        (1.0, 359, "1.000"),
        (0.12345678, 5_000, "0.1235"),
        (0.12345678, 1_000_000, "0.1235"),
        (0.5, 1, "0.5"),
        (0.12345678, None, "0.1235"),
    ],
)
def test_share_of_images_has_the_digits_of_their_number(value: float, images: int | None, shown: str) -> None:
    assert share(value, images) == shown
    assert measured("accuracy", value, images) == shown
    assert measured("macro_f1", value, images) == shown


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("loss", 0.31234567, "0.3123"),
        ("size_kb", 84.123456, "84.12"),
        ("params", 1_234_567.0, "1,234,567"),
        ("params", 998.0, "998"),
        ("loss", 1.40001, "1.400"),
        ("loss", float("nan"), "nan"),
        ("loss", float("inf"), "inf"),
    ],
)
def test_other_metrics_have_four_digits(metric: str, value: float, shown: str) -> None:
    assert measured(metric, value, 100) == shown


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.943721, 0.01312, "0.944 ± 0.013"),
        (0.943721, 0.0996, "0.94 ± 0.10"),
        (0.943721, 0.1, "0.94 ± 0.10"),
        (0.943721, 0.00012345, "0.94372 ± 0.00012"),
        (1234.56, 23.4, "1,235 ± 23"),
        (12.3456, 1.234, "12.3 ± 1.2"),
    ],
)
def test_interval_has_two_digits_and_the_mean_ends_where_it_does(mean: float, half: float, shown: str) -> None:
    assert estimated(mean, half) == shown
    assert spread("loss", [mean] * 3, mean, half, 100) == shown
    assert rounded(half) == shown.split(" ± ")[1]


def test_one_or_two_trainings_tell_no_interval() -> None:
    assert spread("accuracy", [0.912, 0.95], 0.931, 0.24, 359) == "0.912 and 0.950"
    assert spread("accuracy", [0.912], 0.912, None, 359) == "0.912"
    assert spread("loss", [0.51234, 0.500004], 0.506, 0.2) == "0.5123 and 0.5000"
    assert spread("accuracy", [-0.01, 0.028], 0.009, 0.24, 216, signed=True) == "-0.010 and +0.028"
    # Of an older version, which kept no values.
    assert spread("accuracy", [], 0.931, 0.0123, 359) == "0.931 ± 0.012"


def test_equal_trainings_and_differences_of_nothing() -> None:
    assert spread("accuracy", [0.5, 0.5, 0.5], 0.5, 0.0, 216) == "0.500 ± 0"
    assert estimated(-0.00001, 0.0131, signed=True) == "+0.000 ± 0.013"
    assert gained("accuracy", -0.00001, 0.0131, 216) == "+0.000"
    assert gained("accuracy", -0.01234, 0.0131, 216) == "-0.012"
    assert gained("accuracy", 0.0123, None, 216) == "+0.012"


def test_no_share_is_said_to_be_below_0_or_above_1() -> None:
    assert spread("accuracy", [1.0, 1.0, 0.9928], 0.9976, 0.0103, 138) == "0.998 (0.987 to 1.000)"
    assert spread("macro_f1", [0.01, 0.0, 0.02], 0.01, 0.025, 138) == "0.010 (0.000 to 0.035)"
    assert spread("accuracy", [0.9, 0.95, 1.0], 0.95, 0.05, 138) == "0.950 ± 0.050"
    assert spread("accuracy", [-0.01, 0.0, 0.01], 0.0, 0.025, 138, signed=True) == "+0.000 ± 0.025"
    assert spread("loss", [0.01, 0.0, 0.02], 0.01, 0.025) == "0.010 ± 0.025"
    assert spread("roc_auc", [1.0, 1.0, 0.9928], 0.9976, 0.0103, 138) == "0.998 (0.987 to 1.000)"
    assert spread("average_precision:a", [1.0, 1.0, 0.9928], 0.9976, 0.0103, 138) == "0.998 (0.987 to 1.000)"
    assert spread("kappa", [-0.01, 0.0, 0.01], 0.0, 0.025, 138) == "0.000 ± 0.025"
    assert spread("kappa", [-1.0, -1.0, -0.99], -0.997, 0.014, 138) == "-0.997 (-1.000 to -0.983)"
    assert spread("own:score", [1.0, 1.0, 0.9928], 0.9976, 0.0103, 138) == "0.998 ± 0.010"


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "loss"])
def test_interval_of_scores_that_are_not_finite_is_shown_as_it_is(metric: str) -> None:
    assert spread(metric, [0.5, math.nan, 0.5], math.nan, math.nan) == "nan ± nan"
    assert spread(metric, [0.5, math.inf, 0.5], math.inf, math.inf) == "inf ± inf"
    assert gained(metric, math.nan, math.nan) == "nan"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (74_830, "74.8 kB"), (3_145_728, "3.1 MB"), (2.5e12, "2,500.0 GB")],
)
def test_size_has_a_unit_of_which_there_is_one(count: float, shown: str) -> None:
    assert size(count) == shown
