"""The images of a training on its device: whole splits, or those of a fold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from imgcls_search.data import (
    Images,
    Prepared,
    Streamed,
    label_sets,
    load,
)
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.folds import places
from imgcls_search.protocol import Portion
from imgcls_search.training.device import keep_freed_memory
from imgcls_search.training.images import ImageSet

GPU_SHARE = 0.25
"""Largest share of a GPU's free memory for a data set."""


def image_sets(data: Prepared, portion: Portion, device: str) -> tuple[ImageSet, ImageSet | None]:
    """Return the images to train on, and those to evaluate on, if the portion leaves any."""
    # Crops use the margin; evaluation has none.
    train = load(data, "train", whole=True)
    if portion == "train":
        validation = load(data, "val")
        return on_device(train, data, device), on_device(validation, data, device)
    validation = load(data, "val", whole=True)
    pixels: Any
    if isinstance(train.pixels, Streamed) and isinstance(validation.pixels, Streamed):
        pixels = train.pixels.joined(validation.pixels)
    else:
        pixels = np.concatenate([train.pixels, validation.pixels])
    labels = np.concatenate([train.labels, validation.labels])
    return on_device(replace(train, pixels=pixels, labels=labels), data, device), None


def fold_data(data: Prepared, fold: int) -> Prepared:
    """Return the metadata for a fold's network: counts of its own images; the normalisation stays that of all images.

    The mean and deviation of pixels reveal no labels, and all folds share one network input.
    """
    train, scored = fold_places(data, fold)
    labels = np.concatenate([load(data, "train").labels, load(data, "val").labels])[train]
    return replace(
        data,
        counts={**data.counts, "train": len(train), "val": len(scored)},
        class_counts=tuple(label_sets.count(labels, len(data.classes)).tolist()),
    )


def fold_sets(data: Prepared, fold: int, device: str) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and to score if a fold is held out."""
    train, scored = fold_places(data, fold)
    return _chosen(data, train, device, whole=True), _chosen(data, scored, device, whole=False)


def fold_places(data: Prepared, fold: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the indices of the images to train on and to score, the training split first."""
    scored = places(data.folds, data.counts["train"])[fold]
    return np.setdiff1d(np.arange(data.counts["train"] + data.counts["val"]), scored), scored


def _chosen(data: Prepared, items: np.ndarray[Any, Any], device: str, *, whole: bool) -> ImageSet:
    parts = [load(data, "train", whole=whole), load(data, "val", whole=whole)]
    pixels: Any = Chosen([part.pixels for part in parts], items)
    is_stored = all(isinstance(part.pixels, np.ndarray) for part in parts)
    if device.startswith("cuda") and is_stored:
        size = math.prod(pixels.shape)
        if size < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            pixels = pixels[np.arange(len(items))]
    labels = np.concatenate([part.labels for part in parts])[items]
    names = [name for part in parts for name in part.names]
    images = Images(pixels=pixels, labels=labels, names=tuple(names[item] for item in items.tolist()))
    return on_device(images, data, device)


def on_device(images: Images, data: Prepared, device: str) -> ImageSet:
    """Return images ready for training: on a GPU as a whole if they fit, otherwise mapped from disk."""
    if device == "cpu":
        # Not only workers compute: some commands evaluate networks themselves.
        keep_freed_memory()
    pixels: Any = images.pixels
    labels: Any = images.labels
    is_stored = isinstance(pixels, np.ndarray)
    if device.startswith("cuda") and is_stored and pixels.nbytes < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        pixels = torch.from_numpy(np.array(pixels)).to(device)
        labels = torch.from_numpy(np.array(images.labels)).to(device)
    return ImageSet(pixels=pixels, labels=labels, mean=data.mean, std=data.std, device=device)
