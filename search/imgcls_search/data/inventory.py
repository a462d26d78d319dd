"""All images of a data set in one list, even if they cannot be cut into splits, for `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from imgcls_search.data.source import LeftOut, Source, Split
from imgcls_search.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inventory:
    """The images of a data set and their properties before any file is opened."""

    name: str
    """Display name, for example the last part of a folder's path."""

    place: str
    """The location in error messages: `data.folder: /photos`."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Paths below `root`, or `train/123`."""

    labels: npt.NDArray[np.int64]
    """Class numbers [N]."""

    splits: tuple[str, ...]
    """Per image; empty if the images cannot be cut into splits."""

    groups: tuple[str, ...] | None
    """Per image; None if there are no groups."""

    read: Callable[[int], Image]
    root: Path | None
    """The folder that names are relative to, None if the images are not separate files."""

    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    uncut: str | None = None
    """Why the images cannot be cut into splits, None if they can."""

    def __len__(self) -> int:
        return len(self.names)

    def file(self, number: int) -> Path | None:
        """Return the file of an image, None if it is part of a larger one."""
        return None if self.root is None else self.root / self.names[number]


def inventory(source: Source, root: Path | None) -> Inventory:
    """Return the images of a source with splits; names are relative to `root`.

    Raises:
        DataError: images have several labels.
    """
    _refuse_several(source)
    counts = {split: len(source.names[split]) for split in SPLITS}
    items = [(split, index) for split in SPLITS for index in range(counts[split])]
    groups = source.group_names
    return Inventory(
        name=source.name,
        place=source.place,
        classes=source.classes,
        names=tuple(name for split in SPLITS for name in source.names[split]),
        labels=np.concatenate([source.labels[split] for split in SPLITS]),
        splits=tuple(split for split in SPLITS for _ in range(counts[split])),
        groups=None if groups is None else tuple(name for split in SPLITS for name in groups[split]),
        read=lambda number: source.read(*items[number]),
        root=root if source.is_in_files else None,
        left_out=source.left_out,
        notes=source.notes,
    )


def uncut_inventory(wholes: dict[str, Source], root: Path, why: str) -> Inventory:
    """Return the images of a folder or table that cannot be cut, by the splits that it comes with ('' for none).

    Each source holds all its images as `test`.
    """
    for source in wholes.values():
        _refuse_several(source)
    items = [(split, index) for split, source in wholes.items() for index in range(len(source.names["test"]))]
    first = next(iter(wholes.values()))
    classes = sorted({name for source in wholes.values() for name in source.classes})
    number = {name: index for index, name in enumerate(classes)}
    labels = [number[source.classes[label]] for source in wholes.values() for label in source.labels["test"].tolist()]
    return Inventory(
        name=first.name,
        place=first.place,
        classes=tuple(classes),
        names=tuple(name for source in wholes.values() for name in source.names["test"]),
        labels=np.array(labels, dtype=np.int64),
        splits=tuple(split for split, _ in items),
        groups=None,
        read=lambda number: wholes[items[number][0]].read("test", items[number][1]),
        root=root,
        left_out=first.left_out,
        notes=first.notes,
        uncut=why,
    )


def _refuse_several(source: Source) -> None:
    if any(labels.ndim > 1 for labels in source.labels.values()):
        raise DataError(f"{source.place}: its images have several labels each; allowed here: one label an image")
