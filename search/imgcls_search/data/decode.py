"""Decode image files of any kind to uint8 pixels of one shape."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from imgcls_search.data.image import Fill, Fit, Frame
from imgcls_search.data.opening import reopened
from imgcls_search.data.pixel_budget import PixelBudget
from imgcls_search.data.source import Source, Split
from imgcls_search.errors import DataError, one_line
from imgcls_search.image_size import ImageSize, sides
from imgcls_search.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

MAX_PIXELS = 200_000_000
"""Larger images are refused: a file of a few kilobytes can claim any size."""

STEPS: Mapping[str, str] = {
    "orientation": "as the EXIF tag says",
    "frames": "the first",
    "bits": "16-bit gray is divided by 257 and rounded",
    "transparency": "laid on white",
    "colours": "one channel: ITU-R 601-2 luma; three: RGB",
    "resize": "the shorter side to the size, antialiased bilinear filter",
    "crop": "the middle of the longer side",
    "large JPEG": "decoded at the smallest of 1/8, 1/4 and 1/2 of its size that keeps twice the size",
}
"""The steps of `decode` in words, for those who reimplement it; Pillow's `ImageOps.fit` resizes and crops."""

FITTED: Mapping[Fit, Mapping[str, str]] = {
    "crop": {},
    "pad": {
        "resize": "the longest side, beside the size, to the size, the aspect kept, antialiased bilinear filter",
        "crop": "none; equal borders, of the colour of `fill`, on both sides",
    },
    "squash": {"resize": "both sides to the size, whatever the aspect, antialiased bilinear filter", "crop": "none"},
}
"""Changes of `fit` to `STEPS`; Pillow's `ImageOps.pad` does the same as `pad`."""

FILLED: Mapping[Fill, str] = {
    "mean": "the mean of each channel over the resized image, rounded to the nearest, halves up",
    "black": "0",
    "white": "255",
}


def steps(frame: Frame) -> dict[str, str]:
    """Return the steps of `decode` for a frame in words, for those who reimplement it."""
    height, width = sides(frame.size)
    oblong = {
        "resize": "as little as covers height and width, the aspect kept, antialiased bilinear filter",
        "crop": "the middle of what is too long",
        "large JPEG": STEPS["large JPEG"].replace("twice the size", "twice the larger of height and width"),
    }
    words = {**STEPS, **(oblong if height != width else {}), **FITTED[frame.fit]}
    if frame.fit == "pad":
        words["fill"] = FILLED[frame.fill]
    if frame.kept != (height, width):
        words["margin"] = f"all of that for {frame.kept[0]}x{frame.kept[1]} pixels (height x width), then their middle"
    return words


_ROOM = PixelBudget(MAX_PIXELS)
"""Shared by all threads: a dozen of the largest images at once would fill the memory of a small machine."""

GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
THREADS = 8

BLANK_LEVELS = 4
BLANK_SHARE = 0.995
"""An image is almost blank if this share of each channel is within this many neighbouring levels of 256."""


