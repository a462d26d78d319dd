"""The summary of a data set before anything slow happens: classes, images, sizes, and files not counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls_search.data import label_sets
from imgcls_search.data.decode import GRAY_MODES, THREADS, check_kind, reason, unlimited_pillow
from imgcls_search.data.source import LeftOut, Source, Split, advice
from imgcls_search.errors import DataError
from imgcls_search.words import MOST_LISTED, counted, some

LARGEST_CHOICE = 224
"""Upper limit in pixels for a side chosen by default: the usual input size of networks for photographs."""

SMALLEST_CHOICE = 4

FAR_OFF = 3.0
"""An image is an outlier if a side is more than this many times the median, or less than 1 / this of it."""

MOST_LABELS = 12
"""Number of labels listed with their image counts; if there are more, the most frequent ones and the rarest."""

SHOWN = 4
"""Number of reasons listed; the others are summed up."""


@dataclass(frozen=True, kw_only=True)
class Headers:
    """Information from the headers of the training and validation images."""

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each image."""

    all_gray: bool
    unreadable: tuple[str, ...]
    """Each with its reason; these are not in `names` and `sizes`."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Width and height in pixels."""

    median: tuple[int, int]
    smallest: tuple[int, int]
    """The smallest width and the smallest height."""

    largest: tuple[int, int]
    outliers: int
    """Images with a side more than `FAR_OFF` times, or less than 1 / `FAR_OFF` of, the median."""

    outlier: str | None
    """The name and size of one outlier."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Properties of a data set before its pixels are decoded."""

    name: str
    classes: int
    images: Mapping[str, int]
    """Per split."""

    smallest_class: tuple[str, int]
    """A class with the fewest images over all splits, and their number."""

    largest_class: tuple[str, int]
    sizes: Sizes | None
    """None if no header could be read."""

    unreadable: tuple[str, ...]
    """Images whose headers cannot be read, each with the reason."""

    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    chosen_size: int | None = None
    """The side that was chosen because the configuration sets none and the images differ."""

    groups: Mapping[Split, int] | None = None
    """Number of groups per split, None if there are no groups."""

    images_by_label: Mapping[str, int] | None = None
    """Number of images per label, None with one class per image."""

    images_by_labels: tuple[int, int, int] | None = None
    """Number of images with no label, one, and more; None with one class per image."""
    folds: tuple[int, ...] = ()
    """Number of images per fold, if there are folds; the last is `val`."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Return a summary for users in at most five lines."""
        few, many = self.smallest_class, self.largest_class
        counts = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        between = f"smallest class {few[0]!r} ({counted('image', few[1])}), largest {many[0]!r} ({many[1]:,})"
        groups = ", ".join(f"{split} {count:,}" for split, count in (self.groups or {}).items())
        kinds = counted("class" if self.images_by_label is None else "label", self.classes)
        found = [
            f"data {self.name}: {kinds}, images: {counts}{self._folded()}" + (f"; groups: {groups}" if groups else ""),
            between if few[1] < many[1] else f"{counted('image', few[1])} of each class",
        ]
        if self.images_by_label is not None and self.images_by_labels is not None:
            found[1] = _labelled(self.images_by_label, *self.images_by_labels)
        if self.sizes is not None:
            found.append(self._sized(self.sizes))
        if self.left_out:
            shown = [f"{entry.count:,} x {entry.reason} ({entry.example})" for entry in self.left_out[:SHOWN]]
            if rest := sum(entry.count for entry in self.left_out[SHOWN:]):
                shown.append(f"{rest:,} more for other reasons")
            found.append(f"not counted: {'; '.join(shown)}")
        if self.notes or self.unreadable:
            notes = [*self.notes[:MOST_LISTED]]
            if len(self.notes) > MOST_LISTED:
                notes.append(f"{len(self.notes) - MOST_LISTED:,} more notes")
            if self.unreadable:
                number = counted("image", len(self.unreadable))
                notes.insert(0, f"{number} cannot be read, for example {self.unreadable[0]}")
            found.append(f"note: {'; '.join(notes)}")
        return found

    def _folded(self) -> str:
        if not self.folds:
            return ""
        few, many = min(self.folds), max(self.folds)
        each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        return (
            f"; train and val are {len(self.folds)} folds of {each}, each scored by a network that was trained on the "
            "others"
        )

    def _sized(self, sizes: Sizes) -> str:
        if sizes.smallest == sizes.largest:
            text = f"sizes: all {_by(sizes.median)}"
        else:
            text = f"sizes: median {_by(sizes.median)}, sides from {_by(sizes.smallest)} to {_by(sizes.largest)}"
        if sizes.outliers:
            text += f"; {sizes.outliers:,} far from the median, for example {sizes.outlier}"
        if self.chosen_size is not None:
            text += f"; image.size is not given: {self.chosen_size}, from the median"
        return text


