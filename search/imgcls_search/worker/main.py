"""Inside a worker process: jobs come in, trainings go on, events go out. Knows no Optuna."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgcls_search import digests, terminal
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.errors import (
    CheckpointError,
    DataError,
    DeployError,
    DivergedError,
    StoppedError,
    UserError,
    disk_trouble,
    first_line,
)
from imgcls_search.protocol import (
    CheckpointSaved,
    Drawn,
    EpochEnded,
    Event,
    Failed,
    GoOn,
    Held,
    Hold,
    Job,
    Message,
    MilestoneReached,
    Portion,
    Scored,
    Started,
    Stop,
    Stopped,
)
from imgcls_search.train import checkpoint
from imgcls_search.train.device import give_back_memory, settle_in
from imgcls_search.train.loop import ImageSet, Session, fit, predict
from imgcls_search.trial import LATENCY_CONDITIONS
from imgcls_search.worker import finish, pipeline

SAVE_SHARE = 0.02
"""Checkpoints are written every epoch where that costs at most this share of the time,"""

SAVE_SECONDS = 30.0
"""and at least this often otherwise."""


def main(connection: Connection, name: str, device: str) -> None:
    """Take jobs from a connection until its other end closes."""
    # Ctrl-C is ignored already, see `executors.processes`.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A crash in compiled code then leaves its stack in the log of the trial.
    faulthandler.enable(file=2)
    # A log is never refused a name.
    terminal.show_all_characters()
    settle_in(device)
    inbox = Inbox(connection)
    runner = JobRunner(device)
    while True:
        job = inbox.jobs.get()
        with _logging_to(Path(job.log)):
            for event in runner.work(job, inbox.stop_requested, rest=inbox.rest, live=inbox.live):
                connection.send(dataclasses.replace(event, worker=name))


class Inbox:
    """Reads the connection in a thread, so that a stop, or the run's death, is seen while the job computes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.stop_requested = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        threading.Thread(target=self._listen, daemon=True).start()

    def rest(self) -> None:
        """Return at once, or, where the run asked for quiet, say so and wait until it is over."""
        if not self.may_go_on.is_set():
            self.connection.send(Held(trial=-1))
            self.may_go_on.wait()

    def live(self, trial: int) -> None:
        """Say that a trial goes on, where what it does takes longer than an epoch."""
        self.connection.send(Event(trial=trial))

    def _listen(self) -> None:
        while True:
            try:
                message: Message = self.connection.recv()
            except (EOFError, OSError):
                # The run is gone; an orphan would go on training and overwrite checkpoints.
                os._exit(1)
            match message:
                case Job():
                    self.stop_requested.clear()
                    self.jobs.put(message)
                case Stop():
                    self.stop_requested.set()
                case Hold():
                    self.may_go_on.clear()
                case GoOn():
                    pass
            if not isinstance(message, Hold):
                self.may_go_on.set()


