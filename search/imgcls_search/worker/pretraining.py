"""Pretraining: its images, its session, and the resulting weights file."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from imgcls_search import digests
from imgcls_search.config import TrialConfig
from imgcls_search.data import POLICIES, Augment, Images, Prepared, augment, load
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.features import computing, folder_beside
from imgcls_search.data.unlabeled import Unlabeled, open_unlabeled
from imgcls_search.errors import UNWRITTEN, BuildError, CheckpointError, StoppedError
from imgcls_search.image_size import sides
from imgcls_search.progress import Progress
from imgcls_search.protocol import Event, Job, Notice
from imgcls_search.signature import build
from imgcls_search.training import checkpoint
from imgcls_search.training.device import move, pays_to_compile, resolve_precision
from imgcls_search.training.group import Group, WholeBatchLoss
from imgcls_search.training.health import MOST_ASKED, MOST_KNOWN, Health, chosen
from imgcls_search.training.images import ImageSet
from imgcls_search.training.learner import (
    ContrastiveLoss,
    ImitationLoss,
    Learner,
    num_features,
    projector,
    without_head,
)
from imgcls_search.training.optimizers import cosine
from imgcls_search.training.pretraining import PRETRAIN_OPTIMIZERS, Imitation, SimCLR, optimizer_of, plan
from imgcls_search.training.recipe import Training
from imgcls_search.training.session import Session
from imgcls_search.worker import features, image_sets, networks, pipeline
from imgcls_search.worker.file_contents import Checkpoint
from imgcls_search.worker.pretrained_file import NOTED, AboutBackbone


def open_all(config: TrialConfig, data: Prepared, fold: int | None, progress: Progress | None = None) -> Unlabeled:
    """Return the images that a configuration pretrains on, after decoding everything its training reads.

    Raises:
        DataError: images are missing, damaged or too few.
    """
    found = open_unlabeled(config, data, Path(data.folder).parent, fold, whole=True, progress=progress)
    if isinstance(plan(config), Imitation):
        open_for_teacher(config, data, fold, progress)
    return found


def open_for_teacher(
    config: TrialConfig, data: Prepared, fold: int | None, progress: Progress | None = None
) -> tuple[Prepared, Unlabeled]:
    """Return the same images in the teacher's input size, decoded from their files instead of enlarged.

    Raises:
        DataError: images are missing or damaged.
    """
    wanted = plan(config)
    assert isinstance(wanted, Imitation), "only imitation has a teacher"
    image = {**config.section("image"), "size": wanted.size, "channels": data.channels, "margin": 1.0}
    larger, cache = TrialConfig.from_dict({**config.to_dict(), "image": image}), Path(data.folder).parent
    own = pipeline.prepare_data(larger, cache, progress)
    return own, open_unlabeled(larger, own, cache, fold, progress=progress)


@dataclass(frozen=True, kw_only=True)
class PretrainingImages:
    """The images of a pretraining, ready for training."""

    images: ImageSet
    """With the targets of the images in place of labels."""

    prints: str
    teacher: str | None = None
    """Digest of the weights that are imitated, None if it is unknown."""

    def checked(self, state: Checkpoint) -> tuple[Checkpoint | None, str]:
        """Return a checkpoint in the form for a session, or None and the reason if it cannot be used."""
        try:
            known = json.loads(state["about"])["pretrained"]
            prints, teacher = known["prints"], known.get("teacher")
        except UNWRITTEN:
            return None, "its checkpoint is of another training"
        if prints != self.prints:
            return None, "its checkpoint was trained on other images"
        if None not in (teacher, self.teacher) and teacher != self.teacher:
            return None, "its checkpoint imitated another teacher"
        if "projection" in state:
            parts = {"network": state["model"], "projection": state.pop("projection")}
            state["model"] = {
                f"{part}.{name}": tensor for part, all_of in parts.items() for name, tensor in all_of.items()
            }
        return state, ""


def preparing(
    job: Job, data: Prepared, device: str, stop: threading.Event, wait_while_paused: Callable[[], None]
) -> Generator[Event, None, PretrainingImages]:
    """Return the images of a pretraining; yield events as signs of life.

    Raises:
        DataError: images are missing, damaged or too few.
        CheckpointError: the teacher's weights cannot be read.
        StoppedError: a stop was requested.
    """
    unlabeled = open_unlabeled(job.config, data, Path(data.folder).parent, job.fold, whole=True)
    targets: Any = np.zeros(len(unlabeled), dtype=np.int64)
    if not isinstance(plan(job.config), SimCLR):
        steps = _teachers_features(job, data, unlabeled, device)
        while True:
            try:
                line = next(steps)
            except StopIteration as end:
                targets = end.value
                break
            wait_while_paused()
            if stop.is_set():
                raise StoppedError("stopped while the teacher's features were computed")
            yield Event(trial=job.trial) if line is None else Notice(trial=job.trial, text=line)
    pixels: Any = unlabeled.pixels
    images = Images(pixels=pixels, labels=targets, names=unlabeled.names)
    shown = image_sets.on_device(images, data, device)
    return PretrainingImages(images=shown, prints=unlabeled.prints, teacher=job.teacher_digest)


def _teachers_features(job: Job, data: Prepared, unlabeled: Unlabeled, device: str) -> Generator[str | None, None, Any]:
    """Return the teacher's features of the images, [N, D], computed once for all processes."""
    wanted = plan(job.config)
    assert isinstance(wanted, Imitation)
    assert job.teacher is not None, "a pretraining starts after its teacher is settled"
    model, _, known = networks.load_weights(checkpoint.load(Path(job.teacher)), job.teacher)
    model = without_head(model, "pretrain.imitate.teacher").eval().requires_grad_(False)
    own, shown = open_for_teacher(job.config, data, job.fold)
    seen = features.FrozenNetwork(
        network=move(model, device),
        data=replace(own, mean=known.mean, std=known.std),
        digest=features.digest_of(model),
        device=device,
    )
    places = _places(unlabeled, shown)
    origin = {
        "weights": seen.digest,
        "unlabeled": unlabeled.prints,
        "count": len(unlabeled),
        "frame": seen.data.frame.settings(),
        "size": wanted.size,
        "mean": known.mean,
        "std": known.std,
        "device": device.partition(":")[0],
        "torch": torch.__version__.rpartition(".")[0],
    }
    pixels: Any = Chosen([shown.pixels], places)
    images = Images(pixels=pixels, labels=np.zeros(len(places), dtype=np.int64), names=unlabeled.names)
    what = f"features of {len(places):,} images by the teacher, at {wanted.size} pixels"
    found = computing(
        folder_beside(data),
        origin,
        lambda: features.compute_in_steps(seen, image_sets.on_device(images, seen.data, device)),
        most_bytes=pipeline.cache_bytes(job.config),
    )
    told = -TOLD_EVERY
    while True:
        try:
            step = next(found)
        except StopIteration as end:
            return end.value
        is_due = step is not None and step[0] - told >= TOLD_EVERY
        told = step[0] if step is not None and is_due else told
        first = "; computed once, and kept" if step is not None and step[0] <= features.BATCH else ""
        yield f"{what}: {told:,} done{first}" if is_due else None


