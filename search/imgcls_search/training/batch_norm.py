"""Synchronized batch normalisation over all devices of a group, forward and backward, on any kind of device.

torch's SyncBatchNorm refuses CPU tensors and replaces a network's layers. Here the layers stay: a context replaces
their computation, so that weights files, averages, pruning and export are not affected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Add = Callable[[Tensor], Tensor]
"""Replaces values in place by their sum over all devices, and returns them."""


class Normalised(TorchFunctionMode):
    """A context in which layers in training mode normalise by the mean and variance over all devices."""

    def __init__(self, add: Add, own: int, whole: int) -> None:
        """This device has `own` of a batch's `whole` images; all devices must compute the same layers in the same
        order."""
        super().__init__()
        self.add, self.own, self.whole = add, own, whole

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace batch normalisation, and pass on everything else."""
        if func is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        inputs: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
        # Computed locally: exchanging the count would make the host wait for the GPU.
        count = inputs.numel() // inputs.shape[1] * self.whole // self.own
        mean, var = self._moments(inputs.detach(), count)
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {inputs.shape}")
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
                running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))
        found: Tensor = _Normalise.apply(inputs, weight, bias, mean, var, eps, count, self.add)
        return found

    def _moments(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance [C] over all devices, with `count` values per channel in total."""
        kind = _exact(inputs)
        var, mean = torch.var_mean(inputs.to(kind), _axes(inputs), correction=0)
        mean, var = mean.double(), var.double()
        share = inputs.numel() // inputs.shape[1] / count
        # Combine means and variances, because a difference of squares loses digits.
        middle = self.add(mean * share)
        spread = self.add((var + (mean - middle) ** 2) * share)
        return middle.to(kind), spread.to(kind)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance of x over all devices.

    With n values per channel, z = (x - mean) / sqrt(var + eps), and sums over all devices: dx = weight / sqrt(var +
    eps) * (dy - sum(dy) / n - z * sum(dy * z) / n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        count: int,
        add: Add,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, mean, (var + eps).rsqrt())
        ctx.count, ctx.add, ctx.has_bias = count, add, bias is not None
        return functional.batch_norm(inputs, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs, weight, mean, scale = ctx.saved_tensors
        shape = (1, -1, *(1,) * (inputs.ndim - 2))
        axes = _axes(inputs)
        kind = _exact(inputs)
        change = gradients[0].to(kind)
        scaled = (inputs.to(kind) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([change.sum(axes), (change * scaled).sum(axes)])
        of_weight = own[1].to(weight.dtype) if weight is not None else None
        of_bias = own[0].to(inputs.dtype if weight is None else weight.dtype) if ctx.has_bias else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, *(None,) * 5
        shared = ctx.add(own.clone()) / ctx.count
        factor = scale if weight is None else scale * weight.to(kind)
        back = (change - shared[0].view(shape) - scaled * shared[1].view(shape)) * factor.view(shape)
        return back.to(inputs.dtype), of_weight, of_bias, *(None,) * 5


def _exact(inputs: Tensor) -> torch.dtype:
    """Return a dtype for sums, at least single precision."""
    return torch.promote_types(inputs.dtype, torch.float32)


def _axes(inputs: Tensor) -> list[int]:
    return [axis for axis in range(inputs.ndim) if axis != 1]
