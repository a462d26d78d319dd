"""Find the training images that a network considers most similar to another one, by the input of its last layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgcls_search.jobs.report_effort import SIMILAR_MACS
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.models.cost import images_within

LEAST_IMAGES = 200


def affordable(count: int, macs: float) -> np.ndarray[Any, Any]:
    """Return the indices of the training images to use: all, or a random sample if all would take too long."""
    most = images_within(SIMILAR_MACS, macs, least=LEAST_IMAGES)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def features(model: nn.Module, batches: Iterator[Tensor]) -> np.ndarray[Any, Any]:
    """Return the inputs of a model's last layer, [N, D], with length 1; its logits if that layer is not known.

    `batches` are normalised and on the model's device.
    """
    anatomy = getattr(model, "anatomy", None)
    read: list[Tensor] = []
    hook = None
    if isinstance(anatomy, Anatomy):
        hook = model.get_submodule(anatomy.head).register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model.eval()
    parts = []
    try:
        with torch.inference_mode():
            for images in batches:
                read.clear()
                logits = model(images)
                parts.append((read[-1] if read else logits).float().flatten(1).cpu().numpy())
    finally:
        if hook is not None:
            hook.remove()
    return unit(np.concatenate(parts))


def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Scale rows to length 1."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def nearest(of: np.ndarray[Any, Any], among: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return the indices of the nearest rows by cosine, nearest first, [N, count]."""
    return np.argsort(-(of @ among.T), axis=1, kind="stable")[:, :count]
