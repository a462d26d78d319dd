"""Groups of images that belong together, such as all of one patient or video, kept in one split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search.data import label_sets
from imgcls_search.data.label_sets import Labels
from imgcls_search.errors import BuildError, CutError, DataError
from imgcls_search.words import some

Numbers = npt.NDArray[np.int64]

STARTS = 8
"""Cuts that are tried; the most even one wins. Fewer with many groups, which even out by themselves."""

ENTRIES = 100_000
"""Entries of the group-class table that all tries together process."""

MOST = 0.5
"""A group with more than this share of a class is worth a note."""

Entries = list[list[tuple[int, int]]]
"""For each group, pairs of class and number of images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The group of each image."""

    names: Sequence[str]
    """Of the groups, sorted."""

    numbers: Numbers
    """The group of each image, as an index into the names."""

    @classmethod
    def of(cls, cells: Sequence[str]) -> Groups:
        """Build from the group name of each image."""
        names = sorted(set(cells))
        known = {name: number for number, name in enumerate(names)}
        return cls(names=names, numbers=np.fromiter((known[cell] for cell in cells), np.int64, len(cells)))

    def count(self, items: Numbers) -> int:
        """Return the number of groups among some images."""
        return len(np.unique(self.numbers[items]))


def of_paths(pattern: str, names: Sequence[str], place: str) -> Groups:
    """Return the groups that the first parentheses of a regular expression match in paths.

    Raises:
        BuildError: it is not a regular expression, or has no parentheses.
        DataError: it does not match a path.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BuildError("group", f"'{pattern}' is not a regular expression: {error}") from None
    if not compiled.groups:
        raise BuildError("group", f"'{pattern}' has no group; put parentheses around the part that names one")
    found = [match and match[1] for match in map(compiled.search, names)]
    missing = [name for name, part in zip(names, found, strict=True) if not part]
    if missing:
        more = f" (and in {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise DataError(f"{place}: group '{pattern}' finds nothing in {missing[0]!r}{more}; allowed: one in every path")
    return Groups.of([part for part in found if part])


def refuse_shared(groups: Groups, given: Mapping[Any, Numbers], names: Sequence[str], place: str) -> None:
    """Raise DataError if a group is in several of the splits that the data comes with."""
    first: dict[int, tuple[str, int]] = {}
    shared: dict[int, str] = {}
    for split, items in given.items():
        numbers, places = np.unique(groups.numbers[items], return_index=True)
        for number, at in zip(numbers.tolist(), items[places].tolist(), strict=True):
            if number not in first:
                first[number] = (split, at)
            elif number not in shared:
                other, there = first[number]
                shared[number] = f"is in {other} ({names[there]}) and in {split} ({names[at]})"
    if shared:
        number = min(shared)
        more = f", and {len(shared) - 1:,} more groups are in several splits" if len(shared) > 1 else ""
        raise DataError(
            f"{place}: group {groups.names[number]!r} {shared[number]}{more}; allowed: all of a group in one split"
        )


def large_ones(groups: Groups, labels: Labels, classes: Sequence[str]) -> Iterator[str]:
    """Yield a note for each group that holds most of a class."""
    items, numbers = label_sets.pairs(labels)
    pairs, counts = np.unique(np.stack([numbers, groups.numbers[items]]), axis=1, return_counts=True)
    totals = label_sets.count(labels, len(classes))
    for (label, group), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if count > MOST * totals[label]:
            yield (
                f"group {groups.names[group]!r} holds {count:,} of the {totals[label]:,} images of class "
                f"{classes[label]!r}"
            )


