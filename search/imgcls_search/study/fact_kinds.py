"""Kinds of numbers in a study's facts."""

from __future__ import annotations

from enum import Enum
from typing import Annotated


class Kind(Enum):
    """The values that a number may have."""

    FINITE = "a finite number"
    MEASURED = "what a training measured, which may be infinite, or no number where nothing could be measured"
    WHOLE = "a whole number that is not negative"


Finite = Annotated[float, Kind.FINITE]
Measured = Annotated[float, Kind.MEASURED]
Whole = Annotated[int, Kind.WHOLE]
