"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from imgcls_search.config import TrialConfig

LearningRate = Annotated[float, Arg("learning rate at its peak", gt=0, search="{float: [1e-4, 1e-2], log: true}")]
WeightDecay = Annotated[float, Arg("weight decay; not applied to biases and norms", ge=0)]
MeanDecay = Annotated[float, Arg("decay of the gradient's mean", ge=0, lt=1)]
SquareDecay = Annotated[float, Arg("decay of the gradient's square", ge=0, lt=1)]
WarmupEpochs = Annotated[float, Arg("epochs of linear warm-up from zero", ge=0)]


def adamw(
    *,
    model: nn.Module,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.05,
    beta1: MeanDecay = 0.9,
    beta2: SquareDecay = 0.999,
) -> Optimizer:
    """Build AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""
    from torch.optim import AdamW

    return AdamW(groups(model, weight_decay), lr=lr, betas=(beta1, beta2), fused=True)


def adam(
    *,
    model: nn.Module,
    lr: LearningRate = 1e-3,
    weight_decay: WeightDecay = 0.0,
    beta1: MeanDecay = 0.9,
    beta2: SquareDecay = 0.999,
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


def scaled_sgd(
    *,
    model: nn.Module,
    lr: Annotated[
        float, Arg("length of a step / the gradient, at its peak", gt=0, search="{float: [0.2, 20.0], log: true}")
    ] = 1.0,
    momentum: Annotated[
        float, Arg("Nesterov momentum; does not change the length of steps", ge=0, lt=1, search="{float: [0.6, 0.95]}")
    ] = 0.85,
    weight_decay: Annotated[
        float,
        Arg(
            "share of the weights that a step at the peak removes, independent of learning rate and momentum",
            ge=0,
            lt=1,
            search="{float: [1e-4, 0.02], log: true}",
        ),
    ] = 0.002,
    vector_lr_factor: Annotated[
        float,
        Arg("learning rate of biases and norms / that of the rest", gt=0, search="{choice: [1, 8, 64]}"),
    ] = 1.0,
) -> Optimizer:
    """Build SGD whose rate, momentum and decay can be tuned independently (Page 2018; Jordan 2024).

    Steps along constant gradients become 1 / (1 - momentum) times as long as without momentum; the rate is divided by
    that, and the decay by the rate.
    """
    from torch.optim import SGD

    length = 1 / (1 - momentum)
    several = groups(model, weight_decay / lr)
    for group in several:
        is_vector = all(parameter.ndim <= 1 for parameter in group["params"])
        group["lr"] = lr / length * (vector_lr_factor if is_vector else 1.0)
    return SGD(several, lr=lr / length, momentum=momentum, nesterov=momentum > 0, fused=True)


def muon(
    *,
    model: nn.Module,
    lr: LearningRate = 1e-3,
    momentum: Annotated[float, Arg("decay of the gradient's mean", ge=0, lt=1, search="{float: [0.8, 0.98]}")] = 0.95,
    weight_decay: WeightDecay = 0.05,
) -> Optimizer:
    """Build Muon: steps of matrices and kernels are made orthogonal (Jordan 2024, modula.systems); AdamW for the rest.

    timm's, with Nesterov momentum; steps are as long as those of AdamW (Liu et al. 2025), so that its rates serve. The
    head, whose rows are classes, is one of the rest.

    Raises:
        BuildError: timm, whose optimizer it is, is not installed.
    """
    kind = _of_timm("Muon")
    several = groups(model, weight_decay)
    head = _head_weight(model)
    if head is not None and head.requires_grad:
        several[0]["params"] = [p for p in several[0]["params"] if p is not head]
        several.append({"params": [head], "weight_decay": weight_decay, "use_fallback": True})
    found: Optimizer = kind([each for each in several if each["params"]], lr=lr, momentum=momentum, nesterov=True)
    return found


def lion(
    *,
    model: nn.Module,
    lr: Annotated[float, Arg("learning rate at its peak", gt=0, search="{float: [1e-5, 1e-3], log: true}")] = 1e-4,
    weight_decay: WeightDecay = 0.5,
    beta1: Annotated[float, Arg("share of the mean in a step", ge=0, lt=1)] = 0.9,
    beta2: Annotated[float, Arg("decay of the gradient's mean", ge=0, lt=1)] = 0.99,
) -> Optimizer:
    """Build Lion: steps are the sign of a mean of gradients (Chen et al. 2023); timm's.

    Rates are a third to a tenth of AdamW's, and the weight decay that much larger.

    Raises:
        BuildError: timm, whose optimizer it is, is not installed.
    """
    kind = _of_timm("Lion")
    found: Optimizer = kind(groups(model, weight_decay), lr=lr, betas=(beta1, beta2))
    return found


def schedule_free(
    *,
    model: nn.Module,
    lr: Annotated[
        float, Arg("learning rate after the warm-up", gt=0, search="{float: [5e-4, 2e-2], log: true}")
    ] = 2.5e-3,
    weight_decay: WeightDecay = 0.05,
    beta1: Annotated[float, Arg("share of the average at which gradients are taken", gt=0, lt=1)] = 0.9,
    beta2: SquareDecay = 0.999,
) -> Optimizer:
    """Build Schedule-Free AdamW (Defazio et al. 2024): a running average of the weights in place of a schedule.

    What is evaluated and saved is the average. It goes with `schedule: constant`, whose warm-up it takes.

    Raises:
        BuildError: the package schedulefree is not installed.
    """
    from imgcls_search.errors import BuildError

    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise BuildError(
            "", "needs schedulefree: pip install 'imgcls-search[schedule-free]'; allowed without: adamw, adam, sgd, sam"
        ) from None
    found: Optimizer = AdamWScheduleFree(groups(model, weight_decay), lr=lr, betas=(beta1, beta2))
    return found


def sam(
    *,
    model: nn.Module,
    # `base` has no search range: one range of learning rates cannot serve both.
    base: Annotated[Literal["sgd", "adamw"], Arg("the optimizer that takes the steps")] = "sgd",
    rho: Annotated[
        float,
        Arg("how far away the second gradient is taken", gt=0, search="{float: [0.02, 0.5], log: true}"),
    ] = 0.05,
    lr: Annotated[
        float,
        Arg(
            "learning rate at its peak; default and range are those of sgd, adamw needs about 0.001",
            gt=0,
            search="{float: [0.01, 1.0], log: true}",
        ),
    ] = 0.1,
    momentum: Annotated[float, Arg("momentum of sgd; adamw has decays of 0.9 and 0.999", ge=0, lt=1)] = 0.9,
    weight_decay: WeightDecay = 5e-4,
) -> Optimizer:
    """Build SAM around SGD or AdamW: the gradient at the worst loss nearby (Foret et al. 2020); takes two passes.

    Running statistics are those of the first pass. With AdamW, give `lr` and `weight_decay` as for `adamw`.
    """
    from imgcls_search.training.sharpness import SamAdamW, SamSGD

    several = groups(model, weight_decay)
    if base == "adamw":
        return SamAdamW(several, rho=rho, lr=lr, fused=True)
    return SamSGD(several, rho=rho, lr=lr, momentum=momentum, fused=True)


def _of_timm(name: str) -> Any:
    """Return an optimizer class of timm.

    Raises:
        BuildError: timm is not installed, or is too old to have it.
    """
    from imgcls_search.errors import BuildError

    try:
        from timm import optim

        return getattr(optim, name)
    except (ImportError, AttributeError):
        raise BuildError(
            "", "needs timm: pip install 'imgcls-search[timm]'; allowed without: adamw, adam, sgd, sam"
        ) from None


def _head_weight(model: nn.Module) -> Any:
    """Return the weights of a model's last layer, None if the model does not declare it."""
    from imgcls_search.models.anatomy import Anatomy

    anatomy = getattr(model, "anatomy", None)
    return getattr(model.get_submodule(anatomy.head), "weight", None) if isinstance(anatomy, Anatomy) else None


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adamw": adamw,
    "adam": adam,
    "sgd": sgd,
    "scaled_sgd": scaled_sgd,
    "muon": muon,
    "lion": lion,
    "schedule_free": schedule_free,
    "sam": sam,
}
"""Builders take the `model` and return an optimizer over its parameters."""


