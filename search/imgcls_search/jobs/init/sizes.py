"""Which image sizes a draft may choose: for pretrained networks, and for networks from scratch."""

from __future__ import annotations

from imgcls_search.image_size import ImageSize, area, normal, shorter, sides
from imgcls_search.jobs.init.images import ImageFacts

SHORTER_SIDES = (224, 192, 160, 128, 112, 96, 64, 48, 32)
MOST_SCRATCH_SIDE = 128
"""Networks from scratch learn little more from larger images in the time of a search."""

LARGEST_SIDE, SMALLEST_SIDE = 224, 8
SMALL_SIDE = 24
"""Images with fewer pixels on the shorter side are too small for pretrained networks."""

FEWEST_PRETRAINED_SIDE = 64


def pretrained_sizes(images: ImageFacts) -> list[ImageSize]:
    """Return sizes for pretrained networks, largest first; enlarged images improve their scores."""
    native = native_size(images)
    tall = [of_aspect(side, native) for side in SHORTER_SIDES if side >= FEWEST_PRETRAINED_SIDE]
    if FEWEST_PRETRAINED_SIDE <= shorter(native) <= SHORTER_SIDES[0]:
        tall.append(native)
    return sorted(dict.fromkeys(tall), key=lambda size: -area(size))


def scratch_sizes(images: ImageFacts) -> list[ImageSize]:
    """Return sizes for networks from scratch, largest first; none is larger than the images."""
    native = native_size(images)
    if shorter(native) < SMALL_SIDE * 2:
        return [native]
    small = [of_aspect(side, native) for side in SHORTER_SIDES if side <= min(MOST_SCRATCH_SIDE, shorter(native))]
    if shorter(native) <= MOST_SCRATCH_SIDE:
        small.append(native)
    return sorted(dict.fromkeys(small), key=lambda size: -area(size))


SQUARE, MOST_OBLONG = 1.1, 4.0
"""Aspect ratios up to the first count as square; images with one above the second do not keep it."""

SAME_ASPECT = 1.12
"""Images have the same aspect ratio if those of nine in ten differ by at most this factor."""


def has_one_aspect(images: ImageFacts) -> bool:
    """Tell whether nearly all images have the same aspect ratio."""
    low, _, high = images.aspects
    return high / low <= SAME_ASPECT


def native_size(images: ImageFacts) -> ImageSize:
    """Return the typical size of the images: square unless nearly all have the same oblong aspect ratio."""
    width, height = images.widths[1], images.heights[1]
    side = min(max(min(width, height), SMALLEST_SIDE), LARGEST_SIDE)
    aspect = images.aspects[1]
    if not has_one_aspect(images) or max(aspect, 1 / aspect) <= SQUARE:
        return side
    if images.sizes == 1 and side == min(width, height):
        return normal((height, width)) if max(width, height) <= MOST_OBLONG * side else side
    return of_aspect(side, (100, round(100 * aspect)) if aspect > 1 else (round(100 / aspect), 100))


def of_aspect(side: int, like: ImageSize) -> ImageSize:
    """Return a size with this shorter side and about the aspect ratio of `like`; its longer side is divisible by 16."""
    height, width = sides(like)
    ratio = max(height, width) / min(height, width)
    longer = side if ratio <= SQUARE else max(side, round(side * min(ratio, MOST_OBLONG) / 16) * 16)
    return normal((side, longer) if width >= height else (longer, side))
