"""The training that a worker holds in memory from job to job, with the images and features that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from imgcls_search.data import Prepared, load
from imgcls_search.protocol import Job, Portion
from imgcls_search.training.device import give_back_memory
from imgcls_search.training.group import Group
from imgcls_search.training.images import ImageSet
from imgcls_search.training.session import Session
from imgcls_search.worker import cross_validation, head_phase, head_plan, image_sets, networks, pipeline, pretraining
from imgcls_search.worker.cross_validation import CrossValidation
from imgcls_search.worker.file_contents import Checkpoint
from imgcls_search.worker.head_phase import HeadFeatures
from imgcls_search.worker.saved import identity, read_checkpoint


class CurrentTraining:
    """Where a worker's training stands between two jobs."""

    def __init__(self, device: str, group: Group | None = None) -> None:
        """Nothing is held yet."""
        self.device, self.group = device, group
        self.trial = -1
        self.session: Session | CrossValidation | None = None
        self.images: tuple[Any, tuple[ImageSet, ImageSet | None]] | None = None
        """The image sets of the last job and what they were made of; the next trial's are mostly the same."""
        self.features: tuple[Any, HeadFeatures] | None = None
        """The features of the last job whose head read some, and what decides on them."""
        self.unlabeled: pretraining.PretrainingImages | None = None
        """The images of the current job where it pretrains."""
        self.dropped = ""
        """Why the checkpoint of the current training could not be used."""
        self.other_devices: int | None = None
        """How many devices wrote the checkpoint from which the current training resumes, if that number differs."""

    def take_up(self, job: Job, data: Prepared) -> Session | CrossValidation:
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
            train, validation = self.image_sets(data, job.portion, fold)
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
            features = partial(self.features_of, job, data, fold, wanted)
            session.head_phase = head_phase.phase(wanted, features, job.portion, fold)
        return session

    def state(self, session: Session | CrossValidation, job: Job, data: Prepared) -> Checkpoint:
        """Return what the checkpoint of a training holds."""
        state: Checkpoint = {
            **session.state_dict(),
            **networks.describe_weights(job.config, data),
            "job": identity(job),
        }
        if self.group is not None:
            state["devices"] = self.group.size
        if self.unlabeled is not None and isinstance(session, Session):
            state |= pretraining.describe(session, self.unlabeled, job, data)
        last = job.config.epochs if isinstance(session, CrossValidation) else job.config.training_epochs
        if session.epoch == last:
            state |= kept_of_folds(session, data)
            # Nothing follows: what only a further step would need is two thirds of the file.
            del state["optimizer"]
        return state

    def features_of(
        self, job: Job, data: Prepared, fold: int | None, wanted: head_plan.HeadPlan | None = None
    ) -> HeadFeatures:
        """Return the features of a job; with a plan, all that it needs are there."""
        backbone = _backbone(job, fold)
        config = job.config if backbone is None else job.config.starting_from(backbone)
        key = head_phase.key_of(config, data)
        if self.features is None or self.features[0] != key:
            self.features = key, HeadFeatures(config, data, self.device)
        if wanted is not None:
            # Each fold may have a backbone of its own, whose features were not needed before.
            for _ in self.features[1].computing(wanted, job.portion):
                pass
        return self.features[1]

    def image_sets(self, data: Prepared, portion: Portion, fold: int | None = None) -> tuple[ImageSet, ImageSet | None]:
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

    def free_memory(self) -> None:
        """Free everything that the next job can make again."""
        self.images = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _backbone(job: Job, fold: int | None) -> str | None:
    """Return the weights file of the pretrained network that a job, or one of its folds, starts from."""
    return job.backbones[(fold or 0) % len(job.backbones)] if job.backbones else None


def kept_of_folds(session: Session | CrossValidation, data: Prepared) -> Checkpoint:
    """Return what is kept of a trial whose folds are all finished."""
    if not isinstance(session, CrossValidation):
        return {}
    kept = cross_validation.what_is_kept(data, load(data, "train"), load(data, "val"))
    return {cross_validation.KEY: {**session.state_dict()[cross_validation.KEY], **kept}}