def _places(unlabeled: Unlabeled, shown: Unlabeled) -> Any:
    """Return the indices of a pretraining's images within the teacher's images."""
    known = {name: place for place, name in enumerate(shown.names)}
    return np.array([known[name] for name in unlabeled.names], dtype=np.int64)


TOLD_EVERY = 2_048
"""Number of images between progress lines about the teacher's features."""


def new_session(job: Job, data: Prepared, images: ImageSet, device: str, group: Group | None = None) -> Session:
    """Return an untrained session; the same seed gives the same weights.

    Raises:
        BuildError: the configuration cannot be built.
    """
    config = job.config
    wanted = plan(config)
    assert wanted is not None, "only what is pretrained gets here"
    torch.manual_seed(job.seed)
    path = config.component("model").path
    network = without_head(networks.build_own_model(config, data.shape), path)
    width = num_features(network, data.channels, *sides(data.image_size))
    learner: Learner
    loss: torch.nn.Module
    if isinstance(wanted, SimCLR):
        if job.micro_batches > 1:
            raise BuildError(
                f"{config.component('pretrain').path}.batch_size",
                "its loss compares all images of a batch, which cannot go through the network in parts; allowed: a "
                "smaller batch_size",
            )
        learner, loss = Learner(network, projector(width, wanted.projection)), ContrastiveLoss(wanted.temperature)
        loss = loss if group is None else WholeBatchLoss(loss, group, views=2)
    else:
        mean, std = _moments(images.labels)
        learner, loss = Learner(network, torch.nn.Linear(width, len(mean))), ImitationLoss(mean, std)
    learner = move(learner, device)
    recipe = Training(epochs=wanted.epochs, batch_size=wanted.batch_size)
    precision = resolve_precision(recipe.precision, device)
    return Session(
        model=learner,
        optimizer=build(PRETRAIN_OPTIMIZERS, optimizer_of(config), model=learner),
        schedule=cosine(epochs=wanted.epochs, warmup_epochs=wanted.warmup * wanted.epochs),
        loss=loss.to(device),
        augment=views(wanted, data) if isinstance(wanted, SimCLR) else _plain(data),
        views=2 if isinstance(wanted, SimCLR) else 1,
        micro_batches=job.micro_batches,
        is_compiled=group is None
        and pays_to_compile(recipe.compile, device, recipe.epochs * math.ceil(len(images) / recipe.batch_size)),
        recipe=recipe,
        device=device,
        precision=precision,
        seed=job.seed,
        observe=_health(job, data, device, precision),
        group=group,
    )


