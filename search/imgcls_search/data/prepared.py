"""Metadata of images that were decoded for a search, and one decoded split."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.image import Fill, Fit, Frame, InputShape
from imgcls_search.data.label_sets import Labels
from imgcls_search.data.stream import Streamed
from imgcls_search.image_size import ImageSize, sides
from imgcls_search.words import counted, some


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Metadata of a prepared data set for workers, as JSON-able values."""

    fingerprint: str
    """Of all images, including the test split."""

    classes: tuple[str, ...]
    image_size: ImageSize
    channels: int
    counts: Mapping[str, int]
    """Number of images per split: train, val, test."""

    class_counts: tuple[int, ...]
    """Number of training images per class."""

    mean: tuple[float, ...]
    """Per channel of the training split, in 0..1."""

    std: tuple[float, ...]
    folder: str
    """Folder of the arrays."""

    seen_fingerprint: str = ""
    """Of the images that a search may see, see `Prints`."""

    streamed_from: Mapping[str, Any] | None = None
    """Name and arguments of the `data` component, if images are decoded again every epoch."""

    repeated: int = 0
    """Validation images with the same pixels as a training image."""

    repeated_for_example: tuple[str, ...] = ()
    """The names of one such image and of its copy."""

    twins: int = 0
    """Training and validation images with the same pixels as an image of another class."""

    twins_for_example: tuple[str, ...] = ()
    blank: int = 0
    """Training and validation images that show almost nothing."""

    blank_for_example: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Training and validation images that were left out because they cannot be read, each with the reason."""

    fit: Fit = "crop"
    """How images with another aspect ratio are brought to the size."""

    fill: Fill = "mean"
    """The border colour for `pad`."""

    margin: float = 1.0
    """Factor by which stored images are larger than the size."""

    folds: tuple[int, ...] = ()
    """The sizes of the folds, if there are any; the last fold is the validation split, the others come first in the
    training split, in order."""

    has_several_labels: bool = False
    """Whether images may have several labels, or none, instead of one class."""

    thresholds: tuple[float, ...] | None = None
    """Thresholds of the labels for the accompanying weights; None if none are known."""

    @property
    def cuts(self) -> tuple[float, ...] | None:
        """The decision thresholds: 0.5 if none were chosen; None with one class per image."""
        return (self.thresholds or (0.5,) * len(self.classes)) if self.has_several_labels else None

    def findings(self) -> list[str]:
        """Return notes for users about the pixels, one line each."""
        found = []
        if self.unreadable:
            number = counted("image", len(self.unreadable))
            found.append(f"left out {number} that cannot be read: {some(self.unreadable)}")
        if self.twins:
            of, cannot = (
                ("with other labels", "the same picture with other labels")
                if self.has_several_labels
                else ("of another class", "the same picture in two classes")
            )
            found.append(
                f"{counted('image', self.twins)} with the pixels of an image {of}, for example "
                f"{self.twins_for_example[0]}: {cannot} cannot be learned"
            )
        if self.blank:
            verb = "is" if self.blank == 1 else "are"
            example = self.blank_for_example[0]
            found.append(f"{counted('image', self.blank)} {verb} almost blank, for example {example}")
        return found

    @property
    def prints(self) -> Prints:
        """The fingerprints of the images."""
        return Prints(whole=self.fingerprint, seen=self.seen_fingerprint)

    @property
    def scored(self) -> int:
        """Number of images that a score is based on: all folds, or the validation split."""
        return sum(self.folds) or self.counts["val"]

    @property
    def num_bytes(self) -> int:
        """The size of the decoded images that a search reads, bytes."""
        return (self.counts["train"] + self.counts["val"]) * math.prod(self.frame.kept_shape)

    @property
    def frame(self) -> Frame:
        """How the images were brought to their shape."""
        return Frame(size=self.image_size, channels=self.channels, fit=self.fit, fill=self.fill, margin=self.margin)

    @property
    def shape(self) -> InputShape:
        """The input shape and classes of a model for these images."""
        return InputShape(image_size=self.image_size, channels=self.channels, classes=len(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, ready for JSON."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prepared:
        """Build from what `to_dict` returned.

        Raises:
            ValueError, or another of `UNWRITTEN`: these are not such values.
        """
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        found = cls(**plain)
        if not _is_whole(found):
            raise ValueError("not a description of images")
        return found


def _is_whole(found: Prepared) -> bool:
    """Tell whether all values are of their types: they may come from the file of anyone."""
    examples = (found.repeated_for_example, found.twins_for_example, found.blank_for_example, found.unreadable)
    lists = (found.classes, found.class_counts, found.mean, found.std, found.folds, *examples)
    if not all(isinstance(each, tuple) for each in lists):
        return False
    names = (*found.classes, *found.counts, *(name for each in examples for name in each))
    texts = (found.fingerprint, found.seen_fingerprint, found.folder, *names)
    counts = (*found.counts.values(), *found.class_counts, *found.folds, found.repeated, found.twins, found.blank)
    numbers = (*found.mean, *found.std, found.margin, *(found.thresholds or ()))
    source = {"name": "", "args": {}} if found.streamed_from is None else found.streamed_from
    return (
        all(isinstance(text, str) for text in (*texts, source["name"]))
        and all(type(count) is int and 0 <= count <= sys.maxsize for count in counts)
        and all(type(side) is int and 0 < side <= sys.maxsize for side in sides(found.image_size))
        and all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in numbers)
        and type(found.channels) is int
        and found.channels == len(found.mean) == len(found.std)
        and min(found.std) > 0
        and found.fit in get_args(Fit)
        and found.fill in get_args(Fill)
        and found.margin >= 1
        and type(found.has_several_labels) is bool
        and (found.thresholds is None or len(found.thresholds) == len(found.classes))
        and isinstance(source["args"], Mapping)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """One decoded split."""

    pixels: npt.NDArray[np.uint8] | Streamed
    """[N, channels, height, width], memory-mapped and read-only, or decoded on indexing."""

    labels: Labels
    """Class numbers [N], or several labels per image, 0 or 1 [N, classes]."""

    names: tuple[str, ...]
