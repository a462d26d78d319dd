"""Measure how well pretrained networks separate the classes of some images, without training them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.errors import BuildError, CheckpointError
from imgcls_search.executors.helper import feature_cache, image_cache
from imgcls_search.progress import Progress, WorkProgress
from imgcls_search.training.device import available_devices
from imgcls_search.training.metrics import score
from imgcls_search.training.probe import fit_linear, predict_by_neighbours
from imgcls_search.worker import features, measuring, pipeline


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Scores of one network's features on the validation images."""

    model: Mapping[str, Mapping[str, Any]]
    features: int
    """Features per image."""

    params: int
    macs: int
    knn_accuracy: float
    linear_accuracy: float
    linear_macro_f1: float
    images: int
    """Number of validation images scored."""

    feature_seconds: float
    """Time to compute the features; almost nothing if they were cached."""

    fit_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return {**vars(self)}


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A network that cannot be used for these images, and why."""

    model: Mapping[str, Mapping[str, Any]]
    reason: str


def compare_backbones(
    configs: Sequence[TrialConfig],
    root: Path,
    progress: WorkProgress,
    say: Callable[[str], None] | None = None,
) -> tuple[list[Probed], list[Failed]]:
    """Score configurations of pretrained networks, best first; cache features below `root` for later calls.

    The head of a configuration is not used: a linear layer and nearest neighbours are fitted to its input features.

    Raises:
        DataError: the images are missing, damaged or unusable.
    """
    device = available_devices("auto")[0]
    found, failed = [], []
    for config in configs:
        data = pipeline.prepare_data(
            config, image_cache(root), lambda done, of: progress("decoding images", done, of), say
        )
        say = None
        try:
            found.append(_probe(config, data, root, device, progress))
        except (BuildError, CheckpointError) as error:
            failed.append(Failed(model=config.to_dict()["model"], reason=str(error)))
    return sorted(found, key=lambda each: -each.linear_accuracy), failed


def _probe(config: TrialConfig, data: Prepared, root: Path, device: str, progress: WorkProgress) -> Probed:
    name = next(iter(config.to_dict()["model"].values())).get("name") or config.component("model").name
    started = time.perf_counter()
    backbone = features.frozen_network(config, data, device)

    def show(split: str) -> Progress:
        return lambda done, of: progress(f"{name}: features of {split} images", done, of)

    known = features.features_of(backbone, "train", feature_cache(root), show("train"))
    asked = features.features_of(backbone, "val", feature_cache(root), show("val"))
    computed = time.perf_counter()
    labels, truth = load(data, "train").labels, load(data, "val").labels
    head = fit_linear(known, labels, len(data.classes), seed=0)
    scores = score(head.logits(asked), truth)
    nearest = predict_by_neighbours(known, labels, asked)
    cost = measuring.count(config.component("model"), data.shape)
    return Probed(
        model=config.to_dict()["model"],
        features=known.shape[1],
        params=cost.params,
        macs=cost.macs,
        knn_accuracy=float(np.mean(nearest == truth)),
        linear_accuracy=scores["accuracy"],
        linear_macro_f1=scores["macro_f1"],
        images=len(truth),
        feature_seconds=round(computed - started, 2),
        fit_seconds=round(time.perf_counter() - computed, 2),
    )
