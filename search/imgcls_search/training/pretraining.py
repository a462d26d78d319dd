"""The options of the section `pretrain`, and the values that a configuration has. Does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.config import Component, TrialConfig
from imgcls_search.signature import Arg, OneOf, build, options
from imgcls_search.training.optimizers import WeightDecay, adamw, groups, sgd

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Epochs = Annotated[int, Arg("passes over the unlabeled images", ge=1, fixed=True)]
Warmup = Annotated[float, Arg("share of the epochs in which the learning rate rises from zero", ge=0, le=1)]
Every = Annotated[
    int | None,
    Arg("epochs between two measurements of neighbours and probe; null: about twenty in all", ge=1, fixed=True),
]


@dataclass(frozen=True, kw_only=True)
class SimCLR:
    """Contrastive pretraining."""

    epochs: int
    batch_size: int
    temperature: float
    projection: tuple[int, ...]
    crop: float
    flip: Literal["none", "horizontal"]
    strength: float
    grey: float
    blur: float
    warmup: float
    health_every: int | None


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """Pretraining towards a teacher's features."""

    size: int
    epochs: int
    batch_size: int
    warmup: float
    health_every: int | None


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """The network whose features are imitated."""

    kind: Literal["timm", "file", "study"]
    source: str
    """timm's name of the network, the path of a weights file, or the name of a study."""

    weights: str | None = None
    """Weights of a timm network: `imagenet`, or the path of a file."""


def no_pretraining() -> None:
    """Start from random weights, or from those that the model names."""


def simclr(
    *,
    epochs: Epochs = 100,
    batch_size: Annotated[
        int,
        Arg(
            "images per step, each in two views; all other images of the batch are its negatives",
            ge=2,
            search="{choice: [128, 256, 512]}",
        ),
    ] = 128,
    temperature: Annotated[
        float, Arg("divisor of the similarities", gt=0, search="{float: [0.1, 0.5], log: true}")
    ] = 0.2,
    projection: Annotated[
        tuple[int, ...], Arg("widths of the layers between features and loss, which are dropped afterwards", ge=1)
    ] = (256, 128),
    crop: Annotated[
        float,
        Arg("smallest share of an image that a view shows; 1: all of it", gt=0, le=1, search="{float: [0.1, 0.6]}"),
    ] = 0.2,
    flip: Annotated[
        Literal["none", "horizontal"],
        Arg("horizontal: mirror half of the views; none: if a mirrored image means something else"),
    ] = "horizontal",
    strength: Annotated[
        float,
        Arg("strength of the changes of colours; 0: none, 1: those of the paper", ge=0, search="{float: [0.2, 1]}"),
    ] = 0.5,
    grey: Annotated[float, Arg("probability that a view loses its colours", ge=0, le=1)] = 0.2,
    blur: Annotated[float, Arg("largest deviation of a random Gaussian blur, pixels", ge=0, le=20)] = 0.0,
    warmup: Warmup = 0.1,
    health_every: Every = None,
) -> SimCLR:
    """Learn to match two augmented views of an image among those of other images (SimCLR, Chen et al. 2020)."""
    return SimCLR(
        epochs=epochs,
        batch_size=batch_size,
        temperature=temperature,
        projection=tuple(projection),
        crop=crop,
        flip=flip,
        strength=strength,
        grey=grey,
        blur=blur,
        warmup=warmup,
        health_every=health_every,
    )


def imitate(
    *,
    size: Annotated[int, Arg("side of the images as the teacher sees them", ge=8, fixed=True)] = 96,
    epochs: Epochs = 20,
    batch_size: Annotated[int, Arg("images per step", ge=2, search="{choice: [32, 64, 128]}")] = 64,
    warmup: Warmup = 0.1,
    health_every: Every = None,
) -> Imitation:
    """Learn to reproduce the features that a pretrained teacher computes for the same images; needs no labels."""
    return Imitation(size=size, epochs=epochs, batch_size=batch_size, warmup=warmup, health_every=health_every)


