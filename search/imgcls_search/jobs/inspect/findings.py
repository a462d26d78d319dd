"""The findings of an inspection, as one frozen value for views and other jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from imgcls_search.data.inventory import Inventory
from imgcls_search.data.source import LeftOut

CopyKind = Literal["file", "pixels", "near"]


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One image of a data set."""

    number: int
    """Its index in the inventory."""

    name: str
    label: str
    split: str
    """Empty if the images cannot be cut into splits."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """Number of images in a class."""

    name: str
    total: int
    by_split: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Width and height in pixels of the images as shown, upright."""

    smallest: tuple[int, int]
    """Size of the image with the fewest pixels."""

    median: tuple[int, int]
    """The median of the widths and of the heights."""

    largest: tuple[int, int]
    smallest_name: str
    largest_name: str
    aspect: tuple[float, float, float]
    """Width / height: smallest, median, largest."""

    histogram: tuple[tuple[float, float, int], ...]
    """Lower and upper bound of the shorter side, and the number of images between them."""


@dataclass(frozen=True, kw_only=True)
class Unread:
    """An image that cannot be read."""

    image: ImageRef
    reason: str


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Images that are copies of each other."""

    kind: CopyKind
    """file: equal files; pixels: equal pixels in files that are not all equal; near: pictures that look the same."""

    images: tuple[ImageRef, ...]

    @property
    def across_classes(self) -> bool:
        """Whether they have different labels."""
        return len({image.label for image in self.images}) > 1

    @property
    def across_splits(self) -> bool:
        """Whether they are in different splits."""
        return len({image.split for image in self.images}) > 1

    @property
    def touches_test(self) -> bool:
        """Whether they are in the test split and in another one."""
        return self.across_splits and any(image.split == "test" for image in self.images)


@dataclass(frozen=True, kw_only=True)
class CopyCount:
    """Number of sets of copies of one kind; a set across classes may be across splits too."""

    sets: int
    images: int
    within_class: int
    """Sets of one class in one split."""

    across_classes: int
    across_splits: int
    across_test: int
    """Sets in the test split and in another one."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose label is likely wrong."""

    image: ImageRef
    likely: str
    confidence: float
    """The probability of the likely label, by models that have not seen the image."""

    given: float
    """The probability of the given label."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The labels as judged by out-of-fold predictions."""

    by: str
    """The model that made the predictions."""

    folds: int
    images: int
    agreement: float
    """Share of images whose given label is the most probable one."""

    suspects: tuple[Suspect, ...]
    """Most suspicious first."""

    estimated_wrong: float
    """Share of wrong labels by the estimated joint distribution; far too large if the model is weak."""

    left_out: tuple[str, ...]
    """Classes with too few images to judge."""

    with_test: bool


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The contents of a data set, and problems found in it."""

    name: str
    place: str
    classes: tuple[ClassCount, ...]
    images: int
    imbalance: float
    """Number of images in the largest class divided by that in the smallest."""

    groups: int | None
    uncut: str | None
    """Why the images cannot be cut into splits, None if they can."""

    sizes: Sizes | None
    """None if no image can be read."""

    formats: Mapping[str, int]
    kinds: Mapping[str, int]
    """Channels and bit depth."""

    transparent: int
    turned: int
    """Images that an EXIF tag rotates or mirrors."""

    flat: tuple[ImageRef, ...]
    """Images of almost one colour, which count as copies of each other only if their files are equal."""

    unreadable: tuple[Unread, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    copies: tuple[Copies, ...]
    copy_counts: Mapping[CopyKind, CopyCount]
    copies_cut: bool
    """Whether not all pairs were compared, because too many images look alike."""

    judgement: Judgement | None
    not_judged: str | None
    """Why labels were not judged."""

    inventory: Inventory = field(repr=False, compare=False)
    """The images themselves."""

    def extreme_classes(self, most: int) -> list[ClassCount]:
        """Return at most `most` classes in their order: of many, as many of the largest as of the smallest ones."""
        if len(self.classes) <= most:
            return list(self.classes)
        order = sorted(range(len(self.classes)), key=lambda number: self.classes[number].total)
        return [self.classes[number] for number in sorted([*order[: most // 2], *order[-(most // 2) :]])]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        found: dict[str, Any] = {
            each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self) if each.name != "inventory"
        }
        for copies, entry in zip(self.copies, found["copies"], strict=True):
            entry |= {"across_classes": copies.across_classes, "across_splits": copies.across_splits}
        return found


def count_copies(copies: tuple[Copies, ...]) -> dict[CopyKind, CopyCount]:
    """Count the sets of each kind."""
    kinds: tuple[CopyKind, ...] = ("file", "pixels", "near")
    found: dict[CopyKind, CopyCount] = {}
    for kind in kinds:
        sets = [each for each in copies if each.kind == kind]
        found[kind] = CopyCount(
            sets=len(sets),
            images=sum(len(each.images) for each in sets),
            within_class=sum(not each.across_classes and not each.across_splits for each in sets),
            across_classes=sum(each.across_classes for each in sets),
            across_splits=sum(each.across_splits for each in sets),
            across_test=sum(each.touches_test for each in sets),
        )
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
