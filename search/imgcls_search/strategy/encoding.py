"""Encode configurations as points of the unit cube, one coordinate per parameter, and as rows of features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from imgcls_search.config import Scalar
from imgcls_search.space import Parameter, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MISSING = 0.5
"""The value of a number that a branch does not have: the middle; the branch itself tells configurations apart."""

CHOICE_SCALE = math.sqrt(0.5)
"""Makes two values of a choice as far apart as the two ends of a number."""


class Encoding:
    """Turns the parameters of one space into points, and points into rows."""

    def __init__(self, space: Space) -> None:
        """Coordinates are in the order of the space's parameters, those that a branch depends on before it."""
        self.parameters = space.parameters()
        index = {parameter.path: place for place, parameter in enumerate(self.parameters)}
        self.conditions = [
            [(index[path], self.parameters[index[path]].choices.index(branch)) for path, branch in parameter.when]
            for parameter in self.parameters
        ]

    def rows(self, several: Sequence[Mapping[str, Scalar]]) -> Array:
        """Return an array [configurations, columns]: one column per number, and one per value of each choice."""
        import numpy as np

        points = np.array([self.point(params) for params in several], dtype=float)
        return self.rows_at(points.reshape(len(several), len(self.parameters)))

    def point(self, params: Mapping[str, Scalar]) -> list[float]:
        """Return a configuration's coordinates from 0 to 1, NaN for parameters that its branches do not have."""
        return [place_of(p, params[p.path]) if p.path in params else math.nan for p in self.parameters]

    def params_at(self, point: Sequence[float] | Array) -> dict[str, Scalar]:
        """Return the configuration at a point."""
        places = zip(self.parameters, point, strict=True)
        return {parameter.path: value_at(parameter, float(u)) for parameter, u in places if u == u}

    def reach(self, points: Array) -> None:
        """Set the coordinates that the branches of points [configurations, parameters] do not have to NaN."""
        import numpy as np

        for place, conditions in enumerate(self.conditions):
            for parent, branch in conditions:
                is_there = _stretches(points[:, parent], len(self.parameters[parent].choices)) == branch
                points[~is_there, place] = np.nan

    def rows_at(self, points: Array) -> Array:
        """Return the rows of points [configurations, parameters]."""
        import numpy as np

        columns = [
            column
            for place, parameter in enumerate(self.parameters)
            if parameter.num_values != 1
            for column in _columns(parameter, points[:, place])
        ]
        return np.stack(columns, axis=1) if columns else np.empty((len(points), 0))


def _columns(parameter: Parameter, us: Array) -> list[Array]:
    import numpy as np

    if parameter.choices:
        chosen = _stretches(us, len(parameter.choices))
        return [CHOICE_SCALE * (chosen == index) for index in range(len(parameter.choices))]
    return [np.where(np.isnan(us), MISSING, _settled(parameter, us))]


def _stretches(us: Array, count: int) -> Array:
    """Return which of `count` equal parts of the range each coordinate is in; NaN stays."""
    import numpy as np

    return np.minimum(np.floor(us * count), count - 1)


def _settled(parameter: Parameter, us: Array) -> Array:
    """Return the coordinates of the values that `value_at` gives, which are discrete for whole numbers and steps."""
    import numpy as np

    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.num_values is None:
        return us
    if parameter.log:
        values = np.clip(np.floor(low * ((high + 1) / low) ** us), low, high)
        return np.asarray(np.log(values / low) / math.log(high / low))
    return np.minimum((parameter.step or 1) * _stretches(us, parameter.num_values) / (high - low), 1.0)


def place_of(parameter: Parameter, value: Scalar) -> float:
    """Return a coordinate of a value, on a logarithmic scale if the range has one; NaN if there is none.

    A number outside the range, as another study may have it, is outside 0 to 1.
    """
    if parameter.choices:
        # In a replay with other choices, a recorded value may be none of them.
        index = next((index for index, choice in enumerate(parameter.choices) if _is(value, choice)), math.nan)
        return (index + 0.5) / len(parameter.choices)
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if isinstance(value, bool) or not isinstance(value, int | float) or (parameter.log and value <= 0):
        return math.nan
    if low == high:
        return 0.0
    return math.log(value / low) / math.log(high / low) if parameter.log else (value - low) / (high - low)


def _is(value: Scalar, choice: Scalar) -> bool:
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)


def value_at(parameter: Parameter, u: float) -> Scalar:
    """Return the value of a parameter at a point in [0, 1)."""
    if parameter.kind == "choice":
        return parameter.choices[int(u * len(parameter.choices))]
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.log:
        # A whole number k covers the range from k to k + 1.
        top = high + 1 if parameter.kind == "int" else high
        # Rounding may make exp(log(low)) slightly less than low.
        value = max(low, min(high, math.exp(math.log(low) + u * (math.log(top) - math.log(low)))))
    elif parameter.num_values is not None:
        value = min(high, low + (parameter.step or 1) * int(u * parameter.num_values))
    else:
        value = low + u * (high - low)
    return int(value) if parameter.kind == "int" else value
