"""Finish a trained network: prune, fine-tune, export, quantize, reload with the runtime, and measure it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgcls_search import costs, digests, terminal
from imgcls_search.compress import prune, sections
from imgcls_search.compress.quantize import quantize
from imgcls_search.config import TrialConfig
from imgcls_search.data import Images, Prepared, load
from imgcls_search.deploy.artifact import Artifact, archive_kb, measure_latency, size_kb
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.errors import CheckpointError, DeployError, DivergedError
from imgcls_search.training import corrupted
from imgcls_search.training.evaluation import evaluate
from imgcls_search.training.group import Group
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.worker import pipeline

LATENCY_IMAGES = 16
"""Number of images for measuring latency, one at a time, in turns."""

BLOCK = 512
"""Number of images read at a time."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trained network's data for finishing it."""

    config: TrialConfig
    data: Prepared
    epoch: int
    """Epochs of training so far; they seed the random numbers of the following steps."""

    seed: int
    device: str
    teacher: str | None
    micro_batches: int
    train: ImageSet
    validation: ImageSet | None
    should_stop: Callable[[], bool]
    metrics: tuple[str, ...] = ()
    """Metrics beyond the standard ones."""

    report_alive: Callable[[], None] = lambda: None
    """Called between two steps of the work."""

    group: Group | None = None
    """The devices that fine-tune the network together; one of them exports and measures it."""

    @property
    def wanted(self) -> Wanted:
        """The metrics to measure; all of them after the training's last epoch."""
        is_last = self.epoch in (self.config.training_epochs, self.config.epochs)
        stated = costs.of(self.config.tree)
        return Wanted(classes=self.data.classes, named=self.metrics, costs=stated, is_full=is_last)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The network in its deployed form."""

    model: nn.Module
    shapes: prune.Shapes | None
    """Changes by structured pruning, None if it was not requested."""

    metrics: dict[str, float]
    notes: dict[str, str]
    """Notes that are not numbers."""


def finish(model: nn.Module, task: Task, artifact: Path | None) -> Finished:
    """Compress a copy of a network according to its configuration, and measure the result.

    With `artifact`, export it there and measure it as loaded by the runtime; otherwise export quantized networks to a
    temporary file, and measure others directly.

    Raises:
        DivergedError: the logits are NaN or infinite.
        DeployError: the network cannot be exported or quantized.
        StoppedError: `should_stop` returned true.
    """
    # The pruner and the exporter do not support channels last.
    plain = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    model, shapes = _prune(plain, task)
    if task.group is not None and not task.group.is_leader:
        return Finished(model=model, shapes=shapes, metrics={}, notes={})
    if artifact is not None:
        notes = _export(model, task, artifact)
        metrics = {**_measure_file(artifact, task), "size_kb": size_kb(artifact), "archive_kb": archive_kb(artifact)}
    elif sections.quantization(task.config) is not None:
        with tempfile.TemporaryDirectory(prefix="imgcls-search-") as folder:
            path = Path(folder) / "copy.onnx"
            notes = _export(model, task, path)
            metrics = _measure_file(path, task)
    else:
        notes = {}
        metrics = {}
        if task.validation is not None:
            metrics = evaluate(model.to(task.device), task.validation, wanted=task.wanted)
    if sections.pruning(task.config) is not None:
        metrics["sparsity"] = prune.sparsity(model)
    return Finished(model=model, shapes=shapes, metrics=metrics, notes=notes)


def time_artifact(path: Path, data: Prepared) -> dict[str, float]:
    """Return the latency of an exported network for one image, and its spread.

    Raises:
        DeployError: the file is missing or damaged.
    """
    images = load(data, "train")
    pixels = _pixels(images, np.arange(min(LATENCY_IMAGES, len(images.labels))))
    found = measure_latency(Artifact.load(path), pixels)
    return {
        "latency_ms": found.median_ms,
        "latency_low_ms": found.low_ms,
        "latency_high_ms": found.high_ms,
        "latency_runs": found.runs,
    }


def artifact_path(weights: Path) -> Path:
    """Return the path of the exported network next to a weights file."""
    return weights.with_suffix(".onnx")


def find_artifact(state: Mapping[str, Any], weights: Path) -> Artifact | None:
    """Return the exported network that a saved training was scored with, None if it was scored directly.

    Raises:
        CheckpointError: the file is missing or has changed.
        DeployError: the file is damaged.
    """
    if "artifact" not in state:
        return None
    path = artifact_path(weights)
    if not path.is_file():
        raise CheckpointError(f"{weights}: its compressed network is missing: {path}")
    if digests.of_file(path) != state["artifact"]:
        raise CheckpointError(f"{path}: not the network that {weights} was scored by; it was changed or damaged")
    return Artifact.load(path)


def logits(artifact: Artifact, images: Images | ImageSet) -> np.ndarray[Any, Any]:
    """Return the runtime's logits, float32 [N, classes], for all images in order."""
    # Images may be on a GPU, or decoded on each read.
    places = [np.arange(start, min(start + BLOCK, len(images.labels))) for start in range(0, len(images.labels), BLOCK)]
    return np.concatenate([artifact.logits(_pixels(images, index)) for index in places])


