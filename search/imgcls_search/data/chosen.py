"""Some of the images of several arrays, as one array that is read where it is indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Chosen:
    """Stands for an array uint8 [N, channels, height, width]; nothing is copied before it is needed."""

    def __init__(self, parts: Sequence[Any], places: npt.NDArray[np.int64]) -> None:
        """`places` are numbers of images in all `parts`, the first part first."""
        self.parts, self.places = parts, places
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (len(places), *parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the images of some numbers [B]."""
        places = self.places[index]
        owner = np.searchsorted(self.ends, places, side="right")
        pixels = np.empty((len(places), *self.shape[1:]), dtype=np.uint8)
        for number, part in enumerate(self.parts):
            if (mine := owner == number).any():
                pixels[mine] = part[places[mine] - (self.ends[number] - len(part))]
        return pixels
