"""What is known of a data set before an image is decoded: names, labels, splits and a fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from search.data.fingerprint import are_equal
from search.data.splits import Split, divide
from search.signature import Arg

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MaxTrain", "Source", "Split", "SplitSeed", "Test", "Val", "assemble", "from_arrays"]

Val = Annotated[
    float,
    Arg(
        "share of the training images held out for validation, where the data has none of its own",
        gt=0,
        lt=1,
        fixed=True,
    ),
]
Test = Annotated[
    float,
    Arg("share of all images sealed as the test split, where the data has none of its own", gt=0, lt=1, fixed=True),
]
SplitSeed = Annotated[int, Arg("seed of the cuts into splits", ge=0, le=2**32 - 1, fixed=True)]
MaxTrain = Annotated[
    int | None, Arg("use only so many training images, drawn class by class; null: all", ge=2, fixed=True)
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A data set cut into splits, its images still where they lie."""

    name: str
    """For people, for example in a study's name: `digits`, or the last part of a folder's path."""

    place: str
    """Where errors say that it lies: `data.folder: /photos`."""

    classes: tuple[str, ...]
    labels: Mapping[Split, npt.NDArray[np.int64]]
    """Class numbers [N] of every split."""

    names: Mapping[Split, tuple[str, ...]]
    """Paths below the folder, or `train/123`, of every split."""

    read: Callable[[Split, int], Image]
    """Opens one image of a split; close it, as files are read when their pixels are asked for."""

    fingerprint: str
    """Equal for equal contents, wherever they lie and whatever the splits."""

    first_fingerprint: Callable[[], str] | None = None
    """Makes the fingerprint of version 1, where that saw other parts of the images."""

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


def assemble(
    *,
    name: str,
    place: str,
    classes: Sequence[str],
    names: Sequence[str],
    labels: npt.NDArray[np.int64],
    given: Mapping[Split, npt.NDArray[np.int64]],
    read: Callable[[int], Image],
    fingerprint: str,
    first_fingerprint: Callable[[], str] | None = None,
    **cuts: Any,
) -> Source:
    """Cut numbered items (names [N], labels [N], `read` by number) into the splits of a source.

    `given` holds the numbers of the splits that the data comes with; `cuts` are the arguments of `divide`.
    """
    splits = divide(labels, given, classes=classes, place=place, **cuts)
    return Source(
        name=name,
        place=place,
        classes=tuple(classes),
        labels={split: labels[items] for split, items in splits.items()},
        names={split: tuple(names[item] for item in items) for split, items in splits.items()},
        read=lambda split, index: read(int(splits[split][index])),
        fingerprint=fingerprint,
        first_fingerprint=first_fingerprint,
    )


def from_arrays(pixels: npt.NDArray[np.uint8]) -> Callable[[int], Image]:
    """Return a reader of images that lie in memory as [N, H, W] or [N, H, W, 3]."""
    from PIL import Image

    return lambda item: Image.fromarray(pixels[item])
