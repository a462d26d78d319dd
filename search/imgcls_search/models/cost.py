"""The cost of a model, counted on the meta device, which stores shapes and no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from imgcls_search.image_size import ImageSize, sides
from imgcls_search.models.anatomy import Anatomy

BATCH = 2
"""Images in the counted step: batch normalisation cannot train on a single one."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts that do not depend on the training."""

    params: int
    macs: int
    """Multiply-accumulates of convolutions, matrix products and attention, for one image."""

    largest_activation: int
    """Elements of the largest tensor for one image."""

    saved_bytes: int
    """Bytes that the forward pass keeps for the backward pass, for one image in 32-bit arithmetic."""

    buffer_bytes: int
    """Bytes of running statistics and other buffers."""

    num_stages: int | None
    """Number of stages in the model's anatomy, None without anatomy."""


def count(model: nn.Module, *, channels: int, image_size: ImageSize) -> Cost:
    """Return the cost of a model on the meta device, from the forward pass of one training step.

    MACs are half of the operations by torch's own formulas; torch's flop counter also sums by module, which is slower.
    """
    weights = [*model.parameters(), *model.buffers()]
    images = torch.empty(BATCH, channels, *sides(image_size), device="meta")
    seen = _SeenTensors([*weights, images])
    anatomy = getattr(model, "anatomy", None)
    with seen, _fused_attention(), torch.autograd.graph.saved_tensors_hooks(seen.keep, lambda kept: kept):
        model.train()(images)
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=seen.flops // 2 // BATCH,
        largest_activation=seen.largest // BATCH,
        saved_bytes=sum(seen.saved.values()) // BATCH,
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        num_stages=len(anatomy.stages) if isinstance(anatomy, Anatomy) else None,
    )


def peak_bytes(cost: Cost, *, pixels: int, batch_size: int, optimizer_states: int, averages: bool) -> int:
    """Return an estimate of the peak memory of training, in 32-bit arithmetic, in bytes.

    It counts weights, gradients, optimizer states and averaged weights (if any); and per image of a batch the input,
    everything saved for the backward pass, and the largest activation with its gradient.
    """
    weights = 4 * cost.params * (2 + optimizer_states + averages) + cost.buffer_bytes * (1 + averages)
    return weights + batch_size * (4 * pixels + cost.saved_bytes + 2 * 4 * cost.largest_activation)


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Use fused attention, as on processors and GPUs; the meta device would allocate a matrix of all pairs.

    torch's own modes do not reach into `nn.MultiheadAttention`, so this replaces the function itself.
    """
    plain = functional.scaled_dot_product_attention

    def fused(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **more: Any) -> Any:
        if attn_mask is not None or query.dim() != 4:
            return plain(query, key, value, attn_mask, *rest, **more)
        return _ATTENTION(query, key, value)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
    """Return the operations of both matrix products, of shapes [..., T, D] and [..., S, D]."""
    *outer, length, width = query
    return 2 * int(math.prod(outer)) * int(length) * int(key[-2]) * int(width + value[-1])


_FLOPS = {**flop_registry, _ATTENTION: shape_wrapper(_attention_flops)}  # type: ignore[no-untyped-call]


def _batch_norm(images: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(images), images.new_empty(images.shape[1]), images.new_empty(images.shape[1])


def _layer_norm(inputs: Tensor, normalised: Sequence[int], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    ones = [1] * len(normalised)
    outer = [*inputs.shape[: inputs.dim() - len(ones)], *ones]
    return torch.empty_like(inputs), inputs.new_empty(outer), inputs.new_empty(outer)


def _alike(inputs: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(inputs)


def _in_place(inputs: Tensor, *rest: Any) -> Tensor:
    return inputs


_aten = torch.ops.aten

_SHAPES: Mapping[Any, Callable[..., Any]] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    **dict.fromkeys(
        (_aten.gelu.default, _aten.hardsigmoid.default, _aten.hardswish.default, _aten.hardtanh.default), _alike
    ),
    **dict.fromkeys((_aten.hardswish_.default, _aten.hardtanh_.default), _in_place),
}
"""The results of operations, by shape only: torch computes these by a dozen operations in Python each, which took most
of the time of a count."""


class _SeenTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inspects every tensor that an operation creates or saves."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0
        self.flops = 0
        self.given = {_storage(tensor) for tensor in given}
        self.saved: dict[int, int] = {}
        """Bytes of each storage kept for the backward pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Batch normalisation with fixed statistics returns none.
        shapes = None if func is _aten.native_batch_norm.default and not args[5] else _SHAPES.get(func)
        result = func(*args, **(kwargs or {})) if shapes is None else shapes(*args)
        if func.overloadpacket in _FLOPS:
            self.flops += _FLOPS[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in self.given:
                self.largest = max(self.largest, tensor.numel())
        return result

    def keep(self, tensor: Tensor) -> Tensor:
        # Layers share saved storage, for example a normalisation's output and the in-place activation after it.
        if _storage(tensor) not in self.given:
            self.saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


def _storage(tensor: Tensor) -> int:
    identity: int = tensor.untyped_storage()._cdata
    return identity


def images_within(most_macs: float, macs_each: float, *, least: int) -> int:
    """Return how many images fit into a budget of multiply-accumulates; at least `least`."""
    return max(least, int(most_macs / max(1.0, macs_each)))
