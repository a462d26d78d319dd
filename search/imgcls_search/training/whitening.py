"""Whitening layers, fitted to the training images before the first step."""

from __future__ import annotations

from torch import nn

from imgcls_search.models.airbench_layers import whitenings_of
from imgcls_search.training.images import FeatureSet, ImageSet, in_order

IMAGES = 5000
"""Number of images that is enough for the principal directions of small patches."""


def whiten(images: ImageSet, model: nn.Module, *copies: nn.Module) -> None:
    """Fit the whitening layers of a model and its copies to images without augmentation.

    Layers whose weights came from a file are fitted already.
    """
    layers = whitenings_of(model)
    if not layers or isinstance(images, FeatureSet):
        return
    for layer in layers:
        layer.fit(images.normalise(pixels) for _, pixels, _ in images.batches(in_order(images, most=IMAGES)))
    for copy in copies:
        copy.load_state_dict(model.state_dict())
