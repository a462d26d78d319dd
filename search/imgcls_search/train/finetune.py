"""What holds while pretrained weights are trained on: frozen parts, and a slower backbone."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from imgcls_search.errors import BuildError
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.train.recipe import Finetune

Hold = Callable[[nn.Module, int], None]
"""Called with the model, in training mode, and the number of epochs done at the start of each epoch."""


def check_freeze(recipe: Finetune, num_stages: int | None) -> None:
    """Refuse to freeze what a model does not have; `num_stages` is None where it does not tell its stages.

    Raises:
        BuildError: the model has fewer stages, or does not tell them.
    """
    if recipe.freeze != "none" and num_stages is None:
        raise BuildError("finetune.freeze", "this model does not tell its stages; allowed: none")
    if isinstance(recipe.freeze, int) and num_stages is not None and recipe.freeze > num_stages:
        message = f"{recipe.freeze} stages, but the model has {num_stages}; allowed: 1 to {num_stages}"
        raise BuildError("finetune.freeze", message)


def frozen_parts(anatomy: Anatomy, recipe: Finetune) -> tuple[str, ...]:
    """Return the names of the modules and parameters that are frozen at first."""
    if recipe.freeze == "none":
        return ()
    count = len(anatomy.stages) if recipe.freeze == "backbone" else recipe.freeze
    return tuple(name for stage in anatomy.stages[:count] for name in stage)


def hold(parts: tuple[str, ...], recipe: Finetune) -> Hold:
    """Return what freezes parts of a model for as long as the recipe says.

    A frozen part is in evaluation mode: its running statistics and its dropout rest too.
    """

    def apply(model: nn.Module, epoch: int) -> None:
        is_frozen = recipe.freeze_epochs is None or epoch < recipe.freeze_epochs
        for name in parts:
            owner, _, last = name.rpartition(".")
            part = getattr(model.get_submodule(owner), last)
            part.requires_grad_(not is_frozen)
            if is_frozen and isinstance(part, nn.Module):
                part.eval()

    return apply


def hold_nothing(model: nn.Module, epoch: int) -> None:
    """Freeze nothing."""


def slow_backbone(optimizer: Optimizer, model: nn.Module, head: str, factor: float) -> None:
    """Split an optimizer's groups, so that everything but the head learns at a fraction of the rate."""
    in_head = {id(parameter) for parameter in model.get_submodule(head).parameters()}
    groups = []
    for group in optimizer.param_groups:
        fast = [parameter for parameter in group["params"] if id(parameter) in in_head]
        slow = [parameter for parameter in group["params"] if id(parameter) not in in_head]
        groups += [{**group, "params": fast}, {**group, "params": slow, "lr": group["lr"] * factor}]
    optimizer.param_groups = [group for group in groups if group["params"]]
