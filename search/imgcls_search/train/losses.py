"""Loss functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from imgcls_search.errors import BuildError
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits [N, classes] and targets -> the mean loss, a scalar.

Targets are class numbers [N], or shares of classes [N, classes], of which those with one whole class give the same.
"""

ClassWeights = Annotated[
    Literal["none", "balanced"] | Mapping[str, float],
    Arg(
        "balanced: each class weighs images / (classes x its images), as in scikit-learn; or numbers by class, 1 for "
        "one that is not named",
        gt=0,
    ),
]


def cross_entropy(
    *,
    class_counts: Sequence[int],
    classes: Sequence[str] = (),
    label_smoothing: Annotated[float, Arg("share of the target spread over all classes", ge=0, lt=1)] = 0.0,
    class_weights: ClassWeights = "none",
) -> Loss:
    """Build cross-entropy with label smoothing (Szegedy et al. 2015) and class weights."""
    from torch.nn import functional

    weights = _Weights(class_counts, classes, class_weights)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        weight = weights.on(logits)
        found = functional.cross_entropy(logits.float(), targets, weight=weight, label_smoothing=label_smoothing)
        if weight is None or not targets.is_floating_point():
            return found
        # Torch divides by the sum of the weights for class numbers, but by the number of images for shares.
        return found * len(targets) / (targets @ weight).sum()

    return loss


def focal(
    *,
    class_counts: Sequence[int],
    classes: Sequence[str] = (),
    gamma: Annotated[float, Arg("how much easy images are discounted; 0 is cross-entropy", ge=0)] = 2.0,
    class_weights: ClassWeights = "none",
) -> Loss:
    """Build the focal loss for several classes: (1 - p)^gamma times the cross-entropy (Lin et al. 2017, eq. 4)."""
    from torch.nn import functional

    weights = _Weights(class_counts, classes, class_weights)

    def loss_of_shares(logits: Tensor, shares: Tensor) -> Tensor:
        # The loss of every class as if it were the target, then the mean by shares.
        logs = functional.log_softmax(logits.float(), dim=1)
        weight = weights.on(logits)
        weighted = shares if weight is None else shares * weight
        return -((1 - logs.exp()) ** gamma * logs * weighted).sum() / weighted.sum()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return loss_of_shares(logits, targets)
        entropy = functional.cross_entropy(logits.float(), targets, reduction="none")
        discounted = (1 - (-entropy).exp()) ** gamma * entropy
        weight = weights.on(logits)
        if weight is None:
            return discounted.mean()
        # Weighted as torch weighs cross-entropy: by the sum of the weights, not by the number of images.
        return (discounted * weight[targets]).sum() / weight[targets].sum()

    return loss


LOSSES: Mapping[str, Callable[..., Loss]] = {"cross_entropy": cross_entropy, "focal": focal}
"""Builders take the images per class of the training split as `class_counts`, and the names as `classes`."""


class _Weights:
    """Class weights [classes], moved to the logits' device once."""

    def __init__(self, class_counts: Sequence[int], classes: Sequence[str], kind: str | Mapping[str, float]) -> None:
        total, count = sum(class_counts), len(class_counts)
        self.values: list[float] | None = None
        if isinstance(kind, Mapping):
            if classes and (strange := kind.keys() - set(classes)):
                raise BuildError("class_weights", f"there is no class {min(strange)!r}")
            self.values = [kind.get(name, 1.0) for name in classes]
        elif kind == "balanced":
            self.values = [total / (count * images) for images in class_counts]
        self.tensor: Tensor | None = None

    def on(self, logits: Tensor) -> Tensor | None:
        import torch

        if self.values is not None and (self.tensor is None or self.tensor.device != logits.device):
            self.tensor = torch.tensor(self.values, device=logits.device)
        return self.tensor
