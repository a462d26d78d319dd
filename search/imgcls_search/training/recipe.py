"""How to train, whatever the model: the `training` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.protocol import FEWEST_IMAGES
from imgcls_search.signature import Arg


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, in what batches and with what arithmetic a model is trained."""

    epochs: Annotated[int, Arg("passes over the training images; the same for all trials", ge=1, fixed=True)] = 15
    batch_size: Annotated[int, Arg("images per step", ge=1, search="{choice: [32, 64, 128]}")] = 64
    draw: Annotated[
        Literal["shuffled", "balanced"],
        Arg(
            "shuffled: every image once per epoch; balanced: as many images per epoch, equally many of every class, so "
            "images of small classes repeat",
            search="{choice: [shuffled, balanced]}",
        ),
    ] = "shuffled"
    clip: Annotated[float, Arg("largest norm of the gradient; 0 does not clip", ge=0)] = 0.0
    ema: Annotated[float, Arg("decay per step of the averaged weights that are evaluated; 0: none", ge=0, lt=1)] = 0.0
    swa: Annotated[
        int,
        Arg(
            "last epochs whose weights are averaged (stochastic weight averaging, Izmailov et al. 2018), with the "
            "statistics of batch normalisation computed again; 0: none; not together with ema",
            ge=0,
            search="{choice: [0, 5]}",
        ),
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Arg("auto: bf16 or fp16 on a CUDA device, fp32 elsewhere", fixed=True),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "reduce_overhead"] | bool,
        Arg(
            "torch.compile; auto: on a CUDA device where a trial is long enough to pay for compiling; reduce_overhead: "
            "with CUDA graphs, for small networks on a GPU",
            fixed=True,
        ),
    ] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Arg("auto: cuda, else mps, else cpu", fixed=True)] = "auto"
    devices: Annotated[
        Literal["auto"] | int,
        Arg(
            "devices that train one network together: GPUs, or processes of one thread on a CPU; auto: all there are / "
            "study.workers",
            ge=1,
            fixed=True,
        ),
    ] = 1
    batch_norm: Annotated[
        Literal["sync", "local"],
        Arg(
            "with several devices: statistics of the whole batch, as on one device, or of each device's part of it",
            fixed=True,
        ),
    ] = "sync"
    resolution: Mapping[str, Any] = field(default_factory=lambda: {"full": {}})
    """The sizes of the images, a component: see `training.resolution`."""

    def problem_of_average(self) -> str | None:
        """Return the problem with the averages of the weights, None if there is none."""
        if self.swa and self.ema:
            return f"{self.swa} beside training.ema {self.ema:g}: the weights have one average; allowed: one of them"
        if self.swa > self.epochs:
            return f"{self.swa} epochs of {self.epochs} cannot be averaged; allowed: 0 to {self.epochs}"
        return None


def check_devices(recipe: Training) -> None:
    """Refuse settings that several devices cannot combine.

    Raises:
        BuildError: the setting, and what is allowed.
    """
    if recipe.devices == 1:
        return
    told = f"with training.devices: {recipe.devices}"
    if recipe.device == "mps":
        raise BuildError("training.device", f"mps is one device and cannot be used {told}; allowed: cpu, cuda")
    if recipe.compile not in ("auto", False):
        raise BuildError("training.compile", f"a compiled network exchanges nothing {told}; allowed: auto, false")
    is_local = recipe.batch_norm == "local"
    if recipe.devices == "auto":
        if is_local:
            reason = "statistics of each device's part depend on the number of devices, which auto leaves open"
            raise BuildError("training.batch_norm", f"local: {reason}; allowed: sync")
        return
    # The last batches of an epoch may be half as large.
    least = (2 if is_local else 1) * FEWEST_IMAGES * recipe.devices
    if recipe.batch_size < least:
        raise BuildError("training.batch_size", f"{recipe.batch_size} images are too few {told}; allowed: >= {least}")


@dataclass(frozen=True, kw_only=True)
class Predict:
    """How a class is decided on from the probabilities of all classes."""

    costs: Annotated[
        Mapping[str, Mapping[str, float]] | None,
        Arg(
            "true class, predicted class, cost: the class of lowest expected cost is predicted; a wrong class that is "
            "not stated costs 1, the right one nothing; null: the likeliest class",
            ge=0,
            fixed=True,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """How pretrained weights are trained on; a trial that starts from scratch is not touched by it."""

    freeze: Annotated[
        Literal["none", "half", "backbone"] | int,
        Arg(
            "layers that keep their pretrained weights: none; half: the first half of the stages; backbone: all but "
            "the head; or this many first stages",
            ge=1,
            search="{choice: [none, half, backbone]}",
        ),
    ] = "none"
    freeze_epochs: Annotated[int | None, Arg("epochs for which they are kept; null: to the end", ge=1)] = None
    backbone_lr_factor: Annotated[
        float,
        Arg("learning rate of everything but the head / that of the head", gt=0, le=1, search="{choice: [0.1, 1]}"),
    ] = 1.0
    layer_decay: Annotated[
        float,
        Arg(
            "learning rate of each stage / that of the next one towards the head, times backbone_lr_factor",
            gt=0,
            le=1,
            search="{choice: [0.65, 0.8, 1.0]}",
        ),
    ] = 1.0
    views: Annotated[
        int | None,
        Arg(
            "augmented versions of each image that a frozen backbone reads in turn, one per epoch, computed once for "
            "all trials; null: another version in each epoch",
            ge=1,
            search="{choice: [null, 4]}",
        ),
    ] = None
    start: Annotated[
        Literal["random", "logistic"],
        Arg(
            "initial weights of the head: random, or a logistic regression on the features of the pretrained network",
            search="{choice: [random, logistic]}",
        ),
    ] = "random"
