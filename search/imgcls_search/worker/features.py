"""Features of images from a frozen pretrained network: the input of its last layer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from imgcls_search.config import TrialConfig
from imgcls_search.data import Augment, Moment, Prepared, load
from imgcls_search.data.features import Floats, computing, finished, folder_beside, kept
from imgcls_search.errors import BuildError, SearchError
from imgcls_search.models import pretrained
from imgcls_search.models.heads import replace_head
from imgcls_search.progress import Progress
from imgcls_search.training.device import move
from imgcls_search.training.images import EVALUATION_BATCH, ImageSet, in_order
from imgcls_search.worker import image_sets, networks, start_weights

Steps = Generator[tuple[int, int], None, Floats]
"""Yields the number of images done and the total, and returns the features."""


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A pretrained network without its last layer, in evaluation mode."""

    network: nn.Module
    data: Prepared
    """The data set with the network's normalisation."""

    digest: str
    """Of all its weights."""

    device: str


@dataclass(frozen=True, kw_only=True)
class AugmentedView:
    """One augmented version of every training image."""

    number: int
    augment: Augment
    settings: str
    """The augmentation as text, which together with the number determines the images."""


def frozen_network(config: TrialConfig, data: Prepared, device: str) -> FrozenNetwork:
    """Build the network of a configuration with its pretrained weights, and remove its head.

    Raises:
        BuildError: the configuration names no weights, or they do not fit.
        CheckpointError: the weights cannot be downloaded or read.
    """
    component = config.component("model")
    if not pretrained.is_wanted(component):
        raise BuildError(
            f"{component.path}.weights", "a backbone needs pretrained weights; allowed: imagenet, or a file"
        )
    data = start_weights.with_normalisation(config, data)
    model = networks.build_own_model(config, data.shape)
    pretrained.load_into(model, pretrained.find(component, model, **dataclasses.asdict(data.shape)))
    replace_head(model, nn.Identity())
    model = model.eval().requires_grad_(False)
    digest = digest_of(model)
    model = move(model, device)
    return FrozenNetwork(network=model, data=data, digest=digest, device=device)


def features_of(
    found: FrozenNetwork, split: Literal["train", "val"], cache: Path, progress: Progress | None = None
) -> Floats:
    """Return the features of a split, [N, D], computed once for all processes.

    Raises:
        DataError: the images are gone, or the cache cannot be written.
    """

    def tell(step: tuple[int, int] | None) -> None:
        if step is not None and progress is not None:
            progress(*step)

    return finished(computing(cache, made_from(found, split), lambda: _steps(found, split)), tell)


def kept_of(
    model: nn.Module, config: TrialConfig, data: Prepared, split: Literal["train", "val"], device: str
) -> Floats | None:
    """Return the stored features of a trained model for a split, [N, D], from trainings of its head.

    Return None if no features are stored, or if more than the model's head was trained.
    """
    cache = folder_beside(data)
    # Without stored features, do not download pretrained weights.
    if not cache.is_dir() or not pretrained.is_wanted(config.component("model")):
        return None
    try:
        found = frozen_network(config, data, device)
    # The weights are gone.
    except SearchError:
        return None
    own = model.state_dict()
    if not all(name in own and torch.equal(value, own[name]) for name, value in found.network.state_dict().items()):
        return None
    return kept(cache, made_from(found, split))


def made_from(
    found: FrozenNetwork, split: Literal["train", "val"], view: AugmentedView | None = None
) -> dict[str, Any]:
    """Return everything that determines the features of a split."""
    data = found.data
    origin: dict[str, Any] = {
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
    return origin if view is None else {**origin, "view": view.number, "augment": view.settings}


def features_in_steps(
    found: FrozenNetwork,
    split: Literal["train", "val"],
    cache: Path,
    *,
    view: AugmentedView | None = None,
    most_bytes: float,
) -> Generator[tuple[int, int] | None, None, Floats]:
    """Like `features_of`, but yield the images done and the total; None while another process computes the same.

    Raises:
        DataError: the images are gone, the cache cannot be written, or the features are larger than `most_bytes`.
    """
    origin = made_from(found, split, view)
    return (yield from computing(cache, origin, lambda: _steps(found, split, view), most_bytes=most_bytes))


def _steps(found: FrozenNetwork, split: Literal["train", "val"], view: AugmentedView | None = None) -> Steps:
    # Augmentation cuts from the margin; without it, the images have no margin.
    images = load(found.data, split, whole=view is not None)
    return (yield from compute_in_steps(found, image_sets.on_device(images, found.data, found.device), view))


def compute(found: FrozenNetwork, images: ImageSet, progress: Progress | None = None) -> Floats:
    """Return the features of some images, [N, D], without storing them."""
    return finished(compute_in_steps(found, images), lambda step: progress(*step) if progress is not None else None)


def compute_in_steps(found: FrozenNetwork, images: ImageSet, view: AugmentedView | None = None) -> Steps:
    """Like `compute`, but yield the images done and the total."""
    done, parts = 0, []
    for index, pixels, _ in images.batches(in_order(images, batch=BATCH)):
        with torch.inference_mode():
            if view is not None:
                pixels = _augmented(pixels, index, view, done)
            parts.append(found.network(images.normalise(pixels)).float().flatten(1).cpu().numpy())
        done += len(pixels)
        yield done, len(images)
    values: Floats = np.concatenate(parts)
    return values


def _augmented(pixels: torch.Tensor, index: torch.Tensor, view: AugmentedView, done: int) -> torch.Tensor:
    # The numbers do not depend on the trial that computes first, and leave its generator unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(view.number * 1_000_003 + done)
        return view.augment(pixels, Moment(index=index, epoch=view.number, seed=0))


BATCH = EVALUATION_BATCH // 4
"""Images per step: few enough to notice a stop soon, enough to be fast."""


def digest_of(model: nn.Module) -> str:
    """Return a digest of a network's layers and weights."""
    digest = hashlib.sha256(repr(model).encode())
    state: dict[str, Any] = model.state_dict()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
