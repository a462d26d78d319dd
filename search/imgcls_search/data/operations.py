"""Operations on batches of uint8 images [N, C, H, W], with a strength per image.

Results equal torchvision's functions of the same names for single images (`torchvision.transforms.v2.functional`,
uint8, fill 0), so that strengths from papers have the same meaning here. Strengths are float64 on the CPU, where they
are drawn. `saturation` and `hue` leave grey images unchanged.
"""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


class Window(NamedTuple):
    """A window in every image: four tensors [N], in pixels, on the CPU."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def shear_x(slope: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] that shear sideways about the upper left corner."""
    return _matrices(slope, x_of_y=slope, x=slope * height / 2)


def shear_y(slope: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] that shear downwards about the upper left corner."""
    return _matrices(slope, y_of_x=slope, y=slope * width / 2)


def translate_x(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] that shift to the right by whole pixels."""
    return _matrices(pixels, x=-pixels.trunc())


def translate_y(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] that shift downwards by whole pixels."""
    return _matrices(pixels, y=-pixels.trunc())


def rotate(degrees: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices [N, 2, 3] that rotate counterclockwise about the middle."""
    angle = degrees.deg2rad()
    return _matrices(angle, one=angle.cos(), x_of_y=-angle.sin(), y_of_x=angle.sin())


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Transform every image by its matrix, with nearest-neighbour sampling.

    A matrix maps a place in the result to a place in the image, in pixels from the middle.
    """
    height, width = images.shape[-2:]
    down, right = _places(height), _places(width)
    places = torch.stack([right.expand(height, width), down[:, None].expand(height, width)], dim=-1)
    places = beside(functional.pad(places, (0, 1), value=1.0).view(-1, 3), images)
    scale = torch.tensor([0.5 * width, 0.5 * height])
    grid = places @ beside(matrices.float().transpose(1, 2) / scale, images)
    return _sample(images, grid.view(-1, height, width, 2), "nearest")


def cut(images: Tensor, window: Window, degrees: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Rotate every image about its middle, cut a window and resize it, with bilinear interpolation.

    `size` is the height and width of the result; by default those of the image.
    """
    height, width = images.shape[-2:]
    rows, columns = size or (height, width)
    top, left, tall, wide = (side[:, None] for side in window)
    # Clamp to the window's outermost pixels, as if the window alone were resized.
    y = (top + (torch.arange(rows) + 0.5) * (tall / rows) - 0.5).clamp(min=top, max=top + tall - 1)
    x = (left + (torch.arange(columns) + 0.5) * (wide / columns) - 0.5).clamp(min=left, max=left + wide - 1)
    y, x = (y - (height - 1) / 2)[:, :, None], (x - (width - 1) / 2)[:, None, :]
    angle = degrees.deg2rad()[:, None, None]
    grid = torch.stack(
        [(angle.cos() * x - angle.sin() * y) / (width / 2), (angle.sin() * x + angle.cos() * y) / (height / 2)], dim=-1
    )
    return _sample(images, beside(grid.float(), images), "bilinear")


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply all pixels: 0 gives black, 1 the original image."""
    return _pixels(images * _of_each(factor, images))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image: 0 gives plain grey, 1 the original image."""
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: 0 gives grey, 1 the original image."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend all but the border pixels with a smoothed image: 0 gives the smoothed image, 1 the original."""
    if min(images.shape[-2:]) <= 2:
        return images
    result = images.float()
    inner = result[..., 1:-1, 1:-1]
    rows = result[..., :-2, :] + result[..., 1:-1, :] + result[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    # Weights are 5 for the pixel itself and 1 for each neighbour; the sums are whole numbers and exact.
    smooth = around.add_(inner, alpha=4).div_(13).round_()
    inner.addcmul_(smooth.sub_(inner), _of_each(1 - factor, images))
    return _pixels(result)


def noise(images: Tensor, deviation: Tensor, normal: Tensor) -> Tensor:
    """Add `normal` (in the images' shape) times 255 times a deviation to all values."""
    added = beside(normal, images).mul_(_of_each(255 * deviation, images)).add_(images)
    return added.round_().clamp_(0, 255).to(torch.uint8)


def blur(images: Tensor, deviation: Tensor, most: float) -> Tensor:
    """Blur every image by a Gaussian with its own deviation in pixels, mirrored at the edges; `most` is the largest
    deviation.

    The kernel ends at three times the largest deviation, or where the image does.
    """
    height, width = images.shape[-2:]
    values = images.float()
    for axis, side in ((-1, width), (-2, height)):
        radius = min(math.ceil(3 * most), side - 1)
        weights = beside(_bell(deviation, radius), images)
        around = functional.pad(values, (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius), "reflect")
        values = torch.zeros_like(values)
        for step in range(2 * radius + 1):
            values.addcmul_(around.narrow(axis, step, side), weights[:, step].view(-1, 1, 1, 1))
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _bell(deviation: Tensor, radius: int) -> Tensor:
    """Return the kernel weights [N, 2 radius + 1], which sum to 1; for deviation 0 only the middle has weight."""
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    # The lower bound is so narrow that only the middle has weight.
    weights = torch.exp(-0.5 * (places / deviation[:, None].clamp(min=1e-3)) ** 2)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Encode every image as a JPEG of its own quality, 1 to 100, and decode it again; 100 leaves it unchanged.

    Pillow does this on the CPU: GPU images are copied back and forth, and the host waits.
    """
    # Pillow's layout: [N, H, W, C], or [N, H, W] for grey images.
    pixels = images.cpu().movedim(1, -1).contiguous().numpy()
    pixels = pixels[..., 0].copy() if images.shape[1] == 1 else pixels.copy()

    def encode(number: int, value: int) -> None:
        with io.BytesIO() as file:
            Image.fromarray(pixels[number]).save(file, "JPEG", quality=value)
            with Image.open(file) as decoded:
                pixels[number] = np.asarray(decoded)

    chosen = [(number, value) for number, value in enumerate(quality.tolist()) if value < 100]
    # As many threads as torch may use: Pillow encodes and decodes without the GIL.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda item: encode(*item), chosen))
    found = torch.from_numpy(pixels)
    return (found[:, None] if images.shape[1] == 1 else found.movedim(-1, 1)).contiguous().to(images.device)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by a share of the colour circle."""
    if images.shape[1] == 1:
        return images
    values = images.float()
    red, green, blue = values.unbind(dim=1)
    low, high = values.aminmax(dim=1)
    span = high - low
    divisor = span.clamp(min=1)
    position = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    position += 6 * _of_each(shift, images)[:, 0]
    # Each channel falls from `high` to `low` and rises again within four sixths of the circle.
    steps = [(position + start).remainder_(6) for start in (5, 3, 1)]
    turned = [high - span * torch.minimum(step, 4 - step).clamp_(0, 1) for step in steps]
    return _pixels(torch.stack(turned, dim=1) * (255.999 / 255))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of every value."""
    masks = 256 - 2 ** (8 - bits.long())
    return images & beside(masks.to(torch.uint8), images).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above a threshold, given as a share of white."""
    return torch.where(images >= _of_each(255 * threshold, images), ~images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to the full range from black to white."""
    values = images.float()
    low, high = values.amin(dim=(2, 3), keepdim=True), values.amax(dim=(2, 3), keepdim=True)
    is_plain = low == high
    low, scale = low.masked_fill(is_plain, 0), ((high - low) * (1 / 255)).masked_fill(is_plain, 1)
    return _pixels(values.sub_(low).div_(scale))


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of every channel, by Pillow's rule."""
    levels = images.flatten(2).long()
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    # The step ignores the brightest level that occurs, as in Pillow.
    step = (levels.shape[2] - counts.gather(2, levels.amax(dim=2, keepdim=True))) // 255
    darker = counts.cumsum(dim=2) - counts
    table = ((darker + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table.gather(2, levels), levels).to(torch.uint8).view_as(images)


def erase(images: Tensor, window: Window) -> Tensor:
    """Blacken a window of every image; height 0 changes nothing."""
    top, left, tall, wide = (side[:, None] for side in window)
    rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
    is_row, is_column = (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)
    inside = beside(is_row, images)[:, None, :, None] & beside(is_column, images)[:, None, None, :]
    return images.masked_fill(inside, 0)


def beside(values: Tensor, images: Tensor) -> Tensor:
    """Copy small CPU tensors to the device of the images, without waiting for its computations."""
    # Except on CUDA, the source may be freed before a non-blocking copy has read it.
    return values.to(images.device, non_blocking=images.is_cuda)


def _matrices(
    strength: Tensor,
    *,
    one: Tensor | float = 1.0,
    x_of_y: Tensor | float = 0.0,
    x: Tensor | float = 0.0,
    y_of_x: Tensor | float = 0.0,
    y: Tensor | float = 0.0,
) -> Tensor:
    matrices = torch.zeros(len(strength), 2, 3, dtype=torch.float64)
    matrices[:, 0, 0] = matrices[:, 1, 1] = torch.as_tensor(one)
    for (row, column), part in {(0, 1): x_of_y, (0, 2): x, (1, 0): y_of_x, (1, 2): y}.items():
        matrices[:, row, column] = torch.as_tensor(part)
    return matrices


def _places(side: int) -> Tensor:
    return torch.linspace((1.0 - side) * 0.5, (side - 1.0) * 0.5, steps=side)


def _sample(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    found = functional.grid_sample(images.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return found.round_().to(torch.uint8)


def _of_each(values: Tensor, images: Tensor) -> Tensor:
    return beside(values.float(), images).view(-1, 1, 1, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.float()
    grey = images[:, :1] * 0.2989
    return grey.add_(images[:, 1:2], alpha=0.587).add_(images[:, 2:], alpha=0.114).floor_()


def _blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return _pixels((images * _of_each(share, images)).addcmul_(others, _of_each(1 - share, images)))


def _pixels(values: Tensor) -> Tensor:
    """Return floats as pixels, rounded down as torchvision does."""
    return values.clamp_(0, 255).to(torch.uint8)
