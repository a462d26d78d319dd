"""One trial as the run sees it: what was sampled, how far it came, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypedDict

from imgcls_search.config import Scalar, TrialConfig

State = Literal["running", "paused", "complete", "pruned", "fail"]

OPEN: tuple[State, ...] = ("running", "paused")
"""States in which a trial may train on."""

ENDED = -1
"""What `Trial.decided_at` says of a trial that trains no more."""

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
"""What is measured on the exported network of a trial that trained to its end."""

LATENCY_CONDITIONS = (
    "ONNX Runtime on one thread of the CPU, one image at a time, the median after a warm-up, while no other trial works"
)
"""How a latency is measured, in words."""


def compresses(config: TrialConfig) -> bool:
    """Tell whether a configuration changes its network after the training, by pruning or quantization."""
    # Configurations that are older than these sections say nothing of them.
    return any(section in config.tree and "none" not in config.tree[section] for section in ("prune", "quantize"))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that was sampled but is no trial yet."""

    params: Mapping[str, Scalar]
    distributions: Mapping[str, Any]
    """Optuna's distribution of each parameter."""

    config: TrialConfig
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler wants to find on this trial later (CMA-ES and NSGA-II keep their population so)."""

    @cached_property
    def compresses(self) -> bool:
        """True where what is deployed is not what was trained; strategies ask it of each trial, again and again."""
        return compresses(self.config)

    @cached_property
    def is_fitted(self) -> bool:
        """True where the head is fitted and nothing trained: its one epoch is its end, and no early one."""
        return self.config.is_fitted


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A candidate that never became a trial, and why."""

    params: Mapping[str, Scalar]
    distributions: Mapping[str, Any]
    reason: str
    """In few words, the same for the same cause, since rejections are counted by it."""


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
    """What is known before training, see `SIZES`."""

    metric: str
    """The first objective, by which rungs compare trials."""

    state: State = "running"
    epochs: list[dict[str, float]] = field(default_factory=list)
    """What each recorded epoch measured; the epoch before number k is at k - 1."""

    judged: int = 0
    """The last epoch at which the pruner let it go on or rest; 0 before the first."""

    until: int = 0
    """The milestone: the epoch that it may train up to before the pruner is asked again."""

    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    """What the network as it would be deployed showed after an epoch: compressed, or exported, and loaded again."""

    constraints: Mapping[str, float] = field(default_factory=dict)
    """By how much a complete trial is over each measured limit; it keeps those that are not above 0."""

    values: tuple[float, ...] | None = None
    """One value an objective, once the trial is complete."""

    reason: str | None = None
    deaths: int = 0
    """Workers that died under it since its last new checkpoint."""

    micro_batches: int = 1
    """Parts that a batch is trained in, after more images at a time needed too much memory."""

    pictures: Mapping[str, str] | None = None
    """Names of its pictures, and of what people added, by their artifacts' ids; None until they are read."""

    troubles: list[str] = field(default_factory=list)
    """What went wrong on the way and was mended, or was learned from."""

    rejected_before: tuple[Rejection, ...] = ()
    """What was sampled and rejected on the way to this trial."""

    strategy: Mapping[str, Any] = field(default_factory=dict)
    """The sampler and the pruner that it was drawn under; earlier versions noted neither."""

    request: str | None = None
    """The id of the request that it answers, if there was one."""

    origin: Mapping[str, Any] = field(default_factory=dict)
    """The study and the number that it has there, where it was merged into this one."""

    @property
    def epoch(self) -> int:
        """Epochs recorded."""
        return len(self.epochs)

    @property
    def is_open(self) -> bool:
        """True while the trial may train on."""
        return self.state in OPEN

    @property
    def decided_at(self) -> int:
        """The last epoch at which it was judged, and `ENDED` at its end: in between strategies learn nothing new."""
        return self.judged if self.state in OPEN else ENDED

    def was_judged_at(self, epoch: int) -> bool:
        """Tell whether it counts among those that a rung compares."""
        # The end of a fit says nothing of where a training should stand by then.
        if self.candidate.is_fitted:
            return False
        # One that was ended from outside may have come there without a score.
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
        """True where no measured limit is broken."""
        return all(excess <= 0 for excess in self.constraints.values())

    @property
    def compresses(self) -> bool:
        """True where what is deployed is not what was trained, so that only scores compare with other trials."""
        return self.candidate.compresses

    @property
    def first_value(self) -> float:
        """The first objective's value of a complete trial."""
        assert self.values is not None
        return self.values[0]

    def has_value_at(self, epoch: int) -> bool:
        """Tell whether the trial showed a value at an epoch that compares with other trials'."""
        return self.metric in self.shown_at(epoch)

    def value_at(self, epoch: int) -> float:
        """Return the first objective's metric at an epoch, counted from 1: the compressed copy's where there is one."""
        # Strategies ask this of every trial of a large study: it is worth not to go through `shown_at`.
        shown = self.scores[epoch] if self.candidate.compresses else self.epochs[epoch - 1]
        return shown[self.metric]

    @property
    def fold_scores(self) -> list[float]:
        """The first objective on each fold that is finished; nothing without folds."""
        if self.candidate.config.folds == 1:
            return []
        each = self.candidate.config.epochs // self.candidate.config.folds
        ends = self.epochs[each - 1 :: each]
        return [end[f"fold_{self.metric}"] for end in ends if f"fold_{self.metric}" in end]

    @property
    def last_shown(self) -> int:
        """The last epoch with such a value; 0 where there is none."""
        return next((epoch for epoch in range(self.epoch, 0, -1) if self.has_value_at(epoch)), 0)

    def shown_at(self, epoch: int) -> Mapping[str, float]:
        """Return all metrics of an epoch that compare with other trials': the compressed copy's where there is one."""
        if self.compresses:
            return self.scores.get(epoch, {})
        return self.epochs[epoch - 1] if 0 < epoch <= self.epoch else {}