def read_headers(source: Source, splits: Sequence[Split] = ("train", "val")) -> Headers:
    """Read the headers of the training and validation images; decode no pixels, and leave the test split sealed.

    Raises:
        DataError: a header cannot be read, and the source does not skip such images; or none can.
    """
    items = [(split, index) for split in splits for index in range(len(source.names[split]))]
    with unlimited_pillow(), ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda item: _header(source, *item), items))
    names = [source.names[split][index] for split, index in items]
    unreadable = tuple(f"{name} ({header})" for name, header in zip(names, found, strict=True) if _is_reason(header))
    if unreadable and (not source.skips_unreadable or len(unreadable) == len(items)):
        raise DataError(
            f"{source.place}: cannot read {len(unreadable)} of {len(items)} images: {some(unreadable)}"
            f"{advice(source, len(items) - len(unreadable))}"
        )
    good = [(name, header) for name, header in zip(names, found, strict=True) if not isinstance(header, str)]
    return Headers(
        names=tuple(name for name, _ in good),
        sizes=tuple(size for _, (size, _) in good),
        all_gray=all(gray for _, (_, gray) in good),
        unreadable=unreadable,
    )


def choose_shape(headers: Headers) -> tuple[int, int, bool]:
    """Return a default side and number of channels, and whether the side had to be chosen.

    Square images of one size keep it; else the side is the median of the shorter sides, at most `LARGEST_CHOICE`.
    """
    channels = 1 if headers.all_gray else 3
    sizes = set(headers.sizes)
    if len(sizes) == 1 and (width := headers.sizes[0][0]) == headers.sizes[0][1]:
        return width, channels, False
    median = int(np.median([min(size) for size in headers.sizes]))
    return min(max(median, SMALLEST_CHOICE), LARGEST_CHOICE), channels, True


def native_shape(source: Source) -> tuple[int, int]:
    """Return a default side and number of channels for a source, from its training and validation headers.

    Raises:
        DataError: a header cannot be read.
    """
    side, channels, _ = choose_shape(read_headers(source))
    return side, channels


def summarise(source: Source, headers: Headers, *, chosen_size: int | None = None) -> Summary:
    """Return the summary of a source whose headers were read."""
    counts = np.zeros(len(source.classes), dtype=np.int64)
    for labels in source.labels.values():
        counts += label_sets.count(labels, len(source.classes))
    by_label: dict[str, Any] = {}
    if source.has_several_labels:
        none, one, more = np.sum([label_sets.by_number(labels) for labels in source.labels.values()], axis=0).tolist()
        by_label = {
            "images_by_label": dict(zip(source.classes, counts.tolist(), strict=True)),
            "images_by_labels": (none, one, more),
        }
    few, many = int(counts.argmin()), int(counts.argmax())
    return Summary(
        name=source.name,
        classes=len(source.classes),
        images={split: len(names) for split, names in source.names.items()},
        smallest_class=(source.classes[few], int(counts[few])),
        largest_class=(source.classes[many], int(counts[many])),
        sizes=_sizes(headers),
        unreadable=headers.unreadable,
        left_out=source.left_out,
        notes=source.notes,
        chosen_size=chosen_size,
        groups=source.groups,
        folds=source.folds,
        **by_label,
    )


def _labelled(by_label: Mapping[str, int], none: int, one: int, more: int) -> str:
    """Return a line with the number of images per label, and of images with no label, one and several."""
    order = sorted(by_label, key=lambda name: -by_label[name])
    shown = order if len(order) <= MOST_LABELS else [*order[: MOST_LABELS - 1], order[-1]]
    rest = f" ({len(order) - len(shown):,} more labels between)" if len(shown) < len(order) else ""
    counts = ", ".join(f"{name!r} {by_label[name]:,}" for name in shown)
    return f"images with each label: {counts}{rest}; with no label {none:,}, with one {one:,}, with several {more:,}"


def describe_left_out(left_out: Sequence[LeftOut]) -> str:
    """Return one line about the files that were not counted."""
    return "; ".join(f"{entry.count:,} x {entry.reason} ({entry.example})" for entry in left_out)


def _sizes(headers: Headers) -> Sizes | None:
    if not headers.sizes:
        return None
    sides = np.array(headers.sizes)
    median = np.median(sides, axis=0)
    far = ((sides > FAR_OFF * median) | (sides * FAR_OFF < median)).any(axis=1)
    # The farthest one is the best example.
    distance = np.abs(np.log(np.maximum(sides, 1) / median)).max(axis=1)
    worst = int(distance.argmax())
    return Sizes(
        median=(int(median[0]), int(median[1])),
        smallest=(int(sides[:, 0].min()), int(sides[:, 1].min())),
        largest=(int(sides[:, 0].max()), int(sides[:, 1].max())),
        outliers=int(far.sum()),
        outlier=f"{headers.names[worst]} ({_by(headers.sizes[worst])})" if far.any() else None,
    )


def _header(source: Source, split: Split, index: int) -> tuple[tuple[int, int], bool] | str:
    """Return the size of an image and whether it is gray, or why its header cannot be read."""
    try:
        with source.read(split, index) as image:
            check_kind(image)
            return image.size, image.mode in GRAY_MODES
    # Pillow raises almost anything for damaged files.
    except Exception as error:
        return reason(error)


def _is_reason(header: tuple[tuple[int, int], bool] | str) -> bool:
    return isinstance(header, str)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