class JobRunner:
    """Where a worker's current training stands between two jobs."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.trial = -1
        self.session: Session | None = None
        self.images: tuple[Any, tuple[ImageSet, ImageSet | None]] | None = None
        """The image sets of the last job and what they were made of; the next trial's are mostly the same."""
        self.dropped = ""
        """Why the checkpoint of the current training could not be used."""
        self.saved_epoch = 0
        self.saved_at = 0.0
        self.save_seconds = 0.0

    def work(
        self,
        job: Job,
        stop: threading.Event,
        *,
        rest: Callable[[], None] = lambda: None,
        live: Callable[[int], None] = lambda trial: None,
    ) -> Any:
        """Do a job; yield its events, the last of which says how it ended.

        `rest` is called between two steps, `live` with the trial between two parts of what follows the last epoch.
        """
        try:
            match job.kind:
                case "time":
                    yield from self._time(job)
                case "draw":
                    yield from self._draw(job)
                case "train":
                    yield from self._train(job, stop, rest, live)
        except StoppedError:
            yield Stopped(trial=job.trial)
        except DivergedError as error:
            yield self._fail(job, "diverged", str(error))
        except (DataError, DeployError) as error:
            # The images were whole before the first trial: what happened to them may pass, or end with k such trials.
            # Another configuration's network may be one that can be exported.
            yield self._fail(job, "error", str(error))
        except UserError as error:
            yield self._fail(job, "setup", str(error))
        except (Exception, SystemExit) as error:
            trouble = disk_trouble(error)
            if trouble is not None:
                yield self._fail(job, "disk", trouble)
            elif _is_out_of_memory(error):
                yield self._fail(job, "out_of_memory", f"out of memory: {first_line(error, 'no message')}")
                self._free_memory()
            else:
                yield self._fail(job, "error", f"{type(error).__name__}: {first_line(error, 'no message')}")

    def _time(self, job: Job) -> Any:
        metrics = finish.time_artifact(Path(job.artifact), Prepared.from_dict(job.data))
        print(f"alone: {metrics}", flush=True)  # noqa: T201 - the trial's log
        notes = {"latency_conditions": LATENCY_CONDITIONS}
        yield Scored(trial=job.trial, epoch=job.until_epoch, metrics=metrics, notes=notes)
        yield MilestoneReached(trial=job.trial)

    def _draw(self, job: Job) -> Any:
        try:
            yield Drawn(trial=job.trial, pictures=self._pictures(job))
        except Exception as error:
            # The trial is trained and measured; it is not to be lost for a picture.
            traceback.print_exc()
            yield Drawn(
                trial=job.trial, pictures={}, reason=f"{type(error).__name__}: {first_line(error, 'no message')}"
            )
        yield MilestoneReached(trial=job.trial)

    def _pictures(self, job: Job) -> dict[str, str]:
        # It brings matplotlib, which no training needs.
        from imgcls_search.worker import pictures

        data = pipeline.with_normalisation(job.config, Prepared.from_dict(job.data))
        _, validation = self._image_sets(data, job.portion)
        assert validation is not None
        state = checkpoint.load(Path(job.checkpoint))
        artifact = finish.find_artifact(state, Path(job.checkpoint))
        if artifact is not None:
            logits = finish.logits(artifact, validation)
        else:
            session = self._session(job, data)
            logits = predict(session.deployed, validation, precision=session.precision)
        split = load(data, "val")
        return pictures.draw(
            Path(job.pictures),
            job.trial,
            history=state["history"],
            logits=logits,
            labels=np.asarray(split.labels),
            pixels=split.pixels,
            classes=data.classes,
        )

    def _train(self, job: Job, stop: threading.Event, rest: Callable[[], None], live: Callable[[int], None]) -> Any:
        data = pipeline.with_normalisation(job.config, Prepared.from_dict(job.data))
        if (known := _read_finished(job)) is not None:
            yield from known
            return
        session = self._session(job, data)
        yield Started(trial=job.trial, history=list(session.history), dropped=self.dropped)
        train, validation = self._image_sets(data, job.portion)

        def should_stop() -> bool:
            rest()
            # An epoch may be thrown away only when the one before it is on disk.
            return stop.is_set() and self.saved_epoch == session.epoch

        epochs = fit(session, train, validation, until_epoch=job.until_epoch, should_stop=should_stop)
        for metrics in epochs:
            stopping = stop.is_set()
            if stopping or session.epoch == job.until_epoch or self._is_save_due(metrics["seconds"]):
                self._save(session, job, data)
                yield CheckpointSaved(trial=job.trial, epoch=session.epoch)
            print(f"epoch {session.epoch}: {metrics}", flush=True)  # noqa: T201 - the trial's log
            yield EpochEnded(trial=job.trial, metrics=metrics)
            if stopping and session.epoch < job.until_epoch:
                yield Stopped(trial=job.trial)
                return
        if job.is_scored:
            yield self._score(job, data, session, should_stop, lambda: live(job.trial))
        yield MilestoneReached(trial=job.trial)

    def _score(
        self,
        job: Job,
        data: Prepared,
        session: Session,
        should_stop: Callable[[], bool],
        live: Callable[[], None],
    ) -> Event:
        """Compress, export and measure a copy; at the last epoch the checkpoint then holds what came out."""
        started = time.monotonic()
        train, validation = self._image_sets(data, job.portion)
        task = finish.Task(
            config=job.config,
            data=data,
            epoch=session.epoch,
            seed=job.seed,
            device=self.device,
            teacher=job.teacher,
            micro_batches=job.micro_batches,
            train=train,
            validation=validation,
            should_stop=should_stop,
            live=live,
        )
        found = finish.finish(session.deployed, task, Path(job.artifact) if job.artifact else None)
        metrics = {**found.metrics, "seconds": round(time.monotonic() - started, 4)}
        print(f"as deployed after epoch {session.epoch}: {metrics} {found.notes}", flush=True)  # noqa: T201
        if job.artifact:
            state = {
                "model": found.model.state_dict(),
                **pipeline.describe_weights(job.config, data, found.shapes),
                "job": _identity(job),
                "history": session.history,
                "artifact": digests.of_file(Path(job.artifact)),
                "metrics": metrics,
                "notes": found.notes,
            }
            checkpoint.save(state, Path(job.checkpoint))
            self.session = None
        return Scored(trial=job.trial, epoch=session.epoch, metrics=metrics, notes=found.notes)

    def _image_sets(self, data: Prepared, portion: Portion) -> tuple[ImageSet, ImageSet | None]:
        """Return the images; a GPU that holds them keeps them from trial to trial."""
        if self.images is None or self.images[0] != (data, portion):
            # Two sets at a time might not fit.
            self.images = None
            self.images = (data, portion), pipeline.image_sets(data, portion, self.device)
        return self.images[1]

    def _session(self, job: Job, data: Prepared) -> Session:
        """Return the trial's training: as this worker left it, from its checkpoint, or new."""
        self.dropped = ""
        if self.session is not None and self.trial == job.trial and self.session.epoch == job.from_epoch:
            return self.session
        state, self.dropped = _read_checkpoint(job)
        if state is not None and "artifact" in state:
            state, self.dropped = None, "the exported network beside its checkpoint has gone"
        if self.dropped:
            print(f"training again from the start: {self.dropped}", flush=True)  # noqa: T201 - the trial's log
        self.session = None
        give_back_memory()
        session = pipeline.new_session(
            job.config,
            data,
            seed=job.seed,
            device=self.device,
            from_pretrained=state is None,
            micro_batches=job.micro_batches,
            teacher=job.teacher,
        )
        if state is not None:
            session.load_state_dict(state)
        self.trial, self.session = job.trial, session
        self.saved_epoch, self.saved_at, self.save_seconds = session.epoch, time.monotonic(), 0.0
        return session

    def _is_save_due(self, epoch_seconds: float) -> bool:
        return self.save_seconds <= SAVE_SHARE * epoch_seconds or time.monotonic() - self.saved_at > SAVE_SECONDS

    def _save(self, session: Session, job: Job, data: Prepared) -> None:
        started = time.monotonic()
        state = {**session.state_dict(), **pipeline.describe_weights(job.config, data), "job": _identity(job)}
        if session.epoch == job.config.section("training")["epochs"]:
            # Nothing follows: what only a further step would need is two thirds of the file.
            del state["optimizer"]
        checkpoint.save(state, Path(job.checkpoint))
        self.saved_epoch, self.saved_at = session.epoch, time.monotonic()
        self.save_seconds = self.saved_at - started

    def _fail(self, job: Job, kind: Any, reason: str) -> Event:
        # The log may be on the disk that is full.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        self.session = None
        return Failed(trial=job.trial, kind=kind, reason=reason)

    def _free_memory(self) -> None:
        """Let go of everything that the next job can make anew."""
        self.images = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _identity(job: Job) -> str:
    """Return what must be equal for a checkpoint to belong to a job; where the images are does not matter."""
    return f"{job.config.digest_anywhere()} {job.seed} {job.portion}"


