"""Loss functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from imgcls_search.config import Component
from imgcls_search.errors import BuildError
from imgcls_search.signature import Arg, build

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits [N, classes] and targets -> the mean loss, a scalar.

Targets are class numbers [N], or shares of classes [N, classes]; shares with one whole class give the same loss.
"""


class Weighted:
    """A loss that averages over the class weights of its images, not over their number."""

    def __init__(self, loss: Loss, weights: _Weights) -> None:
        self.loss, self.weights = loss, weights

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss."""
        return self.loss(logits, targets)

    def mass(self, targets: Tensor) -> Tensor:
        """Return the total weight of the images."""
        weight = self.weights.on(targets)
        assert weight is not None, "only where classes weigh differently"
        return (targets @ weight).sum() if targets.is_floating_point() else weight[targets].sum()


def mass_of(loss: Loss, targets: Tensor) -> Tensor | float:
    """Return the denominator of a mean loss: the number of images, or the sum of their class weights."""
    return loss.mass(targets) if isinstance(loss, Weighted) else float(len(targets))


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

    return loss if weights.values is None else Weighted(loss, weights)


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
        # Compute the loss of every class as if it were the target, then average by shares.
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
        # Divide by the sum of the weights, as torch does for cross-entropy, not by the number of images.
        return (discounted * weight[targets]).sum() / weight[targets].sum()

    return loss if weights.values is None else Weighted(loss, weights)


def binary_cross_entropy(
    *,
    class_counts: Sequence[int],
    classes: Sequence[str] = (),
    images: int,
    label_smoothing: Annotated[
        float, Arg("share of each label's target, 0 or 1, that is moved to one half", ge=0, lt=1)
    ] = 0.0,
    pos_weight: Annotated[
        Literal["none", "balanced"],
        Arg("balanced: images with a label weigh as much as those without it, (images - its images) / its images"),
    ] = "none",
) -> Loss:
    """Build binary cross-entropy, for several labels of an image: the mean over labels."""
    from torch.nn import functional

    weights = _Weights.of(weights_of_labels(class_counts, images) if pos_weight != "none" else None)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.float() * (1 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weights.on(logits))

    return loss


def asymmetric(
    *,
    class_counts: Sequence[int],
    classes: Sequence[str] = (),
    images: int,
    gamma_negative: Annotated[
        float, Arg("how much labels that an image does not have are discounted where that is easy", ge=0)
    ] = 4.0,
    gamma_positive: Annotated[float, Arg("the same of labels that an image has", ge=0)] = 1.0,
    margin: Annotated[
        float, Arg("probability that is taken off labels that an image does not have; below it they cost 0", ge=0, lt=1)
    ] = 0.05,
) -> Loss:
    """Build the asymmetric loss for several labels of an image (Ridnik et al. 2021, eq. 7): the mean over labels."""
    from torch.nn import functional

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits, wanted = logits.float(), targets.float()
        shifted = (logits.sigmoid() - margin).clamp(min=0)
        positive = _power((-logits).sigmoid(), gamma_positive) * functional.logsigmoid(logits)
        # log(1 - p) from logits if there is no margin: in single precision, 1 - p rounds to 0 early.
        without = functional.logsigmoid(-logits) if not margin else (1 - shifted).log()
        negative = _power(shifted, gamma_negative) * without
        return -(wanted * positive + (1 - wanted) * negative).mean()

    return loss


def sigmoid_focal(
    *,
    class_counts: Sequence[int],
    classes: Sequence[str] = (),
    images: int,
    gamma: Annotated[float, Arg("how much easy labels are discounted; 0 is binary cross-entropy", ge=0)] = 2.0,
    alpha: Annotated[
        float | None,
        Arg("weight of labels that an image has; the others weigh 1 - alpha; null: both weigh 1", ge=0, le=1),
    ] = 0.25,
) -> Loss:
    """Build the focal loss for several labels of an image (Lin et al. 2017, eq. 5): the mean over labels."""
    from torch.nn import functional

    has, lacks = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits, wanted = logits.float(), targets.float()
        positive = has * _power((-logits).sigmoid(), gamma) * functional.logsigmoid(logits)
        negative = lacks * _power(logits.sigmoid(), gamma) * functional.logsigmoid(-logits)
        return -(wanted * positive + (1 - wanted) * negative).mean()

    return loss


def _power(shares: Tensor, exponent: float) -> Tensor:
    # The slope of x^0.5 at 0 is infinite, and 0 times infinity is NaN.
    return shares.clamp(min=1e-8) ** exponent if exponent else shares.new_ones(())


LOSSES: Mapping[str, Callable[..., Loss]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "binary_cross_entropy": binary_cross_entropy,
    "asymmetric": asymmetric,
    "sigmoid_focal": sigmoid_focal,
}
"""Builders take the images per class of the training split as `class_counts`, and the names as `classes`; builders in
`SEVERAL` also take the number of all `images`."""

SEVERAL = ("binary_cross_entropy", "asymmetric", "sigmoid_focal")
"""Losses for several labels per image; targets are labels, 0 or 1 [N, labels], or shares of them.

For a share s the loss is s times the cost of having the label, plus 1 - s times the cost of lacking it.
"""


def build_loss(component: Component, *, class_counts: Sequence[int], images: int, classes: Sequence[str] = ()) -> Loss:
    """Build the loss of a configuration, for a training split of `images` images.

    Raises:
        BuildError: the loss refuses an argument.
    """
    supplied = {"images": images} if component.name in SEVERAL else {}
    loss: Loss = build(LOSSES, component, class_counts=class_counts, classes=classes, **supplied)
    return loss


def weights_of_classes(
    kind: str | Mapping[str, float], class_counts: Sequence[int], classes: Sequence[str]
) -> list[float] | None:
    """Return one weight per class according to `class_weights`; None if all are equal.

    Raises:
        BuildError: it names a class that does not exist.
    """
    if isinstance(kind, Mapping):
        if classes and (strange := kind.keys() - set(classes)):
            raise BuildError("class_weights", f"there is no class {min(strange)!r}")
        return [kind.get(name, 1.0) for name in classes]
    if kind == "balanced":
        # A part of the images, such as a fold, may lack a class.
        return [sum(class_counts) / (len(class_counts) * max(images, 1)) for images in class_counts]
    return None


def weights_of_labels(class_counts: Sequence[int], images: int) -> list[float]:
    """Return a weight per label that balances the images that have it against those that lack it."""
    return [(images - count) / max(count, 1) for count in class_counts]


class _Weights:
    """Class weights [classes], moved to the logits' device once."""

    def __init__(self, class_counts: Sequence[int], classes: Sequence[str], kind: str | Mapping[str, float]) -> None:
        self.values = weights_of_classes(kind, class_counts, classes)
        self.tensor: Tensor | None = None

    @classmethod
    def of(cls, values: list[float] | None) -> _Weights:
        found = cls((), (), "none")
        found.values = values
        return found

    def on(self, logits: Tensor) -> Tensor | None:
        import torch

        if self.values is not None and (self.tensor is None or self.tensor.device != logits.device):
            self.tensor = torch.tensor(self.values, device=logits.device)
        return self.tensor
