"""Even splits of images with several labels: iterative stratification, with extensions.

Sechidis, Tsoumakas and Vlahavas 2011, On the Stratification of Multi-Label Data, algorithm 1, for two parts: for the
label with the fewest images left, each image goes to the part that still needs most of that label. Extensions: images
without a label count as one more label, no label is missing in a part, sizes are exact, and images are exchanged as
long as that makes the parts more even.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STARTS = 8
"""Cuts that are tried; the most even one wins. Fewer with many images, which even out by themselves."""

ITEMS = 100_000
"""Images that all tries process; with more, one try is made, without exchanges."""

EXCHANGES = 100

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def draw(
    labels: npt.NDArray[np.uint8], pool: Numbers, total: int, *, spare: int, seed: tuple[int, int]
) -> tuple[Numbers, Numbers]:
    """Return `total` items of the pool and the rest, both in the pool's order.

    Each label with enough images is in the drawn part and on at least `spare` images of the rest.
    """
    # NumPy has frozen the stream of RandomState (NEP 19), as for images of one class each.
    random = np.random.RandomState(seed)
    rows = labels[pool].astype(bool)
    rows = np.column_stack([rows, ~rows.any(axis=1)])
    wanted = _Wanted(rows, total, spare)
    count = min(STARTS, ITEMS // len(pool)) if wanted.allows_exchange else 1
    tries = [_attempt(wanted, random) for _ in range(count)]
    drawn = min(tries, key=lambda drawn: wanted.cost(rows[drawn].sum(axis=0)))
    return pool[drawn], pool[~drawn]


class _Wanted:
    """The labels of all images, and what a cut of them should be."""

    def __init__(self, rows: Flags, total: int, spare: int) -> None:
        self.rows, self.total, self.spare = rows, total, spare
        self.counts = rows.sum(axis=0)
        self.allows_exchange = len(rows) <= ITEMS
        # Each product with flags would convert them to numbers again.
        self.numbers = rows.astype(np.float64) if self.allows_exchange else rows

    def cost(self, held: Numbers) -> float:
        """Return the distance of the label shares from the wanted share; a missing label outweighs any distance.

        `held` are the images of each label in the drawn part.
        """
        counts, images = self.counts, len(self.rows)
        far = held / np.maximum(counts, 1) - np.where(counts, self.total / images, 0)
        lacking = (held[:-1] < 1) | (counts - held < self.spare)[:-1]
        return float((far**2).sum() + images * (lacking & (counts[:-1] > 0)).sum())


def _attempt(wanted: _Wanted, random: np.random.RandomState) -> Flags:
    rows = wanted.rows
    drawn = _stratified(rows, wanted.total / len(rows), random)
    order = random.permutation(len(rows))
    _complete(drawn, rows[:, :-1], order, wanted.spare)
    surplus = int(drawn.sum()) - wanted.total
    if not wanted.allows_exchange:
        _resize(drawn, rows, order, surplus, wanted.spare)
        return drawn
    held = rows[drawn].sum(axis=0)
    for _ in range(abs(surplus)):
        if _move_best(drawn, held, wanted, from_drawn=surplus > 0) is None:
            break
    _exchange(drawn, held, wanted)
    return drawn


def _stratified(rows: Flags, share: float, random: np.random.RandomState) -> Flags:
    counts = rows.sum(axis=0)
    wanted = np.stack([counts * share, counts * (1 - share)])
    totals = [len(rows) * share, len(rows) * (1 - share)]
    drawn = np.zeros(len(rows), dtype=bool)
    left = np.ones(len(rows), dtype=bool)
    remaining = counts.copy()
    while remaining.any():
        label = int(np.where(remaining > 0, remaining, len(rows) + 1).argmin())
        items = random.permutation(np.flatnonzero(rows[:, label] & left))
        first, second = wanted[:, label].tolist()
        chosen = np.zeros(len(items), dtype=bool)
        for place in range(len(items)):
            is_first = first > second or (first == second and totals[0] > totals[1])
            chosen[place] = is_first
            first, second = (first - 1, second) if is_first else (first, second - 1)
            totals[0 if is_first else 1] -= 1
        drawn[items[chosen]] = True
        left[items] = False
        wanted -= np.stack([rows[items[chosen]].sum(axis=0), rows[items[~chosen]].sum(axis=0)])
        remaining -= rows[items].sum(axis=0)
    return drawn


def _complete(drawn: Flags, marks: Flags, order: Numbers, spare: int) -> None:
    """Move images until each label is in both parts, without taking the last of another label from a part."""
    # Per label: counts in the rest and in the drawn part.
    counts = np.stack([marks[~drawn].sum(axis=0), marks[drawn].sum(axis=0)])
    least = (spare, 1)
    for _ in range(3):
        for part in (1, 0):
            for label in np.flatnonzero(counts[part] < least[part]).tolist():
                for item in order[marks[order, label] & (drawn[order] != bool(part))].tolist():
                    mine = marks[item]
                    if counts[part, label] >= least[part]:
                        break
                    if (counts[1 - part, mine] > least[1 - part]).all():
                        drawn[item] = bool(part)
                        counts[part] += mine
                        counts[1 - part] -= mine


def _resize(drawn: Flags, rows: Flags, order: Numbers, surplus: int, spare: int) -> None:
    """Move images until the wanted number is drawn, without taking the last of a label from a part."""
    is_drawn = surplus > 0
    least = 1 if is_drawn else spare
    marks = rows[:, :-1]
    counts = marks[drawn == is_drawn].sum(axis=0)
    for item in order[drawn[order] == is_drawn].tolist():
        if not surplus:
            return
        if (counts[marks[item]] > least).all():
            drawn[item] = not is_drawn
            counts -= marks[item]
            surplus -= 1 if is_drawn else -1


def _exchange(drawn: Flags, held: Numbers, wanted: _Wanted) -> None:
    """Exchange images between the parts while that makes the shares of the labels more even."""
    cost = wanted.cost(held)
    for _ in range(EXCHANGES):
        out = _move_best(drawn, held, wanted, from_drawn=True)
        back = None if out is None else _move_best(drawn, held, wanted, from_drawn=False)
        now = wanted.cost(held)
        if out is None or back is None or now >= cost - 1e-12:
            for item in (out, back):
                if item is not None:
                    _move(item, drawn, held, wanted)
            return
        cost = now


def _move_best(drawn: Flags, held: Numbers, wanted: _Wanted, *, from_drawn: bool) -> int | None:
    """Move the image that improves the label shares most to the other part; return None if none may move.

    `held` are the images of each label in the drawn part.
    """
    rows, counts = wanted.rows, wanted.counts
    here = held if from_drawn else counts - held
    is_tight = here <= (1 if from_drawn else wanted.spare)
    is_tight[-1] = False
    may = drawn == from_drawn
    may[may] = ~rows[np.ix_(may, is_tight)].any(axis=1)
    if not may.any():
        return None
    weight = 1 / np.maximum(counts, 1)
    far = held * weight - wanted.total / len(rows)
    change = wanted.numbers @ (weight**2 + (-2 if from_drawn else 2) * far * weight)
    item = int(np.where(may, change, np.inf).argmin())
    _move(item, drawn, held, wanted)
    return item


def _move(item: int, drawn: Flags, held: Numbers, wanted: _Wanted) -> None:
    """Move an image to the other part."""
    held += wanted.rows[item] * (-1 if drawn[item] else 1)
    drawn[item] = not drawn[item]
