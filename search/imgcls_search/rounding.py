"""Format measured numbers without digits that mean nothing; `--json` has the full numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from imgcls_search.measures import bounds, is_share

MOST_DECIMALS = 4


def share(value: float, images: int | None) -> str:
    """Return a share of some images, with the digits that their number justifies."""
    return f"{value:.{_share_decimals(images)}f}"


def size(count: float) -> str:
    """Return a number of bytes in the largest unit that it reaches."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:,.1f} {unit}"
    return f"{count:.0f} bytes"


def measured(metric: str, value: float, images: int | None = None, *, signed: bool = False) -> str:
    """Return a metric's value; one that counts images has the digits that their number justifies."""
    sign = "+" if signed else ""
    if not math.isfinite(value):
        return f"{value:g}"
    if is_share(metric):
        decimals = _share_decimals(images)
        return f"{_plain_zero(value, decimals):{sign}.{decimals}f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:{sign}#.4g}"


def pairs(values: Mapping[str, float], images: int | None = None) -> str:
    """Return metrics with their values in one line."""
    return ", ".join(f"{metric} {measured(metric, value, images)}" for metric, value in values.items())


def without_long_numbers(text: str) -> str:
    """Return a text with its floats shortened to four digits: drawn settings have many more."""
    return re.sub(r"(?<![\w.])-?\d+\.\d{4,}(?:e[+-]?\d+)?(?![\w.])", lambda found: f"{float(found[0]):.4g}", text)


def rounded(error: float) -> str:
    """Return the half-width of an interval, or a deviation, with two significant digits."""
    return f"{error:,.{_error_decimals(error)}f}" if math.isfinite(error) else f"{error:g}"


def estimated(mean: float, half: float, *, signed: bool = False) -> str:
    """Return a mean with the half-width of its interval, both with the same decimals."""
    decimals = _error_decimals(half) if math.isfinite(half) else MOST_DECIMALS
    return f"{_plain_zero(mean, decimals):{'+' if signed else ''},.{decimals}f} ± {rounded(half)}"


def spread(
    metric: str,
    values: Iterable[float],
    mean: float,
    half: float | None,
    images: int | None = None,
    *,
    signed: bool = False,
) -> str:
    """Return a mean over trainings with its interval; for one or two, their values, which allow no interval.

    An interval that would go beyond the lowest or the highest value of the metric is shown by its ends, cut there.
    """
    values = list(values)
    if half is None or len(values) in (1, 2):
        return " and ".join(measured(metric, value, images, signed=signed) for value in values or [mean])
    if half == 0:
        return f"{measured(metric, mean, images, signed=signed)} ± 0"
    limits = None if signed else bounds(metric)
    # Of losses and costs, which have no highest value, the half-width says more.
    if limits is not None and math.isfinite(limits[1]) and math.isfinite(half):
        low, high = max(limits[0], mean - half), min(limits[1], mean + half)
        if low > mean - half or high < mean + half:
            decimals = _error_decimals(half)
            return f"{mean:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"
    return estimated(mean, half, signed=signed)


def gained(metric: str, value: float, half: float | None, images: int | None = None) -> str:
    """Return a difference of two means with its sign, to the decimals of the interval of one of them, if it has one."""
    if not half or not math.isfinite(half):
        return measured(metric, value, images, signed=True)
    decimals = _error_decimals(half)
    return f"{_plain_zero(value, decimals):+,.{decimals}f}"


def _plain_zero(value: float, decimals: int) -> float:
    """Return a value, but 0 if it rounds to zero, so that no sign is shown."""
    return 0.0 if round(value, decimals) == 0 else value


def _share_decimals(images: int | None) -> int:
    if images is None or images < 1:
        return MOST_DECIMALS
    return min(MOST_DECIMALS, max(1, math.ceil(math.log10(images))))


def _error_decimals(error: float) -> int:
    if error == 0:
        return MOST_DECIMALS
    # Rounded first: 0.0996 is 0.10.
    return max(0, 1 - math.floor(math.log10(float(f"{abs(error):.1e}"))))
