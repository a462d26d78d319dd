"""Messages from a run to a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrackedStudy:
    """The study that trials belong to."""

    name: str
    identity: str
    """An id that distinguishes the study from another one of the same name."""

    notes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TrialBegan:
    """A trial with its sampled parameters."""

    trial: int
    params: Mapping[str, str | int | float | bool | None]
    config: str
    """The whole configuration as YAML."""


@dataclass(frozen=True, kw_only=True)
class EpochMeasured:
    """The metrics of an epoch."""

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
    """Files by the names that people see."""


@dataclass(frozen=True)
class End:
    """The run ends."""


Message = TrialBegan | EpochMeasured | TrialEnded | End