def check_optimizer(config: TrialConfig) -> None:
    """Refuse settings that an optimizer cannot combine.

    Raises:
        BuildError: the setting, and what is allowed.
    """
    from imgcls_search.errors import BuildError

    optimizer, training = config.component("optimizer"), config.section("training")
    if optimizer.name == "sam" and training["precision"] == "fp16":
        raise BuildError(
            "training.precision",
            "fp16 scales gradients for one pass a step, and sam takes two; allowed: auto, fp32, bf16",
        )
    if optimizer.name != "schedule_free":
        return
    schedule = config.component("schedule")
    if schedule.name != "constant":
        raise BuildError(schedule.path, f"{optimizer.path} has an average in place of a schedule; allowed: constant")
    for name in ("ema", "swa"):
        if training.get(name):
            reason = f"{training[name]}: {optimizer.path} averages by itself; allowed: 0"
            raise BuildError(f"training.{name}", reason)
    if config.tree.get("prune", {}).get("unstructured", {}).get("finetune_epochs"):
        raise BuildError(
            "prune.unstructured.finetune_epochs",
            f"{optimizer.path} keeps averages, in which no weight stays 0; allowed: 0",
        )


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


def linear(
    *,
    epochs: int,
    warmup_epochs: WarmupEpochs = 0.0,
    final: Annotated[float, Arg("learning rate at the end / at the peak", ge=0, le=1)] = 0.0,
) -> Schedule:
    """Rise to the peak during warm-up, then fall along a straight line."""

    def factor(progress: float) -> float:
        done = (progress - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
        return 1 - (1 - final) * min(done, 1.0)

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
    # The small number keeps epochs on a boundary, such as 2 x (9 / 3), on the right side of it.
    return _with_warmup(lambda progress: gamma ** int(progress / length + 1e-9), warmup_epochs)


Schedule = Callable[[float], float]
"""Epochs done (a fraction within an epoch) -> factor on the learning rate."""

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "step": step,
}
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
