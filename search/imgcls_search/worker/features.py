"""Features of images by a frozen pretrained network: what its last layer would read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from imgcls_search.config import TrialConfig
from imgcls_search.data import Augment, Moment, Prepared, load
from imgcls_search.data.features import Floats, computing, folder_beside, kept
from imgcls_search.errors import BuildError, SearchError
from imgcls_search.models import pretrained
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.training.device import move
from imgcls_search.training.images import EVALUATION_BATCH, ImageSet, in_order
from imgcls_search.worker import image_sets, networks, start_weights

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all."""

Steps = Generator[tuple[int, int], None, Floats]
"""Yields the number of images done and of all, and returns the features."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network without its last layer, in evaluation mode."""

    network: nn.Module
    data: Prepared
    """The images as the network wants them."""

    digest: str
    """Of all its weights."""

    device: str


@dataclass(frozen=True, kw_only=True)
class View:
    """One augmented version of every training image."""

    number: int
    augment: Augment
    settings: str
    """The augmentation in words: what decides on the images beside the number."""


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
    data = start_weights.with_normalisation(config, data)
    model = networks.build_own_model(config, data.shape)
    pretrained.load_into(model, pretrained.find(component, model, **dataclasses.asdict(data.shape)))
    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy), "weights are found by it"
    parent, _, name = anatomy.head.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    model = model.eval().requires_grad_(False)
    digest = digest_of(model)
    model = move(model, device)
    return Backbone(network=model, data=data, digest=digest, device=device)


def features_of(
    found: Backbone, split: Literal["train", "val"], cache: Path, progress: Progress | None = None
) -> Floats:
    """Return what a backbone makes of a split, [N, D], computed once for all that ask.

    Raises:
        DataError: the images are gone, or the cache cannot be written.
    """
    return _told(computing(cache, made_from(found, split), lambda: _steps(found, split)), progress)


def kept_of(
    model: nn.Module, config: TrialConfig, data: Prepared, split: Literal["train", "val"], device: str
) -> Floats | None:
    """Return what the last layer of a trained model reads of a split, [N, D], as trainings of heads have kept it.

    None where nothing is kept, and where more than its head was trained.
    """
    cache = folder_beside(data)
    # Where no training has kept anything, its pretrained weights may have to be fetched, too.
    if not cache.is_dir() or not pretrained.is_wanted(config.component("model")):
        return None
    try:
        found = backbone(config, data, device)
    # They have gone.
    except SearchError:
        return None
    own = model.state_dict()
    if not all(name in own and torch.equal(value, own[name]) for name, value in found.network.state_dict().items()):
        return None
    return kept(cache, made_from(found, split))


def made_from(found: Backbone, split: Literal["train", "val"], view: View | None = None) -> dict[str, Any]:
    """Return all that decides on the features of a split."""
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
    found: Backbone,
    split: Literal["train", "val"],
    cache: Path,
    *,
    view: View | None = None,
    most_bytes: float,
) -> Generator[tuple[int, int] | None, None, Floats]:
    """Do what `features_of` does, and yield the images done and of all; None while another process computes them.

    Raises:
        DataError: the images are gone, the cache cannot be written, or the features are larger than `most_bytes`.
    """
    origin = made_from(found, split, view)
    return (yield from computing(cache, origin, lambda: _steps(found, split, view), most_bytes=most_bytes))


def _steps(found: Backbone, split: Literal["train", "val"], view: View | None = None) -> Steps:
    # An augmentation cuts from the margin; what is not augmented has none.
    images = load(found.data, split, whole=view is not None)
    return (yield from compute_in_steps(found, image_sets.on_device(images, found.data, found.device), view))


def compute(found: Backbone, images: ImageSet, progress: Progress | None = None) -> Floats:
    """Return what a backbone makes of some images, [N, D], kept nowhere."""
    return _told(compute_in_steps(found, images), progress)


def compute_in_steps(found: Backbone, images: ImageSet, view: View | None = None) -> Steps:
    """Do what `compute` does, and yield the images done and of all."""
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


def _augmented(pixels: torch.Tensor, index: torch.Tensor, view: View, done: int) -> torch.Tensor:
    # The same numbers whichever trial comes first, and none taken from its own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(view.number * 1_000_003 + done)
        return view.augment(pixels, Moment(index=index, epoch=view.number, seed=0))


BATCH = EVALUATION_BATCH // 4
"""Images a step: small enough that a stop is heard soon, large enough to be as fast."""


def _told(steps: Generator[Any, None, Floats], progress: Progress | None) -> Floats:
    def whole() -> Generator[Any, None, None]:
        found.append((yield from steps))

    found: list[Floats] = []
    for step in whole():
        if step is not None and progress is not None:
            progress(*step)
    return found[0]


def digest_of(model: nn.Module) -> str:
    """Return a digest of a network's layers and weights."""
    digest = hashlib.sha256(repr(model).encode())
    state: dict[str, Any] = model.state_dict()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