def views(wanted: SimCLR, data: Prepared) -> Augment:
    """Return the augmentation that creates a view of an image."""
    jitter = 0.8 * wanted.strength
    changes = augment(
        policy=POLICIES["none"](),
        flip=wanted.flip,
        resized_crop=wanted.crop,
        brightness=jitter,
        contrast=jitter,
        saturation=jitter,
        hue=min(0.5, 0.2 * wanted.strength),
        grey=wanted.grey,
        blur=wanted.blur,
    )
    return replace(changes, size=sides(data.image_size))


def _plain(data: Prepared) -> Augment:
    return replace(augment(policy=POLICIES["none"]()), size=sides(data.image_size))


def _moments(targets: Any) -> tuple[Tensor, Tensor]:
    values = targets.double().cpu() if isinstance(targets, Tensor) else torch.from_numpy(np.array(targets)).double()
    return values.mean(dim=0).float(), values.std(dim=0, correction=0).float()


def scored_images(data: Prepared, fold: int | None) -> int:
    """Return how many labelled images are available to evaluate features on."""
    return len(_places_of(data, fold)[1])


def _places_of(data: Prepared, fold: int | None) -> tuple[Any, Any]:
    """Return the indices of labelled images to learn from and to evaluate on, the training split first."""
    if data.folds:
        return image_sets.fold_places(data, fold if fold is not None else len(data.folds) - 1)
    train = data.counts["train"]
    return np.arange(train), train + np.arange(data.counts["val"])


def _health(job: Job, data: Prepared, device: str, precision: str) -> Health:
    wanted = plan(job.config)
    assert wanted is not None
    train, scored = _places_of(data, job.fold)
    known, asked = (
        _labelled(data, places[chosen(places, most)], device)
        for places, most in ((train, MOST_KNOWN), (scored, MOST_ASKED))
    )
    return Health(
        known=known,
        asked=asked,
        classes=0 if data.has_several_labels else len(data.classes),
        epochs=wanted.epochs,
        every=wanted.health_every,
        seed=job.seed,
        precision=precision,
    )


def _labelled(data: Prepared, places: Any, device: str) -> ImageSet:
    """Return images by index, the training split first, as evaluation sees them."""
    parts = [load(data, "train"), load(data, "val")]
    pixels: Any = Chosen([part.pixels for part in parts], places)
    labels = np.concatenate([part.labels for part in parts])[places]
    return ImageSet(pixels=pixels, labels=labels, mean=data.mean, std=data.std, device=device)


def describe(session: Session, shown: PretrainingImages, job: Job, data: Prepared) -> Checkpoint:
    """Return a pretraining's weights for saving, under the names of their family, with metadata."""
    learner = session.deployed
    assert isinstance(learner, Learner), "only learners are pretrained"
    about: AboutBackbone = {
        "config": job.config.to_dict(),
        "data": data.to_dict(),
        "pretrained": {
            "images": len(shown.images),
            "asked": min(scored_images(data, job.fold), MOST_ASKED),
            "prints": shown.prints,
            "fold": job.fold,
            "teacher": job.teacher_digest,
            "epochs": session.epoch,
            "seed": job.seed,
            "health": {name: value for name, value in session.history[-1].items() if name not in ("epoch", "seconds")},
            # Without times: equal pretrainings have equal files.
            "history": [
                {name: value for name, value in epoch.items() if name != "seconds"} for epoch in session.history
            ],
            "versions": pipeline.versions(),
        },
    }
    return {
        "model": dict(learner.backbone()),
        "projection": learner.projection.state_dict(),
        "about": json.dumps(about),
    }


def write_backbone(session: Session, shown: PretrainingImages, job: Job, data: Prepared) -> Checkpoint:
    """Write the network without head and projection to the job's file, and return its final checkpoint."""
    found = describe(session, shown, job, data)
    checkpoint.save({"model": found["model"], "about": found["about"]}, Path(job.artifact))
    last = {name: value for name, value in session.history[-1].items() if name != "epoch"}
    return {
        "about": found["about"],
        "history": session.history,
        "artifact": digests.of_file(Path(job.artifact)),
        "metrics": last,
        "notes": {},
    }


def epochs_of_pretraining(files: Sequence[str]) -> Sequence[Mapping[str, float]]:
    """Return the metrics of the epochs of the first network that a training starts from; empty if they are unknown."""
    for file in files[:1]:
        with contextlib.suppress(CheckpointError, OSError):
            return read_backbone(Path(file))["pretrained"]["history"]
    return ()


def read_backbone(path: Path) -> AboutBackbone:
    """Return the metadata in the weights file of a pretraining.

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by a pretraining.
    """
    state = checkpoint.load(path)
    try:
        about: dict[str, Any] = json.loads(state["about"])
        # Check that everything needed later is there.
        TrialConfig.from_dict(about["config"]).pretraining()
        noted = {"teacher": None, "history": [], **about["pretrained"]}
        about |= {"pretrained": {name: noted[name] for name in NOTED}}
    except UNWRITTEN as error:
        raise CheckpointError(f"{path}: no weights file of a pretraining") from error
    return cast(AboutBackbone, about)
