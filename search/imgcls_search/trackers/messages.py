"""What a run tells a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """The study that trials belong to."""

    name: str
    identity: str
    """Of the study, whatever it is called, so that another of the same name is not taken for it."""

    notes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TrialBegan:
    """A trial with what was sampled for it."""

    trial: int
    params: Mapping[str, str | int | float | bool | None]
    config: str
    """The whole configuration as YAML."""


@dataclass(frozen=True, kw_only=True)
class EpochMeasured:
    """What an epoch measured."""

    trial: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """How a trial ended."""

    trial: int
    state: str
    """`complete`, `pruned` or `fail`."""

    values: Mapping[str, float]
    """Objectives and sizes by name."""

    reason: str = ""
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """Files by the names that people know them by."""


@dataclass(frozen=True)
class End:
    """The run ends."""


Message = TrialBegan | EpochMeasured | TrialEnded | End
