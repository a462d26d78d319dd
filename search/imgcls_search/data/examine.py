"""Every image of an inventory looked at once: what its file says, what its pixels are equal to, how it looks."""

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

if TYPE_CHECKING:
    from PIL import Image

BATCH = 256
MOST_PIXELS = 40_000_000
"""Of all images that are decoded at a time, except a single image that is larger."""

STRIP = 1 << 20
"""Pixels that are hashed at a time."""

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
"""What the modes of Pillow mean; those that are not named are colour."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What one image is."""

    size: tuple[int, int]
    """Width and height as shown: upright."""

    format: str
    kind: str
    """Channels and bit depth: `colour, 8 bits`."""

    is_transparent: bool
    is_turned: bool
    """Whether its EXIF tag turns or mirrors it."""

    file: bytes | None
    """Hash of the file's content, None where the image is no file of its own."""

    pixels: bytes
    """Hash of size and pixels as a training sees them before they are resized."""

    look: Look
    tiny: npt.NDArray[np.uint8] | None
    """The whole image squashed to a small square [side, side, 3], where that was wanted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unreadable:
    """Why an image has no pixels."""

    reason: str
    file: bytes | None


def examine(
    images: Inventory, *, side_of: Callable[[int], int | None], progress: Progress
) -> Iterator[tuple[int, Seen | Unreadable]]:
    """Yield what each image is, by its number, in order; few are in memory at a time.

    `side_of` says of a number how large a small copy is wanted, None for none.
    """
    budget = PixelBudget(MOST_PIXELS)

    def one(number: int) -> Seen | Unreadable:
        file = images.file(number)
        digest = None
        try:
            # First, so that a file that is no image can be a copy of another.
            digest = None if file is None else _digest_of_file(file)
            with images.read(number) as image, budget.of(image.width * image.height):
                return _see(image, digest, side_of(number))
        # Damaged files make Pillow raise nearly anything.
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

    # Before it is loaded: Pillow makes 8 bits of deep colours, and forgets how the file had them.
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
        # Strip by strip: as bytes a large image would take as much once more.
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()
