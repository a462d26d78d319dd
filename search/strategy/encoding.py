"""Configurations as points: one column a number, one a choice's value, missing ones in a place of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from search.config import Scalar
from search.space import Parameter, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MISSING = 0.5
"""Where a number stands that a branch does not have: in the middle; the branch itself tells configurations apart."""

CHOICE_SCALE = math.sqrt(0.5)
"""Two values of a choice are as far apart as the two ends of a number."""


class Encoding:
    """Turns the parameters of one space into rows."""

    def __init__(self, space: Space) -> None:
        """Columns stand in the order of the space's parameters."""
        self.parameters = [parameter for parameter in space.parameters() if parameter.num_values != 1]
        self.width = sum(_width(parameter) for parameter in self.parameters)

    def rows(self, several: Sequence[Mapping[str, Scalar]]) -> NDArray[np.float64]:
        """Return an array [configurations, columns]."""
        import numpy as np

        return np.array([self._row(params) for params in several], dtype=float).reshape(len(several), self.width)

    def _row(self, params: Mapping[str, Scalar]) -> list[float]:
        return [number for parameter in self.parameters for number in _encode(parameter, params)]


def _width(parameter: Parameter) -> int:
    return len(parameter.choices) or 1


def _encode(parameter: Parameter, params: Mapping[str, Scalar]) -> list[float]:
    if parameter.choices:
        value = params.get(parameter.path)
        is_there = parameter.path in params
        return [CHOICE_SCALE * (is_there and _is(value, choice)) for choice in parameter.choices]
    if parameter.path not in params:
        return [MISSING]
    return [place(parameter, params[parameter.path])]


def place(parameter: Parameter, number: Scalar) -> float:
    """Return where a number stands in its range, from 0 to 1; over the logarithm where the range says so."""
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    assert isinstance(number, int | float)
    if low == high:
        return 0.0
    if parameter.log:
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def _is(value: Scalar, choice: Scalar) -> bool:
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)
