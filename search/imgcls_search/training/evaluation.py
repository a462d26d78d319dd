"""Evaluate a network on held-out images: its logits and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgcls_search.training import corrupted
from imgcls_search.training.device import autocast
from imgcls_search.training.group import Group
from imgcls_search.training.images import FeatureSet, ImageSet, in_order
from imgcls_search.training.metrics import Wanted, score


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    precision: str = "fp32",
    wanted: Wanted | None = None,
    group: Group | None = None,
) -> dict[str, float]:
    """Return the metrics of a model on a set of images; the devices of a group share the work.

    Raises:
        DivergedError: the logits are NaN or infinite.
    """
    logits = predict(model, images, precision=precision, group=group)
    labels = images.labels.cpu().numpy() if isinstance(images.labels, Tensor) else np.asarray(images.labels)
    found = score(logits, labels, wanted)
    if wanted is not None and corrupted.is_wanted(wanted.named) and not isinstance(images, FeatureSet):
        found |= corrupted.mean(corruptions(model, images, precision=precision))
    return found


@torch.inference_mode()
def corruptions(model: nn.Module, images: ImageSet, *, precision: str = "fp32") -> corrupted.Table:
    """Return the accuracy of a model on corrupted versions of a set of images."""
    model.eval()

    def logits(pixels: Tensor) -> np.ndarray[Any, Any]:
        with autocast(images.device, precision):
            found: np.ndarray[Any, Any] = model(images.normalise(pixels)).float().cpu().numpy()
        return found

    return corrupted.accuracies(images.batches(in_order(images)), logits)


@torch.inference_mode()
def predict(
    model: nn.Module, images: ImageSet, *, precision: str = "fp32", group: Group | None = None
) -> np.ndarray[Any, Any]:
    """Return the logits, float32 [N, classes], of all images in order; the devices of a group share the work."""
    model.eval()
    blocks = in_order(images)
    own = blocks if group is None else blocks[group.rank :: group.size]
    found = []
    for _, pixels, _ in images.batches(own):
        with autocast(images.device, precision):
            found.append(model(images.normalise(pixels)).float())
    if group is not None:
        return group.blocks(found, [len(block) for block in blocks]).cpu().numpy()
    logits: np.ndarray[Any, Any] = torch.cat(found).cpu().numpy()
    return logits
