"""Kinds of numbers, lists and mappings in a study's facts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any


class Kind(Enum):
    """What a value may be."""

    FINITE = "a number, and one so small that sums and squares of many are finite too"
    MEASURED = "what a training measured, which may be infinite, or no number where nothing could be measured"
    WHOLE = "a whole number that is not negative"
    INTERVAL = "the two finite ends of an interval"
    SETTING = "the path of a setting with a value"
    PARTS = "a mapping, whatever its values are"


Finite = Annotated[float, Kind.FINITE]
Measured = Annotated[float, Kind.MEASURED]
Whole = Annotated[int, Kind.WHOLE]
Interval = Annotated[list[float], Kind.INTERVAL]
Setting = Annotated[list[Any], Kind.SETTING]
Parts = Annotated[Mapping[str, Any], Kind.PARTS]