def _belongs_to(job: Job, state: dict[str, Any]) -> bool:
    known = state.get("job")
    if known == _identity(job):
        return True
    # Earlier versions noted the configuration with the place of its images.
    try:
        config = TrialConfig.from_dict(json.loads(state["about"])["config"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    then = f"{config.digest()} {job.seed} {job.portion}"
    return bool(known == then and config.digest_anywhere() == job.config.digest_anywhere())


def _read_finished(job: Job) -> list[Event] | None:
    """Return the events of a job that an earlier worker did to its end, without anybody having heard of it."""
    state = _read_checkpoint(job)[0] if job.artifact else None
    if state is None or "artifact" not in state:
        return None
    artifact = Path(job.artifact)
    if not artifact.is_file() or digests.of_file(artifact) != state["artifact"]:
        return None
    trial, history = job.trial, list(state["history"])
    return [
        Started(trial=trial, history=history),
        CheckpointSaved(trial=trial, epoch=len(history)),
        Scored(trial=trial, epoch=len(history), metrics=state["metrics"], notes=state["notes"]),
        MilestoneReached(trial=trial),
    ]


def _read_checkpoint(job: Job) -> tuple[dict[str, Any] | None, str]:
    """Return the job's saved state, None where there is none to use, and why one that is there is of no use.

    A lost checkpoint costs time and nothing else: the same seed gives the same epochs again.
    """
    path = Path(job.checkpoint)
    if not path.exists():
        return None, ""
    try:
        state = checkpoint.load(path)
    except CheckpointError as error:
        return None, str(error)
    if not _belongs_to(job, state):
        return None, "its checkpoint is of another training"
    if not _is_of_same_images(job, state):
        return None, "its checkpoint was trained on other images"
    return state, ""


def _is_of_same_images(job: Job, state: dict[str, Any]) -> bool:
    try:
        known = Prepared.from_dict(json.loads(state["about"])["data"])
    except (KeyError, TypeError, ValueError):
        return False
    return pipeline.has_prints(job.config, Prepared.from_dict(job.data), known.prints)


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch reports it as a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class _logging_to:  # noqa: N801 - used as a function
    """Send everything that the process prints, from any library, to the end of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.kept = os.dup(1), os.dup(2)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _print_to(self.path)
        except OSError:
            # The checkpoint meets the same full disk, and ends the job with the reason.
            _print_to(Path(os.devnull))

    def __exit__(self, *failure: object) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            # What a full disk does not take shall not come out on the terminal later.
            _print_to(Path(os.devnull))
            sys.stdout.flush()
            sys.stderr.flush()
        for kept, target in zip(self.kept, (1, 2), strict=True):
            os.dup2(kept, target)
            os.close(kept)


def _print_to(path: Path) -> None:
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
