"""Run jobs one after the other on one device: trainings, scores, latencies, pictures. Events report the progress."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from imgcls_search import costs, digests
from imgcls_search.data import Prepared, load
from imgcls_search.data.chosen import Chosen
from imgcls_search.errors import (
    DataError,
    DeployError,
    DivergedError,
    StoppedError,
    UserError,
    disk_trouble,
    first_line,
)
from imgcls_search.measures import by_class
from imgcls_search.protocol import (
    CheckpointSaved,
    Drawn,
    EpochEnded,
    Event,
    Failed,
    FailureKind,
    Job,
    MilestoneReached,
    Notice,
    Scored,
    Started,
    Stopped,
)
from imgcls_search.training import checkpoint
from imgcls_search.training.evaluation import predict
from imgcls_search.training.group import Group
from imgcls_search.training.health import refuse_collapsed, remark
from imgcls_search.training.loop import fit
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.session import Session
from imgcls_search.trial import LATENCY_CONDITIONS, MEASURED
from imgcls_search.words import counted
from imgcls_search.worker import cross_validation, finish, head_plan, networks, pretraining, start_weights
from imgcls_search.worker.cross_validation import CrossValidation
from imgcls_search.worker.current_training import CurrentTraining, kept_of_folds
from imgcls_search.worker.saved import identity, read_finished
from imgcls_search.worker.saving import CheckpointSaver

T = TypeVar("T")

NOT_OF_IMAGES = (*MEASURED, "archive_kb")
"""Metrics of an exported network that do not depend on images."""


class JobRunner:
    """Runs the jobs of one worker."""

    def __init__(self, device: str, group: Group | None = None) -> None:
        """With a `group`, all its processes run each job together, and one of them writes files."""
        self.device, self.group = device, group
        self.current = CurrentTraining(device, group)
        self.saver = CheckpointSaver(self.leads)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports events."""
        return self.group is None or self.group.is_leader

    def _agree(self, said: bool) -> bool:
        """Return the value that all processes of a group use: the leader's."""
        return said if self.group is None else self.group.agree(said)

    def work(
        self,
        job: Job,
        stop: threading.Event,
        *,
        wait_while_paused: Callable[[], None] = lambda: None,
        report_alive: Callable[[int], None] = lambda trial: None,
    ) -> Iterator[Event]:
        """Run a job; yield its events, of which the last one tells how the job ended.

        `wait_while_paused` is called between two steps; `report_alive`, with the trial, between two steps after the
        last epoch.
        """
        try:
            match job.kind:
                case "time":
                    yield from self._time(job)
                case "draw":
                    yield from self._draw(job)
                case "train":
                    yield from self._train(job, stop, wait_while_paused, report_alive)
        except StoppedError:
            yield Stopped(trial=job.trial)
        except DivergedError as error:
            yield self._fail(job, "diverged", str(error))
        except (DataError, DeployError) as error:
            # The images were intact before the first trial, so the cause may be temporary, or the search ends after
            # several such trials. Networks of other configurations may still be exportable.
            yield self._fail(job, "error", str(error))
        except UserError as error:
            yield self._fail(job, "setup", str(error))
        except (Exception, SystemExit) as error:
            trouble = disk_trouble(error)
            if trouble is not None:
                yield self._fail(job, "disk", trouble)
            elif _is_out_of_memory(error):
                yield self._fail(job, "out_of_memory", f"out of memory: {first_line(error, 'no message')}")
                self.current.free_memory()
            else:
                yield self._fail(job, "error", f"{type(error).__name__}: {first_line(error, 'no message')}")

    def _time(self, job: Job) -> Iterator[Event]:
        metrics = finish.time_artifact(Path(job.artifact), Prepared.from_dict(job.data))
        print(f"alone: {metrics}", flush=True)  # noqa: T201 - the trial's log
        notes = {"latency_conditions": LATENCY_CONDITIONS}
        yield Scored(trial=job.trial, epoch=job.until_epoch, metrics=metrics, notes=notes)
        yield MilestoneReached(trial=job.trial)

    def _draw(self, job: Job) -> Iterator[Event]:
        try:
            yield Drawn(trial=job.trial, pictures=self._pictures(job))
        except Exception as error:
            # The trial is trained and measured; do not lose it because of a picture.
            traceback.print_exc()
            yield Drawn(
                trial=job.trial, pictures={}, reason=f"{type(error).__name__}: {first_line(error, 'no message')}"
            )
        yield MilestoneReached(trial=job.trial)

    def _pictures(self, job: Job) -> dict[str, str]:
        # It imports matplotlib, which trainings do not need.
        from imgcls_search.worker import pictures

        data = start_weights.with_normalisation(job.config, Prepared.from_dict(job.data))
        state = checkpoint.load(Path(job.checkpoint))
        if job.config.is_pretraining:
            return pictures.draw_health(Path(job.pictures), job.trial, state["history"])
        draw = partial(
            pictures.draw,
            Path(job.pictures),
            job.trial,
            history=state["history"],
            classes=data.classes,
            stated=costs.of(job.config.tree),
            pretrained=pretraining.epochs_of_pretraining(job.backbones),
        )
        if cross_validation.KEY in state:
            known = cross_validation.read_out_of_fold(state, job.checkpoint)
            pixels = Chosen([load(data, "train").pixels, load(data, "val").pixels], known.images)
            return draw(logits=known.logits, labels=known.labels, pixels=pixels)
        _, validation = self.current.image_sets(data, job.portion)
        assert validation is not None
        artifact = finish.find_artifact(state, Path(job.checkpoint))
        if artifact is not None:
            logits = finish.logits(artifact, validation)
        else:
            session = self._session_of(job, data)
            assert isinstance(session, Session)
            logits = predict(session.deployed, validation, precision=session.precision)
        split = load(data, "val")
        return draw(logits=logits, labels=np.asarray(split.labels), pixels=split.pixels)

    def _train(
        self,
        job: Job,
        stop: threading.Event,
        wait_while_paused: Callable[[], None],
        report_alive: Callable[[int], None],
    ) -> Iterator[Event]:
        self.current.unlabeled = None
        data = start_weights.with_normalisation(job.config, Prepared.from_dict(job.data))
        known = read_finished(job)
        if self._agree(known is not None):
            yield from known or ()
            return
        if job.config.is_pretraining:
            self.current.unlabeled = yield from self._leader_first(
                pretraining.preparing(job, data, self.device, stop, wait_while_paused)
            )
        session = self._session_of(job, data)
        if self.group is not None:
            # From here on, files may be written that the others of the group have read.
            self.group.wait()
        yield Started(trial=job.trial, history=list(session.history), dropped=self.current.dropped)
        yield from self._tell_of_devices(job)
        if self.current.unlabeled is not None:
            # An earlier call may have saved the epoch in which it collapsed.
            refuse_collapsed(session.history)

        def wants_to_stop() -> bool:
            wait_while_paused()
            # An epoch may be discarded only if the previous one is on disk.
            return stop.is_set() and self.saver.epoch == session.epoch

        def should_stop() -> bool:
            return self._agree(self.leads and wants_to_stop())

        yield from self._leader_first(self._find_features(job, data, session, wants_to_stop))
        wanted = Wanted(classes=data.classes, named=job.metrics, costs=costs.of(job.config.tree))
        if isinstance(session, CrossValidation):
            epochs = session.fit(until_epoch=job.until_epoch, should_stop=should_stop, wanted=wanted)
        else:
            shown = self.current.unlabeled
            sets = (shown.images, None) if shown else self.current.image_sets(data, job.portion)
            epochs = fit(session, *sets, until_epoch=job.until_epoch, should_stop=should_stop, wanted=wanted)
        for metrics in epochs:
            stopping = self._agree(stop.is_set())
            if stopping or session.epoch == job.until_epoch or self.saver.is_due(metrics["seconds"]):
                self._save(session, job, data)
                yield CheckpointSaved(trial=job.trial, epoch=session.epoch)
            print(f"epoch {session.epoch}: {by_class(metrics)[0]}", flush=True)  # noqa: T201 - the trial's log
            yield EpochEnded(trial=job.trial, metrics=metrics)
            if stopping and session.epoch < job.until_epoch:
                yield Stopped(trial=job.trial)
                return
            if self.current.unlabeled is not None:
                refuse_collapsed(session.history)
        if self.current.unlabeled is not None:
            yield from self._finish_pretraining(job, data, session)
        elif job.is_scored:
            yield self._score(job, data, session, should_stop, lambda: report_alive(job.trial))
        yield MilestoneReached(trial=job.trial)

    def _finish_pretraining(self, job: Job, data: Prepared, session: Session | CrossValidation) -> Iterator[Event]:
        """Write the network of a finished pretraining, and report problems of its features."""
        if session.epoch < job.config.epochs:
            return
        if (line := remark(session.history)) is not None:
            yield Notice(trial=job.trial, text=line)
        if job.artifact:
            assert isinstance(session, Session)
            assert self.current.unlabeled is not None
            if self.leads:
                state = pretraining.write_backbone(session, self.current.unlabeled, job, data)
                checkpoint.save({**state, "job": identity(job)}, Path(job.checkpoint))
            self.current.session = None

    def _leader_first(self, steps: Generator[Event, None, T]) -> Generator[Event, None, T]:
        """Let the leader of a group do some work first while the others wait; they then find it done.

        Raises:
            StoppedError: the run requests a stop.
        """
        if self.group is None:
            return (yield from steps)
        if self.leads:
            try:
                found = yield from steps
            except StoppedError:
                self.group.agree(True)
                raise
        if self.group.agree(False):
            raise StoppedError("stopped while others of the group waited")
        if not self.leads:
            found = yield from steps
        return found

    def _tell_of_devices(self, job: Job) -> Iterator[Event]:
        """Report that a training resumes with another number of devices, whose sums round differently."""
        if (then := self.current.other_devices) is not None:
            now = 1 if self.group is None else self.group.size
            text = (
                f"{_name(job)}: its checkpoint is of {counted('device', then)}, and it goes on with {now}: the "
                "epochs to come may differ in their last digits"
            )
            yield Notice(trial=job.trial, text=text)
            self.current.other_devices = None

    def _find_features(
        self, job: Job, data: Prepared, session: Session | CrossValidation, should_stop: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        """Load or compute the features for the job's epochs; yield progress events."""
        wanted = head_plan.plan(job.config)
        if wanted is None or session.epoch >= job.until_epoch:
            return
        if isinstance(session, Session) and session.epoch >= max(wanted.epochs, 1):
            return
        fold = session.fold if isinstance(session, CrossValidation) else None
        for line in self.current.features_of(job, data, fold).computing(wanted, job.portion):
            if should_stop():
                raise StoppedError("stopped while features were computed")
            # An empty event as a sign of life, because this may take longer than an epoch.
            yield Notice(trial=job.trial, text=line) if line is not None else Event(trial=job.trial)

    def _score(
        self,
        job: Job,
        data: Prepared,
        session: Session | CrossValidation,
        should_stop: Callable[[], bool],
        report_alive: Callable[[], None],
    ) -> Event:
        """Compress, export and measure a copy; at the last epoch, the checkpoint then stores the result."""
        started = time.monotonic()
        fold = session.fold if isinstance(session, CrossValidation) else None
        train, validation = self.current.image_sets(data, job.portion, fold)
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
            metrics=job.metrics,
            should_stop=should_stop,
            report_alive=report_alive,
            group=self.group,
        )
        found = finish.finish(session.deployed, task, Path(job.artifact) if job.artifact else None)
        scores = found.metrics
        if fold is not None:
            # The score is that of all folds; the file is the last fold's network, with its size and latency.
            scores = {name: value for name, value in scores.items() if name in NOT_OF_IMAGES}
        metrics = {**scores, "seconds": round(time.monotonic() - started, 4)}
        print(f"as deployed after epoch {session.epoch}: {by_class(metrics)[0]} {found.notes}", flush=True)  # noqa: T201
        if job.artifact and self.leads:
            state = {
                "model": found.model.state_dict(),
                **networks.describe_weights(job.config, data, found.shapes),
                "job": identity(job),
                "history": session.history,
                "artifact": digests.of_file(Path(job.artifact)),
                "metrics": metrics,
                "notes": found.notes,
                **kept_of_folds(session, data),
            }
            checkpoint.save(state, Path(job.checkpoint))
        if job.artifact:
            self.current.session = None
        return Scored(trial=job.trial, epoch=session.epoch, metrics=metrics, notes=found.notes)

    def _session_of(self, job: Job, data: Prepared) -> Session | CrossValidation:
        held = self.current.session
        session = self.current.session_of(job, data)
        if session is not held:
            self.saver.begin(session.epoch)
        return session

    def _save(self, session: Session | CrossValidation, job: Job, data: Prepared) -> None:
        self.saver.save(session.epoch, Path(job.checkpoint), lambda: self.current.state(session, job, data))

    def _fail(self, job: Job, kind: FailureKind, reason: str) -> Event:
        # The log may be on the full disk.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        self.current.session = None
        return Failed(trial=job.trial, kind=kind, reason=reason)


def _name(job: Job) -> str:
    """Return the display name of a job's training."""
    return f"trial {job.trial}" if job.trial >= 0 else "pretraining"


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU, torch raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
