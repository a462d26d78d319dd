"""A training in progress: the network, its optimizer, and everything else that changes from step to step."""

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
"""Measures a model after an epoch, counted from 1; 0 is before the first epoch."""


Teach = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Adds a teacher's part to a loss, from the loss, the logits [B, classes] and the inputs."""


@dataclass(frozen=True, kw_only=True)
class HeadPhase:
    """The first epochs of a training, in which only the head is trained, on precomputed features."""

    epochs: int
    """Number of epochs; 0 if the features only serve `fit`."""

    sets: Callable[[int], tuple[FeatureSet, FeatureSet | None]]
    """Returns the features for training and for evaluation in an epoch, counted from 0."""

    fit: Callable[[nn.Module], None] | None = None
    """Sets a model's head before the first epoch."""

    is_fit_only: bool = False
    """Whether the head is fitted and nothing is trained: the fit is the only epoch."""


class SessionState(TypedDict, total=False):
    """Everything that the next step of a training depends on; a finished training keeps part of it."""

    model: Mapping[str, Tensor]
    """The weights that are deployed."""

    raw: Mapping[str, Tensor] | None
    """The trained weights, if `model` is their average."""

    steps_averaged: int
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    seed: int
    history: list[dict[str, float]]
    """The metrics of each epoch."""


@dataclass(kw_only=True)
class Session:
    """A training in progress: everything that changes from step to step, and everything that a step needs."""

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
    """Parts of a batch that go through the model one after the other, to save memory; then follows one step."""

    hold: Hold = hold_nothing
    """Freezes parts of the model in an epoch."""
    teach: Teach | None = None
    head_phase: HeadPhase | None = None
    views: int = 1
    """How often each image of a batch is augmented; the first views of all images come before the second ones."""

    group: Group | None = None
    """The devices that train the network together, None for a single one."""

    observe: Observe | None = None
    """Measures an epoch in place of scores on validation images."""

    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each finished epoch, in order."""

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
        """The model that is evaluated and saved: the average, once it exists."""
        return self.average.module if self.average is not None and self.average.steps else self.model

    def in_head_phase(self) -> HeadPhase | None:
        """Return the head phase if the next epoch belongs to it, None otherwise."""
        return self.head_phase if self.head_phase is not None and self.epoch < self.head_phase.epochs else None

    def whiten(self, images: ImageSet) -> None:
        """Fit whitening layers to the training images."""
        whiten(images, self.model, *([self.average.module] if self.average is not None else []))

    def fit_head(self) -> None:
        """Set the initial weights of the head."""
        if self.head_phase is None or self.head_phase.fit is None:
            return
        self.head_phase.fit(self.model)
        if self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())

    def set_rate(self, progress: float) -> None:
        """Set the learning rates for a point of the training, in epochs done."""
        factor = self.schedule(progress)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor

    def state_dict(self) -> SessionState:
        """Return all that the next epoch depends on, as tensors and plain values; `model` has the deployed weights."""
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
        """Restore a saved state; one without `optimizer` is finished and can be evaluated, but not trained."""
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
