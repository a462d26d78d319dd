"""Find copies among many images: equal files, equal pixels, and near-copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from imgcls_search.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

NEAR_BITS = 6
"""Largest number of differing bits in the 64-bit perceptual hashes of near-copies.

For JPEG at quality 30, half and double size, 20 % more brightness or contrast and a border of 2 % cut off, 94 to 100 %
stay within it on photographs of 112x84 and of 32x32 pixels.
"""

NEAR_SHADE = 0.02
"""Largest distance (1 - correlation) of the 16x16 grey thumbnails of near-copies.

Hashes alone match for one in 700,000 pairs of different photographs: thousands of pairs among 60,000 images.
"""

FLAT = 4.0
"""Images whose grey thumbnail deviates less than this (of 255) are too flat: their hash is noise."""

SIDE = 16
CHUNKS, CHUNK_BITS = 4, 16
WINDOW = 2048
"""Images that share a part of their hash are compared with at most this many successors in hash order."""

BLOCK = 1 << 20
"""Number of pairs that are compared at a time."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The coarse appearance of an image."""

    hash: int
    """64 bits of imagehash's `phash` (low frequencies of a cosine transform against their median)."""

    shades: npt.NDArray[np.uint8]
    """Grey thumbnail [256]."""

    is_flat: bool


def look(image: Image) -> Look:
    """Return the coarse appearance of an upright RGB image."""
    import imagehash
    from PIL import Image

    gray = image.convert("L")
    shades = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8).ravel()
    bits = imagehash.phash(gray).hash
    return Look(
        hash=int.from_bytes(np.packbits(bits).tobytes(), "big"),
        shades=shades,
        is_flat=bool(shades.std() < FLAT),
    )


def sets_of(keys: Sequence[bytes | None]) -> list[list[int]]:
    """Return sets of two or more images with equal keys; None equals nothing."""
    found: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, []).append(number)
    return [numbers for numbers in found.values() if len(numbers) > 1]


def near_sets(
    hashes: npt.NDArray[np.uint64],
    shades: npt.NDArray[np.uint8],
    items: Numbers,
    *,
    count: int,
    progress: Progress = lambda done, total: None,
) -> tuple[list[list[int]], bool]:
    """Return sets of near-copies, and whether some pairs were not compared because there were too many.

    `hashes` [N] and `shades` [N, 256] belong to the images numbered `items` [N], out of `count`. Two images are
    near-copies if their hashes differ in at most `NEAR_BITS` bits and their thumbnails by at most `NEAR_SHADE`. Such
    hashes differ by at most one bit in one of four parts, so only those pairs are compared (multi-index hashing,
    Norouzi et al. 2012): the work grows with the number of images, not with its square.
    """
    joined = UnionFind(count)
    is_cut = False
    for left, right, was_cut in _candidates(hashes, progress):
        is_cut |= was_cut
        near = _num_bits(hashes[left] ^ hashes[right]) <= NEAR_BITS
        left, right = left[near], right[near]
        close = _distance(shades[left], shades[right]) <= NEAR_SHADE
        joined.join_all(items[left[close]].tolist(), items[right[close]].tolist())
    return joined.sets(), is_cut


_BITS = np.array([bin(word).count("1") for word in range(1 << 16)], dtype=np.uint8)


def _num_bits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Return how many bits of each word [N] are set."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    # NumPy before 2.0 has no bitwise_count.
    return np.asarray(_BITS[np.ascontiguousarray(words).view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8))


def _distance(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return 1 - correlation of each row [N, 256] with the same row of the other."""
    left, right = (shades - shades.mean(axis=1, keepdims=True) for shades in (one.astype(float), other.astype(float)))
    size = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(1 - (left * right).sum(axis=1) / np.maximum(size, 1e-9))


def _candidates(hashes: npt.NDArray[np.uint64], progress: Progress) -> Iterator[tuple[Numbers, Numbers, bool]]:
    """Yield blocks of pairs with one part of the hash equal up to one bit, and whether any pairs were left out."""
    if len(hashes) < 2:
        return
    lookups = CHUNKS * (CHUNK_BITS + 1)
    for chunk in range(CHUNKS):
        progress(chunk * (CHUNK_BITS + 1), lookups)
        part = ((hashes >> np.uint64(CHUNK_BITS * chunk)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.lexsort((hashes, part))
        keys = part[order]
        yield from _blocks(order, np.arange(1, len(keys) + 1), np.searchsorted(keys, keys, side="right"))
        for bit in range(CHUNK_BITS):
            progress(chunk * (CHUNK_BITS + 1) + bit + 1, lookups)
            other = keys ^ (1 << bit)
            # Yield each pair once: from the key without the bit.
            start = np.searchsorted(keys, other, side="left")
            end = np.where(other > keys, np.searchsorted(keys, other, side="right"), start)
            yield from _blocks(order, start, end)


def _blocks(order: Numbers, start: Numbers, end: Numbers) -> Iterator[tuple[Numbers, Numbers, bool]]:
    """Yield pairs of each place in the order with those from `start` to `end`, at most `WINDOW` per place."""
    counts = np.maximum(end - start, 0)
    is_cut = bool((counts > WINDOW).any())
    counts = np.minimum(counts, WINDOW)
    total = counts.cumsum()
    first = 0
    while first < len(order):
        before = int(total[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + BLOCK, side="right")))
        here = counts[first:last]
        left = np.repeat(np.arange(first, last), here)
        offsets = np.arange(int(here.sum())) - np.repeat(here.cumsum() - here, here)
        right = np.repeat(start[first:last], here) + offsets
        yield order[left], order[right], is_cut
        first = last


class UnionFind:
    """Disjoint sets of numbered elements (union-find)."""

    def __init__(self, count: int) -> None:
        """Start with each element in its own set."""
        self.parent = list(range(count))

    def join(self, one: int, other: int) -> None:
        """Merge the sets of two elements; the smallest number represents the set."""
        one, other = self.first(one), self.first(other)
        self.parent[max(one, other)] = min(one, other)

    def join_all(self, ones: Iterable[int], others: Iterable[int]) -> None:
        """Join elements in pairs."""
        for one, other in zip(ones, others, strict=True):
            self.join(one, other)

    def first(self, number: int) -> int:
        """Return the representative of an element's set."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def sets(self) -> list[list[int]]:
        """Return the sets of two or more elements, in order."""
        found: dict[int, list[int]] = {}
        for number in range(len(self.parent)):
            found.setdefault(self.first(number), []).append(number)
        return [numbers for numbers in found.values() if len(numbers) > 1]
