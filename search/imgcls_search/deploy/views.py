"""Views of an image for test-time augmentation, for arrays and inside exported files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Constant = Callable[[str, Sequence[int]], str]
"""Adds a named constant to a graph, and returns the name."""

ViewsName = Literal["none", "mirror", "shift", "mirror_shift"]

SHARE = 16
"""A shift is one pixel per 16 of the shorter side, and at least one."""


@dataclass(frozen=True, kw_only=True)
class View:
    """An image [C, H, W], optionally mirrored, shifted by steps down and right, with its border pixels repeated."""

    is_mirrored: bool = False
    down: int = 0
    right: int = 0

    def of(self, pixels: Pixels) -> Pixels:
        """Return the view of images, uint8 [N, C, H, W]."""
        height, width = pixels.shape[2:]
        rows, columns = self.places((height, width))
        return np.ascontiguousarray(pixels[:, :, rows][:, :, :, columns])

    def _steps(self, sides: Sequence[int]) -> tuple[int, int]:
        step = max(1, min(sides) // SHARE)
        return self.down * step, self.right * step

    def places(self, sides: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the source row and column for each row and column of the view."""
        rows, columns = (_places(side, step) for side, step in zip(sides, self._steps(sides), strict=True))
        return rows, sides[1] - 1 - columns if self.is_mirrored else columns

    def nodes(self, source: str, target: str, sides: tuple[int, int], constant: Constant) -> list[Any]:
        """Return the ONNX nodes that create the view of a tensor [N, C, H, W]."""
        from onnx import helper

        rows, columns = self.places(sides)
        return [
            helper.make_node("Gather", [source, constant(f"{target}_rows", rows.tolist())], [f"{target}_part"], axis=2),
            helper.make_node(
                "Gather", [f"{target}_part", constant(f"{target}_columns", columns.tolist())], [target], axis=3
            ),
        ]


def _places(side: int, step: int) -> npt.NDArray[np.int64]:
    return np.clip(np.arange(side) - step, 0, side - 1)


class Seen:
    """A lazy view of images, computed on indexing."""

    def __init__(self, pixels: Any, view: View) -> None:
        self.pixels, self.view = pixels, view

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H and W."""
        shape: tuple[int, ...] = self.pixels.shape
        return shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Pixels:
        return self.view.of(np.asarray(self.pixels[index]))


_SHIFTS = tuple(View(down=down, right=right) for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)))

VIEWS: Mapping[ViewsName, tuple[View, ...]] = {
    "none": (View(),),
    "mirror": (View(), View(is_mirrored=True)),
    "shift": (View(), *_SHIFTS),
    "mirror_shift": (
        View(),
        *_SHIFTS,
        View(is_mirrored=True),
        *(View(is_mirrored=True, down=view.down, right=view.right) for view in _SHIFTS),
    ),
}
"""The original image comes first; the name lists the additional views."""
