"""Look at each image of a data set once: its properties, and a thumbnail for judging its label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls_search.data.decode import unlimited_pillow
from imgcls_search.data.examine import Seen, examine
from imgcls_search.data.inventory import Inventory
from imgcls_search.jobs.inspect import quick_model
from imgcls_search.jobs.inspect.out_of_fold import Numbers
from imgcls_search.progress import WorkProgress

SAMPLE = 200
"""Number of images whose headers determine the size of the thumbnails."""

SMALL = 40
"""Images with a shorter side of up to this many pixels are small."""

MOST_BYTES = 1 << 30
"""Most bytes of the thumbnails for the quick model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Properties of an image that was read."""

    size: tuple[int, int]
    format: str
    kind: str
    is_transparent: bool
    is_turned: bool
    is_flat: bool
    file: bytes | None
    pixels: bytes
    hash: int
    shades: bytes


Table = list[Known | str]
"""The properties of each image, or why it cannot be read."""


def look(
    images: Inventory, judged: Numbers, progress: WorkProgress
) -> tuple[Table, npt.NDArray[np.uint8] | None, str | None]:
    """Return the properties of each image, and thumbnails [judged, side, side, 3] or why there are none."""
    side, trouble, pixels = _side(images), None, None
    if len(judged) * side * side * 3 > MOST_BYTES:
        side = quick_model.SMALL_SIDE
    if len(judged) * side * side * 3 > MOST_BYTES:
        trouble = f"{len(judged):,} images are too many for the quick model; --study judges as many as a search reads"
    elif len(judged):
        pixels = np.zeros((len(judged), side, side, 3), dtype=np.uint8)
    places = {number: place for place, number in enumerate(judged.tolist())} if pixels is not None else {}
    table: Table = []
    for number, seen in examine(
        images,
        side_of=lambda number: side if number in places else None,
        progress=lambda done, total: progress("reading images", done, total),
    ):
        if not isinstance(seen, Seen):
            table.append(seen.reason)
            continue
        if pixels is not None and seen.tiny is not None:
            pixels[places[number]] = seen.tiny
        table.append(
            Known(
                size=seen.size,
                format=seen.format,
                kind=seen.kind,
                is_transparent=seen.is_transparent,
                is_turned=seen.is_turned,
                is_flat=seen.look.is_flat,
                file=seen.file,
                pixels=seen.pixels,
                hash=seen.look.hash,
                shades=seen.look.shades.tobytes(),
            )
        )
    return table, pixels, trouble


def are_small(images: Inventory) -> bool:
    """Tell whether the images have few pixels, or none of them can be read."""
    with unlimited_pillow():
        sizes = [_shorter_side(images, number) for number in range(0, len(images), max(1, len(images) // SAMPLE))]
    known = [size for size in sizes if size is not None]
    return not known or float(np.median(known)) <= SMALL


def _side(images: Inventory) -> int:
    return quick_model.SMALL_SIDE if are_small(images) else quick_model.LARGE_SIDE


def _shorter_side(images: Inventory, number: int) -> int | None:
    try:
        with images.read(number) as image:
            return int(min(image.size))
    # `look` reports what is wrong with it.
    except Exception:
        return None
