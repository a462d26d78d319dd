"""Several networks as one, with the mean of their probabilities as output, as logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Part:
    """A network of an ensemble."""

    network: nn.Module
    share: float
    """Its weight in the mean."""

    temperatures: Sequence[float]
    """Divisors of its logits: one number, or one for each of several labels."""

    mean: Sequence[float]
    """The mean of its own normalisation, per channel."""

    std: Sequence[float]


class Ensemble(nn.Module):
    """The weighted mean of the probabilities of several networks (Caruana et al. 2004), as logits.

    Their softmax, or their sigmoid with `several` labels per image, is that mean.
    """

    def __init__(self, parts: Sequence[Part], *, mean: Sequence[float], std: Sequence[float], several: bool) -> None:
        """`mean` and `std` are those that the inputs were normalised with."""
        super().__init__()
        self.members = nn.ModuleList([part.network for part in parts])
        self.several = several
        self.log_shares = [float(torch.tensor(part.share, dtype=torch.float64).log()) for part in parts]
        self.renormalises = [(tuple(part.mean), tuple(part.std)) != (tuple(mean), tuple(std)) for part in parts]
        seen = torch.tensor(list(mean)).view(1, -1, 1, 1), torch.tensor(list(std)).view(1, -1, 1, 1)
        for number, part in enumerate(parts):
            own = torch.tensor(list(part.mean)).view(1, -1, 1, 1), torch.tensor(list(part.std)).view(1, -1, 1, 1)
            buffers = {
                "scale": seen[1] / own[1],
                "shift": (seen[0] - own[0]) / own[1],
                "temperature": torch.tensor(list(part.temperatures)),
            }
            # Not persistent: they follow from the metadata saved with the weights.
            for name, values in buffers.items():
                self.register_buffer(f"{name}_{number}", values, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [N, classes] of normalised images [N, C, H, W]."""
        each = [self._logits(number, inputs) for number in range(len(self.members))]
        if not self.several:
            return self._mean([functional.log_softmax(logits, dim=1) for logits in each])
        has = self._mean([functional.logsigmoid(logits) for logits in each])
        has_not = self._mean([functional.logsigmoid(-logits) for logits in each])
        return has - has_not

    def _logits(self, number: int, inputs: Tensor) -> Tensor:
        if self.renormalises[number]:
            inputs = inputs * self.get_buffer(f"scale_{number}") + self.get_buffer(f"shift_{number}")
        logits: Tensor = self.members[number](inputs).float() / self.get_buffer(f"temperature_{number}")
        return logits

    def _mean(self, logs: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the weighted mean, from logarithms."""
        weighted = [log + share for log, share in zip(logs, self.log_shares, strict=True)]
        return torch.logsumexp(torch.stack(weighted), dim=0)
