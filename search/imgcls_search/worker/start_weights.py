"""The pretrained weights of a trial: check that they fit, get their normalisation, and read them only once."""

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
    """Download or read the pretrained weights of a model component, check that they fit, and return their file.

    Return None if the file is unknown.

    Raises:
        CheckpointError: the weights cannot be downloaded or read.
        BuildError: they do not fit the model.
    """
    model = meta_model(component, shape)
    pretrained.find(component, model, **dataclasses.asdict(shape))
    return pretrained.used_file(component, model)


def with_normalisation(config: TrialConfig, data: Prepared) -> Prepared:
    """Return the data set with the mean and deviation of a configuration, given directly or by its weights.

    Raises:
        CheckpointError: the weights cannot be read.
        BuildError: such numbers do not exist.
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
    # A single number applies to all channels.
    given: dict[str, Any] = {
        name: tuple(value) * (data.channels // len(value))
        for name, value in named.items()
        if not isinstance(value, str)
    }
    return replace(data, **given) if given else data


def _for_channels(name: str, numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return the normalisation of weights for a number of channels.

    Grey images use the average of ImageNet's three channels, or of the weights' own.

    Raises:
        BuildError: the numbers are for other channels.
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
"""The last result by its key: the next trial mostly needs the same, and its model fits it."""


def _remembered(
    memory: dict[str, T], component: Component, shape: InputShape, file: str | None, read: Callable[[], T]
) -> T:
    """Return the cached value for a component's weights, or read it if the weights differ."""
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
    # For published weights, the normalisation comes from their library, whatever the file.
    file = str(component.args["weights"]) if pretrained.is_file(component) else None
    return _remembered(
        _MOMENTS, component, shape, file, lambda: pretrained.normalisation(component, meta_model(component, shape))
    )


def weights_of(component: Component, model: nn.Module, shape: InputShape) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a component's weights, ready to load into a model."""
    file = pretrained.file_of(component, model)
    return _remembered(
        _WEIGHTS, component, shape, file, lambda: pretrained.find(component, model, **dataclasses.asdict(shape))
    )
