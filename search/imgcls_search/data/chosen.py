"""A selection of images from several arrays, read only where it is indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Chosen:
    """A lazy array uint8 [N, channels, height, width] that copies only the rows that are indexed."""

    def __init__(self, parts: Sequence[Any], places: npt.NDArray[np.int64]) -> None:
        """`places` are indices into all `parts`, concatenated."""
        self.parts, self.places = parts, places
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (len(places), *parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the images at some indices [B]."""
        places = self.places[index]
        owner = np.searchsorted(self.ends, places, side="right")
        pixels = np.empty((len(places), *self.shape[1:]), dtype=np.uint8)
        for number, part in enumerate(self.parts):
            if (mine := owner == number).any():
                pixels[mine] = part[places[mine] - (self.ends[number] - len(part))]
        return pixels
