"""Trained weights measured on images: the validation split, or the sealed test split when asked."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from imgcls_search import atomic, costs
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import (
    Images,
    Prepared,
    comes_with,
    describe,
    describe_whole,
    label_sets,
    load,
    open_test,
    skipping_unreadable,
)
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.predictions import as_text, separator
from imgcls_search.deploy.views import VIEWS, Seen, View, ViewsName
from imgcls_search.errors import DataError, UserError, writing
from imgcls_search.jobs.export import now
from imgcls_search.measures import CORRUPTION
from imgcls_search.orchestrator import study_data
from imgcls_search.study.facts import ChangedTest
from imgcls_search.terminal import shown
from imgcls_search.training import checkpoint, corrupted, custom_metrics
from imgcls_search.training.device import available_devices
from imgcls_search.training.evaluation import corruptions as corruptions_of
from imgcls_search.training.evaluation import predict
from imgcls_search.training.metrics import Wanted, probabilities_of, score
from imgcls_search.worker import cross_validation, finish, image_sets, networks, pipeline

SplitName = Literal["val", "test", "all", "folds"]

CUTS = ("val", "test", "split_seed", "max_train", "folds", "image", "label", "separator", "labels", "split", "group")
"""The arguments of a data set that decide which images are in which split, and which columns of a table say so."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says of every image of a split."""

    split: SplitName
    metrics: dict[str, float]
    names: tuple[str, ...]
    labels: np.ndarray[Any, Any]
    """Class numbers [N], or several labels of each image, 0 or 1 [N, classes]."""

    probabilities: np.ndarray[Any, Any]
    """[N, classes]."""

    decided: np.ndarray[Any, Any]
    """What is decided on, in the form of the labels: the likeliest class or that of least expected cost, or each of
    several labels that reaches its threshold."""

    classes: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None
    """From which probability on an image has each of several labels; None where it has one class."""

    corruptions: corrupted.Table | None = None
    """Accuracy by corruption and severity; None where worse pictures were not looked at."""

    tta: Augmented | None = None
    """What test-time augmentation changes; None without."""


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """Test-time augmentation beside the same images without: scores, and the time of an image as it was taken here."""

    views: ViewsName
    count: int
    metrics_without: dict[str, float]
    image_ms: float
    image_ms_without: float


