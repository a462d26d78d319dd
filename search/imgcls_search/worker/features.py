"""Features of images by a frozen pretrained network: what its last layer would read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.data.features import Floats, features
from imgcls_search.errors import BuildError
from imgcls_search.models import pretrained
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.train.device import fastest_layout
from imgcls_search.train.loop import EVALUATION_BATCH, ImageSet
from imgcls_search.worker import image_sets, networks, pipeline

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network without its last layer, in evaluation mode."""

    network: nn.Module
    data: Prepared
    """The images as the network wants them."""

    digest: str
    """Of all its weights."""

    device: str


def backbone(config: TrialConfig, data: Prepared, device: str) -> Backbone:
    """Build the network of a configuration with its pretrained weights, and take its head off.

    Raises:
        BuildError: the configuration names no weights, or they do not fit.
        CheckpointError: they cannot be fetched or read.
    """
    component = config.component("model")
    if not pretrained.is_wanted(component):
        raise BuildError(
            f"{component.path}.weights", "a backbone needs pretrained weights; allowed: imagenet, or a file"
        )
    data = pipeline.with_normalisation(config, data)
    model = networks.build_model(config, data.shape)
    pretrained.load_into(model, pretrained.find(component, model, **dataclasses.asdict(data.shape)))
    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy), "weights are found by it"
    parent, _, name = anatomy.head.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    model = model.eval().requires_grad_(False)
    digest = _digest(model)
    model = model.to(device, memory_format=fastest_layout(model))  # type: ignore[call-overload]
    return Backbone(network=model, data=data, digest=digest, device=device)


def features_of(
    found: Backbone, split: Literal["train", "val"], cache: Path, progress: Progress | None = None
) -> Floats:
    """Return what a backbone makes of a split, [N, D], computed once for all that ask.

    Raises:
        DataError: the images are gone, or the cache cannot be written.
    """
    data = found.data
    facts = {
        "weights": found.digest,
        "images": data.prints.seen,
        "split": split,
        "count": data.counts[split],
        "frame": [str(part) for part in dataclasses.astuple(data.frame)],
        "mean": data.mean,
        "std": data.std,
        "device": found.device.partition(":")[0],
        "torch": torch.__version__.rpartition(".")[0],
    }
    return features(cache, facts, lambda: _compute(found, split, progress))


def _compute(found: Backbone, split: Literal["train", "val"], progress: Progress | None) -> Floats:
    return compute(found, image_sets.on_device(load(found.data, split), found.data, found.device), progress)


@torch.inference_mode()
def compute(found: Backbone, images: ImageSet, progress: Progress | None = None) -> Floats:
    """Return what a backbone makes of some images, [N, D], kept nowhere."""
    done, parts = 0, []
    for _, pixels, _ in images.batches(torch.split(torch.arange(len(images), device=images.home), EVALUATION_BATCH)):
        parts.append(found.network(images.normalise(pixels)).float().flatten(1).cpu().numpy())
        done += len(pixels)
        if progress is not None:
            progress(done, len(images))
    values: Floats = np.concatenate(parts)
    return values


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256(repr(model).encode())
    state: dict[str, Any] = model.state_dict()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
