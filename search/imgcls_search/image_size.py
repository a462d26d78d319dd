"""The size of the images that a network takes: one number for a square, height and width for anything else."""

from __future__ import annotations

from collections.abc import Sequence

ImageSize = int | tuple[int, int]
"""The side of a square, or (height, width), in pixels."""


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and the width of a size."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def normal(size: int | Sequence[int]) -> ImageSize:
    """Return a size in its normal form: a square is one number, so that `[64, 64]` and `64` are the same."""
    height, width = sides(size)
    return height if height == width else (height, width)


def shorter(size: int | Sequence[int]) -> int:
    """Return the shorter side, which decides how often a network may halve its images."""
    return min(sides(size))


def area(size: int | Sequence[int]) -> int:
    """Return the number of pixels."""
    height, width = sides(size)
    return height * width


def written(size: int | Sequence[int]) -> int | list[int]:
    """Return a size as a value of a space file."""
    height, width = sides(size)
    return height if height == width else [height, width]


def shown(size: int | Sequence[int]) -> str:
    """Return a size as a space file writes it: `64` or `[64, 96]`."""
    height, width = sides(size)
    return str(height) if height == width else f"[{height}, {width}]"


def by(size: int | Sequence[int]) -> str:
    """Return a size as height x width: `64x96`."""
    return "x".join(map(str, sides(size)))
