"""Facts about a data set for a draft: counts, sizes, channels, unreadable files, copies."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search.config import Component
from imgcls_search.data import comes_with, decode, file_root, is_of_files, label_sets
from imgcls_search.data.decode import GRAY_MODES, THREADS, reason, turn_of, unlimited_pillow
from imgcls_search.data.examine import MOST_PIXELS
from imgcls_search.data.fingerprint import first_of_equals
from imgcls_search.data.pixel_budget import PixelBudget
from imgcls_search.data.source import Source, Split
from imgcls_search.progress import WorkProgress

MOST_HEADERS = 5_000
"""Read the sizes of at most this many images; a sample represents a larger data set."""

MOST_COMPARED = 20_000
"""Look for copies only among at most this many files: reading more could take longer than the search."""

LOOK_SIDE = 32
"""Side in pixels of the thumbnails that show whether images are damaged or grey."""

GREY_LEVELS = 6
"""Largest difference between the channels of a grey image, in levels of 256: JPEG rounds."""

QUARTER_TURNS = (2, 4, 5, 6)
"""Values of Pillow's `Transpose` that swap width and height."""

SPLITS: tuple[Split, ...] = ("train", "val", "test")
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Facts about the images of a data set."""

    name: str
    place: str
    classes: tuple[str, ...]
    images_by_class: tuple[int, ...]
    images_by_split: Mapping[str, int]
    given_splits: tuple[str, ...]
    """Splits that come with the data; the others are cut."""

    several_labels: bool
    groups: int | None
    """Number of groups; None if nothing defines which images belong together."""

    sampled: int
    """Number of images whose sizes were read."""

    decoded: int
    """Number of images whose pixels were read."""

    widths: tuple[int, int, int]
    """Smallest, median and largest, as in `heights`; measured after rotating images upright."""

    heights: tuple[int, int, int]
    aspects: tuple[float, float, float]
    """Width / height: 5 % quantile, median and 95 % quantile."""

    sizes: int
    """Number of different sizes among the sampled images."""

    is_grey: bool
    unreadable: tuple[str, ...]
    """Sampled images that cannot be read, each with the reason."""

    copies: int | None
    """Number of files equal to an earlier one; None if files were not compared."""

    copies_across: int
    """Number of these copies whose original is in another of the given splits."""

    copy_example: str | None
    group_hint: str | None
    """Hint at groups that the names suggest, with a regular expression; None if they suggest none."""

    notes: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of all images."""
        return sum(self.images_by_split.values())

    @property
    def imbalance(self) -> float:
        """Number of images in the largest class divided by that in the smallest."""
        return max(self.images_by_class) / max(1, min(self.images_by_class))

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {**asdict(self), "images": self.images, "imbalance": self.imbalance}


def look_at_images(
    source: Source, component: Component, *, seconds: float, seed: int, progress: WorkProgress
) -> ImageFacts:
    """Collect facts about a source; read pixels for at most `seconds`, and a limited number of headers.

    Of the test images, only counts, readability and copies are used.
    """
    items = _sample(source, seed)
    looks = _look(source, items, time.monotonic() + seconds, progress)
    known = {item: seen for item, seen in looks.items() if isinstance(seen, _Look)}
    shown = [seen for (split, _), seen in known.items() if split != "test"] or list(known.values())
    sides = np.array([seen.size for seen in shown] or [(1, 1)])
    aspects = np.quantile(sides[:, 0] / sides[:, 1], [0.05, 0.5, 0.95])
    counts = np.sum([label_sets.count(source.labels[split], len(source.classes)) for split in SPLITS], axis=0)
    copies, across, example = _copies(source, component)
    return ImageFacts(
        name=source.name,
        place=source.place,
        classes=source.classes,
        images_by_class=tuple(counts.tolist()),
        images_by_split={split: len(source.names[split]) for split in SPLITS},
        given_splits=given_splits(component),
        several_labels=source.has_several_labels,
        groups=None if source.groups is None else sum(source.groups.values()),
        sampled=len(looks),
        decoded=sum(seen.is_decoded for seen in known.values()) + len(looks) - len(known),
        widths=_spread(sides[:, 0]),
        heights=_spread(sides[:, 1]),
        aspects=(float(aspects[0]), float(aspects[1]), float(aspects[2])),
        sizes=len({seen.size for seen in shown}),
        is_grey=bool(shown) and all(seen.is_grey for seen in shown),
        unreadable=tuple(
            f"{source.names[split][index]} ({seen})"
            for (split, index), seen in looks.items()
            if not isinstance(seen, _Look)
        ),
        copies=copies,
        copies_across=across,
        copy_example=example,
        group_hint=None if source.groups is not None else hint_at_groups(_all_names(source), component),
        notes=source.notes,
    )


def given_splits(component: Component) -> tuple[str, ...]:
    """Return the splits that a data set comes with."""
    if is_of_files(component):
        return tuple(split for split in SPLITS if comes_with(component, split))
    # Digits are cut, and a user's own function may name no split; the other sets come with their published test split.
    return () if component.name in ("digits", "custom") else ("train", "test")


