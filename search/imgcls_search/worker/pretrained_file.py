"""The metadata in the weights file of a pretrained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class PretrainingNote(TypedDict):
    """The pretraining that produced a weights file."""

    images: int
    asked: int
    """Number of labelled images that the features were evaluated on."""

    prints: str
    """Fingerprint of the pretraining images."""

    fold: int | None
    """The fold that was held out, None if there was none."""

    teacher: str | None
    """Digest of the weights that were imitated; None without a teacher, and in files that do not say it."""

    epochs: int
    seed: int
    health: Mapping[str, float]
    """Feature metrics of the last epoch."""

    history: Sequence[Mapping[str, float]]
    """Feature metrics of each epoch; empty in files that do not have them."""

    versions: Mapping[str, str]


class AboutBackbone(TypedDict):
    """All metadata of the file."""

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    """The data set that the features were evaluated on, see `data.Prepared.to_dict`."""

    pretrained: PretrainingNote


NOTED: Sequence[str] = tuple(PretrainingNote.__annotations__)
"""All keys that a weights file must have about its pretraining."""
