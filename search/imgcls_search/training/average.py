"""The exponential average of a model's weights over its training (Polyak averaging)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Follows a model's weights and running statistics.

    Like torch's AveragedModel, whose every update copies a number to the GPU and waits for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """The average starts at the weights after the first step."""
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.steps = 0
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step towards the model: what is no fraction, such as a count of batches, is taken over."""
        ours, theirs = _tensors(self.module), _tensors(model)
        fractions = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        if self.steps > 0:
            self._blend([a for a, _ in fractions], [b for _, b in fractions], None)
        for a, b in zip(ours, theirs, strict=True):
            if self.steps == 0 or not a.is_floating_point():
                a.copy_(b)
        self.steps += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
