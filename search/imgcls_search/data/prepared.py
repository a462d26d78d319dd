"""What is known of images that were decoded for a search, and one split of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.image import Fill, Fit, Frame, InputShape
from imgcls_search.data.label_sets import Labels
from imgcls_search.data.stream import Streamed
from imgcls_search.image_size import ImageSize
from imgcls_search.words import counted


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What workers need to know of a prepared data set, as JSON-able values."""

    fingerprint: str
    """Of all images, those of the test split too."""

    classes: tuple[str, ...]
    image_size: ImageSize
    channels: int
    counts: Mapping[str, int]
    """Images of every split: train, val, test."""

    class_counts: tuple[int, ...]
    """Images of every class in the training split."""

    mean: tuple[float, ...]
    """Of every channel of the training split, in 0..1."""

    std: tuple[float, ...]
    folder: str
    """Where the arrays lie."""

    seen_fingerprint: str = ""
    """Of the images that a search may see, see `Prints`."""

    streamed_from: Mapping[str, Any] | None = None
    """The `data` component, by name and arguments, if the images are decoded again in each epoch."""

    repeated: int = 0
    """Validation images with the very pixels of a training image."""

    repeated_for_example: tuple[str, ...] = ()
    """The names of one of them and of its twin."""

    twins: int = 0
    """Training and validation images with the very pixels of an image of another class."""

    twins_for_example: tuple[str, ...] = ()
    blank: int = 0
    """Training and validation images that show almost nothing."""

    blank_for_example: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Training and validation images that were left out since they cannot be read, each with the reason."""

    fit: Fit = "crop"
    """How images of another aspect are brought to the size."""

    fill: Fill = "mean"
    """The colour of their borders with `pad`."""

    margin: float = 1.0
    """How many times larger they are kept than the size."""

    folds: tuple[int, ...] = ()
    """The sizes of the folds, where there are any; the last is the validation split, the others begin the training
    split, in order."""

    has_several_labels: bool = False
    """Whether each image may have several labels, or none, instead of one class."""

    thresholds: tuple[float, ...] | None = None
    """From which probability on an image has each label, by the weights that this comes with; None where none says."""

    @property
    def cuts(self) -> tuple[float, ...] | None:
        """The thresholds to decide by: 0.5 where none were chosen; None where an image has one class."""
        return (self.thresholds or (0.5,) * len(self.classes)) if self.has_several_labels else None

    def findings(self) -> list[str]:
        """Return what a person should know of the pixels, a line each."""
        found = []
        if self.unreadable:
            number = counted("image", len(self.unreadable))
            found.append(f"left out {number} that cannot be read: {', '.join(self.unreadable)}")
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
        """What the images are recognised by."""
        return Prints(whole=self.fingerprint, seen=self.seen_fingerprint)

    @property
    def scored(self) -> int:
        """How many images a score is from: those of all folds, or of the validation split."""
        return sum(self.folds) or self.counts["val"]

    @property
    def num_bytes(self) -> int:
        """The size of the decoded images that a search reads."""
        return (self.counts["train"] + self.counts["val"]) * math.prod(self.frame.kept_shape)

    @property
    def frame(self) -> Frame:
        """How the images were brought to their shape."""
        return Frame(size=self.image_size, channels=self.channels, fit=self.fit, fill=self.fill, margin=self.margin)

    @property
    def shape(self) -> InputShape:
        """What a model for these images is built for."""
        return InputShape(image_size=self.image_size, channels=self.channels, classes=len(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, ready for JSON."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prepared:
        """Build from what `to_dict` returned."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """One split, decoded."""

    pixels: npt.NDArray[np.uint8] | Streamed
    """[N, channels, height, width], mapped from disk and read-only, or decoded where they are indexed."""

    labels: Labels
    """Class numbers [N], or several labels of each image, 0 or 1 [N, classes]."""

    names: tuple[str, ...]
