"""One trial as the run sees it: what was sampled, how far it trained, how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypedDict

from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.measures import of_features

State = Literal["running", "paused", "complete", "pruned", "fail"]

OPEN: tuple[State, ...] = ("running", "paused")
"""States in which a trial may continue to train."""

ENDED = -1
"""`Trial.decided_at` of a trial that has ended."""

NOT_PROMOTED = "the search ended before it was promoted"
"""Why a paused trial is pruned at the end of a search."""

SIZES: Mapping[str, str] = {
    "params": "number of parameters; known before training",
    "macs": "multiply-accumulates for one image; known before training",
    "largest_activation": "numbers in the largest tensor computed for one image; known before training",
    "memory": "estimated peak memory in training, bytes; known before training",
}


MEASURED: Mapping[str, str] = {
    "latency_ms": "time for one image of the exported network, milliseconds: the median of many, on one thread, alone",
    "size_kb": "size of the exported network's file, kilobytes of 1,024 bytes",
}
"""Measures of the exported network of a trial that trained to its end."""


def can_be_confirmed(objectives: Sequence[tuple[str, str]]) -> bool:
    """Tell whether retraining on labels with other seeds changes the first objective, unlike a size or a cost."""
    metric, _ = objectives[0]
    return of_features(objectives) is None and metric not in SIZES and metric not in MEASURED


LATENCY_CONDITIONS = (
    "ONNX Runtime on one thread of the CPU, one image at a time, the median after a warm-up, while no other trial works"
)
"""How a latency is measured, in words."""


def compresses(config: TrialConfig) -> bool:
    """Tell whether a configuration changes its network after the training, by pruning or quantization."""
    # Older configurations do not have these sections.
    return any(section in config.tree and "none" not in config.tree[section] for section in ("prune", "quantize"))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that was sampled but is not a trial yet."""

    params: Mapping[str, Scalar]
    distributions: Mapping[str, Any]
    """Optuna's distribution of each parameter."""

    config: TrialConfig
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    """State that the sampler stores with this trial for later (as CMA-ES and NSGA-II do with their population)."""

    @cached_property
    def compresses(self) -> bool:
        """True if the deployed network differs from the trained one; cached, since strategies ask it very often."""
        return compresses(self.config)

    @cached_property
    def is_fitted(self) -> bool:
        """True if the head is fitted and nothing is trained: its one epoch is its last, not an early one."""
        return self.config.is_fitted


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A candidate that never became a trial, and why."""

    params: Mapping[str, Scalar]
    distributions: Mapping[str, Any]
    reason: str
    """Short, and the same for the same cause, since rejections are counted by it."""


class Origin(TypedDict):
    """The study and the trial that a configuration was exported from."""

    study: str
    trial: int


@dataclass(kw_only=True)
class Trial:
    """A row of the study with everything the run decides by; the record keeps it equal to the database."""

    number: int
    candidate: Candidate
    seed: int
    sizes: Mapping[str, float]
    """Sizes known before training, see `SIZES`."""

    metric: str
    """The first objective, by which rungs compare trials."""

    state: State = "running"
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each recorded epoch; those of epoch k are at index k - 1."""

    judged: int = 0
    """The last epoch at which the pruner let it continue or paused it; 0 before the first."""

    until: int = 0
    """The milestone: the epoch that it may train up to before the pruner decides again."""

    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics by epoch of the network as it would be deployed: compressed, or exported, and loaded again."""

    constraints: Mapping[str, float] = field(default_factory=dict)
    """Excess of a complete trial over each measured limit; limits with an excess of at most 0 are kept."""

    values: tuple[float, ...] | None = None
    """One value per objective, once the trial is complete."""

    reason: str | None = None
    deaths: int = 0
    """Workers that died during it since its last new checkpoint."""

    micro_batches: int = 1
    """Parts that a batch is trained in, after larger parts needed too much memory."""

    pictures: Mapping[str, str] | None = None
    """Names of its pictures, and of files that people added, by artifact id; None until they are read."""

    troubles: list[str] = field(default_factory=list)
    """Troubles that it recovered from, or that the sampler learned from."""

    rejected_before: tuple[Rejection, ...] = ()
    """Candidates that were rejected before this trial was found."""

    strategy: Mapping[str, Any] = field(default_factory=dict)
    """The sampler and the pruner that it was drawn with; missing in older versions."""

    request: str | None = None
    """The id of the request that it answers, if there was one."""

    origin: Mapping[str, Any] = field(default_factory=dict)
    """Its original study and number, if it was merged into this study."""

    @property
    def epoch(self) -> int:
        """Epochs recorded."""
        return len(self.epochs)

    @property
    def is_open(self) -> bool:
        """True while the trial may continue to train."""
        return self.state in OPEN

    @property
    def decided_at(self) -> int:
        """The last epoch at which it was judged, or `ENDED` at its end: in between, strategies learn nothing new."""
        return self.judged if self.state in OPEN else ENDED

    def was_judged_at(self, epoch: int) -> bool:
        """Tell whether it is among the trials that a rung at this epoch compares."""
        # The end of a fit does not compare with an early epoch of a training.
        if self.candidate.is_fitted:
            return False
        # A trial that was ended from outside may have reached the epoch without a score.
        return self.epoch >= epoch and (self.judged >= epoch or not self.is_open) and self.has_value_at(epoch)

    def last_epoch(self, epochs: int) -> int:
        """Return the epoch at which it is complete, in a search whose trainings have `epochs`."""
        return self.candidate.config.folds if self.candidate.is_fitted else epochs

    def as_begun(self) -> Trial:
        """Return the trial as it was before its first epoch."""
        begun = replace(self, state="running", epochs=[], judged=0, values=None, reason=None)
        return replace(begun, scores={}, constraints={})

    @property
    def is_feasible(self) -> bool:
        """True if no measured limit is exceeded."""
        return all(excess <= 0 for excess in self.constraints.values())

    @property
    def compresses(self) -> bool:
        """True if the deployed network differs from the trained one, so that only scores compare with other trials."""
        return self.candidate.compresses

    @property
    def first_value(self) -> float:
        """The first objective's value of a complete trial."""
        assert self.values is not None
        return self.values[0]

    def has_value_at(self, epoch: int) -> bool:
        """Tell whether the trial has a value at an epoch that compares with other trials'."""
        return self.metric in self.shown_at(epoch)

    def value_at(self, epoch: int) -> float:
        """Return the first objective's metric at an epoch, counted from 1: the compressed copy's if there is one.

        NaN if there is no value, see `has_value_at`, which a trial at a rung lacks only in a damaged study.
        """
        # Strategies call this for every trial of a large study, so it avoids `shown_at`.
        try:
            shown = self.scores[epoch] if self.candidate.compresses else self.epochs[epoch - 1]
            return shown[self.metric]
        except LookupError:
            return math.nan

    @property
    def fold_scores(self) -> list[float]:
        """The first objective on each finished fold; empty without folds."""
        if self.candidate.config.folds == 1:
            return []
        each = self.candidate.config.epochs // self.candidate.config.folds
        ends = self.epochs[each - 1 :: each]
        return [end[f"fold_{self.metric}"] for end in ends if f"fold_{self.metric}" in end]

    @property
    def last_shown(self) -> int:
        """The last epoch with a value, see `has_value_at`; 0 if there is none."""
        return next((epoch for epoch in range(self.epoch, 0, -1) if self.has_value_at(epoch)), 0)

    def shown_at(self, epoch: int) -> Mapping[str, float]:
        """Return all metrics of an epoch that compare with other trials': the compressed copy's if there is one."""
        if self.compresses:
            return self.scores.get(epoch, {})
        return self.epochs[epoch - 1] if 0 < epoch <= self.epoch else {}
