"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

LearningRate = Annotated[float, Arg("learning rate at its peak", gt=0, search="{float: [1e-4, 1e-2], log: true}")]
WeightDecay = Annotated[float, Arg("weight decay; not applied to biases and norms", ge=0)]
WarmupEpochs = Annotated[float, Arg("epochs of linear warm-up from zero", ge=0)]


def adamw(
    *,
    model: nn.Module,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.05,
    beta1: Annotated[float, Arg("decay of the gradient's mean", ge=0, lt=1)] = 0.9,
    beta2: Annotated[float, Arg("decay of the gradient's square", ge=0, lt=1)] = 0.999,
) -> Optimizer:
    """Build AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""
    from torch.optim import AdamW

    return AdamW(groups(model, weight_decay), lr=lr, betas=(beta1, beta2), fused=True)


def adam(
    *,
    model: nn.Module,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.0,
    beta1: Annotated[float, Arg("decay of the gradient's mean", ge=0, lt=1)] = 0.9,
    beta2: Annotated[float, Arg("decay of the gradient's square", ge=0, lt=1)] = 0.999,
) -> Optimizer:
    """Build Adam (Kingma and Ba 2014), with weight decay as an L2 penalty."""
    from torch.optim import Adam

    return Adam(groups(model, weight_decay), lr=lr, betas=(beta1, beta2), fused=True)


def sgd(
    *,
    model: nn.Module,
    lr: Annotated[float, Arg("learning rate at its peak", gt=0, search="{float: [0.01, 1.0], log: true}")] = 0.1,
    momentum: Annotated[float, Arg("momentum", ge=0, lt=1)] = 0.9,
    nesterov: Annotated[bool, Arg("look ahead along the momentum; needs momentum above 0")] = False,
    weight_decay: WeightDecay = 5e-4,
) -> Optimizer:
    """Build stochastic gradient descent with momentum.

    Raises:
        BuildError: nesterov without momentum.
    """
    from torch.optim import SGD

    from imgcls_search.errors import BuildError

    if nesterov and momentum == 0:
        raise BuildError("nesterov", "true needs momentum > 0, got momentum 0")
    return SGD(groups(model, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov, fused=True)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adamw": adamw, "adam": adam, "sgd": sgd}
"""Builders take the `model` and return an optimizer over its parameters."""


def cosine(
    *,
    epochs: int,
    warmup_epochs: WarmupEpochs = 0.0,
    final: Annotated[float, Arg("learning rate at the end / at the peak", ge=0, le=1)] = 0.0,
) -> Schedule:
    """Rise to the peak during warm-up, then fall along half a cosine (Loshchilov and Hutter 2016)."""

    def factor(progress: float) -> float:
        done = (progress - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
        return final + (1 - final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return _with_warmup(factor, warmup_epochs)


def constant(*, epochs: int, warmup_epochs: WarmupEpochs = 0.0) -> Schedule:
    """Rise to the peak during warm-up, then stay."""
    return _with_warmup(lambda progress: 1.0, warmup_epochs)


def step(
    *,
    epochs: int,
    warmup_epochs: WarmupEpochs = 0.0,
    gamma: Annotated[float, Arg("factor at each step", gt=0, le=1)] = 0.1,
    steps: Annotated[int, Arg("how many times it falls, evenly over the epochs", ge=1)] = 2,
) -> Schedule:
    """Rise to the peak during warm-up, then fall by a factor at evenly spaced epochs."""
    length = epochs / (steps + 1)
    # The small number keeps an epoch that lands on a boundary, such as 2 x (9 / 3), on its right side.
    return _with_warmup(lambda progress: gamma ** int(progress / length + 1e-9), warmup_epochs)


Schedule = Callable[[float], float]
"""Epochs done (a fraction within an epoch) -> factor on the learning rate."""

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {"cosine": cosine, "constant": constant, "step": step}
"""Builders take the number of `epochs`."""


def _with_warmup(factor: Schedule, warmup_epochs: float) -> Schedule:
    return lambda progress: progress / warmup_epochs if progress < warmup_epochs else factor(progress)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters: matrices and kernels decay, vectors (biases, norms) do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices: Iterable[Any] = [p for p in parameters if p.ndim > 1]
    vectors: Iterable[Any] = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
