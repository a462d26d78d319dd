"""Trained weights measured on images: the validation split, or the sealed test split when asked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from search import finish, pipeline
from search.config import Component, TrialConfig
from search.data import Images, Prepared, describe, load, open_test
from search.deploy.artifact import Artifact
from search.errors import DataError
from search.export import now, write_text
from search.train import checkpoint
from search.train.device import available_devices
from search.train.loop import predict
from search.train.metrics import score, softmax

SplitName = Literal["val", "test", "all"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says of every image of a split."""

    split: SplitName
    metrics: dict[str, float]
    names: tuple[str, ...]
    labels: np.ndarray[Any, Any]
    """Class numbers [N]."""

    probabilities: np.ndarray[Any, Any]
    """[N, classes]."""

    classes: tuple[str, ...]


def evaluate_weights(weights: Path, split: SplitName, cache: Path, *, data: Component | None = None) -> Evaluation:
    """Measure a weights file on a split of its own data set, or of another with the same classes.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network has gone.
        DataError: the images are missing, damaged, or of other classes.
    """
    network, config, trained_on = read_network(weights)
    if data is not None:
        shape = {"size": trained_on.image_size, "channels": trained_on.channels}
        tree = {**config.to_dict(), "data": {data.name: dict(data.args)}, "image": shape}
        config = TrialConfig.from_dict(tree)
    found = pipeline.prepare_data(config, cache)
    if found.classes != trained_on.classes:
        raise DataError(
            f"{weights}: trained on the classes {_show(trained_on.classes)}, the images have {_show(found.classes)}"
        )
    # The pixels are the new images', the normalisation is the one the weights were trained with.
    found = replace(found, mean=trained_on.mean, std=trained_on.std)
    if split != "val":
        record_opening(weights.parent / "test-openings.jsonl", {"weights": weights.name, "split": split})
    return measure_on(network, config, found, split)


def read_network(weights: Path) -> tuple[nn.Module | Artifact, TrialConfig, Prepared]:
    """Return what saved weights were scored by, their configuration and the data set they were trained on.

    That is the model, or, where it was compressed or measured as a file, the exported network beside it.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network has gone.
        DeployError: the exported network is damaged.
    """
    state = checkpoint.load(weights)
    model, config, data = pipeline.load_weights(state, str(weights))
    return finish.find_artifact(state, weights) or model, config, data


def measure_on(network: nn.Module | Artifact, config: TrialConfig, data: Prepared, split: SplitName) -> Evaluation:
    """Measure a network on a split; asking for `test` or `all` opens the sealed split."""
    parts = _images(config, data, split)
    labels = np.concatenate([part.labels for part in parts])
    if not len(labels):
        raise DataError(f"{config.component('data').path}: the {split} split is empty")
    logits = np.concatenate(_logits(network, config, data, [part for part in parts if len(part.labels)]))
    return Evaluation(
        split=split,
        metrics=score(logits, labels),
        names=tuple(name for part in parts for name in part.names),
        labels=labels,
        probabilities=softmax(logits),
        classes=data.classes,
    )


def _logits(
    network: nn.Module | Artifact, config: TrialConfig, data: Prepared, parts: Sequence[Images]
) -> list[np.ndarray[Any, Any]]:
    if isinstance(network, Artifact):
        return [finish.logits(network, part) for part in parts]
    device = available_devices(config.section("training")["device"])[0]
    model = network.to(device)
    return [predict(model, pipeline.on_device(part, data, device)) for part in parts]


def predictions_csv(evaluation: Evaluation) -> str:
    """Return one line an image: its name, its class, the predicted class and the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = [_as_text(name) for name in evaluation.classes]
    writer.writerow(["image", "label", "predicted", *(f"p({name})" for name in evaluation.classes)])
    for name, label, row in zip(evaluation.names, evaluation.labels, evaluation.probabilities, strict=True):
        writer.writerow([_as_text(name), classes[label], classes[row.argmax()], *(f"{p:.6f}" for p in row)])
    return text.getvalue()


def _as_text(cell: str) -> str:
    """Return a cell that a spreadsheet does not take for a formula: file names come from anybody."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def record_opening(path: Path, about: dict[str, Any]) -> None:
    """Add a line to the list of times that the test split was looked at."""
    entry = {"at": now(), **about}
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, f"{before}{json.dumps(entry)}\n")


def _images(config: TrialConfig, data: Prepared, split: SplitName) -> list[Images]:
    if split == "val":
        return [load(data, "val")]
    test = open_test(describe(config.component("data")), data)
    return [test] if split == "test" else [load(data, "train"), load(data, "val"), test]


def _show(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
