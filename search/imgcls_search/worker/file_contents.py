"""The contents of training weights files: checkpoints to resume from, and finished networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

from imgcls_search.training.session import SessionState


class FoldsState(TypedDict, total=False):
    """The state or the result of a cross-validation; the last three fields exist only at its end."""

    history: list[dict[str, float]]
    """Of the current fold's network."""

    ends: list[dict[str, float]]
    """The last epoch of each finished fold."""

    logits: list[Tensor]
    """[N, classes] of the held-out images of each finished fold."""

    images: Tensor
    """The index of each image [N] in the training split followed by the validation split."""

    labels: Tensor
    names: list[str]


class CrossValidationState(SessionState, total=False):
    """The state of the current fold's network, with the trial's own `history`."""

    folds: FoldsState


class Checkpoint(CrossValidationState, total=False):
    """A checkpoint; those of finished trainings lack what only further steps would need."""

    about: str
    """The configuration and the images as JSON, with `shapes`, `members` or `pretrained` if they exist."""

    job: str
    """The identity that a job must have to resume from it, see `saved.identity`."""

    devices: int
    """Number of devices that trained it, if it was a group."""

    projection: Mapping[str, Tensor]
    """Of a pretraining: layers that are dropped at its end."""

    artifact: str
    """The digest of the exported file next to it that was scored."""

    metrics: Mapping[str, float]
    """The metrics of that file."""

    notes: Mapping[str, Any]
    """Notes about it that are not numbers."""