PRETRAIN: Mapping[str, Callable[..., Any]] = {"none": no_pretraining, "simclr": simclr, "imitate": imitate}


def lars(
    *,
    model: nn.Module,
    lr: Annotated[float, Arg("learning rate at its peak", gt=0, search="{float: [0.1, 2.0], log: true}")] = 0.3,
    momentum: Annotated[float, Arg("momentum", ge=0, lt=1)] = 0.9,
    weight_decay: WeightDecay = 1e-6,
    trust: Annotated[float, Arg("length of a layer's step / length of its weights, times the rate", gt=0)] = 1e-3,
) -> Optimizer:
    """Build LARS: each layer's step is as long as its weights allow (You et al. 2017), for large batches.

    Raises:
        BuildError: timm, whose optimizer it is, is not installed.
    """
    from imgcls_search.errors import BuildError

    try:
        from timm.optim.lars import Lars
    except ImportError:
        raise BuildError("", "needs timm: pip install 'imgcls-search[timm]'; allowed without: adamw, sgd") from None
    found: Optimizer = Lars(groups(model, weight_decay), lr=lr, momentum=momentum, trust_coeff=trust)
    return found


PRETRAIN_OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adamw": adamw, "sgd": sgd, "lars": lars}
"""Builders take the `model` and return an optimizer over its parameters."""


def timm_teacher(
    *,
    name: Annotated[str, Arg("a network of timm")] = "tf_efficientnet_lite0",
    weights: Annotated[str, Arg("imagenet: timm's pretrained weights; or the path of a weights file")] = "imagenet",
) -> TeacherSource:
    """Learn from a network of timm."""
    return TeacherSource(kind="timm", source=name, weights=weights)


def teacher_from_file(
    *, path: Annotated[str, Arg("weights that `train` or a search saved, for example trained/best/seed-1.pt")]
) -> TeacherSource:
    """Learn from a network that this program trained."""
    return TeacherSource(kind="file", source=path)


def teacher_from_study(
    *, name: Annotated[str, Arg("a study in the same folder, whose best trial is the teacher")]
) -> TeacherSource:
    """Learn from the best trial of another study."""
    return TeacherSource(kind="study", source=name)


TEACHERS: Mapping[str, Callable[..., TeacherSource]] = {
    "timm": timm_teacher,
    "file": teacher_from_file,
    "study": teacher_from_study,
}


def pretrain_section() -> OneOf:
    """Return the schema of the section `pretrain`: its arguments, and the components below them."""
    optimizer = OneOf(options=options(PRETRAIN_OPTIMIZERS), default="adamw", doc="the optimizer of the pretraining")
    teacher = OneOf(
        options=options(TEACHERS), default="timm", fixed=True, doc="the network whose features are imitated"
    )
    below: Mapping[str, Mapping[str, OneOf]] = {
        "none": {},
        "simclr": {"optimizer": optimizer},
        "imitate": {"teacher": teacher, "optimizer": optimizer},
    }
    known = {
        name: dataclasses.replace(fields, fields={**below[name], **fields.fields})
        for name, fields in options(PRETRAIN).items()
    }
    return OneOf(options=known, default="none", doc="how the network is pretrained on images without labels")


def plan(config: TrialConfig) -> SimCLR | Imitation | None:
    """Return the pretraining of a configuration, None if it has none."""
    if "pretrain" not in config.tree:
        return None
    component = config.component("pretrain")
    own = {name: value for name, value in component.args.items() if name not in ("optimizer", "teacher")}
    found: SimCLR | Imitation | None = build(PRETRAIN, dataclasses.replace(component, args=own))
    return found


def optimizer_of(config: TrialConfig) -> Component:
    """Return the optimizer of a configuration's pretraining."""
    return config.component(f"pretrain.{config.component('pretrain').name}.optimizer")


def teacher_of(config: TrialConfig) -> TeacherSource | None:
    """Return the teacher that a configuration imitates, None if it imitates none."""
    if "imitate" not in config.tree.get("pretrain", {}):
        return None
    found: TeacherSource = build(TEACHERS, config.component("pretrain.imitate.teacher"))
    return found
