"""The training that a worker keeps in memory between jobs, with its images and features."""

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
    """The state of a worker's training between two jobs."""

    def __init__(self, device: str, group: Group | None = None) -> None:
        """Start without a training."""
        self.device, self.group = device, group
        self.trial = -1
        self.session: Session | CrossValidation | None = None
        self.images: tuple[Any, tuple[ImageSet, ImageSet | None]] | None = None
        """The image sets of the last job and their key; the next trial mostly uses the same."""
        self.features: tuple[Any, HeadFeatures] | None = None
        """The features of the last job with a head phase, and their key."""
        self.unlabeled: pretraining.PretrainingImages | None = None
        """The images of the current job if it pretrains."""
        self.dropped = ""
        """Why the checkpoint of the current training could not be used."""
        self.other_devices: int | None = None
        """The number of devices that wrote the checkpoint of the current training, if it differs."""

    def session_of(self, job: Job, data: Prepared) -> Session | CrossValidation:
        """Return the trial's training: from memory, from its checkpoint, or new."""
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
        """Return an untrained session; a saved state, if there is one, is loaded afterwards."""
        if self.unlabeled is not None:
            return pretraining.new_session(job, data, self.unlabeled.images, self.device, self.group)
        if not data.folds or job.portion == "train+val":
            return self._new_network(job, data, data, job.seed, state is None)
        epochs = job.config.training_epochs

        def renew(fold: int, from_pretrained: bool) -> Session:
            # Free the previous network, because two might not fit into memory.
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
        """Return a session for all of the data, or for the data of one fold's network."""
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
        """Return the contents of a training's checkpoint."""
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
            # The optimizer's state takes two thirds of the file, and only further steps need it.
            del state["optimizer"]
        return state

    def features_of(
        self, job: Job, data: Prepared, fold: int | None, wanted: head_plan.HeadPlan | None = None
    ) -> HeadFeatures:
        """Return the features of a job; with a plan, compute all that it needs."""
        backbone = _backbone(job, fold)
        config = job.config if backbone is None else job.config.starting_from(backbone)
        key = head_phase.key_of(config, data)
        if self.features is None or self.features[0] != key:
            self.features = key, HeadFeatures(config, data, self.device)
        if wanted is not None:
            # Each fold may have its own backbone, whose features are computed only now.
            for _ in self.features[1].computing(wanted, job.portion):
                pass
        return self.features[1]

    def image_sets(self, data: Prepared, portion: Portion, fold: int | None = None) -> tuple[ImageSet, ImageSet | None]:
        """Return the images; a GPU that holds them keeps them from trial to trial."""
        if self.images is None or self.images[0] != (data, portion, fold):
            # Two sets at once might not fit.
            self.images = None
            found: tuple[ImageSet, ImageSet | None] = (
                image_sets.image_sets(data, portion, self.device)
                if fold is None
                else image_sets.fold_sets(data, fold, self.device)
            )
            self.images = (data, portion, fold), found
        return self.images[1]

    def free_memory(self) -> None:
        """Free everything that the next job can recreate."""
        self.images = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _backbone(job: Job, fold: int | None) -> str | None:
    """Return the weights file of the pretrained network that a job, or one of its folds, starts from."""
    return job.backbones[(fold or 0) % len(job.backbones)] if job.backbones else None


def kept_of_folds(session: Session | CrossValidation, data: Prepared) -> Checkpoint:
    """Return the stored predictions of a trial whose folds are all finished."""
    if not isinstance(session, CrossValidation):
        return {}
    kept = cross_validation.what_is_kept(data, load(data, "train"), load(data, "val"))
    return {cross_validation.KEY: {**session.state_dict()[cross_validation.KEY], **kept}}
