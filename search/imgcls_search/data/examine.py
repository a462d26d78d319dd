"""Examine every image of an inventory once: file properties, hashes for copies, and appearance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from imgcls_search.data.copies import Look, look
from imgcls_search.data.decode import THREADS, reason, turn_of, unlimited_pillow, upright_rgb
from imgcls_search.data.inventory import Inventory
from imgcls_search.data.pixel_budget import PixelBudget
from imgcls_search.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

BATCH = 256
MOST_PIXELS = 40_000_000
"""Limit for all images decoded at a time; a single larger image is allowed."""

STRIP = 1 << 20
"""Number of pixels hashed at a time."""

KINDS = {
    "1": "grey, 1 bit",
    "L": "grey, 8 bits",
    "LA": "grey, 8 bits",
    "La": "grey, 8 bits",
    "I": "grey, 32 bits",
    "F": "floats",
    "P": "palette, 8 bits",
    "PA": "palette, 8 bits",
    "CMYK": "CMYK, 8 bits",
}
"""Descriptions of Pillow's modes; all others are colour."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Properties of one image."""

    size: tuple[int, int]
    """Width and height when upright."""

    format: str
    kind: str
    """Channels and bit depth: `colour, 8 bits`."""

    is_transparent: bool
    is_turned: bool
    """Whether its EXIF tag rotates or mirrors it."""

    file: bytes | None
    """Hash of the file's content, None if the image has no file."""

    pixels: bytes
    """Hash of size and pixels before resizing."""

    look: Look
    tiny: npt.NDArray[np.uint8] | None
    """The whole image squashed to a small square [side, side, 3], if wanted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unreadable:
    """Why an image cannot be decoded."""

    reason: str
    file: bytes | None


def examine(
    images: Inventory, *, side_of: Callable[[int], int | None], progress: Progress
) -> Iterator[tuple[int, Seen | Unreadable]]:
    """Yield the number and the properties of each image, in order; few images are in memory at a time.

    `side_of` returns the side of the small copy for an image number, None for no copy.
    """
    budget = PixelBudget(MOST_PIXELS)

    def one(number: int) -> Seen | Unreadable:
        file = images.file(number)
        digest = None
        try:
            # Hash first, so that copies of files that are not images are found too.
            digest = None if file is None else _digest_of_file(file)
            with images.read(number) as image, budget.of(image.width * image.height):
                return _see(image, digest, side_of(number))
        # Pillow raises almost anything for damaged files.
        except Exception as error:
            return Unreadable(reason=reason(error), file=digest)

    count = len(images)
    with unlimited_pillow(), ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            for number, seen in zip(numbers, pool.map(one, numbers), strict=True):
                yield number, seen
                progress(number + 1, count)


def _see(image: Image.Image, digest: bytes | None, side: int | None) -> Seen:
    from PIL import Image

    # Check before loading: Pillow reduces deep colours to 8 bits and forgets the file's depth.
    is_deep = image.mode in ("RGB", "RGBA") and any("16" in str(part[3:]) for part in getattr(image, "tile", ()))
    kind = "grey, 16 bits" if image.mode.startswith("I;16") else KINDS.get(image.mode, "colour, 8 bits")
    form, has_alpha = image.format or "pixels", image.has_transparency_data
    plain = upright_rgb(image)
    return Seen(
        size=plain.size,
        format=form,
        kind="colour, 16 bits" if is_deep else kind,
        is_transparent=has_alpha,
        is_turned=turn_of(image) is not None,
        file=digest,
        pixels=_digest_of_pixels(plain),
        look=look(plain),
        tiny=None
        if side is None
        else np.asarray(plain.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0), dtype=np.uint8),
    )


def _digest_of_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _digest_of_pixels(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        # Strip by strip, because bytes of the whole image would double the memory.
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()