def evaluate_weights(
    weights: Path,
    split: SplitName,
    cache: Path,
    *,
    data: Component | None = None,
    skip_unreadable: bool = False,
    corruptions: bool = False,
    tta: ViewsName = "none",
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a weights file on a split of its own data set, or of another that has some of its classes.

    Classes are matched by name. `all` takes every image, and cuts nothing; neither does a split that a folder comes
    with. Other splits are cut as those of the training were: in a folder that was moved they hold the same images.

    `corruptions` says whether worse versions of the images are measured too, each 15 times. `tta` are the views of an
    image whose mean logits are measured. `say` is told what there is to read.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network has gone.
        DataError: the images are missing or damaged, or some are of a class that was not trained.
    """
    if split == "folds":
        if data is not None:
            raise UserError("--split folds: is of the images that the trial was scored on; leave out --data")
        if corruptions or tta != "none":
            option = "--tta" if tta != "none" else "--corruptions"
            raise UserError(f"--split folds: is of networks that are not kept; leave out {option}")
        return out_of_fold(weights)
    network, config, trained_on = read_network(weights)
    if corruptions and trained_on.has_several_labels:
        raise UserError("--corruptions: is for images of one class; corruption_accuracy is a top-1 accuracy")
    # Of the size and with the normalisation that the weights were trained with, whatever the images are.
    image = {**config.section("image"), "size": trained_on.image_size, "channels": trained_on.channels}
    component = config.component("data") if data is None else _cut_alike(data, config.component("data"))
    if skip_unreadable:
        component = skipping_unreadable(component)
    tree = {**config.to_dict(), "data": {component.name: dict(component.args)}, "image": image}
    config = TrialConfig.from_dict(tree)
    is_given = data is not None and split != "all" and comes_with(component, split)
    if split == "all" or is_given:
        source = describe_whole(component, split if split != "all" else None)
        classes, parts = source.classes, pipeline.open_whole(config, source, cache, say)
    else:
        try:
            found = pipeline.prepare_data(config, cache, say=say)
        except DataError as error:
            raise DataError(f"{error} ({_instead(component)})") from error
        classes, parts = found.classes, _images(config, found, split)
    opening: dict[str, Any] = {"weights": weights.name, "split": split}
    if split != "val" and (changed := _look_for_other_test(component, cache, trained_on)) is not None:
        opening["test_changed"] = changed[0]
        if say is not None:
            say(changed[1])
    numbers = _class_numbers(classes, trained_on.classes, f"{weights}: {component.path}")
    if any(label_sets.are_several(part.labels) != trained_on.has_several_labels for part in parts):
        one, several = "one class each", "several labels each"
        was, got = (several, one) if trained_on.has_several_labels else (one, several)
        raise DataError(f"{weights}: {component.path}: was trained on images with {was}; these images have {got}")
    parts = [
        replace(part, labels=label_sets.renumbered(part.labels, numbers, len(trained_on.classes))) for part in parts
    ]
    if split != "val":
        record_opening(weights.parent / "test-openings.jsonl", opening)
    named = (CORRUPTION,) if corruptions else ()
    return _measure(network, config, trained_on, parts, split, named, tta)


def out_of_fold(weights: Path) -> Evaluation:
    """Return what the networks of a finished trial with folds said of the images that they were not trained on.

    Raises:
        CheckpointError: the file is not of such a trial.
    """
    state = checkpoint.load(weights)
    found = cross_validation.read_out_of_fold(state, str(weights))
    _, config, data = networks.load_finished(state, str(weights))
    stated = costs.of(config.tree)
    wanted = Wanted(
        classes=data.classes,
        named=tuple(custom_metrics.installed()),
        costs=stated,
        is_full=True,
        thresholds=data.cuts,
    )
    return Evaluation(
        split="folds",
        metrics=score(found.logits, found.labels, wanted),
        names=found.names,
        labels=found.labels,
        probabilities=found.probabilities,
        decided=_decided(found.probabilities, data, stated),
        classes=data.classes,
        thresholds=data.cuts,
    )


def _decided(probabilities: np.ndarray[Any, Any], data: Prepared, stated: costs.Costs | None) -> np.ndarray[Any, Any]:
    """Return the class of each image, or which labels it has, 0 or 1 [N, labels]."""
    if data.cuts is not None:
        return (probabilities >= np.array(data.cuts)).astype(np.uint8)
    return costs.decided(probabilities, costs.matrix(stated, data.classes) if stated is not None else None)


def _look_for_other_test(component: Component, cache: Path, trained_on: Prepared) -> tuple[ChangedTest, str] | None:
    known = study_data.as_fact(trained_on)
    return study_data.look_for_other_test(component, cache, known, "the weights were trained")


def _cut_alike(data: Component, trained: Component) -> Component:
    """Return a data set that is cut into splits as the one of the training, where both are of one kind."""
    if data.name != trained.name:
        return data
    cuts = {name: trained.args[name] for name in CUTS if name in data.args and name in trained.args}
    return replace(data, args={**data.args, **cuts})


def _instead(component: Component) -> str:
    """Return what can be measured where a split cannot be cut."""
    given = [split for split in ("val", "test") if comes_with(component, split)]
    of = "the rows that say {}" if component.name == "table" else "{}/"
    shown = "".join(f"--split {split} measures {of.format(split)}; " for split in given)
    return f"{shown}--split all measures all images, and cuts nothing"


def _class_numbers(found: Sequence[str], trained: Sequence[str], place: str) -> np.ndarray[Any, Any]:
    """Return the number that each class of some images has among the trained ones.

    Raises:
        DataError: one is not among them.
    """
    numbers = {name: number for number, name in enumerate(trained)}
    strange = [name for name in found if name not in numbers]
    if strange:
        raise DataError(f"{place}: the weights were not trained on class {_show(strange)}; allowed: {_show(trained)}")
    return np.array([numbers[name] for name in found], dtype=np.int64)


def read_network(weights: Path) -> tuple[nn.Module | Artifact, TrialConfig, Prepared]:
    """Return what saved weights were scored by, their configuration and the data set they were trained on.

    That is the model, or, where it was compressed or measured as a file, the exported network beside it.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network has gone.
        DeployError: the exported network is damaged.
    """
    model, artifact, config, data = read_both(weights)
    return artifact or model, config, data


def read_both(weights: Path) -> tuple[nn.Module, Artifact | None, TrialConfig, Prepared]:
    """Return what `read_network` does, with the model as it was trained beside the exported network, if there is one.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network has gone.
        DeployError: the exported network is damaged.
    """
    state = checkpoint.load(weights)
    model, config, data = networks.load_finished(state, str(weights))
    return model, finish.find_artifact(state, weights), config, data


def measure_on(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, split: SplitName, named: tuple[str, ...] = ()
) -> Evaluation:
    """Measure a network on a split, also by the metrics `named`; asking for `test` or `all` opens the sealed split."""
    return _measure(network, config, data, _images(config, data, split), split, named)


def _measure(
    network: nn.Module | Artifact,
    config: TrialConfig,
    data: Prepared,
    parts: Sequence[Images],
    split: SplitName,
    named: tuple[str, ...] = (),
    tta: ViewsName = "none",
) -> Evaluation:
    """Measure a network on images with the class numbers and the normalisation of the data it was trained on."""
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
        decided=_decided(probabilities, data, stated),
        classes=data.classes,
        thresholds=data.cuts,
        corruptions=table,
        tta=without,
    )


def _logits_of_views(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, parts: Sequence[Images], tta: ViewsName
) -> tuple[list[np.ndarray[Any, Any]], list[float]]:
    """Return the logits [N, classes] of each view of the images, the images as they are first, and their seconds."""
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
    """Return the accuracy on worse versions of all images."""
    if isinstance(network, Artifact):
        tables = [finish.corruptions(network, part) for part in parts]
    else:
        device = available_devices(config.section("training")["device"])[0]
        model = network.to(device)
        tables = [corruptions_of(model, image_sets.on_device(part, data, device)) for part in parts]
    counts = np.array([len(part.labels) for part in parts])
    return {case: float(np.average([table[case] for table in tables], weights=counts)) for case in tables[0]}


def _logits(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, parts: Sequence[Images]
) -> list[np.ndarray[Any, Any]]:
    if isinstance(network, Artifact):
        return [finish.logits(network, part) for part in parts]
    device = available_devices(config.section("training")["device"])[0]
    model = network.to(device)
    return [predict(model, image_sets.on_device(part, data, device)) for part in parts]


def predictions_csv(evaluation: Evaluation) -> str:
    """Return one line an image: its name, its class, the predicted class and the probability of each class.

    Several labels of an image, and the predicted ones, stand in one cell with a separator that is in no label.
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
    """Return the class of an image, or its labels, as a cell."""
    if np.ndim(given) == 0:
        return as_text(classes[given])
    return as_text(separator(classes).join(classes[number] for number in np.flatnonzero(given).tolist()))


def record_opening(path: Path, about: dict[str, Any]) -> None:
    """Add a line to the list of times that the test split was looked at."""
    with writing(path):
        atomic.append_line(path, json.dumps({"at": now(), **about}))


def _images(config: TrialConfig, data: Prepared, split: SplitName) -> list[Images]:
    if split == "val":
        return [load(data, "val")]
    test = open_test(describe(config.component("data"), Path(data.folder).parent), data)
    return [test] if split == "test" else [load(data, "train"), load(data, "val"), test]


def _show(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
