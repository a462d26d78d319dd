"""Save timm networks as files of this program, so that all learning from teachers reads one kind of file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgcls_search import models
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import InputShape, Prepared
from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize
from imgcls_search.models import pretrained
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.training import checkpoint
from imgcls_search.worker import networks

NO_CLASSES = ("0", "1")
"""Placeholder classes for a network without its head."""


def keep(
    component: Component, data: Prepared, *, image_size: ImageSize, answers: bool, folder: Path
) -> tuple[str, Path]:
    """Write a component's network into a folder unless it exists; return the digest of its weights and the file.

    Its input has `image_size` and the channels of `data`. If it `answers`, it keeps its head, which must have the
    classes of `data`; otherwise the head is zeros, because only its features matter.

    Raises:
        CheckpointError: the weights cannot be downloaded or read.
        BuildError: there is no such network, or the weights do not fit it or the classes.
    """
    known = replace(data, image_size=image_size, classes=data.classes if answers else NO_CLASSES)
    shape = known.shape
    bare = replace(component, args={**component.args, "weights": None})
    with torch.random.fork_rng(devices=[]):
        model = models.build_model(bare, **dataclasses.asdict(shape))
    find = pretrained.find_whole if answers else pretrained.find
    tensors = find(component, model, **dataclasses.asdict(shape))
    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy), "weights are found by it"
    # Older files lack batch counters; zeros also give a missing head the same digest each time.
    state = {
        name: tensors.get(name, torch.zeros_like(tensor)).detach().cpu() for name, tensor in model.state_dict().items()
    }
    mean, std = _moments(component, model, shape)
    settings: Any = model.pretrained_cfg
    is_of_size = bool(settings.get("fixed_input_size"))
    digest = _digest([component.args["name"], shape.channels, shape.classes, image_size if is_of_size else None], state)
    path = folder / f"{digest[:16]}.pt"
    if not path.is_file():
        config = TrialConfig.from_dict({"model": {"timm": bare.args}})
        known = replace(known, mean=mean, std=std)
        checkpoint.save({"model": state, **networks.describe_weights(config, known)}, path)
    return digest, path


def _moments(
    component: Component, model: torch.nn.Module, shape: InputShape
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = pretrained.normalisation(component, model)
    if len(mean) == shape.channels:
        return mean, std
    # Grey images replace timm's three channels by one.
    if shape.channels != 1:
        raise BuildError(f"{component.path}.name", f"takes {len(mean)} channels, the images have {shape.channels}")
    return (sum(mean) / len(mean),), (sum(std) / len(std),)


def _digest(said: Sequence[Any], state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(said).encode())
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