def _pixels(images: Images | ImageSet, index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(images.pixels, Tensor):
        return images.pixels[torch.from_numpy(index).to(images.pixels.device)].cpu().numpy()
    return np.asarray(images.pixels[index])


def _prune(model: nn.Module, task: Task) -> tuple[nn.Module, prune.Shapes | None]:
    plan = sections.pruning(task.config)
    if plan is None:
        return model, None
    sides: dict[str, Any] = {"channels": task.data.channels, "image_size": task.data.image_size}
    shapes = prune.prune(model, plan.kind, plan.amount, **sides)
    if plan.finetune_epochs:
        model = _tune(model, task, plan)
    return model, shapes if plan.kind == "structured" else None


def _tune(model: nn.Module, task: Task, plan: sections.Pruning) -> nn.Module:
    seed = int(np.random.SeedSequence([task.seed, task.epoch]).generate_state(1)[0] // 2)
    session = pipeline.tuning_session(
        task.config,
        task.data,
        model,
        seed=seed,
        device=task.device,
        teacher=task.teacher,
        micro_batches=task.micro_batches,
        group=task.group,
    )
    if plan.kind == "unstructured":
        keep = prune.keep_zeros(session.model)
        session.optimizer.register_step_post_hook(lambda *_: keep())
    for metrics in fit(session, task.train, None, until_epoch=plan.finetune_epochs, should_stop=task.should_stop):
        print(f"after pruning at epoch {task.epoch}: {metrics}", flush=True)  # noqa: T201 - the trial's log
        task.report_alive()
    return session.deployed.cpu().to(memory_format=torch.contiguous_format)


def _export(model: nn.Module, task: Task, path: Path) -> dict[str, str]:
    """Export a network in its deployed form; return notes about it."""
    plan = sections.quantization(task.config)
    target = path if plan is None else path.with_name(f".{path.stem}.fp32.onnx")
    terminal.lock_bars_by_thread()
    try:
        export_onnx(model, target, shape=task.data.shape, mean=task.data.mean, std=task.data.std)
        task.report_alive()
        if plan is None:
            return {}
        images = _calibration(task, plan.calibration_images)
        return {"quantized": quantize(target, path, mode=plan.mode, calibration=images)}
    except DeployError as error:
        # Remove the file name, so that the same reason reads the same for every trial.
        raise DeployError(str(error).removeprefix(f"{target}: ")) from error
    finally:
        if plan is not None:
            target.unlink(missing_ok=True)


def _calibration(task: Task, count: int) -> np.ndarray[Any, Any]:
    """Return random images of the training split without repeats, the same for the same seed."""
    images = load(task.data, "train")
    drawn = np.random.default_rng(task.seed).permutation(len(images.labels))[:count]
    return np.asarray(images.pixels[np.sort(drawn)])


def _measure_file(path: Path, task: Task) -> dict[str, float]:
    artifact = Artifact.load(path)
    if task.validation is None:
        return {}
    found = logits(artifact, task.validation)
    if not np.isfinite(found).all():
        raise DivergedError("the exported network gives NaN or infinite logits")
    labels = task.validation.labels
    scores = score(found, labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels), task.wanted)
    if corrupted.is_wanted(task.wanted.named):
        scores |= corrupted.mean(corruptions(artifact, task.validation))
    return scores


def corruptions(artifact: Artifact, images: Images | ImageSet) -> corrupted.Table:
    """Return the accuracy of an exported network on corrupted versions of images."""
    labels = torch.as_tensor(np.asarray(images.labels.cpu() if isinstance(images.labels, Tensor) else images.labels))
    places = torch.split(torch.arange(len(labels)), BLOCK)
    batches = ((index, torch.from_numpy(_pixels(images, index.numpy())), labels[index]) for index in places)
    return corrupted.accuracies(batches, lambda pixels: artifact.logits(pixels.numpy()))
