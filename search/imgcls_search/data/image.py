"""The shape of all images: the `image` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, normal, sides
from imgcls_search.signature import Arg
from imgcls_search.words import counted

CACHE_GB = 20.0
"""Default for configurations older than `image.cache_gb`."""

Fit = Literal["crop", "pad", "squash"]
Fill = Literal["mean", "black", "white"]


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The shape that every image is brought to, once, before any training."""

    size: Annotated[
        int | tuple[int, int] | None,
        Arg(
            "side of square images, or [height, width], pixels; default: the data's own, as a square",
            ge=4,
            le=1024,
            search="{choice: [64, 96]}",
        ),
    ] = None
    channels: Annotated[Literal[1, 3] | None, Arg("1: grey, 3: colour; default: the data's own")] = None
    fit: Annotated[
        Fit,
        Arg(
            "how images with another aspect ratio are brought to this size; crop: their middle; pad: the whole image "
            "with borders; squash: the whole image, stretched",
            search="{choice: [crop, pad, squash]}",
        ),
    ] = "crop"
    fill: Annotated[
        Fill,
        Arg(
            "colour of the borders with fit: pad; mean: each image's own mean colour", search="{choice: [mean, black]}"
        ),
    ] = "mean"
    margin: Annotated[
        float,
        Arg(
            "keep images larger by this factor, for augment.resized_crop to cut from; evaluation takes their middle",
            ge=1,
            le=2,
            search="{choice: [1, 1.15]}",
        ),
    ] = 1.0
    mean: Annotated[
        Literal["auto", "data", "weights"] | tuple[float, ...],
        Arg(
            "subtracted from the values of each channel, which are 0 to 1: a list of numbers, or that of the training "
            "images (data) or of the pretrained weights' images (weights); auto: weights if there are any, else data",
            ge=0,
            le=1,
        ),
    ] = "auto"
    std: Annotated[
        Literal["auto", "data", "weights"] | tuple[float, ...],
        Arg("divisor of the values of each channel afterwards, given like mean", gt=0, le=1),
    ] = "auto"
    cache_gb: Annotated[
        float,
        Arg(
            "largest size of all decoded images on disk, GB; what does not fit is decoded again every epoch",
            ge=0,
            fixed=True,
        ),
    ] = CACHE_GB


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How an image of any shape becomes an array of one shape."""

    size: ImageSize
    """The size of a network's input."""

    channels: int
    fit: Fit = "crop"
    fill: Fill = "mean"
    margin: float = 1.0
    """Images are stored this many times larger than the size; evaluation uses their middle."""

    @classmethod
    def of(cls, section: Mapping[str, Any], size: ImageSize, channels: int) -> Frame:
        """Return the frame of an `image` section, also of earlier versions, with a size and channels."""
        return cls(
            size=normal(size),
            channels=channels,
            fit=section.get("fit", "crop"),
            fill=section.get("fill", "mean"),
            margin=section.get("margin", 1.0),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a network's input."""
        return (self.channels, *sides(self.size))

    @property
    def kept(self) -> tuple[int, int]:
        """Height and width of decoded images, including the margin."""
        height, width = (round(side * self.margin) for side in sides(self.size))
        return height, width

    @property
    def kept_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of decoded images."""
        return (self.channels, *self.kept)

    @property
    def middle(self) -> tuple[slice, slice]:
        """The rows and columns of decoded images that evaluation uses."""
        rows, columns = (
            slice((kept - side) // 2, (kept - side) // 2 + side)
            for kept, side in zip(self.kept, sides(self.size), strict=True)
        )
        return rows, columns

    def settings(self) -> list[Any]:
        """Return everything that determines the pixels; equal lists mean equal pixels, also across versions."""
        # Only `pad` has borders.
        fit = [] if self.fit == "crop" else [self.fit, self.fill] if self.fit == "pad" else [self.fit]
        margin = ["kept", *self.kept] if self.kept != sides(self.size) else []
        return [self.size, self.channels, *fit, *margin]


MOMENTS = ("mean", "std")


def check_normalisation(section: Mapping[str, Any], channels: int, *, has_weights: bool) -> None:
    """Check that the mean and deviation of an `image` section exist.

    Raises:
        BuildError: numbers for other channels, or values of weights that do not exist.
    """
    for name in MOMENTS:
        given = section.get(name, "auto")
        if given == "weights" and not has_weights:
            raise BuildError(
                f"image.{name}",
                "'weights' needs pretrained weights, but the model starts from none; allowed: data, auto",
            )
        if not isinstance(given, str) and len(given) not in (1, channels):
            raise BuildError(
                f"image.{name}",
                f"{list(given)} has {len(given)} numbers, but the images have {counted('channel', channels)}; "
                f"allowed: {'1 number' if channels == 1 else f'1 or {channels} numbers'}",
            )


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """The input shape and classes that a model is built for."""

    image_size: ImageSize
    channels: int
    classes: int

    @classmethod
    def of(cls, section: Mapping[str, Any], classes: int) -> InputShape:
        """Return the shape of an `image` section whose size and channels are set."""
        return cls(image_size=normal(section["size"]), channels=section["channels"], classes=classes)
