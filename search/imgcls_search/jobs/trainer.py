"""Train outside a search: a helper, workers, and one loop with one retry rule, shared by all such commands."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from imgcls_search import atomic
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import NoResultError, StudyError, UserError
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
"""Most deaths of workers that a training survives."""


PARTIAL = ".partial.pt"
"""Suffix of the weights of an unfinished training."""


class TrainingWatcher(Protocol):
    """Shows the progress of trainings."""

    def say(self, text: str) -> None:
        """Show a line."""

    def decoding(self, done: int, total: int) -> None:
        """Show images being decoded."""

    def epoch_ended(self, epoch: Epoch) -> None:
        """Show an epoch."""


class Trainer:
    """Trains jobs to their last epochs in workers on this machine; use it in a `with` statement."""

    def __init__(self, studies: Path, watcher: TrainingWatcher) -> None:
        """Decoded images are stored below `studies`; call `hire` for workers."""
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
        """Return the data set of a configuration, with decoded images.

        Raises:
            DataError: the images are missing, damaged or unusable.
        """
        return self.helper.prepare(config, self.watcher.decoding, self.watcher.say)

    def train(
        self, jobs: Sequence[Job], names: Sequence[str], pace: Pace | None = None
    ) -> list[list[dict[str, float]]]:
        """Train every job to its last epoch and return the metrics of each epoch, by job.

        The number of each job is its index in the list. `names` are shown to the user; `pace` counts epochs if more
        jobs follow.

        Raises:
            UserError: the disk is full, or a file that the training needs is wrong.
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
            UserError: the training ended for a reason that the user can fix.
            NoResultError: the training failed.
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
                # The scores of the deployed network replace those of the last epoch.
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
    """The progress of a job."""

    job: Job
    name: str
    pace: Pace
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    deaths: int = 0
    is_finished: bool = False

    @property
    def what(self) -> str:
        """Its name in messages."""
        return self.name if self.job.config.is_pretraining else f"seed {self.job.seed}"

    def retry(self, trouble: Failed | WorkerDied) -> str:
        """Prepare to restart, and return the message about it.

        Raises:
            UserError: the user must fix something first.
            NoResultError: a restart cannot help.
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


@contextlib.contextmanager
def working_alone(lock: Path, busy: str) -> Iterator[None]:
    """Keep other processes from the same results while the block runs; the lock file is deleted afterwards.

    Raises:
        StudyError: another process holds the lock; `busy` is the message.
        UserError: the file cannot be locked.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise StudyError(busy) from None
    except OSError as error:
        raise UserError(f"{lock}: cannot be locked ({error.strerror})") from error
    try:
        yield
    finally:
        # Deleted while it is held: another process that waits for it gets nothing.
        with contextlib.suppress(OSError):
            lock.unlink()
        held.release()


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
    """Return a job that trains to the last epoch, from the start or from an interrupted training's checkpoint.

    Unfinished weights have another file name, so that they are not mistaken for finished ones.
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
    """Rename the weights of a finished training to their final name."""
    if checkpoint.name.endswith(PARTIAL):
        atomic.publish(checkpoint, checkpoint.with_name(f"{checkpoint.name.removesuffix(PARTIAL)}.pt"))
