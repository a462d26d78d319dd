"""Compute features of small images (colours, edges, textures) that a few hundred trees learn from in seconds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
ORIENTATIONS = 8
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
BATCH = 512


def features(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """Return the features [N, F] of square images, uint8 [N, side, side, 3]; the side must be a multiple of 8."""
    parts = [_features(np.asarray(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def _features(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    shades = np.asarray(pixels, dtype=np.float32) / np.float32(255)
    gray = np.asarray(shades.mean(axis=-1), dtype=np.float32)
    parts = [*_colours(pixels, shades), *_edges(gray), _textures(gray)]
    return np.concatenate([part.reshape(len(pixels), -1) for part in parts], axis=1).astype(np.float16)


def _colours(pixels: npt.NDArray[np.uint8], shades: Floats) -> list[Floats]:
    """Return histograms of colours, of each channel and of saturation, then means and deviations by cell."""
    coarse = (pixels // 64).astype(np.int64)
    high, low = shades.max(axis=-1), shades.min(axis=-1)
    saturation = ((high - low) / (high + 1e-3) * 15.99).astype(np.int64)
    return [
        _histogram(coarse[..., 0] * 16 + coarse[..., 1] * 4 + coarse[..., 2], 64),
        *(_histogram((pixels[..., channel] // 16).astype(np.int64), 16) for channel in range(3)),
        _histogram(saturation, 16),
        _cells(shades, 8).mean(axis=(2, 4)),
        _cells(shades, 4).std(axis=(2, 4)),
    ]


def _edges(gray: Floats) -> list[Floats]:
    """Return histograms of edge directions, over the whole image and in 4x4 and 8x8 cells."""
    down, right = np.zeros_like(gray), np.zeros_like(gray)
    down[:, 1:-1] = gray[:, 2:] - gray[:, :-2]
    right[:, :, 1:-1] = gray[:, :, 2:] - gray[:, :, :-2]
    strength = np.hypot(down, right)
    turn = (np.arctan2(down, right) % np.pi) / np.pi * ORIENTATIONS
    direction = np.minimum(turn.astype(np.int64), ORIENTATIONS - 1)
    found = []
    for cells in (1, 4, 8):
        by_direction = [_cells(strength * (direction == k), cells).mean(axis=(2, 4)) for k in range(ORIENTATIONS)]
        stacked = np.stack(by_direction, axis=-1)
        size = np.sqrt((stacked**2).sum(axis=-1 if cells == 8 else (1, 2, 3), keepdims=True)) + 1e-2
        found.append(np.sqrt(stacked / size))
    return found


def _textures(gray: Floats) -> Floats:
    """Return the histogram of local binary patterns (Ojala et al. 2002): which of 8 neighbours are lighter."""
    middle = gray[:, 1:-1, 1:-1]
    side = gray.shape[1]
    patterns = np.zeros(middle.shape, dtype=np.int64)
    for bit, (down, right) in enumerate(NEIGHBOURS):
        there = gray[:, 1 + down : side - 1 + down, 1 + right : side - 1 + right]
        patterns |= (there > middle + 0.01).astype(np.int64) << bit
    return _histogram(patterns, 256)


def _cells(values: Floats, count: int) -> Floats:
    """Return values [N, side, side(, C)] in cells: [N, count, size, count, size(, C)]."""
    size = values.shape[1] // count
    shaped = values.reshape(len(values), count, size, count, size, *values.shape[3:])
    return np.asarray(shaped, dtype=np.float32)


def _histogram(codes: npt.NDArray[np.int64], count: int) -> Floats:
    """Return the share of each of `count` codes in each image, [N, count]."""
    number = len(codes)
    flat = codes.reshape(number, -1) + np.arange(number)[:, None] * count
    counts = np.bincount(flat.ravel(), minlength=number * count).reshape(number, count)
    return np.asarray(counts / flat.shape[1], dtype=np.float32)
