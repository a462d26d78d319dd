"""Measure a configuration before training: its sizes, from models on the meta device, which stores no numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imgcls_search.compress import prune, sections
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError, SearchError, one_line
from imgcls_search.image_size import ImageSize, area, shown
from imgcls_search.models import build_model, cost, heads, pretrained
from imgcls_search.models.cost import Cost
from imgcls_search.signature import build
from imgcls_search.training import finetune, pretraining
from imgcls_search.training.losses import build_loss
from imgcls_search.training.optimizers import OPTIMIZERS, SCHEDULES, check_optimizer
from imgcls_search.training.recipe import Finetune, Training, check_devices
from imgcls_search.training.resolution import resolution_of


def count(component: Component, shape: InputShape, *, pruned: float = 0.0, head: Component | None = None) -> Cost:
    """Return the cost of a model, computed on the meta device, which stores no numbers.

    `pruned` is the share of channels that structured pruning will remove; their choice does not matter. `head` replaces
    the model's own last layer.

    Raises:
        BuildError: the model cannot be built or pruned, or takes no other head.
    """
    given: dict[str, Any] = {"channels": shape.channels, "image_size": shape.image_size}
    try:
        model = meta_model(component, shape, head)
        if pruned:
            prune.shrink(model, pruned, **given)
        return cost.count(model, **given)
    except SearchError:
        raise
    except Exception as error:
        # Families of other packages, including timm, raise their own exceptions.
        reason = one_line(error)
        raise BuildError(component.path, f"cannot be built ({reason})") from error


def check_sizes(component: Component, shape: InputShape, sizes: Sequence[ImageSize], head: Component | None) -> None:
    """Refuse progressive resizing for a model that cannot read images of one of the smaller sizes.

    Raises:
        BuildError: the size, and what is allowed.
    """
    model = meta_model(component, shape, head)
    for size in sizes:
        if (problem := _problem_at(model, shape.channels, size)) is not None:
            raise BuildError(
                "training.resolution.progressive",
                f"{component.path} for {shown(shape.image_size)} pixels cannot read images of {shown(size)} ({problem})"
                "; allowed: training.resolution: full, a larger start, or a network for images of any size",
            )


def _problem_at(model: nn.Module, channels: int, size: ImageSize) -> str | None:
    """Return why a model cannot be trained on images of a size, None if it can."""
    try:
        cost.count(model, channels=channels, image_size=size)
    except Exception as error:
        # Networks raise their own exceptions.
        return one_line(error)
    return None


def smaller_sizes(config: TrialConfig, shape: InputShape) -> tuple[ImageSize, ...]:
    """Return the image sizes below full size in the epochs of a configuration.

    Raises:
        BuildError: it has a teacher, which needs images of full size.
    """
    resolution = resolution_of(config)
    if resolution.until and sections.distillation(config) is not None:
        raise BuildError(
            "training.resolution",
            f"progressive beside {config.component('distill').path}, whose network reads images of full size; "
            "allowed: full",
        )
    found = resolution.sizes(shape.image_size, config.training_epochs) if resolution.until else ()
    return tuple(size for size in found if size != shape.image_size)


def structured_amount(config: TrialConfig) -> float:
    """Return the share of channels that a configuration removes, 0 without structured pruning."""
    plan = sections.pruning(config)
    return plan.amount if plan is not None and plan.kind == "structured" else 0.0


def measure(config: TrialConfig, shape: InputShape, found: Cost, *, deployed: Cost | None = None) -> dict[str, float]:
    """Return the metrics that are known before training, see `imgcls_search.trial.SIZES`.

    `found` is the cost of the trained network, `deployed` that of the pruned one if it differs.

    Raises:
        BuildError: the optimizer, schedule or loss of the configuration cannot be built.
    """
    if config.is_pretraining:
        return _measure_pretraining(config, shape, found)
    if config.needs_backbone and pretrained.is_wanted(config.component("model")):
        path = f"{config.component('model').path}.weights"
        raise BuildError(
            path,
            f"a network that starts from weights is not pretrained as well ({config.component('pretrain').path}); "
            "allowed: one of them",
        )
    build_loss(config.component("loss"), class_counts=(1,) * shape.classes, images=shape.classes)
    build(SCHEDULES, config.component("schedule"), epochs=config.section("training")["epochs"])
    if pretrained.is_wanted(config.component("model")) or config.needs_backbone:
        finetune.check_freeze(Finetune(**config.section("finetune")), found.num_stages)
    recipe = Training(**config.section("training"))
    check_devices(recipe)
    check_optimizer(config)
    _check_average(config, recipe)
    states = _optimizer_states(OPTIMIZERS, config.component("optimizer"))
    return {
        **_sizes(deployed or found, found),
        "memory": cost.peak_bytes(
            found,
            pixels=_pixels(shape),
            batch_size=math.ceil(recipe.batch_size / (1 if recipe.devices == "auto" else recipe.devices)),
            optimizer_states=states,
            averages=recipe.ema > 0 or recipe.swa > 0,
        ),
    }


def _check_average(config: TrialConfig, recipe: Training) -> None:
    """Refuse two averages of the weights, or an average over more epochs than there are.

    Raises:
        BuildError: the setting, and what is allowed.
    """
    problem = recipe.problem_of_average()
    # A fitted head has one epoch and no weights to average.
    if problem is not None and not config.is_fitted:
        raise BuildError("training.swa", problem)


def _measure_pretraining(config: TrialConfig, shape: InputShape, found: Cost) -> dict[str, float]:
    """Return the sizes of a network for pretraining, with a head in place of its projection."""
    wanted = pretraining.plan(config)
    assert wanted is not None, "only what is pretrained gets here"
    if found.num_stages is None:
        path = config.component("model").path
        raise BuildError(path, "this family does not say where its head is, so it cannot be pretrained")
    states = _optimizer_states(pretraining.PRETRAIN_OPTIMIZERS, pretraining.optimizer_of(config))
    views = 2 if isinstance(wanted, pretraining.SimCLR) else 1
    memory = cost.peak_bytes(
        found, pixels=_pixels(shape), batch_size=views * wanted.batch_size, optimizer_states=states, averages=False
    )
    return {**_sizes(found, found), "memory": memory}


def _sizes(deployed: Cost, trained: Cost) -> dict[str, float]:
    return {"params": deployed.params, "macs": deployed.macs, "largest_activation": trained.largest_activation}


def _pixels(shape: InputShape) -> int:
    return shape.channels * area(shape.image_size)


def meta_model(component: Component, shape: InputShape, head: Component | None = None) -> nn.Module:
    """Build a model on the meta device, which stores no numbers.

    Raises:
        BuildError: the family refuses an argument, or another head.
    """
    # If torchvision 0.23 is imported inside the block, it creates tensors on the meta device and fails.
    import torchvision  # noqa: F401

    with torch.device("meta"), _Unfilled():  # type: ignore[no-untyped-call]
        model = build_model(component, **dataclasses.asdict(shape))
        return model if head is None else heads.with_head(model, head)


class _Unfilled(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips drawing initial weights, for which the meta device would run many operations in Python."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in _FILLS else func(*args, **(kwargs or {}))


_FILLS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


def head_to_count(config: TrialConfig) -> Component | None:
    """Return the head to count a model with, None for the model's own.

    If the own head is to be fitted, return a linear one, so that models without a linear layer are refused.
    """
    head = heads.head_of(config)
    if head.name != heads.OWN:
        return head
    if config.is_pretraining:
        return None
    is_pretrained = pretrained.is_wanted(config.component("model")) or config.needs_backbone
    is_fitted_first = is_pretrained and Finetune(**config.section("finetune")).start == "logistic"
    return Component(path="finetune.start", name="linear", args={"dropout": 0.0}) if is_fitted_first else None


def _optimizer_states(registry: Mapping[str, Callable[..., Any]], component: Component) -> int:
    """Return how many numbers an optimizer stores per parameter, measured by taking one step."""
    tiny = nn.Linear(2, 2, bias=False)
    optimizer = build(registry, component, model=tiny)
    tiny(torch.ones(1, 2)).sum().backward()
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()
    state = optimizer.state[tiny.weight]
    return sum(isinstance(value, torch.Tensor) and value.shape == tiny.weight.shape for value in state.values())
