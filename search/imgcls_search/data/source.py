"""What is known of a data set before an image is decoded: names, labels, splits and a fingerprint."""

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
    """Of one of them: `file ending in .txt`."""

    count: int
    example: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A data set cut into splits, its images still where they lie."""

    name: str
    """For people, for example in a study's name: `digits`, or the last part of a folder's path."""

    place: str
    """How errors name its place: `data.folder: /photos`."""

    classes: tuple[str, ...]
    labels: Mapping[Split, Labels]
    """Of every split: class numbers [N], or several labels of each image, 0 or 1 [N, classes]."""

    names: Mapping[Split, tuple[str, ...]]
    """Paths below the folder, or `train/123`, of every split."""

    read: Callable[[Split, int], Image]
    """Opens one image of a split; close it, as files are read when their pixels are needed."""

    make_prints: Callable[[], Prints]
    """Reads all contents, which takes its time, and returns what the data set is recognised by."""

    skips_unreadable: bool = False
    """Whether images that cannot be read are left out instead of refused."""

    left_out: tuple[LeftOut, ...] = ()
    """What the place holds besides the images."""

    notes: tuple[str, ...] = ()
    """What a person should know of the classes."""

    folds: tuple[int, ...] = ()
    """The sizes of the folds, where there are any, see `splits.Cuts`."""

    groups: Mapping[Split, int] | None = None
    """How many groups the images of each split are of, None where nothing says what belongs together."""

    group_names: Mapping[Split, tuple[str, ...]] | None = None
    """The group of each image, None likewise."""

    first_fingerprint: Callable[[], str] | None = None
    """Makes the fingerprint of version 1, where that saw other parts of the images."""

    @cached_property
    def prints(self) -> Prints:
        """Equal for equal contents, wherever they lie and whatever the splits.

        Raises:
            DataError: a file cannot be read.
        """
        try:
            return self.make_prints()
        except OSError as error:
            raise DataError(f"{self.place}: cannot be read: {error}") from error

    @property
    def has_several_labels(self) -> bool:
        """Whether each image may have several labels, or none."""
        return label_sets.are_several(self.labels["test"])

    @property
    def fingerprint(self) -> str:
        """That of all images."""
        return self.prints.whole

    @property
    def is_in_files(self) -> bool:
        """Whether each image is a file of its own, which may be damaged."""
        return self.first_fingerprint is not None

    def has_fingerprint(self, known: str) -> bool:
        """Tell whether these are the images of a fingerprint, of whichever version it is.

        Raises:
            OSError: a file cannot be read.
        """
        return are_equal(known, self.fingerprint, self.first_fingerprint)

    def has_prints(self, known: Prints) -> bool:
        """Tell whether a search sees the images of a record; one of an earlier version knows the test split too.

        Raises:
            OSError: a file cannot be read.
        """
        return self.prints.are_of(known) if known.seen else self.has_fingerprint(known.whole)

    def without(self, unreadable: Mapping[Split, Collection[str]]) -> Source:
        """Return the source without some images of its splits; the cuts stay as they are."""
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
        """The numbers of each fold's images within their split."""
        if not self.folds:
            return []
        *first, last = places(self.folds, len(self.names["train"]))
        return [*first, last - len(self.names["train"])]

    def fold_of(self) -> dict[str, int]:
        """Return the fold of each image by name, the last one for `val`; nothing where there are no folds."""
        first = self._places[:-1]
        known = {self.names["train"][item]: number for number, items in enumerate(first) for item in items.tolist()}
        return {**known, **dict.fromkeys(self.names["val"], len(first))} if self.folds else {}

    def fold_labels(self) -> list[npt.NDArray[np.int64]]:
        """Return the class numbers of the images that scores are from: of each fold, or of the validation split."""
        if not self.folds:
            return [self.labels["val"]]
        *first, _ = self._places
        return [*(self.labels["train"][items] for items in first), self.labels["val"]]


def advice(source: Source, readable: int) -> str:
    """Return what a person can do about images of a source that cannot be read, to end a message with."""
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
    """Cut numbered items (names [N], labels [N] or [N, classes], `read` by number) into the splits of a source.

    `given` holds the numbers of the splits that the data comes with; `cuts` are the arguments of `divide`.

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
    """Return a reader of images that are in memory as [N, H, W] or [N, H, W, 3]."""
    from PIL import Image

    return lambda item: Image.fromarray(pixels[item])
