"""Image files of a folder or a table, before they are cut into splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.label_sets import Labels
from imgcls_search.data.opening import open_image
from imgcls_search.data.source import LeftOut, Source, Split, assemble

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Image files in the order of their names."""

    name: str
    """Of the source."""

    place: str
    classes: Sequence[str]
    names: Sequence[str]
    """Paths relative to their common folder."""

    paths: Sequence[Path]
    labels: Labels
    make_prints: Callable[[], Prints]
    first_fingerprint: Callable[[], str]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def cut(self, given: Mapping[Split, npt.NDArray[np.int64]], **more: Any) -> Source:
        """Return the files cut into splits; `given` and `more` are as in `assemble`.

        Raises:
            DataError: the files cannot be cut.
        """
        return assemble(
            name=self.name,
            place=self.place,
            classes=self.classes,
            names=self.names,
            labels=self.labels,
            given=given,
            read=from_files(self.paths),
            make_prints=self.make_prints,
            first_fingerprint=self.first_fingerprint,
            left_out=self.left_out,
            notes=self.notes,
            **more,
        )

    def as_test(self, items: npt.NDArray[np.int64], *, skips_unreadable: bool) -> Source:
        """Return some of the files as a source with one split, `test`."""
        nothing = self.labels[:0]
        read = from_files(self.paths)
        return Source(
            name=self.name,
            place=self.place,
            classes=tuple(self.classes),
            labels={"train": nothing, "val": nothing, "test": self.labels[items]},
            names={"train": (), "val": (), "test": tuple(self.names[item] for item in items.tolist())},
            read=lambda split, index: read(int(items[index])),
            make_prints=self.make_prints,
            first_fingerprint=self.first_fingerprint,
            skips_unreadable=skips_unreadable,
            left_out=self.left_out,
            notes=self.notes,
        )


def from_files(paths: Sequence[Path]) -> Callable[[int], Image]:
    """Return a reader of image files; it reads only headers until pixels are needed."""
    return lambda item: open_image(paths[item])
