"""The messages between the run and its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from imgcls_search.config import TrialConfig

FEWEST_IMAGES = 2
"""Fewest images in a micro-batch, as batch normalisation needs."""

Portion = Literal["train", "train+val"]
"""Which images a training sees: `train` leaves the validation split for its metrics, `train+val` measures nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train one configuration up to a milestone, or time the resulting network, or draw pictures of it."""

    trial: int
    config: TrialConfig
    data: Mapping[str, Any]
    """A `Prepared` data set as plain values."""

    seed: int
    portion: Portion
    until_epoch: int
    from_epoch: int
    """Epochs that are recorded already; above 0 the worker resumes from the checkpoint."""

    checkpoint: str
    log: str
    micro_batches: int = 1
    """Parts that a batch is trained in, after larger parts needed too much memory."""

    kind: Literal["train", "time", "draw"] = "train"
    """`time` must run alone: executors hold the other jobs between two steps."""

    pictures: str = ""
    """The folder that `draw` writes to."""

    is_scored: bool = False
    """Whether to measure the network at the milestone as it would be deployed."""

    artifact: str = ""
    """Path of the exported network, to write or to read; empty if the milestone needs no file."""

    teacher: str | None = None
    """The weights file of the network to learn from."""

    teacher_digest: str | None = None
    """Digest of its weights, if the file may become another network; a study keeps its own copy."""

    backbones: tuple[str, ...] = ()
    """The weights files of the pretrained networks that the training starts from: one, or one for each fold."""

    fold: int | None = None
    """The fold whose images a pretraining leaves out; None if it uses all images that it may."""

    metrics: tuple[str, ...] = ()
    """Metrics to measure after each epoch in addition to the usual ones: those that objectives and limits name."""


@dataclass(frozen=True, kw_only=True)
class GroupMember:
    """The place of a process among those that train one network together, each on its own device."""

    rank: int
    """The first, 0, speaks for all."""

    size: int
    file: str
    """File by which they find each other; it must not exist before."""


GROUP_LOST = 70
"""Exit code of a process whose group has lost another one."""


@dataclass(frozen=True)
class Stop:
    """Save the training and end the job."""


@dataclass(frozen=True)
class Pause:
    """Pause between two steps until `Continue`, another job or `Stop`."""


@dataclass(frozen=True)
class Continue:
    """Continue after `Pause`."""


Message = Job | Stop | Pause | Continue
"""A message to a worker."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened to a trial on a worker."""

    trial: int
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A worker took the job; `history` holds the epochs that its checkpoint already contains."""

    history: Sequence[Mapping[str, float]]
    dropped: str = ""
    """Why an existing checkpoint cannot be used, so that the training starts over."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """A line about the trial that the user should see."""

    text: str


@dataclass(frozen=True, kw_only=True)
class EpochEnded(Event):
    """An epoch was trained and measured."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """The trial's progress up to an epoch is on disk."""

    epoch: int


@dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """The network as it would be deployed was measured after an epoch."""

    epoch: int
    metrics: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drawn(Event):
    """Pictures of the trial are in the folder."""

    pictures: Mapping[str, str]
    """What each picture shows, by file name."""

    reason: str = ""
    """Why there are none."""


@dataclass(frozen=True, kw_only=True)
class Paused(Event):
    """The worker pauses between two steps, as requested; only its executor gets this event."""


@dataclass(frozen=True, kw_only=True)
class MilestoneReached(Event):
    """The worker reached the job's last epoch, saved it and is free."""


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The worker stopped because it was asked to; what it saved is on disk."""


FailureKind = Literal["diverged", "out_of_memory", "setup", "disk", "error"]


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The training itself failed."""

    kind: FailureKind
    """`setup` is a user's mistake that every trial would meet; `disk` a disk that cannot be written, so that the trial
    can resume once it can; `error` anything unforeseen."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class WorkerDied(Event):
    """The worker's process died during the trial."""

    reason: str
    is_out_of_memory: bool = False
    """True if the system killed it because memory ran out."""


class Executor(Protocol):
    """Where trials run: worker processes, recorded curves, a cluster."""

    def free_slots(self) -> int:
        """Return how many jobs could start now."""

    def start(self, job: Job) -> None:
        """Hand a job to a free slot."""

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event, or None after `timeout` seconds without one."""

    def stop(self, trial: int) -> None:
        """Ask the worker of a trial to save and stop; a `Stopped` event follows."""

    def kill(self, trial: int, reason: str) -> None:
        """End the worker of a trial at once; a `WorkerDied` event with the reason follows."""

    def clock(self) -> float:
        """Return seconds on this executor's clock."""

    def close(self) -> None:
        """End all workers now."""
