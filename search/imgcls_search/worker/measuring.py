"""What is known of a configuration before it is trained: its sizes, from models that hold no numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from imgcls_search.compress import prune, sections
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError, SearchError
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
    """Return what a model costs, from one on the meta device, which holds no numbers.

    `pruned` is the share of channels that structured pruning will take out; which ones changes nothing. `head` is in
    the place of the model's own last layer.

    Raises:
        BuildError: no model can be built from the component, or it cannot be pruned, or takes no other head.
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
        # Families from elsewhere, timm's too, refuse what they cannot do in words of their own.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BuildError(component.path, f"cannot be built ({reason})") from error


def check_sizes(component: Component, shape: InputShape, sizes: Sequence[ImageSize], head: Component | None) -> None:
    """Refuse to train a model on images of smaller sizes than it is built for, if it cannot read one of them.

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
    """Return why a model cannot be trained on images of a size, None where it can."""
    try:
        cost.count(model, channels=channels, image_size=size)
    except Exception as error:
        # Networks refuse what they cannot do in words of their own.
        return " ".join(str(error).split()) or type(error).__name__
    return None


def smaller_sizes(config: TrialConfig, shape: InputShape) -> tuple[ImageSize, ...]:
    """Return the sizes below full that images have in some epochs of a configuration.

    Raises:
        BuildError: it has a teacher, which reads images of full size.
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
    """Return the share of channels that a configuration takes out, 0 where it takes out none."""
    plan = sections.pruning(config)
    return plan.amount if plan is not None and plan.kind == "structured" else 0.0


def measure(config: TrialConfig, shape: InputShape, found: Cost, *, deployed: Cost | None = None) -> dict[str, float]:
    """Return what is known before training, see `imgcls_search.trial.SIZES`.

    `found` is the cost of the network that is trained, `deployed` that of the pruned one, where it is another.

    Raises:
        BuildError: no optimizer, schedule or loss can be built from the configuration.
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
    """Refuse two averages of the weights, or one of more epochs than there are.

    Raises:
        BuildError: there are.
    """
    problem = recipe.problem_of_average()
    # What is fitted has one epoch, and no weights to average.
    if problem is not None and not config.is_fitted:
        raise BuildError("training.swa", problem)


def _measure_pretraining(config: TrialConfig, shape: InputShape, found: Cost) -> dict[str, float]:
    """Return the sizes of a network that is pretrained, with a head that stands for its projection."""
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
    """Build a model on the meta device, which holds no numbers.

    Raises:
        BuildError: the family refuses an argument, or another head.
    """
    # Imported within the block, torchvision 0.23 makes tensors of its own on the meta device, and fails.
    import torchvision  # noqa: F401

    with torch.device("meta"):
        model = build_model(component, **dataclasses.asdict(shape))
        return model if head is None else heads.with_head(model, head)


def head_to_count(config: TrialConfig) -> Component | None:
    """Return the head that a model is counted with, None where it is the model's own, whatever that is.

    Where the own one is to be fitted, a linear one stands for it, so that what has none is refused.
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
    """Return how many numbers an optimizer keeps for each parameter, by letting it take a step."""
    tiny = nn.Linear(2, 2, bias=False)
    optimizer = build(registry, component, model=tiny)
    tiny(torch.ones(1, 2)).sum().backward()
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()
    state = optimizer.state[tiny.weight]
    return sum(isinstance(value, torch.Tensor) and value.shape == tiny.weight.shape for value in state.values())
