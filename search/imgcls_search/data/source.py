"""Metadata of a data set before decoding: names, labels, splits and a fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from imgcls_search.data import label_sets
from imgcls_search.data.fingerprint import Prints, are_equal
from imgcls_search.data.folds import places
from imgcls_search.data.groups import Groups, large_ones, refuse_shared
from imgcls_search.data.label_sets import Labels
from imgcls_search.data.splits import Split, divide
from imgcls_search.errors import DataError
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Folds", "LeftOut", "MaxTrain", "Source", "Split", "SplitSeed", "Test", "Val", "assemble", "from_arrays"]

Val = Annotated[
    float,
    Arg(
        "share of the training images held out for validation, if the data has no validation split",
        gt=0,
        lt=1,
        fixed=True,
    ),
]
Test = Annotated[
    float,
    Arg("share of all images sealed as the test split, if the data has none", gt=0, lt=1, fixed=True),
]
SplitSeed = Annotated[int, Arg("seed of the random splits", ge=0, le=2**32 - 1, fixed=True)]
MaxTrain = Annotated[
    int | None, Arg("use only this many training images, drawn class by class; null: all", ge=2, fixed=True)
]
Folds = Annotated[
    int | None,
    Arg(
        "score a trial by cross-validation: this many networks, each trained on all but one part of the images outside "
        "the test split and scored on that part; null: one validation split",
        ge=2,
        fixed=True,
    ),
]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files or folders that were not counted as images, for one reason."""

    reason: str
    """Reason for a single file: `file ending in .txt`."""

    count: int
    example: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A data set divided into splits, with images that are not decoded yet."""

    name: str
    """Display name, for example in a study's name: `digits`, or the last part of a folder's path."""

    place: str
    """The location in error messages: `data.folder: /photos`."""

    classes: tuple[str, ...]
    labels: Mapping[Split, Labels]
    """Per split: class numbers [N], or several labels per image, 0 or 1 [N, classes]."""

    names: Mapping[Split, tuple[str, ...]]
    """Per split: paths below the folder, or `train/123`."""

    read: Callable[[Split, int], Image]
    """Opens an image of a split; close it, because pixels are read from the open file on demand."""

    make_prints: Callable[[], Prints]
    """Reads all contents, which is slow, and returns the fingerprints of the data set."""

    skips_unreadable: bool = False
    """Whether unreadable images are left out instead of refused."""

    left_out: tuple[LeftOut, ...] = ()
    """Other files and folders next to the images."""

    notes: tuple[str, ...] = ()
    """Notes about the classes for users."""

    folds: tuple[int, ...] = ()
    """The sizes of the folds, if there are any, see `splits.Cuts`."""

    groups: Mapping[Split, int] | None = None
    """Number of groups per split, None if there are no groups."""

    group_names: Mapping[Split, tuple[str, ...]] | None = None
    """The group of each image, None if there are no groups."""

    first_fingerprint: Callable[[], str] | None = None
    """Computes the version 1 fingerprint, if that covered other parts of the images."""

    @cached_property
    def prints(self) -> Prints:
        """Fingerprints that depend only on the contents, not on their location or the splits.

        Raises:
            DataError: a file cannot be read.
        """
        try:
            return self.make_prints()
        except OSError as error:
            raise DataError(f"{self.place}: cannot be read: {error}") from error

    @property
    def has_several_labels(self) -> bool:
        """Whether images may have several labels, or none."""
        return label_sets.are_several(self.labels["test"])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of all images."""
        return self.prints.whole

    @property
    def is_in_files(self) -> bool:
        """Whether each image is a separate file, which may be damaged."""
        return self.first_fingerprint is not None

    def has_fingerprint(self, known: str) -> bool:
        """Tell whether a fingerprint of any version belongs to these images.

        Raises:
            OSError: a file cannot be read.
        """
        return are_equal(known, self.fingerprint, self.first_fingerprint)

    def has_prints(self, known: Prints) -> bool:
        """Tell whether a search sees the recorded images; records of earlier versions include the test split.

        Raises:
            OSError: a file cannot be read.
        """
        return self.prints.are_of(known) if known.seen else self.has_fingerprint(known.whole)

    def without(self, unreadable: Mapping[Split, Collection[str]]) -> Source:
        """Return the source without some images; the others stay in their splits."""
        kept = {
            split: [index for index, name in enumerate(names) if name not in unreadable.get(split, ())]
            for split, names in self.names.items()
        }
        return replace(
            self,
            folds=tuple(
                int(np.isin(items, kept["train"] if number < len(self.folds) - 1 else kept["val"]).sum())
                for number, items in enumerate(self._places)
            ),
            names={split: tuple(self.names[split][index] for index in items) for split, items in kept.items()},
            labels={split: self.labels[split][items] for split, items in kept.items()},
            group_names=None
            if self.group_names is None
            else {split: tuple(self.group_names[split][index] for index in items) for split, items in kept.items()},
            read=lambda split, index: self.read(split, kept[split][index]),
        )

    @property
    def _places(self) -> list[npt.NDArray[np.int64]]:
        """The indices of each fold's images within their split."""
        if not self.folds:
            return []
        *first, last = places(self.folds, len(self.names["train"]))
        return [*first, last - len(self.names["train"])]

    def fold_of(self) -> dict[str, int]:
        """Return the fold of each image by name, the last fold for `val`; empty without folds."""
        first = self._places[:-1]
        known = {self.names["train"][item]: number for number, items in enumerate(first) for item in items.tolist()}
        return {**known, **dict.fromkeys(self.names["val"], len(first))} if self.folds else {}

    def fold_labels(self) -> list[npt.NDArray[np.int64]]:
        """Return the class numbers of the images that scores are based on: of each fold, or of the validation split."""
        if not self.folds:
            return [self.labels["val"]]
        *first, _ = self._places
        return [*(self.labels["train"][items] for items in first), self.labels["val"]]