def decode(
    image: Image.Image,
    size: ImageSize,
    channels: int,
    fit: Fit = "crop",
    fill: Fill = "mean",
    most_pixels: int = MAX_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Return an image as uint8 [channels, height, width]; the same pixels if it has that size.

    It is resized with an antialiased bilinear filter: `crop` covers the size and crops the middle; `pad` fits the whole
    image inside, between borders of the colour `fill`; `squash` stretches each side. EXIF rotation is undone;
    transparency is laid on white; 16-bit gray is scaled to 8 bits; of an animation, the first frame is used. Decoding
    may use the image up: do not read from it again. `most_pixels` limits the pixels that are decoded: of a large JPEG
    fewer than it has.

    Raises:
        DataError: it has more than `MAX_PIXELS` or `most_pixels` pixels or values of an unknown range (floats).
        OSError, SyntaxError, ValueError and others of Pillow's: the file is damaged.
    """
    return _also_bare(image, lambda whole: _decode(whole, size, channels, fit, fill, most_pixels))


def decode_in(frame: Frame, image: Image.Image, most_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode an image with the settings of a frame, including its margin."""
    return decode(image, frame.kept, frame.channels, frame.fit, frame.fill, most_pixels)


def decode_middle(frame: Frame, image: Image.Image, most_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode an image for evaluation, without the margin."""
    rows, columns = frame.middle
    return np.ascontiguousarray(decode_in(frame, image, most_pixels)[:, rows, columns])


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a whole image as `decode` sees it before resizing: upright, RGB, 8 bits, laid on white.

    Raises:
        DataError: it has more than `MAX_PIXELS` pixels or values of an unknown range (floats).
        OSError, SyntaxError, ValueError and others of Pillow's: the file is damaged.
    """
    return _also_bare(image, _as_rgb)


def _also_bare(image: Image.Image, convert: Callable[[Image.Image], T]) -> T:
    """Convert an image; if that fails, try again without its metadata."""
    try:
        return convert(image)
    except DataError:
        raise
    # Pillow reads metadata in the middle of a file with the pixels, and raises almost anything.
    except Exception as error:
        try:
            bare = reopened(image)
            if bare is not None:
                with bare:
                    return convert(bare)
        except Exception:  # noqa: S110 the first error says what is wrong with the file
            pass
        raise error


def _as_rgb(image: Image.Image) -> Image.Image:
    check_kind(image)
    with _ROOM.of(image.width * image.height):
        plain = _opaque(_upright(image))
        # Avoid a copy of a large image.
        return plain if plain.mode == "RGB" else plain.convert("RGB")


def _decode(
    image: Image.Image, size: ImageSize, channels: int, fit: Fit, fill: Fill, most_pixels: int
) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageOps

    height, width = sides(size)
    check_kind(image)
    # A JPEG of 12 megapixels decodes about ten times faster at an eighth of its size. Keep twice the longer wanted
    # side, so that the filter below still averages; the EXIF tag may swap the sides.
    image.draft(None, (2 * max(height, width),) * 2)
    check_kind(image, most_pixels)
    with _ROOM.of(image.width * image.height):
        upright = _upright(image)
        plain = _opaque(upright).convert("L" if channels == 1 else "RGB")
        match fit:
            case "crop":
                fitted = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
            case "pad":
                fitted = _padded(plain, height, width, fill)
            case "squash":
                fitted = plain.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _padded(image: Image.Image, height: int, width: int, fill: Fill) -> Image.Image:
    """Return an image resized to fit inside the size, centred between borders; see `ImageOps.pad`."""
    from PIL import Image

    # Unlike Pillow, keep at least one pixel per side, for images a thousand times as long as high.
    if image.width * height > image.height * width:
        inside = (width, max(1, round(image.height / image.width * width)))
    else:
        inside = (max(1, round(image.width / image.height * height)), height)
    resized = image.resize(inside, Image.Resampling.BILINEAR)
    if resized.size == (width, height):
        return resized
    padded = Image.new(image.mode, (width, height), _colour(resized, fill))
    padded.paste(resized, (round((width - resized.width) / 2), round((height - resized.height) / 2)))
    return padded


def _colour(image: Image.Image, fill: Fill) -> tuple[int, ...]:
    if fill != "mean":
        return (255 if fill == "white" else 0,) * len(image.getbands())
    pixels = np.asarray(image, dtype=np.uint64).reshape(image.width * image.height, -1)
    # Integer arithmetic gives the same result on every machine.
    return tuple(((2 * pixels.sum(axis=0) + len(pixels)) // (2 * len(pixels))).tolist())


def unreadable(source: Source, split: Split, frame: Frame, progress: Progress | None = None) -> list[str]:
    """Return the names of undecodable images of a split, each with the reason; keep no pixels."""

    def trouble(index: int) -> str | None:
        try:
            with source.read(split, index) as image:
                decode_in(frame, image)
        # Pillow raises almost anything for damaged files.
        except Exception as error:
            return f"{source.names[split][index]} ({reason(error)})"
        return None

    count, found = len(source.names[split]), []
    with unlimited_pillow(), ThreadPoolExecutor(THREADS) as pool:
        for done, troubled in enumerate(pool.map(trouble, range(count)), start=1):
            if troubled is not None:
                found.append(troubled)
            if progress is not None and (done % 256 == 0 or done == count):
                progress(done, count)
    return found


@contextlib.contextmanager
def unlimited_pillow() -> Iterator[None]:
    """Make `MAX_PIXELS` the only limit: Pillow warns at 89 megapixels and refuses at 179, and warnings are errors."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            # Pillow warns about unreadable metadata, which does not matter for training.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check_kind(image: Image.Image, most: int = MAX_PIXELS) -> None:
    """Refuse an image that cannot be decoded, from its header alone.

    Raises:
        DataError: it has more than `most` pixels or values of an unknown range (floats).
    """
    if image.mode == "F":
        raise DataError("pixels are floats, whose range is unknown; allowed: 8- or 16-bit images")
    if image.width * image.height > most:
        raise DataError(f"{image.width}x{image.height} pixels are too many; allowed: {most // 1_000_000} megapixels")


_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Values of Pillow's `Transpose` for each EXIF orientation."""


def turn_of(image: Image.Image) -> int | None:
    """Return the `Transpose` value for a loaded image's EXIF orientation, None if it is upright.

    Images with unreadable metadata stay as they are.
    """
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    # Pillow raises SyntaxError, struct.error, TypeError and others for ill-typed tags.
    except Exception:
        return None


def _upright(image: Image.Image) -> Image.Image:
    """Return an image rotated by its EXIF orientation."""
    from PIL import Image

    image.load()
    turn = turn_of(image)
    return image if turn is None else image.transpose(Image.Transpose(turn))


def blank(pixels: npt.NDArray[np.uint8], mode: str) -> str | None:
    """Return why a decoded image shows almost nothing, given its file's mode; None if it shows more."""
    deep = mode.startswith("I")
    levels = 17 if deep and pixels.max() < 17 else BLANK_LEVELS
    for channel in pixels:
        counts = np.bincount(channel.ravel(), minlength=256).cumsum()
        within = counts[levels - 1 :] - np.concatenate([[0], counts[:-levels]])
        if within.max() < BLANK_SHARE * channel.size:
            return None
    if deep:
        return "its 16- or 32-bit values fill a small part of their range or are beyond it"
    if mode in ("LA", "RGBA", "PA", "La", "RGBa", "P"):
        return "it may be transparent everywhere"
    return "one colour"


def _opaque(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow would clip at 255 instead of scaling.
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        if isinstance(clear := image.info.get("transparency"), int):
            wide[wide == clear] = 65535
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "LAB":
        # Pillow converts LAB to RGB only, not to gray.
        return image.convert("RGB")
    if not image.has_transparency_data:
        return image
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)


def reason(error: Exception) -> str:
    """Return a short reason why an image could not be read."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return one_line(error)
