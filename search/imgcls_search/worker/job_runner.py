"""One job after the other, on one device: a training, a score, a measured latency, pictures. Events say how it goes."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from imgcls_search.protocol import (
    CheckpointSaved,
    Drawn,
    EpochEnded,
    Event,
    Failed,
    Job,
    MilestoneReached,
    Portion,
    Scored,
    Started,
    Stopped,
    Told,
)
from imgcls_search.training import checkpoint
from imgcls_search.training.device import give_back_memory
from imgcls_search.training.evaluation import predict
from imgcls_search.training.group import Group
from imgcls_search.training.health import refuse_collapsed, remark
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.session import Session
from imgcls_search.trial import LATENCY_CONDITIONS, MEASURED
from imgcls_search.worker import (
    cross_validation,
    finish,
    head_phase,
    head_plan,
    image_sets,
    networks,
    pipeline,
    pretraining,
)
from imgcls_search.worker.cross_validation import CrossValidation
from imgcls_search.worker.head_phase import HeadFeatures
from imgcls_search.worker.saved import identity, read_checkpoint, read_finished

T = TypeVar("T")

SAVE_SHARE = 0.02
"""Checkpoints are written every epoch where that costs at most this share of the time,"""

SAVE_SECONDS = 30.0
"""and at least this often otherwise."""

NOT_OF_IMAGES = (*MEASURED, "archive_kb")
"""What an exported network is measured by beside its scores on images."""


class JobRunner:
    """Where a worker's current training stands between two jobs."""

    def __init__(self, device: str, group: Group | None = None) -> None:
        """With a `group`, all its processes do the same work on each job; one of them writes files."""
        self.device, self.group = device, group
        self.trial = -1
        self.session: Session | CrossValidation | None = None
        self.images: tuple[Any, tuple[ImageSet, ImageSet | None]] | None = None
        """The image sets of the last job and what they were made of; the next trial's are mostly the same."""
        self.features: tuple[Any, HeadFeatures] | None = None
        """The features of the last job whose head read some, and what decides on them."""
        self.unlabeled: pretraining.Shown | None = None
        """The images of the current job where it pretrains."""
        self.dropped = ""
        """Why the checkpoint of the current training could not be used."""
        self.other_devices: int | None = None
        """How many devices wrote the checkpoint that the current training goes on from, where it was another number."""
        self.saved_epoch = 0
        self.saved_at = 0.0
        self.save_seconds = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and tells what happens."""
        return self.group is None or self.group.is_leader

    def _agree(self, said: bool) -> bool:
        """Return what all processes of a group go by."""
        return said if self.group is None else self.group.agree(said)

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
        )
        if cross_validation.KEY in state:
            known = cross_validation.read_out_of_fold(state, job.checkpoint)
            pixels = Chosen([load(data, "train").pixels, load(data, "val").pixels], known.images)
            return draw(logits=known.logits, labels=known.labels, pixels=pixels)
        _, validation = self._image_sets(data, job.portion)
        assert validation is not None
        artifact = finish.find_artifact(state, Path(job.checkpoint))
        if artifact is not None:
            logits = finish.logits(artifact, validation)
        else:
            session = self._session(job, data)
            assert isinstance(session, Session)
            logits = predict(session.deployed, validation, precision=session.precision)
        split = load(data, "val")
        return draw(logits=logits, labels=np.asarray(split.labels), pixels=split.pixels)

    def _train(self, job: Job, stop: threading.Event, rest: Callable[[], None], live: Callable[[int], None]) -> Any:
        self.unlabeled = None
        data = pipeline.with_normalisation(job.config, Prepared.from_dict(job.data))
        known = read_finished(job)
        if self._agree(known is not None):
            yield from known or ()
            return
        if job.config.is_pretraining:
            self.unlabeled = yield from self._led(pretraining.preparing(job, data, self.device, stop, rest))
        session = self._session(job, data)
        if self.group is not None:
            # From here on files may be written that others of the group have read.
            self.group.wait()
        yield Started(trial=job.trial, history=list(session.history), dropped=self.dropped)
        yield from self._tell_of_devices(job)

        def wants_to_stop() -> bool:
            rest()
            # An epoch may be thrown away only when the one before it is on disk.
            return stop.is_set() and self.saved_epoch == session.epoch

        def should_stop() -> bool:
            return self._agree(self.leads and wants_to_stop())

        yield from self._led(self._find_features(job, data, session, wants_to_stop))
        wanted = Wanted(classes=data.classes, named=job.metrics, costs=costs.of(job.config.tree))
        if isinstance(session, CrossValidation):
            epochs = session.fit(until_epoch=job.until_epoch, should_stop=should_stop, wanted=wanted)
        else:
            sets = (self.unlabeled.images, None) if self.unlabeled else self._image_sets(data, job.portion)
            epochs = fit(session, *sets, until_epoch=job.until_epoch, should_stop=should_stop, wanted=wanted)
        for metrics in epochs:
            stopping = self._agree(stop.is_set())
            if stopping or session.epoch == job.until_epoch or self._is_save_due(metrics["seconds"]):
                self._save(session, job, data)
                yield CheckpointSaved(trial=job.trial, epoch=session.epoch)
            print(f"epoch {session.epoch}: {metrics}", flush=True)  # noqa: T201 - the trial's log
            yield EpochEnded(trial=job.trial, metrics=metrics)
            if stopping and session.epoch < job.until_epoch:
                yield Stopped(trial=job.trial)
                return
            if self.unlabeled is not None:
                refuse_collapsed(session.history)
        if self.unlabeled is not None:
            yield from self._finish_pretraining(job, data, session)
        elif job.is_scored:
            yield self._score(job, data, session, should_stop, lambda: live(job.trial))
        yield MilestoneReached(trial=job.trial)

    def _finish_pretraining(self, job: Job, data: Prepared, session: Session | CrossValidation) -> Any:
        """Write the network that a job asks for, and say what a person should know of it."""
        if session.epoch < job.config.epochs:
            return
        if (line := remark(session.history)) is not None:
            yield Told(trial=job.trial, text=line)
        if job.artifact:
            assert isinstance(session, Session)
            assert self.unlabeled is not None
            if self.leads:
                state = pretraining.write_backbone(session, self.unlabeled, job, data)
                checkpoint.save({**state, "job": identity(job)}, Path(job.checkpoint))
            self.session = None

    def _led(self, steps: Generator[Event, None, T]) -> Generator[Event, None, T]:
        """Have one process of a group do what the others then find done, as all wait for each other.

        Raises:
            StoppedError: the run wants it to stop.
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
        """Say where a training goes on with another number of devices, whose sums are rounded in another way."""
        if self.other_devices is not None:
            now = 1 if self.group is None else self.group.size
            text = (
                f"{_name(job)}: its checkpoint is of {self.other_devices} device(s), and it goes on with {now}: the "
                "epochs to come may differ in their last digits"
            )
            yield Told(trial=job.trial, text=text)
            self.other_devices = None

    def _find_features(
        self, job: Job, data: Prepared, session: Session | CrossValidation, should_stop: Callable[[], bool]
    ) -> Any:
        """See that the features are there which epochs of the job will read; yield what is to be told meanwhile."""
        wanted = head_plan.plan(job.config)
        if wanted is None or session.epoch >= job.until_epoch:
            return
        if isinstance(session, Session) and session.epoch >= max(wanted.epochs, 1):
            return
        fold = session.fold if isinstance(session, CrossValidation) else None
        for line in self._features_of(job, data, fold).computing(wanted, job.portion):
            if should_stop():
                raise StoppedError("stopped while features were computed")
            # A sign of life where there is nothing to say: it may take longer than an epoch.
            yield Told(trial=job.trial, text=line) if line is not None else Event(trial=job.trial)

    def _features_of(
        self, job: Job, data: Prepared, fold: int | None, wanted: head_plan.Plan | None = None
    ) -> HeadFeatures:
        """Return the features of a job; with a plan, all that it needs are there."""
        backbone = _backbone(job, fold)
        config = job.config if backbone is None else job.config.starting_from(backbone)
        key = head_phase.key_of(config, data)
        if self.features is None or self.features[0] != key:
            self.features = key, HeadFeatures(config, data, self.device)
        if wanted is not None:
            # Each fold may have a backbone of its own, whose features nobody has asked for before.
            for _ in self.features[1].computing(wanted, job.portion):
                pass
        return self.features[1]

    def _score(
        self,
        job: Job,
        data: Prepared,
        session: Session | CrossValidation,
        should_stop: Callable[[], bool],
        live: Callable[[], None],
    ) -> Event:
        """Compress, export and measure a copy; at the last epoch the checkpoint then holds what came out."""
        started = time.monotonic()
        fold = session.fold if isinstance(session, CrossValidation) else None
        train, validation = self._image_sets(data, job.portion, fold)
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
            live=live,
            group=self.group,
        )
        found = finish.finish(session.deployed, task, Path(job.artifact) if job.artifact else None)
        scores = found.metrics
        if fold is not None:
            # The score is that of all folds; the file is of the last one's network, and has its size and its time.
            scores = {name: value for name, value in scores.items() if name in NOT_OF_IMAGES}
        metrics = {**scores, "seconds": round(time.monotonic() - started, 4)}
        print(f"as deployed after epoch {session.epoch}: {metrics} {found.notes}", flush=True)  # noqa: T201
        if job.artifact and self.leads:
            state = {
                "model": found.model.state_dict(),
                **networks.describe_weights(job.config, data, found.shapes),
                "job": identity(job),
                "history": session.history,
                "artifact": digests.of_file(Path(job.artifact)),
                "metrics": metrics,
                "notes": found.notes,
                **self._kept_of_folds(session, data),
            }
            checkpoint.save(state, Path(job.checkpoint))
        if job.artifact:
            self.session = None
        return Scored(trial=job.trial, epoch=session.epoch, metrics=metrics, notes=found.notes)

    def _kept_of_folds(self, session: Session | CrossValidation, data: Prepared) -> dict[str, Any]:
        """Return what is kept of a trial whose folds are all finished."""
        if not isinstance(session, CrossValidation):
            return {}
        kept = cross_validation.what_is_kept(data, load(data, "train"), load(data, "val"))
        return {cross_validation.KEY: {**session.state_dict()[cross_validation.KEY], **kept}}

    def _image_sets(
        self, data: Prepared, portion: Portion, fold: int | None = None
    ) -> tuple[ImageSet, ImageSet | None]:
        """Return the images; a GPU that holds them keeps them from trial to trial."""
        if self.images is None or self.images[0] != (data, portion, fold):
            # Two sets at a time might not fit.
            self.images = None
            found: tuple[ImageSet, ImageSet | None] = (
                image_sets.image_sets(data, portion, self.device)
                if fold is None
                else image_sets.fold_sets(data, fold, self.device)
            )
            self.images = (data, portion, fold), found
        return self.images[1]

    def _session(self, job: Job, data: Prepared) -> Session | CrossValidation:
        """Return the trial's training: as this worker left it, from its checkpoint, or new."""
        self.dropped = ""
        if self.session is not None and self.trial == job.trial and self.session.epoch == job.from_epoch:
            return self.session
        state, self.dropped = read_checkpoint(job)
        if state is not None and self.unlabeled is not None:
            state, self.dropped = self.unlabeled.checked(state)
        if state is not None and "artifact" in state:
            state, self.dropped = None, "the exported network beside its checkpoint has gone"
        if self.dropped:
            print(f"training again from the start: {self.dropped}", flush=True)  # noqa: T201 - the trial's log
        self.session = None
        give_back_memory()
        session = self._new_session(job, data, state)
        self.other_devices = None
        if state is not None:
            session.load_state_dict(state)
            known = state.get("devices", 1)
            self.other_devices = known if known != (self.group.size if self.group is not None else 1) else None
        self.trial, self.session = job.trial, session
        self.saved_epoch, self.saved_at, self.save_seconds = session.epoch, time.monotonic(), 0.0
        return session

    def _new_session(self, job: Job, data: Prepared, state: Mapping[str, Any] | None) -> Session | CrossValidation:
        """Return an untrained session, which is to go on from a state if there is one."""
        if self.unlabeled is not None:
            return pretraining.new_session(job, data, self.unlabeled.images, self.device, self.group)
        if not data.folds or job.portion == "train+val":
            return self._new_network(job, data, data, job.seed, state is None)
        epochs = job.config.training_epochs

        def renew(fold: int, from_pretrained: bool) -> Session:
            # The one before is not needed any more, and two might not fit.
            if isinstance(self.session, CrossValidation):
                del self.session.session
            give_back_memory()
            seed = cross_validation.seed_of(job.seed, fold)
            return self._new_network(job, data, image_sets.fold_data(data, fold), seed, from_pretrained, fold)

        def images(fold: int) -> tuple[ImageSet, ImageSet]:
            train, validation = self._image_sets(data, job.portion, fold)
            assert validation is not None
            return train, validation

        fold = 0 if state is None else cross_validation.fold_in(state, epochs)
        return CrossValidation(
            folds=len(data.folds),
            epochs=epochs,
            session=renew(fold, state is None),
            images=images,
            renew=renew,
        )

    def _new_network(
        self, job: Job, data: Prepared, part: Prepared, seed: int, from_pretrained: bool, fold: int | None = None
    ) -> Session:
        """Return a session for a part of the data: all of it, or what one fold leaves."""
        session = pipeline.new_session(
            job.config,
            part,
            seed=seed,
            device=self.device,
            from_pretrained=from_pretrained,
            micro_batches=job.micro_batches,
            teacher=job.teacher,
            backbone=_backbone(job, fold),
            group=self.group,
        )
        wanted = head_plan.plan(job.config)
        if wanted is not None:
            features = partial(self._features_of, job, data, fold, wanted)
            session.head_phase = head_phase.phase(wanted, features, job.portion, fold)
        return session

    def _is_save_due(self, epoch_seconds: float) -> bool:
        return self.save_seconds <= SAVE_SHARE * epoch_seconds or time.monotonic() - self.saved_at > SAVE_SECONDS

    def _save(self, session: Session | CrossValidation, job: Job, data: Prepared) -> None:
        started = time.monotonic()
        if not self.leads:
            self.saved_epoch = session.epoch
            return
        state = {**session.state_dict(), **networks.describe_weights(job.config, data), "job": identity(job)}
        if self.group is not None:
            state["devices"] = self.group.size
        if self.unlabeled is not None and isinstance(session, Session):
            state |= pretraining.describe(session, self.unlabeled, job, data)
        last = job.config.epochs if isinstance(session, CrossValidation) else job.config.training_epochs
        if session.epoch == last:
            state |= self._kept_of_folds(session, data)
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


def _backbone(job: Job, fold: int | None) -> str | None:
    """Return the weights file of the pretrained network that a job, or one of its folds, starts from."""
    return job.backbones[(fold or 0) % len(job.backbones)] if job.backbones else None


def _name(job: Job) -> str:
    """Return what a person calls a job's training."""
    return f"trial {job.trial}" if job.trial >= 0 else "pretraining"


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch reports it as a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
