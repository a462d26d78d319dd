"""What the weights files of trainings hold: checkpoints to resume from, and finished networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

from imgcls_search.training.session import SessionState


class FoldsState(TypedDict, total=False):
    """Where a cross-validation stands, or what is left of it; the last three come with its end."""

    history: list[dict[str, float]]
    """Of the current fold's network."""

    ends: list[dict[str, float]]
    """The last epoch of each finished fold."""

    logits: list[Tensor]
    """[N, classes] of the held out images of each finished fold."""

    images: Tensor
    """The place of each image [N] in the training split and then the validation split."""

    labels: Tensor
    names: list[str]


class CrossValidationState(SessionState, total=False):
    """The state of the current fold's network, with the trial's own `history`."""

    folds: FoldsState


class Checkpoint(CrossValidationState, total=False):
    """A checkpoint; one of a finished training lacks what only a further step would need."""

    about: str
    """The configuration and the images as JSON, with `shapes`, `members` or `pretrained` where there are such."""

    job: str
    """What must be equal for a job to resume from it, see `saved.identity`."""

    devices: int
    """How many trained it, where that was a group."""

    projection: Mapping[str, Tensor]
    """Of a pretraining: layers that are dropped at its end."""

    artifact: str
    """The digest of the file that was exported beside it, by which it was scored."""

    metrics: Mapping[str, float]
    """What that file showed."""

    notes: Mapping[str, Any]
    """What is worth knowing of it and no number."""
