"""What the weights file of a pretrained network says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class PretrainingNote(TypedDict):
    """The pretraining that a weights file is from."""

    images: int
    asked: int
    """Of the labelled images, how many the features were judged by."""

    prints: str
    """What its images are recognised by."""

    fold: int | None
    """The fold that was held out, None where none was."""

    epochs: int
    seed: int
    health: Mapping[str, float]
    """Of the last epoch."""

    versions: Mapping[str, str]


class AboutBackbone(TypedDict):
    """All that it says."""

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    """The images that measured the features, see `data.Prepared.to_dict`."""

    pretrained: PretrainingNote


NOTED: Sequence[str] = tuple(PretrainingNote.__annotations__)
"""All that a weights file must say of the pretraining that it is from."""
