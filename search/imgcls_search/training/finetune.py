"""What holds while pretrained weights are trained on: frozen parts, and slower stages."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from imgcls_search.errors import BuildError
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.models.heads import dropout_before
from imgcls_search.training.recipe import Finetune

Hold = Callable[[nn.Module, int], None]
"""Called with the model, in training mode, and the number of epochs done at the start of each epoch."""


def check_freeze(recipe: Finetune, num_stages: int | None) -> None:
    """Refuse to freeze or to slow stages that a model does not have; `num_stages` is None where it does not tell them.

    Raises:
        BuildError: the model has fewer stages, or does not tell them.
    """
    if recipe.freeze != "none" and num_stages is None:
        raise BuildError("finetune.freeze", "this model does not say what its stages are; allowed: none")
    if recipe.layer_decay < 1 and num_stages is None:
        raise BuildError("finetune.layer_decay", "this model does not say what its stages are; allowed: 1")
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

    A frozen part is in evaluation mode: its running statistics and its dropout rest too. Of a frozen backbone that is
    all but the head, also if stages are given as parameters, and so its features are the same in every epoch.
    """

    def apply(model: nn.Module, epoch: int) -> None:
        is_frozen = recipe.freeze_epochs is None or epoch < recipe.freeze_epochs
        if is_frozen and recipe.freeze == "backbone":
            model.eval()
            head_of(model).train()
        for name in parts:
            owner, _, last = name.rpartition(".")
            part = getattr(model.get_submodule(owner), last)
            part.requires_grad_(not is_frozen)
            if is_frozen and isinstance(part, nn.Module):
                part.eval()

    return apply


def hold_nothing(model: nn.Module, epoch: int) -> None:
    """Freeze nothing."""


def head_of(model: nn.Module) -> nn.Sequential:
    """Return what reads a model's features: the dropout that stands before its head, if one does, and the head."""
    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy), "only models that tell their head have a frozen backbone"
    before, head = dropout_before(model), model.get_submodule(anatomy.head)
    return nn.Sequential(head) if before is None else nn.Sequential(before, head)


def slow_backbone(optimizer: Optimizer, model: nn.Module, anatomy: Anatomy, recipe: Finetune) -> None:
    """Split an optimizer's groups, so that everything but the head learns at a fraction of the rate.

    That is `backbone_lr_factor`, and with `layer_decay` less from stage to stage, from the head to the image, as in
    BEiT (Bao et al. 2021): the last of n stages learns at layer_decay times it, the first at layer_decay^n.
    """
    factors = _factors(model, anatomy, recipe)
    in_head = {id(parameter) for parameter in model.get_submodule(anatomy.head).parameters()}
    groups = []
    for group in optimizer.param_groups:
        # The head in a group of its own, and first, as checkpoints of earlier versions have it.
        shares: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            shares.setdefault((id(parameter) not in in_head, -factors[id(parameter)]), []).append(parameter)
        groups += [
            {**group, "params": several, "lr": group["lr"] * -factor} for (_, factor), several in sorted(shares.items())
        ]
    optimizer.param_groups = groups


def _factors(model: nn.Module, anatomy: Anatomy, recipe: Finetune) -> dict[int, float]:
    """Return the fraction of the learning rate of each parameter, by its identity."""
    count = len(anatomy.stages)
    prefixes = {name: stage for stage, names in enumerate(anatomy.stages) for name in names}
    found = {}
    for name, parameter in model.named_parameters():
        if name.startswith(f"{anatomy.head}."):
            found[id(parameter)] = 1.0
            continue
        parts = name.split(".")
        ways = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        # What belongs to no stage is as far from the head as the image.
        stage = next((prefixes[way] for way in ways if way in prefixes), 0)
        found[id(parameter)] = recipe.backbone_lr_factor * recipe.layer_decay ** (count - stage)
    return found
