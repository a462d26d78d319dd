"""Split a data set into train, val and test: seeded, stratified, every class in every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from imgcls_search.data import folds as folding
from imgcls_search.data import groups as grouping
from imgcls_search.data import iterative, label_sets
from imgcls_search.data.groups import Groups
from imgcls_search.data.label_sets import Labels
from imgcls_search.errors import CutError
from imgcls_search.words import some

Split = Literal["train", "val", "test"]
UNNAMED: Literal[""] = ""
"""The split of images that the data gives none, though it may give one to others."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """A data set in parts."""

    items: Mapping[Split, Numbers]
    """The item numbers of each split."""

    folds: tuple[int, ...] = ()
    """The sizes of the folds, if there are any; the last is `val`, the others begin `train`, in order."""

    notes: tuple[str, ...] = ()


def divide(
    labels: Labels,
    given: Mapping[Split, Numbers],
    *,
    classes: Sequence[str],
    place: str,
    val: float,
    split_seed: int,
    max_train: int | None,
    test: float = 0.0,
    kept: Numbers | None = None,
    seen: Sequence[str] | None = None,
    groups: Groups | None = None,
    folds: int | None = None,
) -> Cuts:
    """Return the item numbers of train, val and test, cutting missing splits from `train`.

    `kept` are training images that nothing is cut from; `seen` gives for each class the place of its first image. All
    images of one of the `groups` go into one part; `max_train` draws images, not groups. With several labels per image,
    each label is spread as evenly over the parts as possible, see `iterative`.

    The sealed test split depends on `test` and `split_seed` only, val also on `val`: `max_train` changes neither. With
    `folds`, `max_train` counts all images outside the test split, since each is trained on and scored.

    Raises:
        CutError: one class only, a class too small for the cuts, or `max_train` below the number of classes; folds
            together with a given validation split, or too few images for them.
    """
    if len(classes) < 2:
        raise CutError(f"{place}: only one class, {classes[0]!r}; a classifier needs at least 2")
    parts = ["train", *(part for part in ("val", "test") if part not in given)]
    train = given["train"]
    if folds is not None and "val" in given:
        raise CutError(
            f"{place}: folds is {folds}, but a validation split is given ({len(given['val'])} images), and folds are "
            "cut from the training images; leave out folds, or give these images no split or that of train"
        )
    _check_room(labels[train], classes, place, parts, seen)
    if groups is not None and len(parts) > 1:
        grouping.check_room(groups, labels, train, classes, place, len(parts))
    if max_train is not None and max_train < len(classes):
        raise CutError(f"{place}: max_train is {max_train}; allowed: at least {len(classes)}, one image per class")
    cut = _cut if groups is None else partial(grouping.cut, groups, place=place)
    sealed, held = given.get("test"), given.get("val")
    if sealed is None:
        sealed, train = cut(labels, train, share=test, spare=len(parts) - 1, seed=(split_seed, 0))
    if folds is not None:
        kept = np.array([], dtype=np.int64) if kept is None else kept
        pool = np.sort(np.concatenate([train, kept]))
        if max_train is not None and max_train < len(pool):
            pool, _ = _draw(labels, pool, max_train, spare=0, seed=(split_seed, 2))
        parts_of = folding.cut(
            labels, np.setdiff1d(pool, kept), folds, seed=(split_seed, 1), groups=groups, place=place
        )
        kept = np.intersect1d(pool, kept)
        folding.refuse_untrained(labels, parts_of, kept, classes, place)
        return Cuts(
            items={"train": np.concatenate([*parts_of[:-1], kept]), "val": parts_of[-1], "test": sealed},
            folds=tuple(len(items) for items in parts_of),
            notes=tuple(folding.rare_classes(labels, parts_of, classes)),
        )
    if held is None:
        held, train = cut(labels, train, share=val, spare=1, seed=(split_seed, 1))
    if kept is not None:
        train = np.sort(np.concatenate([train, kept]))
    if max_train is not None and max_train < len(train):
        train, _ = _draw(labels, train, max_train, spare=0, seed=(split_seed, 2))
    parted: dict[Split, Numbers] = {"train": train, "val": held, "test": sealed}
    if label_sets.are_several(labels):
        _refuse_missing({split: parted[split] for split in parted if split not in given}, labels, classes, place)
    return Cuts(items=parted)


def _refuse_missing(cut: Mapping[Split, Numbers], labels: Labels, classes: Sequence[str], place: str) -> None:
    """Raise CutError if a cut part lacks a label, for example because some labels only occur together."""
    for split, items in cut.items():
        missing = [repr(classes[number]) for number in np.flatnonzero(labels[items].sum(axis=0) == 0).tolist()]
        if missing:
            raise CutError(
                f"{place}: no cut was found that has label {some(missing)} in {split}; more images, or other "
                "shares of val and test, may help"
            )


def _check_room(
    labels: Labels, classes: Sequence[str], place: str, parts: Sequence[str], seen: Sequence[str] | None
) -> None:
    counts = label_sets.count(labels, len(classes))
    numbers = [number for number, count in enumerate(counts) if count < len(parts)]
    small = [f"{classes[number]!r} ({counts[number]})" for number in numbers]
    if small:
        place = place if seen is None else seen[numbers[0]]
        raise CutError(
            f"{place}: too few images in class {some(small)}; needed: at least {len(parts)}, one each for "
            f"{', '.join(parts)}"
        )


def _cut(labels: Labels, pool: Numbers, *, share: float, spare: int, seed: tuple[int, int]) -> tuple[Numbers, Numbers]:
    if label_sets.are_several(labels):
        # One image may be the only one with several labels.
        return _draw(labels, pool, int(np.clip(round(share * len(pool)), 1, len(pool) - 1)), spare=spare, seed=seed)
    counts = np.unique(labels[pool], return_counts=True)[1]
    total = int(np.clip(round(share * len(pool)), len(counts), len(pool) - spare * len(counts)))
    return _draw(labels, pool, total, spare=spare, seed=seed)


def _draw(labels: Labels, pool: Numbers, total: int, *, spare: int, seed: tuple[int, int]) -> tuple[Numbers, Numbers]:
    """Return `total` items of the pool and the rest, both in the pool's order."""
    if label_sets.are_several(labels):
        return iterative.draw(labels, pool, total, spare=spare, seed=seed)
    # scikit-learn's train_test_split may leave a small class out of a part. RandomState, because NumPy has frozen its
    # stream (NEP 19): a sealed test split must stay the same for years.
    random = np.random.RandomState(seed)
    numbers, counts = np.unique(labels[pool], return_counts=True)
    drawn = np.zeros(len(pool), dtype=bool)
    for number, count in zip(numbers, _allocate(counts, total, spare), strict=True):
        drawn[random.permutation(np.flatnonzero(labels[pool] == number))[:count]] = True
    return pool[drawn], pool[~drawn]


def _allocate(counts: Numbers, total: int, spare: int) -> Numbers:
    """Divide `total` among classes: one each, then in proportion by largest remainder; `spare` of each stay behind."""
    room = counts - 1 - spare
    left = total - len(counts)
    quota = left * room / max(int(room.sum()), 1)
    taken = np.floor(quota).astype(np.int64)
    largest = np.argsort(taken - quota, kind="stable")
    taken[largest[: left - int(taken.sum())]] += 1
    return 1 + taken
