"""Judge labels without a study, by a small network and trees, both trained in minutes on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.jobs.inspect.features import features
from imgcls_search.jobs.inspect.out_of_fold import Floats, Numbers, by_network
from imgcls_search.progress import WorkProgress
from imgcls_search.space import parse
from imgcls_search.training.device import available_devices

NAME = "a quick model (a small network and trees)"
LARGE_SIDE, SMALL_SIDE = 64, 32
"""Side in pixels of the square thumbnails that it uses."""

PASSES = 40_000
"""Images that one training sees by default, counting repetitions."""

FEWEST_EPOCHS, MOST_EPOCHS = 3, 20
TREE_ROWS = 500_000
"""Number of images times trees for one training of a few seconds; the bounds of trees are below."""

FEWEST_TREES, MOST_TREES = 60, 300

SPACE = """
model: {{resnet: {{depths: [1, 1, 1], width: 16, stem: {stem}}}}}
optimizer: {{adamw: {{lr: 3.0e-3, weight_decay: 0.05}}}}
augment: {{flip: horizontal, crop_padding: {padding}}}
training: {{epochs: {epochs}, batch_size: {batch}}}
"""


def default_epochs(images: int) -> int:
    """Return the default number of epochs of the network."""
    return int(np.clip(round(PASSES / max(images, 1)), FEWEST_EPOCHS, MOST_EPOCHS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Data and settings for a part of the quick model."""

    pixels: npt.NDArray[np.uint8]
    """Square images [N, side, side, 3]."""

    labels: Numbers
    folds: Numbers
    classes: int
    epochs: int
    """Epochs of the network."""

    seed: int


def _by_network(task: Task, progress: WorkProgress) -> Floats:
    pixels, labels, classes = task.pixels, task.labels, task.classes
    side = pixels.shape[1]
    config = _config(side, task.epochs, len(labels))
    channels_first = pixels.transpose(0, 3, 1, 2)
    sample = pixels[:: max(1, len(pixels) // 2000)].reshape(-1, 3) / 255
    data = Prepared(
        fingerprint="",
        classes=tuple(map(str, range(classes))),
        image_size=side,
        channels=3,
        counts={"train": len(labels), "val": 0, "test": 0},
        class_counts=tuple(np.bincount(labels, minlength=classes).tolist()),
        mean=tuple(sample.mean(axis=0).tolist()),
        # At least one level, in case all images have one colour.
        std=tuple(np.maximum(sample.std(axis=0), 1 / 255).tolist()),
        folder="",
    )
    device = available_devices("auto")[0]
    images = (channels_first, channels_first)
    return by_network(config, data, images, labels, task.folds, device=device, seed=task.seed, progress=progress)


def _config(side: int, epochs: int, images: int) -> TrialConfig:
    text = SPACE.format(
        stem="large" if side == LARGE_SIDE else "small",
        padding=side // 16,
        epochs=epochs,
        batch=int(np.clip(images // 20, 16, 64)),
    )
    return parse(text, catalog(), source="the quick model", overrides=[("study.name", "quick")]).first()


def _by_trees(task: Task, progress: WorkProgress) -> Floats:
    from sklearn.ensemble import ExtraTreesClassifier

    labels, count = task.labels, int(task.folds.max()) + 1
    progress("judging labels: forests", 0, count)
    columns = features(task.pixels)
    found = np.zeros((len(labels), task.classes))
    for fold in range(count):
        held = task.folds == fold
        model = ExtraTreesClassifier(
            int(np.clip(TREE_ROWS // len(labels), FEWEST_TREES, MOST_TREES)),
            max_features="sqrt",
            n_jobs=os.cpu_count(),
            random_state=task.seed + fold,
        ).fit(columns[~held], labels[~held])
        found[np.ix_(held, model.classes_)] = model.predict_proba(columns[held])
        progress("judging labels: forests", fold + 1, count)
    return found


MODELS: Mapping[str, Callable[[Task, WorkProgress], Floats]] = {"network": _by_network, "trees": _by_trees}
"""The parts of the quick model."""


def predict_out_of_fold(
    pixels: npt.NDArray[np.uint8],
    labels: Numbers,
    folds: Numbers,
    *,
    classes: int,
    epochs: int,
    models: Sequence[str],
    seed: int,
    progress: WorkProgress,
) -> Floats:
    """Return the probabilities [N, classes] of images uint8 [N, side, side, 3], by models trained on other folds."""
    task = Task(pixels=pixels, labels=labels, folds=folds, classes=classes, epochs=epochs, seed=seed)
    # The models err on different images: each contradicts wrong labels that the other has learned.
    return np.asarray(np.mean([MODELS[name](task, progress) for name in models], axis=0))
