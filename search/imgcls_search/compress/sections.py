"""The options of the sections `distill`, `prune` and `quantize`, and their values. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from imgcls_search.config import TrialConfig
from imgcls_search.signature import Arg, build

Temperature = Annotated[
    float, Arg("divisor of both networks' logits; 1: unchanged", gt=0, search="{float: [1, 8], log: true}")
]
Alpha = Annotated[
    float, Arg("share of the teacher's part in the loss; 0 ignores it", ge=0, le=1, search="{float: [0.1, 0.9]}")
]
Amount = Annotated[float, Arg("share that is removed", ge=0, lt=1, search="{float: [0.2, 0.8]}")]
FinetuneEpochs = Annotated[
    int, Arg("epochs of training after the removal; 0: one-shot", ge=0, search="{choice: [0, 1, 3]}")
]
FinetuneRate = Annotated[float, Arg("peak learning rate of these epochs / the optimizer's own", gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A loss that mixes labels with a teacher's predictions."""

    kind: Literal["timm", "file", "study"]
    source: str
    """timm's name of the network, the path of a weights file, or the name of a study."""

    temperature: float
    alpha: float
    weights: str | None = None
    """Weights of a timm network: `imagenet`, or the path of a file."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Pruning of a trained network, and the training afterwards."""

    kind: Literal["unstructured", "structured"]
    amount: float
    finetune_epochs: int
    finetune_lr_factor: float


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Quantization of an exported network to 8-bit integers."""

    mode: Literal["auto", "static", "dynamic"]
    calibration_images: int


def no_distillation() -> Distillation | None:
    """Learn from the labels alone."""
    return None


def from_timm(
    *,
    name: Annotated[str, Arg("a network of timm, for example resnet18")],
    weights: Annotated[
        str, Arg("a weights file of these classes, in the order of their names; imagenet: timm's pretrained weights")
    ] = "imagenet",
    temperature: Temperature = 4.0,
    alpha: Alpha = 0.5,
) -> Distillation | None:
    """Learn from a network of timm with the same classes, too (Hinton et al. 2015)."""
    return Distillation(kind="timm", source=name, weights=weights, temperature=temperature, alpha=alpha)


def from_file(
    *,
    path: Annotated[str, Arg("weights that `train` or a search saved, for example trained/best/seed-1.pt")],
    temperature: Temperature = 4.0,
    alpha: Alpha = 0.5,
) -> Distillation | None:
    """Learn from a teacher in a weights file, too (Hinton et al. 2015)."""
    return Distillation(kind="file", source=path, temperature=temperature, alpha=alpha)


def from_study(
    *,
    name: Annotated[str, Arg("a study in the same folder, whose best trial is the teacher")],
    temperature: Temperature = 4.0,
    alpha: Alpha = 0.5,
) -> Distillation | None:
    """Learn from the best trial of another study, too (Hinton et al. 2015)."""
    return Distillation(kind="study", source=name, temperature=temperature, alpha=alpha)


def no_pruning() -> Pruning | None:
    """Remove nothing."""
    return None


def unstructured(
    *, amount: Amount = 0.5, finetune_epochs: FinetuneEpochs = 0, finetune_lr_factor: FinetuneRate = 1.0
) -> Pruning | None:
    """Set the smallest weights of the whole network to zero (global L1); the file gets neither smaller nor faster."""
    return Pruning(
        kind="unstructured",
        amount=amount,
        finetune_epochs=finetune_epochs,
        finetune_lr_factor=finetune_lr_factor,
    )


def structured(
    *, amount: Amount = 0.5, finetune_epochs: FinetuneEpochs = 0, finetune_lr_factor: FinetuneRate = 1.0
) -> Pruning | None:
    """Take out whole channels of convolutions, or heads and hidden features of a transformer: smaller and faster."""
    return Pruning(
        kind="structured", amount=amount, finetune_epochs=finetune_epochs, finetune_lr_factor=finetune_lr_factor
    )


def no_quantization() -> Quantization | None:
    """Keep 32-bit arithmetic."""
    return None


def int8(
    *,
    mode: Annotated[
        Literal["auto", "static", "dynamic"],
        Arg("static: convolutions and all, calibrated on training images; dynamic: matrices only; auto: by the model"),
    ] = "auto",
    calibration_images: Annotated[int, Arg("training images that ranges are measured on", ge=1, fixed=True)] = 128,
) -> Quantization | None:
    """Quantize the exported network to 8-bit integers, weights by channel (ONNX Runtime's quantizer)."""
    return Quantization(mode=mode, calibration_images=calibration_images)


DISTILL: Mapping[str, Callable[..., Distillation | None]] = {
    "none": no_distillation,
    "timm": from_timm,
    "file": from_file,
    "study": from_study,
}

PRUNE: Mapping[str, Callable[..., Pruning | None]] = {
    "none": no_pruning,
    "unstructured": unstructured,
    "structured": structured,
}

QUANTIZE: Mapping[str, Callable[..., Quantization | None]] = {"none": no_quantization, "int8": int8}


def distillation(config: TrialConfig) -> Distillation | None:
    """Return the distillation of a configuration, None if it has none."""
    found: Distillation | None = _plan(config, "distill", DISTILL)
    return found


def pruning(config: TrialConfig) -> Pruning | None:
    """Return the pruning of a configuration, None if it has none."""
    found: Pruning | None = _plan(config, "prune", PRUNE)
    return found


def quantization(config: TrialConfig) -> Quantization | None:
    """Return the quantization of a configuration, None if it has none."""
    found: Quantization | None = _plan(config, "quantize", QUANTIZE)
    return found


def _plan(config: TrialConfig, section: str, registry: Mapping[str, Callable[..., Any]]) -> Any:
    # Configurations older than these sections lack them.
    return build(registry, config.component(section)) if section in config.tree else None
