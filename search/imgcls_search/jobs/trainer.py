"""What every command that trains outside a search shares: a helper, workers, and one loop with one rule for retries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from imgcls_search import atomic
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import NoResultError, UserError
from imgcls_search.executors.helper import Helper
from imgcls_search.executors.local import LocalExecutor, usable_groups
from imgcls_search.jobs.pace import Epoch, Pace
from imgcls_search.orchestrator.faults import parts_after, without_memory
from imgcls_search.protocol import (
    EpochEnded,
    Event,
    Failed,
    Job,
    MilestoneReached,
    Notice,
    Portion,
    Scored,
    Started,
    WorkerDied,
)
from imgcls_search.trial import compresses

MOST_DEATHS = 2
"""Workers that may die under one seed before the training is given up."""


PARTIAL = ".partial.pt"
"""Ends the name of weights that are still being trained."""


class TrainingWatcher(Protocol):
    """Somebody who looks on."""

    def say(self, text: str) -> None:
        """Take a line that a person should see."""

    def decoding(self, done: int, total: int) -> None:
        """Show images being decoded."""

    def epoch_ended(self, epoch: Epoch) -> None:
        """Show an epoch."""


class Trainer:
    """Trains jobs to their last epochs in workers on this machine; use it in a `with` statement."""

    def __init__(self, studies: Path, watcher: TrainingWatcher) -> None:
        """Decoded images are kept below `studies`; workers come with `hire`."""
        self.watcher = watcher
        self.helper = Helper(studies)
        self.executor: LocalExecutor | None = None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.executor is not None:
            self.executor.close()
        self.helper.close()

    def hire(self, config: TrialConfig, most: int) -> list[str]:
        """Set up a worker for each of at most `most` jobs at a time, and return the devices that they use.

        Raises:
            DeviceError: the device that the configuration names is not on this machine.
        """
        devices = self.helper.devices(config.device)
        self.executor = LocalExecutor(usable_groups(devices, config.devices, None, most))
        return devices

    def images(self, config: TrialConfig) -> Prepared:
        """Return the data set of a configuration, its images decoded.

        Raises:
            DataError: the images are missing, damaged or unusable.
        """
        return self.helper.prepare(config, self.watcher.decoding, self.watcher.say)

    def train(
        self, jobs: Sequence[Job], names: Sequence[str], pace: Pace | None = None
    ) -> list[list[dict[str, float]]]:
        """Train every job to its last epoch and return what each epoch measured, by job.

        Each job has its place in the list as its number. `names` are what a person calls them; `pace` counts epochs
        where more jobs follow on these.

        Raises:
            UserError: the disk is full, or a file that the training needs is not what it should be.
            NoResultError: a training diverged or failed, or its workers keep dying.
        """
        assert self.executor is not None, "workers are hired before jobs are trained"
        assert [job.trial for job in jobs] == list(range(len(jobs)))
        pace = pace or Pace(sum(job.until_epoch for job in jobs))
        trainings = [_Training(job, name, pace) for job, name in zip(jobs, names, strict=True)]
        waiting = list(trainings)
        while not all(training.is_finished for training in trainings):
            while waiting and self.executor.free_slots():
                self.executor.start(waiting.pop(0).job)
            event = self.executor.next_event(0.5)
            if event is not None and self._take(event, trainings[event.trial]):
                waiting.insert(0, trainings[event.trial])
        return [training.history for training in trainings]

    def _take(self, event: Event, training: _Training) -> bool:
        """Handle an event; return whether the training must be started again.

        Raises:
            UserError: the user can mend what ended it.
            NoResultError: the training is lost.
        """
        match event:
            case Started(history=history, dropped=dropped):
                if dropped:
                    self.watcher.say(f"{training.what}: {dropped}; it is trained from the start")
                training.history = [dict(metrics) for metrics in history]
                training.pace.begins(training.job, len(history))
            case Notice(text=text):
                self.watcher.say(text)
            case EpochEnded(metrics=metrics):
                training.history.append(dict(metrics))
                self.watcher.epoch_ended(training.pace.ended(training.job, training.name, metrics))
            case Scored(metrics=metrics):
                # As it is deployed, and so what it is worth.
                training.history.append({**training.history[-1], **metrics})
            case MilestoneReached():
                _name_finished(Path(training.job.checkpoint))
                training.is_finished = True
            case Failed() | WorkerDied():
                self.watcher.say(f"{training.what}: {training.retry(event)}")
                return True
            case Event():
                pass
        return False


@dataclasses.dataclass
class _Training:
    """How far a job has come."""

    job: Job
    name: str
    pace: Pace
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    deaths: int = 0
    is_finished: bool = False

    @property
    def what(self) -> str:
        """What a person calls it in a sentence."""
        return self.name if self.job.config.is_pretraining else f"seed {self.job.seed}"

    def retry(self, trouble: Failed | WorkerDied) -> str:
        """Prepare for another start, and return what is said of it.

        Raises:
            UserError: there is to be none until the user has mended something.
            NoResultError: there is to be none.
        """
        is_out_of_memory = (
            trouble.is_out_of_memory if isinstance(trouble, WorkerDied) else trouble.kind == "out_of_memory"
        )
        more = parts_after(self.job.config, self.job.micro_batches)
        if is_out_of_memory and not more and self.job.config.needs_whole_batches:
            raise NoResultError(without_memory(self.job.config, trouble.reason, self.job.micro_batches))
        if is_out_of_memory and more:
            self.job = dataclasses.replace(self.job, micro_batches=more)
            return f"{trouble.reason}; it continues with {more} micro-batches a batch"
        if isinstance(trouble, Failed) and trouble.kind == "disk":
            raise UserError(f"{self.what}: {trouble.reason}; make room, then run the same command again to resume")
        if isinstance(trouble, Failed) and trouble.kind == "setup":
            raise UserError(f"{self.what}: {trouble.reason}")
        if isinstance(trouble, Failed):
            raise NoResultError(f"{self.what}: {trouble.reason} (log: {self.job.log})")
        self.deaths += 1
        if self.deaths > MOST_DEATHS:
            raise NoResultError(f"{self.what}: {trouble.reason}, {self.deaths} times")
        return f"{trouble.reason}; it resumes from its last checkpoint"


def training_job(
    number: int,
    config: TrialConfig,
    data: Prepared,
    *,
    seed: int,
    weights: Path,
    teacher: str | None,
    backbones: tuple[str, ...] = (),
    portion: Portion = "train",
    metrics: tuple[str, ...] = (),
) -> Job:
    """Return a training from the start to its last epoch, or from the checkpoint that an interrupted one left.

    Until it is finished its weights have another name, so that nobody takes them for finished ones.
    """
    exports = compresses(config)
    return Job(
        trial=number,
        config=config,
        data=data.to_dict(),
        seed=seed,
        portion=portion,
        until_epoch=config.epochs if portion == "train" else config.training_epochs,
        from_epoch=0,
        checkpoint=str(weights if weights.exists() else weights.with_suffix(PARTIAL)),
        log=str(weights.with_suffix(".log")),
        is_scored=exports,
        artifact=str(weights.with_suffix(".onnx")) if exports else "",
        teacher=teacher,
        backbones=backbones,
        metrics=metrics,
    )


def _name_finished(checkpoint: Path) -> None:
    """Give the weights of a finished training the name that they are looked for by."""
    if checkpoint.name.endswith(PARTIAL):
        atomic.publish(checkpoint, checkpoint.with_name(f"{checkpoint.name.removesuffix(PARTIAL)}.pt"))
