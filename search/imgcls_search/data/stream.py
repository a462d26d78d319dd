"""Images that are too many to store decoded: they are read from their files again every epoch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import numpy.typing as npt

from imgcls_search.data.decode import THREADS, decode_in, decode_middle, reason, unlimited_pillow
from imgcls_search.data.image import Frame
from imgcls_search.data.source import Source, Split
from imgcls_search.errors import DataError


class DecodedOnIndexing(ABC):
    """Acts as an array uint8 [N, channels, height, width] that decodes images when it is indexed."""

    def __getitem__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the images at some indices [B], decoded by several threads.

        Raises:
            DataError: a file is gone or has changed since it was checked.
        """
        with unlimited_pillow():
            return np.stack(list(self._pool.map(self._decode, index.tolist())))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))

    @abstractmethod
    def _decode(self, number: int) -> npt.NDArray[np.uint8]: ...


class Streamed(DecodedOnIndexing):
    """Images of a source."""

    def __init__(
        self, source: Source, items: Sequence[tuple[Split, int]], frame: Frame, *, whole: bool = False
    ) -> None:
        """`items` are pairs of split and index; `whole` images include the frame's margin."""
        self.source = source
        self.items = items
        self.frame, self.whole = frame, whole
        self.shape = (len(items), *(frame.kept_shape if whole else frame.shape))

    def __len__(self) -> int:
        return len(self.items)

    def joined(self, other: Streamed) -> Streamed:
        """Return the images of both."""
        return Streamed(self.source, [*self.items, *other.items], self.frame, whole=self.whole)

    def _decode(self, number: int) -> npt.NDArray[np.uint8]:
        split, index = self.items[number]
        try:
            with self.source.read(split, index) as image:
                return (decode_in if self.whole else decode_middle)(self.frame, image)
        # Pillow raises almost anything for damaged files.
        except Exception as error:
            name = self.source.names[split][index]
            raise DataError(f"{self.source.place}: cannot read {name}: {reason(error)}") from error
