"""Augmentation of whole batches, with separate random numbers for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from imgcls_search.data import draws
from imgcls_search.data.policies import Policy
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import Tensor

    from imgcls_search.data.operations import Window

Flip = Literal["none", "horizontal", "horizontal_vertical", "alternating"]

ASPECT_OF_CROP = (3 / 4, 4 / 3)
ASPECT_OF_ERASING = (0.3, 3.3)
SHARE_OF_ERASING = (0.02, 0.33)
"""Height / width and the share of the area, as in torchvision (RandomResizedCrop and RandomErasing)."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The position in a training at which a batch is augmented."""

    index: Tensor
    """The index of each image in the training split, int64 [N]."""

    epoch: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Augments uint8 images [N, C, H, W] on any device; padded crops and flips accept floats too.

    Random numbers come from torch's global CPU generator, so that a seed gives the same result on every device.
    Operations that are off draw none.
    """

    policy: Policy
    flip: Flip
    crop_padding: int
    resized_crop: float
    rotation: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    erasing: float
    zoom: float = 0.0
    grey: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    jpeg: int = 100
    size: tuple[int, int] | None = None
    """Height and width of the output if images have a margin; None: those of the images."""

    def __call__(self, images: Tensor, moment: Moment | None = None) -> Tensor:
        """Return augmented images of the same type and device, cut to `size`; alternating flips need the moment."""
        # Moves by whole pixels use indexing, which is exact and fast; everything else needs a grid.
        if self.zoom:
            images = _zoom(images, self.zoom, self.size)
        if self.crop_padding:
            images = _crop(images, self.crop_padding)
        if self.resized_crop < 1 or self.rotation:
            images = _cut(images, self.resized_crop, self.rotation, self.size)
        elif self.size is not None and images.shape[-2:] != self.size:
            images = _middle(images, self.size)
        if self.flip == "alternating":
            assert moment is not None, "an alternating flip goes by the epoch and by the image"
            images = _mirror(images, -1, _turns(moment))
        elif self.flip != "none":
            images = _flip(images, -1)
        if self.flip == "horizontal_vertical":
            images = _flip(images, -2)
        images = self._jitter(self.policy(images))
        if self.grey:
            images = _make_grey(images, self.grey)
        # In the order of a camera: lens, sensor, file.
        if self.blur:
            images = _blur(images, self.blur)
        if self.noise:
            images = _add_noise(images, self.noise)
        if self.jpeg < 100:
            images = _as_jpeg(images, self.jpeg)
        return _erase(images, self.erasing) if self.erasing else images

    def _jitter(self, images: Tensor) -> Tensor:
        """Change the colours, with factors per image, in one random order per batch."""
        import torch

        from imgcls_search.data import operations

        steps = [
            (operations.brightness, max(0.0, 1 - self.brightness), 1 + self.brightness),
            (operations.contrast, max(0.0, 1 - self.contrast), 1 + self.contrast),
            (operations.saturation, max(0.0, 1 - self.saturation), 1 + self.saturation),
            (operations.hue, -self.hue, self.hue),
        ]
        steps = [step for step in steps if step[1] < step[2]]
        for place in torch.randperm(len(steps)).tolist() if steps else ():
            change, low, high = steps[place]
            images = change(images, _uniform((len(images),), low, high))
        return images


def augment(
    *,
    policy: Policy,
    flip: Annotated[
        Flip,
        Arg(
            "mirror half of the images, left to right or along both axes; "
            "alternating: left to right, each image in every other epoch"
        ),
    ] = "none",
    crop_padding: Annotated[
        int, Arg("pixels of black around an image before a random crop of its size", ge=0, search="{int: [0, 4]}")
    ] = 0,
    resized_crop: Annotated[
        float,
        Arg(
            "crop a random window and resize it; the smallest share of the area; 1: off",
            gt=0,
            le=1,
            search="{float: [0.3, 1]}",
        ),
    ] = 1.0,
    rotation: Annotated[
        float, Arg("largest random rotation, degrees either way", ge=0, le=180, search="{float: [0, 30]}")
    ] = 0.0,
    brightness: Annotated[
        float, Arg("random factor of brightness, from 1 - this to 1 + this", ge=0, search="{float: [0, 0.4]}")
    ] = 0.0,
    contrast: Annotated[
        float, Arg("random factor of contrast, from 1 - this to 1 + this", ge=0, search="{float: [0, 0.4]}")
    ] = 0.0,
    saturation: Annotated[
        float,
        Arg(
            "random factor of saturation, from 1 - this to 1 + this; none for grey images",
            ge=0,
            search="{float: [0, 0.4]}",
        ),
    ] = 0.0,
    hue: Annotated[
        float,
        Arg(
            "largest random turn of the colour circle, of length 1; none for grey images",
            ge=0,
            le=0.5,
            search="{float: [0, 0.1]}",
        ),
    ] = 0.0,
    erasing: Annotated[
        float, Arg("probability that a random window becomes black", ge=0, le=1, search="{float: [0, 0.5]}")
    ] = 0.0,
    zoom: Annotated[
        float,
        Arg(
            "enlarge a random window of the image's own aspect, up to this share smaller than its sides",
            ge=0,
            lt=1,
            search="{float: [0, 0.3]}",
        ),
    ] = 0.0,
    grey: Annotated[
        float, Arg("probability that an image loses its colours", ge=0, le=1, search="{float: [0, 0.2]}")
    ] = 0.0,
    noise: Annotated[
        float,
        Arg("largest deviation of random noise on each value, which is 0 to 1", ge=0, le=1, search="{float: [0, 0.1]}"),
    ] = 0.0,
    blur: Annotated[
        float,
        Arg("largest deviation of a random Gaussian blur, pixels", ge=0, le=20, search="{float: [0, 1.5]}"),
    ] = 0.0,
    jpeg: Annotated[
        int,
        Arg(
            "lowest quality of a random JPEG encoding, of which 100 is the highest; 100: off",
            ge=1,
            le=100,
            search="{int: [30, 100]}",
        ),
    ] = 100,
) -> Augment:
    """Build the augmentation of a batch; by default nothing is done, as a mirrored digit is another one."""
    return Augment(
        policy=policy,
        flip=flip,
        crop_padding=crop_padding,
        resized_crop=resized_crop,
        rotation=rotation,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        erasing=erasing,
        zoom=zoom,
        grey=grey,
        noise=noise,
        blur=blur,
        jpeg=jpeg,
    )


def _flip(images: Tensor, axis: int) -> Tensor:
    import torch

    return _mirror(images, axis, draws.of_images(len(images), torch.rand) < 0.5)


def _mirror(images: Tensor, axis: int, chosen: Tensor) -> Tensor:
    import torch

    from imgcls_search.data.operations import beside

    return torch.where(beside(chosen, images)[:, None, None, None], images.flip(axis), images)


def _turns(moment: Moment) -> Tensor:
    """Tell which images to mirror in this epoch; the others follow in the next (Jordan 2024, airbench)."""
    # The generator restarts in each epoch, but the choice must persist: hash the bits of (seed, index).
    bits = moment.index.long() + (moment.seed * 0x9E3779B9) % 2**32
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) % 2**32
    return ((bits >> 15) + moment.epoch) % 2 == 1


def _crop(images: Tensor, padding: int) -> Tensor:
    """Cut a random window of the original size out of images padded with `padding` zeros."""
    import torch
    from torch.nn import functional

    from imgcls_search.data.operations import beside

    count, _, height, width = images.shape
    drawn = draws.of_images(count, lambda total: torch.randint(2 * padding + 1, (2, total)))
    top, left = beside(drawn, images)
    padded = functional.pad(images, (padding, padding, padding, padding))
    # A view [N, C, 2p+1, 2p+1, H, W]; indexing then copies one window per image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def _middle(images: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((whole - side) // 2 for whole, side in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def _cut(images: Tensor, share: float, degrees: float, size: tuple[int, int] | None) -> Tensor:
    import torch

    from imgcls_search.data import operations

    count, _, height, width = images.shape
    nought = torch.zeros(count)
    tall, wide = size or (height, width)
    top, left = (height - tall) // 2, (width - wide) // 2
    window = operations.Window(nought + top, nought + left, nought + tall, nought + wide)
    if share < 1:
        drawn, fits = _windows(count, height, width, share=(share, 1.0), aspect=ASPECT_OF_CROP)
        window = operations.Window(*(torch.where(fits, side, full) for side, full in zip(drawn, window, strict=True)))
    turn = _uniform((count,), -degrees, degrees) if degrees else nought
    return operations.cut(images, window, turn, size)


def _zoom(images: Tensor, zoom: float, size: tuple[int, int] | None) -> Tensor:
    import torch

    from imgcls_search.data import operations

    count, _, height, width = images.shape
    share = _uniform((count,), 1 - zoom, 1)
    tall, wide = (share * height).round().clamp(min=1), (share * width).round().clamp(min=1)
    return operations.cut(images, _at_random(tall, wide, height, width), torch.zeros(count), size)


def _make_grey(images: Tensor, probability: float) -> Tensor:
    import torch

    from imgcls_search.data import operations

    return operations.saturation(images, (draws.of_images(len(images), torch.rand) >= probability).double())


def _blur(images: Tensor, most: float) -> Tensor:
    from imgcls_search.data import operations

    return operations.blur(images, _uniform((len(images),), 0, most), most)


def _as_jpeg(images: Tensor, lowest: int) -> Tensor:
    import torch

    from imgcls_search.data import operations

    return operations.jpeg(images, draws.of_images(len(images), lambda total: torch.randint(lowest, 101, (total,))))


def _add_noise(images: Tensor, most: float) -> Tensor:
    import torch

    from imgcls_search.data import operations

    strength = _uniform((len(images),), 0, most)
    drawn = draws.of_images(len(images), lambda total: torch.randn((total, *images.shape[1:])), axis=0)
    return operations.noise(images, strength, drawn)


def _erase(images: Tensor, probability: float) -> Tensor:
    import torch

    from imgcls_search.data import operations

    count, _, height, width = images.shape
    chosen = draws.of_images(count, torch.rand) < probability
    window, fits = _windows(count, height, width, share=SHARE_OF_ERASING, aspect=ASPECT_OF_ERASING, is_smaller=True)
    return operations.erase(images, window._replace(height=window.height * (chosen & fits)))


def _windows(
    count: int,
    height: int,
    width: int,
    *,
    share: tuple[float, float],
    aspect: tuple[float, float],
    is_smaller: bool = False,
) -> tuple[Window, Tensor]:
    """Draw a window for every image, and tell whether one was found that fits."""

    # Ten tries per image, as in torchvision; the first window that fits is taken.
    area = _uniform((10, count), *share) * (height * width)
    ratio = _uniform((10, count), math.log(aspect[0]), math.log(aspect[1])).exp()
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall <= height - is_smaller) & (wide <= width - is_smaller) & (tall > 0) & (wide > 0)
    first = fits.int().argmax(dim=0, keepdim=True)
    tall, wide = tall.gather(0, first)[0], wide.gather(0, first)[0]
    return _at_random(tall, wide, height, width), fits.any(dim=0)


def _at_random(tall: Tensor, wide: Tensor, height: int, width: int) -> Window:
    """Return windows of these sizes, each at a random place of its image."""
    import torch

    from imgcls_search.data.operations import Window

    top, left = (_uniform((2, len(tall)), 0, 1) * torch.stack([height - tall + 1, width - wide + 1])).floor()
    return Window(top, left, tall, wide)


def _uniform(size: tuple[int, ...], low: float, high: float) -> Tensor:
    """Draw uniform numbers; the last axis is the images of a batch."""
    import torch

    # In float64, the product with a whole number stays below that number.
    drawn = draws.of_images(size[-1], lambda total: torch.rand((*size[:-1], total), dtype=torch.float64))
    return drawn * (high - low) + low
