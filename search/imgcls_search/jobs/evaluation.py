"""Predict images with a trained network, and score the predictions."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from torch import nn

from imgcls_search import costs
from imgcls_search.config import TrialConfig
from imgcls_search.data import Images, Prepared, describe, load, open_test
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.predictions import as_text, separator
from imgcls_search.deploy.views import VIEWS, Seen, View, ViewsName
from imgcls_search.errors import DataError
from imgcls_search.probabilities import probabilities_of
from imgcls_search.terminal import shown
from imgcls_search.training import corrupted, custom_metrics
from imgcls_search.training.device import available_devices, move
from imgcls_search.training.evaluation import corruptions as corruptions_of
from imgcls_search.training.evaluation import predict
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.worker import finish, image_sets

SplitName = Literal["val", "test", "all", "folds"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Predictions of a model for the images of a split, and their scores."""

    split: SplitName
    metrics: dict[str, float]
    names: tuple[str, ...]
    labels: np.ndarray[Any, Any]
    """Class numbers [N], or several labels of each image, 0 or 1 [N, classes]."""

    probabilities: np.ndarray[Any, Any]
    """[N, classes]."""

    decided: np.ndarray[Any, Any]
    """Predictions in the form of the labels: the most likely class, the class of lowest expected cost, or all labels
    that reach their threshold."""

    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None
    """Lowest probability at which an image has each label; None with one class per image."""

    corruptions: corrupted.Table | None = None
    """Accuracy by corruption and severity; None if not measured."""

    tta: Augmented | None = None
    """Effect of test-time augmentation; None without it."""


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """Test-time augmentation compared with the plain images: scores without it, and the measured times per image."""

    views: ViewsName
    count: int
    metrics_without: dict[str, float]
    image_ms: float
    image_ms_without: float


class _EvaluationFacts(TypedDict):
    split: SplitName
    images: int
    classes: dict[str, int]
    """Number of images per class."""

    metrics: dict[str, float]
    by_class: dict[str, dict[str, float]]


class EvaluationFacts(_EvaluationFacts, total=False):
    """An evaluation as plain values."""

    thresholds: dict[str, float]
    """Threshold of each label, with several labels per image."""

    corruptions: dict[str, dict[str, float]]
    """Accuracy by corruption, then by severity."""

    tta: dict[str, Any]
    """See `Augmented`."""


def decided_classes(
    probabilities: np.ndarray[Any, Any], data: Prepared, stated: costs.Costs | None
) -> np.ndarray[Any, Any]:
    """Return the predicted class of each image, or which labels it has, 0 or 1 [N, labels]."""
    if data.cuts is not None:
        return (probabilities >= np.array(data.cuts)).astype(np.uint8)
    return costs.decided(probabilities, costs.matrix(stated, data.classes) if stated is not None else None)


def measure_on(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, split: SplitName, named: tuple[str, ...] = ()
) -> Evaluation:
    """Score a network on a split, also with the metrics `named`; `test` and `all` open the test split."""
    return measure(network, config, data, images_of(config, data, split), split, named)


def measure(
    network: nn.Module | Artifact,
    config: TrialConfig,
    data: Prepared,
    parts: Sequence[Images],
    split: SplitName,
    named: tuple[str, ...] = (),
    tta: ViewsName = "none",
) -> Evaluation:
    """Score a network on images, with the class numbers and the normalisation of its training data."""
    labels = np.concatenate([part.labels for part in parts])
    if not len(labels):
        raise DataError(f"{config.component('data').path}: the {split} split is empty")
    parts = [part for part in parts if len(part.labels)]
    each, seconds = _logits_of_views(network, config, data, parts, tta)
    logits = np.mean(each, axis=0)
    probabilities, stated = probabilities_of(logits, several=data.has_several_labels), costs.of(config.tree)
    wanted = Wanted(
        classes=data.classes,
        named=(*named, *custom_metrics.installed()),
        costs=stated,
        is_full=True,
        thresholds=data.cuts,
    )
    table = corruption_table(network, config, data, parts) if corrupted.is_wanted(named) else None
    without = None
    if tta != "none":
        without = Augmented(
            views=tta,
            count=len(each),
            metrics_without=score(each[0], labels, wanted),
            image_ms=1000 * sum(seconds) / len(labels),
            image_ms_without=1000 * seconds[0] / len(labels),
        )
    return Evaluation(
        split=split,
        metrics={**score(logits, labels, wanted), **(corrupted.mean(table) if table is not None else {})},
        names=tuple(name for part in parts for name in part.names),
        labels=labels,
        probabilities=probabilities,
        decided=decided_classes(probabilities, data, stated),
        classes=data.classes,
        thresholds=data.cuts,
        corruptions=table,
        tta=without,
    )


def _logits_of_views(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, parts: Sequence[Images], tta: ViewsName
) -> tuple[list[np.ndarray[Any, Any]], list[float]]:
    """Return the logits [N, classes] of each view of the images, the unchanged images first, and their seconds."""
    each, seconds = [], []
    for view in VIEWS[tta]:
        seen = list(parts) if tta == "none" else [_seen(part, view) for part in parts]
        started = time.perf_counter()
        each.append(np.concatenate(_logits(network, config, data, seen)))
        seconds.append(time.perf_counter() - started)
    return each, seconds


def _seen(images: Images, view: View) -> Images:
    pixels: Any = Seen(images.pixels, view)
    return replace(images, pixels=pixels)


def corruption_table(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, parts: Sequence[Images]
) -> corrupted.Table:
    """Return the accuracy on corrupted versions of all images."""
    if isinstance(network, Artifact):
        tables = [finish.corruptions(network, part) for part in parts]
    else:
        device = available_devices(config.section("training")["device"])[0]
        model = move(network, device)
        tables = [corruptions_of(model, image_sets.on_device(part, data, device)) for part in parts]
    counts = np.array([len(part.labels) for part in parts])
    return {case: float(np.average([table[case] for table in tables], weights=counts)) for case in tables[0]}


def _logits(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, parts: Sequence[Images]
) -> list[np.ndarray[Any, Any]]:
    if isinstance(network, Artifact):
        return [finish.logits(network, part) for part in parts]
    device = available_devices(config.section("training")["device"])[0]
    model = move(network, device)
    return [predict(model, image_sets.on_device(part, data, device)) for part in parts]


def predictions_csv(evaluation: Evaluation) -> str:
    """Return one line per image: its name, its class, the predicted class and the probability of each class.

    Several labels of an image share one cell, with a separator that occurs in no label.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "predicted", *(f"p({shown(name)})" for name in evaluation.classes)])
    found = zip(evaluation.names, evaluation.labels, evaluation.decided, evaluation.probabilities, strict=True)
    for name, label, decided, row in found:
        cells = [_joined(given, evaluation.classes) for given in (label, decided)]
        writer.writerow([as_text(name), *cells, *(f"{p:.6f}" for p in row)])
    return text.getvalue()


def _joined(given: Any, classes: Sequence[str]) -> str:
    """Return the class of an image, or its labels, as one cell."""
    if np.ndim(given) == 0:
        return as_text(classes[given])
    return as_text(separator(classes).join(classes[number] for number in np.flatnonzero(given).tolist()))


def images_of(config: TrialConfig, data: Prepared, split: SplitName) -> list[Images]:
    """Return the images of a split; `test` and `all` open the test split."""
    if split == "val":
        return [load(data, "val")]
    test = open_test(describe(config.component("data"), Path(data.folder).parent), data)
    return [test] if split == "test" else [load(data, "train"), load(data, "val"), test]
