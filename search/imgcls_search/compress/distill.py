"""Distillation: a loss that mixes labels with a teacher's predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Teaching:
    """Adds a teacher's predictions for the same images to a loss (Hinton, Vinyals and Dean 2015, section 2).

    (1 - alpha) * loss + alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)); T^2 keeps the size of the
    gradients as the temperature T changes. The teacher sees the same augmented, mixed images as the student. With
    several labels per image, KL is the mean over labels of the binary divergence between the networks' probabilities
    sigmoid(. / T).
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float,
        alpha: float,
        seen_as: tuple[Sequence[float], Sequence[float]],
        taught_as: tuple[Sequence[float], Sequence[float]],
        device: str,
        several: bool = False,
    ) -> None:
        """`seen_as`, `taught_as`: mean and deviation per channel in the normalisation of student and teacher."""
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.temperature = temperature
        self.alpha = alpha
        self.several = several
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(list(values), device=device).view(1, -1, 1, 1) for values in pair]
            for pair in (seen_as, taught_as)
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def __call__(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """Return the loss with the teacher's part, from the student's logits [N, classes] for the inputs."""
        with torch.no_grad():
            taught = self.teacher(inputs * self.scale + self.shift).float()
        soft = self._divergence(logits.float() / self.temperature, taught / self.temperature)
        return (1 - self.alpha) * loss + self.alpha * self.temperature**2 * soft

    def _divergence(self, logits: Tensor, taught: Tensor) -> Tensor:
        if self.several:
            shares = taught.sigmoid()
            own = functional.binary_cross_entropy_with_logits(taught, shares)
            return functional.binary_cross_entropy_with_logits(logits, shares) - own
        return functional.kl_div(
            functional.log_softmax(logits, dim=1),
            functional.log_softmax(taught, dim=1),
            reduction="batchmean",
            log_target=True,
        )
