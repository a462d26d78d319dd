"""A training under way: the network, its optimizer, and everything else that changes from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls_search.data import Augment, Mix, mix_nothing
from imgcls_search.training.average import Average, equal, exponential
from imgcls_search.training.device import compiled
from imgcls_search.training.finetune import Hold, hold_nothing
from imgcls_search.training.group import Group
from imgcls_search.training.images import FeatureSet, ImageSet
from imgcls_search.training.losses import Loss
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.optimizers import Schedule
from imgcls_search.training.recipe import Training
from imgcls_search.training.resolution import Shrinking
from imgcls_search.training.whitening import whiten

Observe = Callable[[nn.Module, int, Wanted | None], dict[str, float]]
"""Measures a model after an epoch, counted from 1, and before the first one, 0."""


Teach = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns a loss with a teacher's part in it, from the loss, the logits [B, classes] and the inputs they are for."""


@dataclass(frozen=True, kw_only=True)
class HeadPhase:
    """The first epochs of a training, in which only the head learns, from features that are kept."""

    epochs: int
    """How many there are; 0 where the features only serve `fit`."""

    sets: Callable[[int], tuple[FeatureSet, FeatureSet | None]]
    """Returns the features to train on, and those to measure by, in an epoch counted from 0."""

    fit: Callable[[nn.Module], None] | None = None
    """Gives a model its head before the first epoch."""

    is_fit_only: bool = False
    """Whether the head is fitted and nothing trained: the fit is the one epoch."""


class SessionState(TypedDict, total=False):
    """All that the next step of a training depends on; a finished one keeps a part of it."""

    model: Mapping[str, Tensor]
    """The weights that are deployed."""

    raw: Mapping[str, Tensor] | None
    """Those that are trained, where `model` is their average."""

    steps_averaged: int
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    seed: int
    history: list[dict[str, float]]
    """The metrics of each epoch."""


@dataclass(kw_only=True)
class Session:
    """A training under way: everything that changes from step to step, and what each step needs."""

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    augment: Augment | Shrinking
    recipe: Training
    device: str
    precision: str
    seed: int
    is_compiled: bool = False
    mix: Mix = mix_nothing
    micro_batches: int = 1
    """Parts that a batch goes through the model in, one after the other, to need less memory; one step follows."""

    hold: Hold = hold_nothing
    """Freezes what is to be frozen in an epoch."""
    teach: Teach | None = None
    head_phase: HeadPhase | None = None
    views: int = 1
    """How many times each image of a batch is augmented; the first views of all stand before the second ones."""

    group: Group | None = None
    """The devices that train the network together, None where it is one."""

    observe: Observe | None = None
    """What an epoch is measured by in place of scores on validation images."""

    history: list[dict[str, float]] = field(default_factory=list)
    """What each finished epoch measured, the first epoch first."""

    def __post_init__(self) -> None:
        blend = exponential(self.recipe.ema) if self.recipe.ema > 0 else equal() if self.recipe.swa > 0 else None
        self.average = Average(self.model, blend) if blend is not None else None
        self.scaler = torch.amp.GradScaler(enabled=self.precision == "fp16")
        self.forward = compiled(self.model, self.recipe.compile) if self.is_compiled else self.model
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def deployed(self) -> nn.Module:
        """The weights that are evaluated and saved: the average, once there is one."""
        return self.average.module if self.average is not None and self.average.steps else self.model

    def in_head_phase(self) -> HeadPhase | None:
        """Return the phase of the next epoch if only the head learns in it, from features."""
        return self.head_phase if self.head_phase is not None and self.epoch < self.head_phase.epochs else None

    def whiten(self, images: ImageSet) -> None:
        """Fit first layers to the training images that are to be."""
        whiten(images, self.model, *([self.average.module] if self.average is not None else []))

    def fit_head(self) -> None:
        """Give the head the weights that it is to start with."""
        if self.head_phase is None or self.head_phase.fit is None:
            return
        self.head_phase.fit(self.model)
        if self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())

    def set_rate(self, progress: float) -> None:
        """Set the learning rates for a moment of the training, in epochs done."""
        factor = self.schedule(progress)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor

    def state_dict(self) -> SessionState:
        """Return all that the next epoch depends on, as tensors and plain values; `model` is what is deployed."""
        return {
            "model": self.deployed.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "raw": self.model.state_dict() if self.average is not None else None,
            "steps_averaged": self.average.steps if self.average is not None else 0,
            "scaler": self.scaler.state_dict(),
            "seed": self.seed,
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; one without an `optimizer` is finished and can be measured, not trained on."""
        if self.average is not None:
            self.model.load_state_dict(state["raw"])
            self.average.steps = state["steps_averaged"]
            self.average.module.load_state_dict(state["model"])
        else:
            self.model.load_state_dict(state["model"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.seed = state["seed"]
        self.history = list(state["history"])
