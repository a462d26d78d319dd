"""What a number among a study's facts may be."""

from __future__ import annotations

from enum import Enum
from typing import Annotated


class Kind(Enum):
    """What a number may be."""

    FINITE = "a finite number"
    MEASURED = "what a training measured, which may be infinite, or no number where nothing could be measured"
    WHOLE = "a whole number that is not negative"


Finite = Annotated[float, Kind.FINITE]
Measured = Annotated[float, Kind.MEASURED]
Whole = Annotated[int, Kind.WHOLE]