@dataclass(frozen=True, kw_only=True)
class _Look:
    size: tuple[int, int]
    is_grey: bool
    is_decoded: bool


_Item = tuple[Split, int]


def _sample(source: Source, seed: int) -> list[_Item]:
    """Return the images to look at in random order, so that every prefix is a representative sample."""
    items = [(split, index) for split in SPLITS for index in range(len(source.names[split]))]
    order = np.random.default_rng(seed).permutation(len(items))[:MOST_HEADERS]
    return [items[place] for place in order.tolist()]


def _look(source: Source, items: Sequence[_Item], deadline: float, progress: WorkProgress) -> dict[_Item, _Look | str]:
    """Look at each image, or return why it cannot be read; after the deadline, read only headers."""
    budget = PixelBudget(MOST_PIXELS)

    def one(item: _Item) -> _Look | str:
        try:
            with source.read(*item) as image, budget.of(image.width * image.height):
                size = (image.height, image.width) if turn_of(image) in QUARTER_TURNS else image.size
                is_grey = image.mode in GRAY_MODES
                if time.monotonic() > deadline:
                    return _Look(size=size, is_grey=is_grey, is_decoded=False)
                pixels = decode(image, LOOK_SIDE, 3, "squash").astype(np.int16)
                is_grey = is_grey or int(np.ptp(pixels, axis=0).max()) <= GREY_LEVELS
                return _Look(size=size, is_grey=is_grey, is_decoded=True)
        # Damaged files make Pillow raise nearly anything.
        except Exception as error:
            return reason(error)

    found: dict[_Item, _Look | str] = {}
    with unlimited_pillow(), ThreadPoolExecutor(THREADS) as pool:
        for part in _batches(items):
            found.update(zip(part, pool.map(one, part), strict=True))
            progress("reading images", len(found), len(items))
    return found


def _batches(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    whole = iter(items)
    while part := list(islice(whole, BATCH)):
        yield part


def _spread(values: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _copies(source: Source, component: Component) -> tuple[int | None, int, str | None]:
    """Return the number of copies, the number across given splits, and an example, across splits if possible."""
    root = file_root(component) if is_of_files(component) else None
    names = [(split, name) for split in SPLITS for name in source.names[split]]
    if root is None or len(names) > MOST_COMPARED:
        return None, 0, None
    try:
        firsts = first_of_equals([root / name for _, name in names], None).tolist()
    except OSError:
        # Unreadable files are reported elsewhere.
        return None, 0, None
    twins = [(names[first], names[place]) for place, first in enumerate(firsts) if first != place]
    given = given_splits(component)
    across = [
        (one, other)
        for one, other in twins
        if one[0] != other[0] and {one[0], other[0]} & {"val", "test"} <= {*given} and given
    ]
    worst = next(iter(across or twins), None)
    example = None if worst is None else f"{worst[0][1]} = {worst[1][1]}"
    return len(twins), len(across), example


def _all_names(source: Source) -> list[str]:
    return [name for split in SPLITS for name in source.names[split]]


OWNERS = r"(?:patient|subject|person|case|animal|video|clip|scene|specimen|plant|tree|wafer)s?"
_NAMED = re.compile(rf"(?:^|[/_\-. ])({OWNERS}[_\-. ]?[0-9]+)(?=[_\-. /])", re.IGNORECASE)
_FEWEST_EACH = 1.5
"""Least average number of images per group for a hint."""


def hint_at_groups(names: Sequence[str], component: Component) -> str | None:
    """Return a hint if nearly all names contain a word like `patient12` that several of them share."""
    if component.name != "folder":
        return None
    found = [(match[1].lower(), name) for name in names if (match := _NAMED.search(name))]
    groups = Counter(group for group, _ in found)
    if len(found) < 0.9 * len(names) or len(groups) < 2 or len(found) < _FEWEST_EACH * len(groups):
        return None
    example = Path(found[0][1]).as_posix()
    hint = f"names such as {example} say which images belong together"
    pattern = _pattern_of(names)
    if pattern is None:
        return f"{hint}: a table with a column of groups (data.table.group) keeps them in one split"
    return f"{hint}: --group '{pattern}' keeps them in one split"


def _pattern_of(names: Sequence[str]) -> str | None:
    """Return a regular expression that finds the same groups in all names; None if none of this form does."""
    groups = [match[1] if (match := _NAMED.search(name)) else "" for name in names]
    # Groups that differ in case only would be two to an expression.
    if not all(groups) or len(set(groups)) > len({group.lower() for group in groups}):
        return None
    words = "|".join(sorted({re.split(r"[_\-. 0-9]", group)[0] for group in groups}))
    word = f"(?:{words})" if "|" in words else words
    pattern = f"({word}[_. -]?[0-9]+)"
    found = [match and match[1] for match in (re.search(pattern, name) for name in names)]
    return pattern if found == groups else None
