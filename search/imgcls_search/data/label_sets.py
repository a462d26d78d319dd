"""Labels in both forms: one class number per image [N], or several labels per image, 0 or 1 [N, labels]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[Any]
"""Class numbers, int64 [N], or labels, uint8 [N, labels], each 0 or 1."""

Numbers = npt.NDArray[np.int64]


def are_several(labels: Labels) -> bool:
    """Tell whether images may have several labels."""
    return labels.ndim == 2


def pairs(labels: Labels) -> tuple[Numbers, Numbers]:
    """Return image index and class number for each label of each image."""
    if not are_several(labels):
        return np.arange(len(labels)), labels
    items, numbers = np.nonzero(labels)
    return items, numbers


def count(labels: Labels, classes: int) -> Numbers:
    """Return the number of images of each class."""
    if are_several(labels):
        counts: Numbers = labels.sum(axis=0, dtype=np.int64)
        return counts
    return np.bincount(labels, minlength=classes)


def seen(labels: Labels) -> set[int]:
    """Return the numbers of the classes that have an image."""
    return set(np.unique(pairs(labels)[1]).tolist())


def texts(labels: Labels) -> Iterator[str]:
    """Yield the text of each image's labels for a fingerprint."""
    if not are_several(labels):
        yield from map(str, labels.tolist())
        return
    yield from (f"labels {row.tobytes().hex()}" for row in np.packbits(labels.astype(bool), axis=1))


def by_number(labels: Labels) -> tuple[int, int, int]:
    """Return how many images have no label, one, and more."""
    each = labels.sum(axis=1)
    return int((each == 0).sum()), int((each == 1).sum()), int((each > 1).sum())


def renumbered(labels: Labels, numbers: Numbers, classes: int) -> Labels:
    """Return labels with new class numbers: `numbers` [own classes], each below `classes`."""
    if not are_several(labels):
        renamed: Labels = numbers[labels]
        return renamed
    found = np.zeros((len(labels), classes), dtype=np.uint8)
    found[:, numbers] = labels
    return found
