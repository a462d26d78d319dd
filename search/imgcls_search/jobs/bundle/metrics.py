"""Measure and describe an exported model: the contents of a bundle's `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from imgcls_search import costs
from imgcls_search.confidence import share_interval
from imgcls_search.config import TrialConfig
from imgcls_search.data import Images
from imgcls_search.deploy.artifact import Artifact, archive_kb, conditions, measure_latency, size_kb
from imgcls_search.image_size import ImageSize
from imgcls_search.jobs.bundle.sureness import Sureness, SurenessMetrics, as_numbers
from imgcls_search.jobs.bundle.weights import Trained
from imgcls_search.jobs.export import now
from imgcls_search.measures import by_class, share_of_images
from imgcls_search.training import custom_metrics
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.trial import compresses
from imgcls_search.worker import measuring, pipeline
from imgcls_search.worker.networks import Member

Array = np.ndarray[Any, Any]

CHANGED = "The images have changed since the training: some that the score is from may have been trained on."

LATENCY_IMAGES = 64


class _ScoredFile(TypedDict):
    of: str
    """The file or weights that were scored."""

    split: str
    images: int
    macro_f1: float


class Score(_ScoredFile, total=False):
    """Scores of a file or its weights on a split."""

    accuracy: float
    accuracy_interval_95: list[float]
    subset_accuracy: float
    """With several labels per image, like `micro_f1`."""

    subset_accuracy_interval_95: list[float]
    micro_f1: float
    loss: float
    top5_accuracy: float
    balanced_accuracy: float
    roc_auc: float
    average_precision: float
    mcc: float
    kappa: float
    ece: float
    cost: float
    decision_accuracy: float
    classes: dict[str, dict[str, float]]
    """Precision, recall, F1 and support of each class."""


class _Compared(TypedDict):
    images: int
    max_difference: float
    """Largest difference of the logits."""

    is_quantized: bool


class Parity(_Compared, total=False):
    """Agreement of an exported file with torch on real images."""

    equal_top1: int
    equal_labels: int
    """Images with exactly the same labels, if there are several per image."""


def same_decisions(parity: Parity) -> tuple[int, str]:
    """Return on how many images a file agrees with torch, and on what."""
    if "equal_labels" in parity:
        return parity["equal_labels"], "the same labels"
    return parity["equal_top1"], "the same class"


class MemberMetrics(TypedDict):
    """A network of an ensemble."""

    trial: int
    count: int
    family: str
    temperatures: list[float]
    config: dict[str, Any]


class _ModelMetrics(TypedDict):
    family: str
    params: int
    macs: int | None
    compression: dict[str, str]
    """Each compression section as one line."""

    quantized: str


class ModelMetrics(_ModelMetrics, total=False):
    """The network."""

    members: list[MemberMetrics]
    """Networks of an ensemble, those with the most picks first."""


class InputMetrics(TypedDict):
    """The input images of the file."""

    size: ImageSize
    fit: str
    channels: int


class DataMetrics(TypedDict):
    """The images that the network was trained on."""

    name: str
    classes: int
    counts: dict[str, int]


class Size(TypedDict):
    """Size of the file, and of a compressed archive of it, in KB of 1,024 bytes."""

    file_kb: float
    archive_kb: float


class LatencyMetrics(TypedDict):
    """Latency of one image, see `deploy.artifact.Latency`."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    conditions: dict[str, str | int]


class ViewsMetrics(TypedDict):
    """Test-time augmentation in the file; `latency` includes it."""

    views: str
    count: int
    median_ms_without: float


class BundleMetrics(TypedDict):
    """The contents of `metrics.json`."""

    title: str
    format: str
    """Format of the model: `onnx`, `openvino` or `executorch`."""

    model: ModelMetrics
    input: InputMetrics
    data: DataMetrics
    scores: list[Score]
    """The first is the score of the exported file on the validation images."""

    seeds: Mapping[str, Any] | None
    """The mean test accuracy over several seeds, and its interval."""

    parity: Parity
    size: Size
    latency: LatencyMetrics
    thresholds: list[float] | None
    """Lowest probability at which an image has each label; None with one class per image."""

    notes: list[str]
    costs: dict[str, dict[str, float]] | None
    """Costs of decisions by true class, then by predicted class."""

    sureness: SurenessMetrics
    """Calibration, refusal, and detection of images unlike the training images."""

    tta: ViewsMetrics | None
    provenance: dict[str, Any]
    """Origin of the model, by human-readable names."""


