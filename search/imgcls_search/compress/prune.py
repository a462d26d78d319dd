"""Pruning: small weights set to zero, or whole channels, heads and hidden features removed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgcls_search.compress.attention import SlimAttention, slim_attentions
from imgcls_search.errors import BuildError, one_line
from imgcls_search.image_size import ImageSize, sides
from imgcls_search.models.anatomy import Anatomy

Shapes = dict[str, dict[str, Any]]
"""Differences from the network that the builder makes, by module: numbers of channels and similar attributes."""

Kind = Literal["unstructured", "structured"]

_NUMBERS = ("in_channels", "out_channels", "in_features", "out_features", "num_features", "groups", "num_heads")
_LISTS = ("normalized_shape",)


def prune(model: nn.Module, kind: Kind, amount: float, *, channels: int, image_size: ImageSize) -> Shapes:
    """Prune a model in place; return its changed shapes.

    Raises:
        BuildError: this kind of model does not support removing channels.
    """
    if kind == "unstructured":
        zero_smallest(model, amount)
        return {}
    return shrink(model, amount, channels=channels, image_size=image_size)


def zero_smallest(model: nn.Module, amount: float) -> None:
    """Set the share `amount` of all weights with the smallest absolute values to zero, over all layers together."""
    from torch.nn.utils import prune as pruning

    weights = list(_weights(model))
    pruning.global_unstructured(weights, pruning_method=pruning.L1Unstructured, amount=amount)
    for module, name in weights:
        pruning.remove(module, name)  # type: ignore[no-untyped-call]


def keep_zeros(model: nn.Module) -> Callable[[], None]:
    """Return a function that resets all weights that are zero now; call it after each optimizer step."""
    masks = [(parameter, parameter != 0) for parameter in (getattr(*each) for each in _weights(model))]

    @torch.no_grad()
    def apply() -> None:
        for parameter, mask in masks:
            parameter.mul_(mask)

    return apply


def sparsity(model: nn.Module) -> float:
    """Return the share of zero weights in convolutions, linear layers and attention."""
    weights = [getattr(module, name) for module, name in _weights(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return float(zeros / max(1, sum(weight.numel() for weight in weights)))


def shrink(model: nn.Module, amount: float, *, channels: int, image_size: ImageSize) -> Shapes:
    """Remove the share `amount` of the channels of each layer, those with the smallest L1 norm; the head stays.

    Transformers lose attention heads and hidden features of their MLPs; their token width stays. On the meta device,
    which stores no numbers, the choice is arbitrary: the shapes are the same.

    Raises:
        BuildError: the model consists neither of convolutions nor of torchvision's transformer blocks.
    """
    before = copy.deepcopy(model)
    slim_attentions(before)
    slim_attentions(model)
    attentions = [module for module in model.modules() if isinstance(module, SlimAttention)]
    images = torch.zeros(2, channels, *sides(image_size), device=next(model.parameters()).device)
    mode = model.training
    model.eval()
    if attentions:
        _shrink_transformer(model, amount)
    else:
        _shrink_convolutions(model, amount, images)
    _must_work(model, images)
    model.train(mode)
    return _differences(before, model)


def rebuild(model: nn.Module, shapes: Mapping[str, Mapping[str, Any]], state: Mapping[str, Tensor]) -> None:
    """Give a freshly built model the shapes and weights of a pruned one.

    Raises:
        RuntimeError, KeyError, AttributeError: the shapes or weights belong to another model.
    """
    slim_attentions(model)
    for name, attributes in shapes.items():
        module = model.get_submodule(name)
        for attribute, value in attributes.items():
            if not hasattr(module, attribute):
                raise AttributeError(f"{name} has no {attribute}")
            setattr(module, attribute, tuple(value) if isinstance(value, (list, tuple)) else int(value))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if state[name].shape != tensor.shape:
            owner, _, last = name.rpartition(".")
            fresh = torch.empty_like(state[name])
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(model.get_submodule(owner), last, nn.Parameter(fresh) if is_parameter else fresh)
    model.load_state_dict(dict(state))


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            yield module, "weight"
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield module, "in_proj_weight"


def _shrink_convolutions(model: nn.Module, amount: float, images: Tensor) -> None:
    import torch_pruning

    strange = {type(module).__name__ for module in model.modules() if _is_attention(module)}
    if strange:
        raise _refusal(f"no heads can be taken out of {', '.join(sorted(strange))}")
    importance: Any = torch_pruning.importance.RandomImportance()
    if images.device.type != "meta":
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    try:
        with warnings.catch_warnings():
            # It guesses, correctly, that the scale of a ConvNeXt block belongs to the channels, and warns about it.
            warnings.filterwarnings("ignore", "Unwrapped parameters detected", UserWarning)
            torch_pruning.pruner.BasePruner(
                model, images, importance, pruning_ratio=amount, ignored_layers=[_head(model)]
            ).step()
    except Exception as error:
        reason = one_line(error, 200)
        raise _refusal(reason) from error


def _shrink_transformer(model: nn.Module, amount: float) -> None:
    for module in model.modules():
        if isinstance(module, SlimAttention):
            module.drop_heads(_weakest(module.head_norms(), amount))
        hidden = _hidden_layers(module)
        if hidden is not None:
            first, second = hidden
            norms = first.weight.detach().abs().sum(1) + second.weight.detach().abs().sum(0)
            _drop_features(first, second, _weakest(norms, amount))


def _hidden_layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """Return both layers of torchvision's MLP block in a transformer."""
    from torchvision.ops import MLP

    if not isinstance(module, MLP):
        return None
    first, second = [layer for layer in module if isinstance(layer, nn.Linear)]
    return first, second


def _drop_features(first: nn.Linear, second: nn.Linear, places: list[int]) -> None:
    from torch_pruning import prune_linear_in_channels, prune_linear_out_channels

    prune_linear_out_channels(first, places)
    prune_linear_in_channels(second, places)


def _weakest(norms: Tensor, amount: float) -> list[int]:
    """Return the indices of the smallest norms; at least one index stays out."""
    count = min(int(amount * len(norms)), len(norms) - 1)
    if norms.device.type == "meta":
        return list(range(count))
    return sorted(norms.argsort(stable=True)[:count].tolist())


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or isinstance(getattr(module, "num_heads", None), int)


def _head(model: nn.Module) -> nn.Module:
    anatomy = getattr(model, "anatomy", None)
    if isinstance(anatomy, Anatomy):
        return model.get_submodule(anatomy.head)
    # A family of another package may lack an anatomy: take the last layer as the head.
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise _refusal("it has no layer of channels")
    return layers[-1]


def _must_work(model: nn.Module, images: Tensor) -> None:
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:
        reason = one_line(error, 200)
        raise _refusal(f"the smaller network does not work: {reason}") from error


def _differences(before: nn.Module, after: nn.Module) -> Shapes:
    found: Shapes = {}
    old = dict(before.named_modules())
    for name, module in after.named_modules():
        changed: dict[str, Any] = {}
        for attribute in (*_NUMBERS, *_LISTS):
            value = getattr(module, attribute, None)
            if value is not None and value != getattr(old[name], attribute, None):
                changed[attribute] = list(value) if attribute in _LISTS else int(value)
        if changed:
            found[name] = changed
    return found


def _refusal(reason: str) -> BuildError:
    return BuildError("prune.structured", f"channels cannot be taken out of this model ({reason})")
