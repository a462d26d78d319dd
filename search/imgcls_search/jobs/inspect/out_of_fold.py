"""Predict images with models that were not trained on them, by folds that keep groups together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.data.chosen import Chosen
from imgcls_search.probabilities import softmax
from imgcls_search.progress import WorkProgress
from imgcls_search.training.evaluation import predict
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.worker import pipeline

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FOLDS = 5


def plan_folds(labels: Numbers, groups: Numbers, seed: int) -> Numbers:
    """Return the fold of each image; classes are spread as evenly as the groups allow."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.zeros(len(labels), dtype=np.int64)
    cutter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # The warning counts images, but folds divide groups; the caller has checked the groups.
        warnings.filterwarnings("ignore", message="The least populated class")
        for fold, (_, held) in enumerate(cutter.split(np.zeros(len(labels)), labels, groups)):
            folds[held] = fold
    return folds


def by_network(
    config: TrialConfig,
    data: Prepared,
    pixels: Sequence[Any],
    labels: Numbers,
    folds: Numbers,
    *,
    device: str,
    seed: int,
    progress: WorkProgress,
) -> Floats:
    """Return the probabilities [N, classes] of images, by networks that were not trained on them.

    `pixels` are the images for training and for prediction, uint8 [N, C, H, W]: they differ by the margin.

    Raises:
        DivergedError: a training's loss became NaN or infinite.
    """
    whole, middle = pixels
    epochs = config.section("training")["epochs"]
    found = np.zeros((len(labels), len(data.classes)))
    count = int(folds.max()) + 1
    for fold in range(count):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        counts = tuple(np.bincount(labels[rest], minlength=len(data.classes)).tolist())
        part = replace(data, counts={**data.counts, "train": len(rest), "val": len(held)}, class_counts=counts)
        session = pipeline.new_session(config, part, seed=seed + fold, device=device)
        train = _images(Chosen([whole], rest), labels[rest], part, device)
        for epoch in fit(session, train, None, until_epoch=epochs):
            progress("judging labels: epochs", fold * epochs + int(epoch["epoch"]), count * epochs)
        test = _images(Chosen([middle], held), labels[held], part, device)
        found[held] = softmax(predict(session.deployed, test, precision=session.precision))
    return found


def _images(pixels: Chosen, labels: Numbers, data: Prepared, device: str) -> ImageSet:
    held: Any = pixels
    numbers: npt.NDArray[np.int64] | Tensor = labels
    return ImageSet(pixels=held, labels=numbers, mean=data.mean, std=data.std, device=device)