def check_room(groups: Groups, labels: Labels, pool: Numbers, classes: Sequence[str], place: str, parts: int) -> None:
    """Raise CutError if a class is in fewer groups than there are parts to cut into."""
    items, numbers = label_sets.pairs(labels[pool])
    pairs = np.unique(np.stack([numbers, groups.numbers[pool][items]]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(classes))
    small = [f"{classes[number]!r} ({count})" for number, count in enumerate(counts.tolist()) if count < parts]
    if small:
        raise CutError(
            f"{place}: too few groups in class {some(small)}; needed: at least {parts}, since all of a group is in one "
            "split"
        )


def cut(
    groups: Groups, labels: Labels, pool: Numbers, *, share: float, spare: int, seed: tuple[int, int], place: str
) -> tuple[Numbers, Numbers]:
    """Return about a share of the pool in whole groups, as even over the classes as they allow, and the rest.

    Every class is in the cut, and in at least `spare` groups of the rest.

    Raises:
        CutError: no cut was found that has every class on both sides.
    """
    numbers, owner = np.unique(groups.numbers[pool], return_inverse=True)
    items, found = label_sets.pairs(labels[pool])
    without = None
    if label_sets.are_several(labels) and len(bare := np.setdiff1d(np.arange(len(pool)), items)):
        # Images without a label are spread evenly too, but may be too few for both sides.
        items, found = np.concatenate([items, bare]), np.concatenate([found, np.full(len(bare), labels.shape[1])])
        without = len(np.unique(found)) - 1
    kinds, label = np.unique(found, return_inverse=True)
    pairs, counts = np.unique(np.stack([owner[items], label]), axis=1, return_counts=True)
    entries: Entries = [[] for _ in numbers]
    for (group, kind), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        entries[group].append((kind, count))
    # NumPy has frozen the stream of RandomState, as for cuts without groups.
    random = np.random.RandomState(seed)
    best: _Cut | None = None
    for start in range(max(1, min(STARTS, ENTRIES // len(counts)))):
        attempt = _Cut(entries, len(kinds), share, spare, without)
        attempt.fill(random.permutation(len(numbers)).tolist(), largest_first=start % 2 == 0)
        attempt.improve(random.permutation(len(numbers)).tolist())
        if best is None or attempt.cost() < best.cost():
            best = attempt
    assert best is not None
    if best.lacking():
        raise CutError(
            f"{place}: no cut was found that keeps every group in one split and has every class in each; "
            "more groups, or other shares of val and test, may help"
        )
    is_held = np.array(best.held)[owner]
    return pool[is_held], pool[~is_held]


class _Cut:
    """A selection of groups, and its distance from the wanted share of each class."""

    def __init__(self, entries: Entries, classes: int, share: float, spare: int, without: int | None = None) -> None:
        self.entries, self.share, self.spare = entries, share, spare
        self.without = without
        """The class index of images without a label, which need not be on both sides."""

        self.held = [False] * len(entries)
        self.totals = [0] * classes
        self.num_groups = [0] * classes
        for entry in entries:
            for kind, count in entry:
                self.totals[kind] += count
                self.num_groups[kind] += 1
        self.images = [0] * classes
        """Per class, among the held groups."""

        self.groups = [0] * classes

    def _cost_of(self, kind: int, images: int, groups: int) -> float:
        """Return the cost of a class; a missing class outweighs any unevenness."""
        far = images / self.totals[kind] - self.share
        if kind == self.without:
            return far * far
        lacking = max(0, 1 - groups) + max(0, self.spare - (self.num_groups[kind] - groups))
        return far * far + 1e6 * lacking

    def cost(self) -> float:
        """Return the cost of all classes."""
        return sum(self._cost_of(kind, self.images[kind], self.groups[kind]) for kind in range(len(self.totals)))

    def lacking(self) -> bool:
        """Tell whether a class is missing on either side."""
        return self.cost() >= 1e6

    def change(self, group: int) -> float:
        """Return the change of the cost if a group moves to the other side."""
        sign = -1 if self.held[group] else 1
        return sum(
            self._cost_of(kind, self.images[kind] + sign * count, self.groups[kind] + sign)
            - self._cost_of(kind, self.images[kind], self.groups[kind])
            for kind, count in self.entries[group]
        )

    def move(self, group: int) -> None:
        """Move a group to the other side."""
        sign = -1 if self.held[group] else 1
        self.held[group] = not self.held[group]
        for kind, count in self.entries[group]:
            self.images[kind] += sign * count
            self.groups[kind] += sign

    def fill(self, order: list[int], *, largest_first: bool) -> None:
        """Add every group that lowers the cost."""
        if largest_first:
            order = sorted(order, key=lambda group: -sum(count for _, count in self.entries[group]))
        for group in order:
            if self.change(group) < 0:
                self.move(group)

    def improve(self, order: list[int]) -> None:
        """Move single groups, and swap pairs if there are few groups, until the cost stops falling."""
        exchanges = len(order) <= 200
        for _ in range(20):
            before = self.cost()
            for group in order:
                if self.change(group) < -1e-12:
                    self.move(group)
                elif exchanges:
                    self._exchange(group, order)
            if self.cost() >= before - 1e-12:
                return

    def _exchange(self, group: int, order: list[int]) -> None:
        alone = self.change(group)
        self.move(group)
        # Both are on the same side now: move the other to the first one's old side.
        for other in order:
            if other != group and self.held[other] == self.held[group] and alone + self.change(other) < -1e-12:
                self.move(other)
                return
        self.move(group)
