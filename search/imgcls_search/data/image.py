"""The shape that images are brought to: the `image` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from imgcls_search.signature import Arg

CACHE_GB = 20.0
"""What configurations mean that are older than `image.cache_gb`."""


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The shape that every image is resized and cropped to, once, before any training."""

    size: Annotated[
        int | None,
        Arg("side of the square images, pixels; default: the data's own", ge=4, le=1024, search="{choice: [64, 96]}"),
    ] = None
    channels: Annotated[Literal[1, 3] | None, Arg("1: grey, 3: colour; default: the data's own")] = None
    cache_gb: Annotated[
        float,
        Arg(
            "largest size of all decoded images on disk, GB; what does not fit is decoded anew in each epoch",
            ge=0,
            fixed=True,
        ),
    ] = CACHE_GB


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """What a model is built for."""

    image_size: int
    channels: int
    classes: int
