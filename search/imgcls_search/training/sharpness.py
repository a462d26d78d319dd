"""Sharpness-aware minimization (Foret et al. 2020): each step uses the gradient where the loss is highest nearby.

SAM minimizes max over |e| <= rho of L(w + e). A first pass computes the gradient g at w, which gives e = rho g / |g|; a
second pass computes the gradient at w + e, with which the base optimizer takes its step from w.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import Optimizer


class Climbing(Optimizer):
    """An optimizer that needs a second pass at another point in each step."""

    rho: float

    @contextmanager
    def climbed(self) -> Iterator[None]:
        """Move the weights along their gradients to where the loss is highest, clear the gradients, and move back at
        the end."""
        moved = self._climb()
        self.zero_grad(set_to_none=True)
        yield
        with torch.no_grad():
            for parameter, before in moved:
                # Restore a copy: subtracting the step would round.
                parameter.copy_(before)

    @torch.no_grad()
    def _climb(self) -> list[tuple[Tensor, Tensor]]:
        having = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in having])))
        # The small number avoids a division by zero.
        scale = self.rho / (norm + 1e-12)
        moved = [(p, p.detach().clone(memory_format=torch.preserve_format)) for p in having]
        for parameter in having:
            parameter.add_(parameter.grad * scale)
        return moved


class SamSGD(Climbing, SGD):
    """SAM around stochastic gradient descent."""

    def __init__(self, params: Any, *, rho: float, **given: Any) -> None:
        """Pass `given` to the base optimizer."""
        super().__init__(params, **given)
        self.rho = rho


class SamAdamW(Climbing, AdamW):
    """SAM around AdamW."""

    def __init__(self, params: Any, *, rho: float, **given: Any) -> None:
        """Pass `given` to the base optimizer."""
        super().__init__(params, **given)
        self.rho = rho


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged, because the second pass uses other weights."""
    layers = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    before = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked = layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, momentum, count in before:
            layer.momentum, layer.num_batches_tracked = momentum, count
