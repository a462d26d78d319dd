"""Fine-tuning of pretrained weights: frozen parts, and lower learning rates per stage."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from imgcls_search.errors import BuildError
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.models.heads import dropout_before
from imgcls_search.training.recipe import Finetune

Hold = Callable[[nn.Module, int], None]
"""Called at the start of each epoch with the model, in training mode, and the number of epochs done."""


def check_freeze(recipe: Finetune, num_stages: int | None) -> None:
    """Refuse to freeze or slow down stages that a model lacks; `num_stages` is None if the model declares none.

    Raises:
        BuildError: the model has fewer stages, or declares none.
    """
    if recipe.freeze != "none" and num_stages is None:
        raise BuildError("finetune.freeze", "this model does not say what its stages are; allowed: none")
    if recipe.layer_decay < 1 and num_stages is None:
        raise BuildError("finetune.layer_decay", "this model does not say what its stages are; allowed: 1")
    if isinstance(recipe.freeze, int) and num_stages is not None and recipe.freeze > num_stages:
        message = f"{recipe.freeze} stages, but the model has {num_stages}; allowed: 1 to {num_stages}"
        raise BuildError("finetune.freeze", message)


def frozen_parts(anatomy: Anatomy, recipe: Finetune) -> tuple[str, ...]:
    """Return the names of the modules and parameters that start frozen."""
    if recipe.freeze == "none":
        return ()
    stages = len(anatomy.stages)
    count = (
        recipe.freeze if isinstance(recipe.freeze, int) else {"half": stages // 2, "backbone": stages}[recipe.freeze]
    )
    return tuple(name for stage in anatomy.stages[:count] for name in stage)


def hold(parts: tuple[str, ...], recipe: Finetune) -> Hold:
    """Return a function that freezes parts of a model for as long as the recipe says.

    Modules with only frozen parameters are in evaluation mode: their running statistics and dropout are off too. With a
    frozen backbone this covers everything but the head, so its features are the same in every epoch.
    """

    def apply(model: nn.Module, epoch: int) -> None:
        is_frozen = recipe.freeze_epochs is None or epoch < recipe.freeze_epochs
        if is_frozen and recipe.freeze == "backbone":
            model.eval()
            head_of(model).train()
        for name in parts:
            owner, _, last = name.rpartition(".")
            getattr(model.get_submodule(owner), last).requires_grad_(not is_frozen)
        if is_frozen:
            # A stage may be a list of parameters, whose modules have to be found.
            for module in model.modules():
                known = list(module.parameters())
                if known and not any(parameter.requires_grad for parameter in known):
                    module.eval()

    return apply


def hold_nothing(model: nn.Module, epoch: int) -> None:
    """Freeze nothing."""


def head_of(model: nn.Module) -> nn.Sequential:
    """Return the layers after a model's features: the dropout before the head, if there is one, and the head."""
    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy), "only models that tell their head have a frozen backbone"
    before, head = dropout_before(model), model.get_submodule(anatomy.head)
    return nn.Sequential(head) if before is None else nn.Sequential(before, head)


def slow_backbone(optimizer: Optimizer, model: nn.Module, anatomy: Anatomy, recipe: Finetune) -> None:
    """Split an optimizer's groups so that everything but the head learns at a lower rate.

    The factor is `backbone_lr_factor`; with `layer_decay` it falls stage by stage from the head to the image, as in
    BEiT (Bao et al. 2021): the last of n stages is multiplied by layer_decay, the first by layer_decay^n.
    """
    factors = _factors(model, anatomy, recipe)
    in_head = {id(parameter) for parameter in model.get_submodule(anatomy.head).parameters()}
    groups = []
    for group in optimizer.param_groups:
        # The head is a separate group, and the first, as in checkpoints of earlier versions.
        shares: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            shares.setdefault((id(parameter) not in in_head, -factors[id(parameter)]), []).append(parameter)
        groups += [
            {**group, "params": several, "lr": group["lr"] * -factor} for (_, factor), several in sorted(shares.items())
        ]
    optimizer.param_groups = groups


def _factors(model: nn.Module, anatomy: Anatomy, recipe: Finetune) -> dict[int, float]:
    """Return the learning rate factor of each parameter, by its id."""
    count = len(anatomy.stages)
    prefixes = {name: stage for stage, names in enumerate(anatomy.stages) for name in names}
    found = {}
    for name, parameter in model.named_parameters():
        if name.startswith(f"{anatomy.head}."):
            found[id(parameter)] = 1.0
            continue
        parts = name.split(".")
        ways = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        # Parameters outside all stages count as farthest from the head.
        stage = next((prefixes[way] for way in ways if way in prefixes), 0)
        found[id(parameter)] = recipe.backbone_lr_factor * recipe.layer_decay ** (count - stage)
    return found