def describe(
    trained: Trained,
    artifact: Artifact,
    images: Images,
    logits: Array,
    *,
    parity: Parity,
    are_same: bool,
    sureness: Sureness,
) -> BundleMetrics:
    """Score a loaded file from its logits of the validation images, and describe it."""
    stated = costs.of(trained.config.tree)
    wanted = Wanted(
        classes=trained.data.classes,
        named=tuple(custom_metrics.installed()),
        costs=stated,
        is_full=True,
        thresholds=sureness.cuts,
    )
    measured = score(logits, images.labels, wanted)
    scores = [_score("this file", "validation", measured, len(images.labels))]
    if trained.tested is not None:
        of = "the weights, by train" if compresses(trained.config) else "the same weights, by train"
        scores.append(_score(of, "test", trained.tested, trained.data.counts["test"]))
    notes = list(trained.notes)
    if not are_same:
        notes.append(CHANGED)
    return {
        "title": trained.title,
        "format": "onnx" if artifact.runtime == "onnxruntime" else artifact.runtime,
        "model": _model(trained, artifact),
        "input": {"size": trained.data.image_size, "channels": trained.data.channels, "fit": trained.data.fit},
        "data": _data(trained),
        "scores": scores,
        "seeds": trained.seeds,
        "parity": parity,
        "size": {
            "file_kb": sum(map(size_kb, artifact.files)),
            "archive_kb": sum(map(archive_kb, artifact.files)),
        },
        "latency": measure(artifact, images),
        "thresholds": None if sureness.cuts is None else list(sureness.cuts),
        "notes": notes,
        "costs": {true: dict(row) for true, row in stated.items()} if stated is not None else None,
        "sureness": as_numbers(sureness, trained.data.classes),
        "tta": None,
        "provenance": {
            **trained.provenance,
            "data fingerprint": trained.data.fingerprint,
            "written": now(),
            "versions": ", ".join(f"{name} {version}" for name, version in _versions(artifact).items()),
        },
    }


def _score(of: str, split: str, metrics: Mapping[str, float], images: int) -> Score:
    name = share_of_images(metrics)
    together, classes = by_class(metrics)
    found = {
        "of": of,
        "split": split,
        "images": images,
        **together,
        **({"classes": classes} if classes else {}),
        f"{name}_interval_95": list(share_interval(metrics[name], images)),
    }
    # The metrics depend on the number of classes, and on whether images have several labels.
    return cast(Score, found)


def _model(trained: Trained, artifact: Artifact) -> ModelMetrics:
    params = sum(parameter.numel() for parameter in trained.model.parameters())
    if trained.members:
        macs = None if any(member.shapes is not None for member in trained.members) else macs_of(trained)
        return {
            "family": "ensemble",
            "params": params,
            "macs": macs,
            "compression": dict.fromkeys(("distill", "prune", "quantize"), "none"),
            "quantized": artifact.quantized,
            "members": [_member(member) for member in trained.members],
        }
    return {
        "family": trained.config.component("model").name,
        "params": params,
        "macs": None if compresses(trained.config) else macs_of(trained),
        "compression": {name: _choice(trained.config, name) for name in ("distill", "prune", "quantize")},
        "quantized": artifact.quantized,
    }


def macs_of(trained: Trained) -> int:
    """Return the multiply-accumulates for one image, before pruning."""
    configs = [member.config for member in trained.members] or [trained.config]
    return sum(measuring.count(config.component("model"), trained.data.shape).macs for config in configs)


def _member(member: Member) -> MemberMetrics:
    return {
        "trial": member.trial,
        "count": member.count,
        "family": member.config.component("model").name,
        "temperatures": list(member.temperatures),
        "config": member.config.to_dict(),
    }


def _choice(config: TrialConfig, section: str) -> str:
    """Return a section as one line: `structured, amount 0.5`."""
    # Older configurations do not have these sections.
    if section not in config.tree:
        return "none"
    component = config.component(section)
    return ", ".join([component.name, *(f"{name} {value}" for name, value in component.args.items())])


def _data(trained: Trained) -> DataMetrics:
    component = trained.config.component("data")
    # For a folder or a table, only the name: the rest of its path is private.
    place = component.args.get("name") or Path(str(component.args.get("file") or component.args.get("root", ""))).name
    name = component.name if component.name in ("digits", "cifar10") else f"{component.name}: {place}"
    return {"name": name, "classes": len(trained.data.classes), "counts": dict(trained.data.counts)}


def measure(artifact: Artifact, images: Images) -> LatencyMetrics:
    """Measure the latency of a file for one image."""
    pixels = images.pixels[np.arange(min(LATENCY_IMAGES, len(images.labels)))]
    found = measure_latency(artifact, pixels)
    return {
        "median_ms": found.median_ms,
        "low_ms": found.low_ms,
        "high_ms": found.high_ms,
        "runs": found.runs,
        "conditions": conditions(artifact),
    }


def _versions(artifact: Artifact) -> dict[str, str]:
    names = dict.fromkeys(("onnx", "onnxruntime", artifact.runtime))
    runtime = {name: metadata.version(name) for name in names}
    return {**pipeline.versions(), **runtime}
