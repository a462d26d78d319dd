"""Folds: parts of the images outside the test split; each is scored by a network trained on the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imgcls_search.data import label_sets
from imgcls_search.data.groups import Groups
from imgcls_search.data.label_sets import Labels
from imgcls_search.errors import CutError
from imgcls_search.words import some

Numbers = npt.NDArray[np.int64]

STARTS = 8
"""Number of random orders in which groups are assigned; the most even folds win. One order if there are many groups."""

MANY_GROUPS = 2_000


def cut(
    labels: Labels, pool: Numbers, count: int, *, seed: tuple[int, int], groups: Groups | None, place: str
) -> list[Numbers]:
    """Split the pool into `count` folds, each class as evenly as whole groups, or several labels, allow.

    Raises:
        CutError: there are fewer images or groups than folds.
    """
    if len(pool) < count:
        raise CutError(f"{place}: folds is {count}, but there are {len(pool)} images outside the test split")
    # NumPy has frozen the stream of RandomState: folds must stay the same for years, like a sealed test split.
    random = np.random.RandomState(seed)
    if groups is None and label_sets.are_several(labels):
        owner = _deal_groups(labels[pool], np.arange(len(pool)), count, random)
    elif groups is None:
        owner = _deal(labels[pool], count, random)
    else:
        numbers, group = np.unique(groups.numbers[pool], return_inverse=True)
        if len(numbers) < count:
            raise CutError(f"{place}: folds is {count}, but there are {len(numbers)} groups outside the test split")
        owner = _deal_groups(labels[pool], group, count, random)[group]
    return [pool[owner == number] for number in range(count)]


def _deal(labels: Numbers, count: int, random: np.random.RandomState) -> Numbers:
    """Assign images class by class; the next class starts at the next fold, so that all folds are of equal size."""
    order = np.concatenate([random.permutation(np.flatnonzero(labels == number)) for number in np.unique(labels)])
    owner = np.empty(len(labels), dtype=np.int64)
    owner[order] = np.arange(len(labels)) % count
    return owner


def _deal_groups(labels: Labels, group: Numbers, count: int, random: np.random.RandomState) -> Numbers:
    """Return the fold of each group: large groups first, each to the fold with the least of its classes.

    Of groups of equal size, those with a rare label come first, as in iterative stratification (Sechidis et al. 2011).
    """
    places, label = _with_label(labels)
    kinds, label = np.unique(label, return_inverse=True)
    pairs, images = np.unique(np.stack([group[places], label]), axis=1, return_counts=True)
    firsts = np.searchsorted(pairs[0], np.arange(group.max() + 2))
    sizes, totals = np.bincount(group), np.bincount(label)
    rarest = np.minimum.reduceat(totals[pairs[1]], firsts[:-1]) if label_sets.are_several(labels) else sizes
    best, least = None, np.inf
    for _ in range(STARTS if len(sizes) <= MANY_GROUPS else 1):
        held = np.zeros((count, len(kinds)))
        owner = np.empty(len(sizes), dtype=np.int64)
        mixed = random.permutation(len(sizes))
        for number in mixed[np.lexsort((rarest[mixed], -sizes[mixed]))]:
            part = slice(firsts[number], firsts[number + 1])
            mine, added = pairs[1, part], images[part]
            # Classes count by their share; on ties the smallest fold wins, so that none stays empty.
            costs = (((held[:, mine] + added) ** 2 - held[:, mine] ** 2) / totals[mine] ** 2).sum(axis=1)
            owner[number] = np.lexsort((held.sum(axis=1), costs.round(12)))[0]
            held[owner[number], mine] += added
        uneven = float(((held / totals) ** 2).sum())
        if uneven < least:
            best, least = owner, uneven
    assert best is not None
    return best


def _with_label(labels: Labels) -> tuple[Numbers, Numbers]:
    """Return pairs of images and labels; having no label counts as one more label."""
    places, numbers = label_sets.pairs(labels)
    if not label_sets.are_several(labels):
        return places, numbers
    bare = np.flatnonzero(~labels.any(axis=1))
    return np.concatenate([places, bare]), np.concatenate([numbers, np.full(len(bare), labels.shape[1])])


def refuse_untrained(
    labels: Labels, folds: Sequence[Numbers], kept: Numbers, classes: Sequence[str], place: str
) -> None:
    """Raise CutError if all images of a class are in one fold, so that none is left for training."""
    held = _counts(labels, folds, classes)
    trained = held.sum(axis=0) - held + label_sets.count(labels[kept], len(classes))
    if bad := [repr(classes[number]) for number in np.flatnonzero((trained == 0).any(axis=0)).tolist()]:
        raise CutError(
            f"{place}: all images of class {some(bad)} are in one of {len(folds)} folds; needed: at least 2 images, "
            "or groups, of each class outside the test split"
        )


def rare_classes(labels: Labels, folds: Sequence[Numbers], classes: Sequence[str]) -> list[str]:
    """Return notes about classes without images in some folds."""
    missing = (_counts(labels, folds, classes) == 0).sum(axis=0).tolist()
    rare = [f"{name!r} (not in {count} of {len(folds)})" for name, count in zip(classes, missing, strict=True) if count]
    return [f"no image in some folds of class {some(rare, 5)}"] if rare else []


def _counts(labels: Labels, folds: Sequence[Numbers], classes: Sequence[str]) -> Numbers:
    return np.stack([label_sets.count(labels[items], len(classes)) for items in folds])


def places(sizes: Sequence[int], num_train: int) -> list[Numbers]:
    """Return the indices of each fold's images in `train` followed by `val`.

    The last fold is the validation split; the others come in order at the beginning of the training split.
    """
    firsts = np.cumsum([0, *sizes])
    first = [np.arange(start, start + size) for start, size in zip(firsts[:-2], sizes[:-1], strict=True)]
    return [*first, np.arange(num_train, num_train + sizes[-1])]
