"""Images that must not be used in pretraining: those that scores are from, and copies with the same pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic, digests
from imgcls_search.data.decode import THREADS, decode_middle, unlimited_pillow
from imgcls_search.data.image import Frame
from imgcls_search.data.prepared import Images, Prepared
from imgcls_search.data.source import Source, Split
from imgcls_search.data.store import load, read_note
from imgcls_search.errors import DataError, writing

SAME = "-same"
"""Suffix of files that list which images of a pool are also labelled images."""

HASHED = 1024
"""Number of images hashed at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Decoded images from one source."""

    images: Images
    print: str
    """Fingerprint of the data set that they are part of."""

    split: Split | None = None
    """The split of the labelled data, None for other images."""

    left_out: Mapping[str, int]
    unreadable: tuple[str, ...] = ()


def held_out(labelled: Source, fold: int | None) -> dict[str, str]:
    """Return the labelled images to leave out, by name, each with its role."""
    tested = dict.fromkeys(labelled.names["test"], "test images")
    if not labelled.folds:
        return {**dict.fromkeys(labelled.names["val"], "validation images"), **tested}
    held = [] if fold is None else [name for name, number in labelled.fold_of().items() if number == fold]
    return {**dict.fromkeys(held, "images of the fold that is scored"), **tested}


def find_twins(data: Prepared, cache: Path, parts: Sequence[Part], labelled: Source) -> dict[int, list[str]]:
    """Return, by number, the labelled images with the same pixels as each image of the parts.

    The result is cached; images of the test split are decoded for it and not kept.
    """
    splits: list[Split] = ["train", "val", "test"] if labelled.folds else ["val", "test"]
    origin = [
        [labelled.fingerprint, {split: labelled.names[split] for split in splits}, data.frame.settings()],
        [[part.print, part.split, part.images.names] for part in parts],
    ]
    mark = cache.expanduser().resolve() / f"{digests.of_text(json.dumps(origin))[:16]}{SAME}"
    if (known := read_note(mark)) is not None:
        return {int(number): names for number, names in known["same"].items()}
    by_pixels: dict[bytes, list[str]] = {}
    for split in splits:
        for name, digest in _labelled_pixels(labelled, split, data):
            by_pixels.setdefault(digest, []).append(name)
    found: dict[int, list[str]] = {}
    number = 0
    for part in parts:
        for name, digest in zip(part.images.names, _pixel_digests(part.images.pixels, data.frame), strict=True):
            same = [other for other in by_pixels.get(digest, ()) if part.split is None or other != name]
            if same:
                found[number] = same
            number += 1
    with writing(mark, DataError):
        atomic.write_text(mark, digests.sealed({"same": found}))
    return found


def _labelled_pixels(labelled: Source, split: Split, data: Prepared) -> Iterator[tuple[str, bytes]]:
    """Yield each name of a split with a hash of its pixels."""
    if split != "test":
        images = load(data, split)
        yield from zip(images.names, _pixel_digests(images.pixels, data.frame), strict=True)
        return

    def one(index: int) -> bytes | None:
        try:
            with labelled.read(split, index) as image:
                return _digest(decode_middle(data.frame, image))
        # Damaged images are refused or left out before a search; Pillow raises almost anything for them.
        except Exception:
            return None

    names = labelled.names[split]
    with unlimited_pillow(), ThreadPoolExecutor(THREADS) as threads:
        for name, digest in zip(names, threads.map(one, range(len(names))), strict=True):
            if digest is not None:
                yield name, digest


def _pixel_digests(pixels: Any, frame: Frame) -> Iterator[bytes]:
    """Yield a hash of each image as evaluation sees it."""
    is_whole, middle = tuple(pixels.shape[1:]) != frame.shape, frame.middle
    for start in range(0, len(pixels), HASHED):
        rows = pixels[np.arange(start, min(start + HASHED, len(pixels)))]
        yield from (_digest(row) for row in (rows[..., middle[0], middle[1]] if is_whole else rows))


def _digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
