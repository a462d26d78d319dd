"""The average of a model's weights during training: over all steps (Polyak), or over the last epochs (SWA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

Blend = Callable[[Any, Any, Any], None]
"""Moves averaged tensors towards the current ones; the third argument is the number of updates so far."""


def exponential(decay: float) -> Blend:
    """Return an update that keeps a share `decay` of the average."""
    found: Blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return found


def equal() -> Blend:
    """Return an update that weighs all updates equally (Izmailov et al. 2018)."""
    found: Blend = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
    return found


class Average:
    """The average of a model's weights and running statistics.

    Like torch's AveragedModel, but without its copy of a number to the GPU, and the wait for it, in every update.
    """

    def __init__(self, model: nn.Module, blend: Blend) -> None:
        """Start the average at the weights of the first update."""
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0
        self._blend = blend

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights; copy values that are not floating point, such as batch counts."""
        ours, theirs = _tensors(self.module), _tensors(model)
        fractions = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        if self.steps > 0:
            self._blend([a for a, _ in fractions], [b for _, b in fractions], self.steps)
        for a, b in zip(ours, theirs, strict=True):
            if self.steps == 0 or not a.is_floating_point():
                a.copy_(b)
        self.steps += 1


@torch.no_grad()
def renew_statistics(average: nn.Module, model: nn.Module, pass_through: Callable[[], Iterable[object]]) -> None:
    """Recompute the running statistics of averaged weights, as equal means over the batches of `pass_through`.

    Statistics of one set of weights do not fit the mean of several. Each layer gets the mode that it has in `model`:
    frozen layers keep their statistics. Torch's `update_bn` trains all layers instead.
    """
    learning = [
        layer
        for layer, twin in zip(average.modules(), model.modules(), strict=True)
        if isinstance(layer, _BatchNorm) and twin.training and layer.track_running_stats
    ]
    if not learning:
        return
    momenta = [layer.momentum for layer in learning]
    for layer, twin in zip(average.modules(), model.modules(), strict=True):
        layer.training = twin.training
    for layer in learning:
        layer.reset_running_stats()
        # None: a mean over all batches.
        layer.momentum = None
    try:
        for _ in pass_through():
            pass
    finally:
        for layer, momentum in zip(learning, momenta, strict=True):
            layer.momentum = momentum
        average.eval()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
