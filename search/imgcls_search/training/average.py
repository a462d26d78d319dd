"""The average of a model's weights over its training: of all steps (Polyak), or of its last epochs (SWA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

Blend = Callable[[Any, Any, Any], None]
"""Moves averaged tensors towards current ones, as the number that is averaged already says."""


def exponential(decay: float) -> Blend:
    """Return what keeps a share `decay` of the average in each update."""
    found: Blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return found


def equal() -> Blend:
    """Return what gives each update an equal share (Izmailov et al. 2018)."""
    found: Blend = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
    return found


class Average:
    """Follows a model's weights and running statistics.

    Like torch's AveragedModel, whose every update copies a number to the GPU and waits for it.
    """

    def __init__(self, model: nn.Module, blend: Blend) -> None:
        """The average starts at the weights of the first update."""
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0
        self._blend = blend

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step towards the model: what is no fraction, such as a count of batches, is taken over."""
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
    """Compute the running statistics of averaged weights again, as equal means over the batches of `pass_through`.

    Statistics of one set of weights do not fit the mean of several. Each layer is in the mode that it has in `model`:
    what is frozen there keeps its statistics. Like torch's `update_bn`, which trains all layers.
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
        # A mean over all batches.
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