def advice(source: Source, readable: int) -> str:
    """Return advice about unreadable images of a source, to append to a message."""
    can_skip = (
        source.place.startswith(("data.folder", "data.table", "unlabeled.folder"))
        and not source.skips_unreadable
        and readable
    )
    return "; fix or delete them, or leave them out with --skip-unreadable" if can_skip else ""


def assemble(
    *,
    name: str,
    place: str,
    classes: Sequence[str],
    names: Sequence[str],
    labels: Labels,
    given: Mapping[Split, npt.NDArray[np.int64]],
    read: Callable[[int], Image],
    make_prints: Callable[[], Prints],
    first_fingerprint: Callable[[], str] | None = None,
    skips_unreadable: bool = False,
    left_out: tuple[LeftOut, ...] = (),
    notes: tuple[str, ...] = (),
    groups: Groups | None = None,
    kept: npt.NDArray[np.int64] | None = None,
    **cuts: Any,
) -> Source:
    """Divide numbered items (names [N], labels [N] or [N, classes], `read` by number) into the splits of a source.

    `given` holds the item numbers of the splits that the data comes with; `cuts` are the arguments of `divide`.

    Raises:
        DataError: the images cannot be cut, or a group is in several of the given splits.
    """
    if groups is not None:
        refuse_shared(groups, given if kept is None else {**given, "train": kept}, names, place)
    divided = divide(labels, given, classes=classes, place=place, groups=groups, kept=kept, **cuts)
    splits, notes = divided.items, (*notes, *divided.notes)
    return Source(
        name=name,
        place=place,
        classes=tuple(classes),
        labels={split: labels[items] for split, items in splits.items()},
        names={split: tuple(names[item] for item in items) for split, items in splits.items()},
        read=lambda split, index: read(int(splits[split][index])),
        make_prints=make_prints,
        first_fingerprint=first_fingerprint,
        skips_unreadable=skips_unreadable,
        left_out=left_out,
        folds=divided.folds,
        notes=notes if groups is None else (*notes, *large_ones(groups, labels, classes)),
        groups=None if groups is None else {split: groups.count(items) for split, items in splits.items()},
        group_names=None
        if groups is None
        else {
            split: tuple(groups.names[number] for number in groups.numbers[items].tolist())
            for split, items in splits.items()
        },
    )


def from_arrays(pixels: npt.NDArray[np.uint8]) -> Callable[[int], Image]:
    """Return a reader of images in memory, [N, H, W] or [N, H, W, 3]."""
    from PIL import Image

    return lambda item: Image.fromarray(pixels[item])
