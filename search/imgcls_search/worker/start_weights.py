"""Pretrained weights that a trial starts from: they fit, they say how images are normalised, and they are read once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.data import InputShape, Prepared
from imgcls_search.data.image import MOMENTS, check_normalisation
from imgcls_search.errors import BuildError
from imgcls_search.models import pretrained
from imgcls_search.worker.measuring import meta_model


def check_weights(component: Component, shape: InputShape) -> Path | None:
    """Fetch or read the pretrained weights of a model component, see that they fit, and return the file they are from.

    It is None where a library keeps it to itself.

    Raises:
        CheckpointError: they cannot be fetched or read.
        BuildError: they do not fit the model.
    """
    model = meta_model(component, shape)
    pretrained.find(component, model, **dataclasses.asdict(shape))
    return pretrained.used_file(component, model)


def with_normalisation(config: TrialConfig, data: Prepared) -> Prepared:
    """Return the data set with the mean and deviation that a configuration names, by itself or by its weights.

    Raises:
        CheckpointError: the weights cannot be read.
        BuildError: there are no such numbers.
    """
    component, section = config.component("model"), config.section("image")
    has_weights = pretrained.is_wanted(component)
    check_normalisation(section, data.channels, has_weights=has_weights)
    wanted = {name: section.get(name, "auto") for name in MOMENTS}
    named = {name: "weights" if value == "auto" and has_weights else value for name, value in wanted.items()}
    if "weights" in named.values():
        mean, std = (
            _for_channels(name, of, data.channels)
            for name, of in zip(MOMENTS, _moments(component, data.shape), strict=True)
        )
        data = replace(
            data,
            mean=mean if named["mean"] == "weights" else data.mean,
            std=std if named["std"] == "weights" else data.std,
        )
    # One number is meant for all channels.
    given: dict[str, Any] = {
        name: tuple(value) * (data.channels // len(value))
        for name, value in named.items()
        if not isinstance(value, str)
    }
    return replace(data, **given) if given else data


def _for_channels(name: str, numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return what weights are normalised by, for images of so many channels.

    Weights that do not say it are normalised as ImageNet's three colours; grey images take the average of these.

    Raises:
        BuildError: the numbers are those of other channels.
    """
    if len(numbers) == channels:
        return numbers
    if channels == 1:
        return (sum(numbers) / len(numbers),)
    raise BuildError(
        f"image.{name}",
        f"the weights are normalised by {len(numbers)} numbers, but the images have {channels} channels; allowed: "
        f"1 or {channels} numbers, data",
    )


T = TypeVar("T")


_MOMENTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}


_WEIGHTS: dict[str, Mapping[str, torch.Tensor]] = {}
"""What was read last, by what decides on it: the next trial's is mostly the same, and its model is built for it."""


def _remembered(
    memory: dict[str, T], component: Component, shape: InputShape, file: str | None, read: Callable[[], T]
) -> T:
    """Return what was read of a component's weights, as long as it asks for the same ones."""
    given: dict[str, Any] = {"path": component.path, "args": dict(component.args), "shape": dataclasses.asdict(shape)}
    if file is not None:
        with contextlib.suppress(OSError):
            state = expand_path(file, component.path).stat()
            given["file"] = [file, state.st_mtime_ns, state.st_size]
    key = json.dumps(given, sort_keys=True, default=str)
    if key not in memory:
        found = read()
        memory.clear()
        memory[key] = found
    return memory[key]


def _moments(component: Component, shape: InputShape) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Those of published weights come from their library, whichever file they are in.
    file = str(component.args["weights"]) if pretrained.is_file(component) else None
    return _remembered(
        _MOMENTS, component, shape, file, lambda: pretrained.normalisation(component, meta_model(component, shape))
    )


def weights_of(component: Component, model: nn.Module, shape: InputShape) -> Mapping[str, torch.Tensor]:
    """Return the tensors of the weights of a component, as they go into a model."""
    file = pretrained.file_of(component, model)
    return _remembered(
        _WEIGHTS, component, shape, file, lambda: pretrained.find(component, model, **dataclasses.asdict(shape))
    )
