"""Write trained weights as a complete bundle, or nothing if a step fails."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imgcls_search import atomic
from imgcls_search.compress.sections import quantization
from imgcls_search.data import Images, load, must_be_apart
from imgcls_search.deploy import additions, bundle, executorch_runtime, openvino_ir, unlike
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.executorch_pte import export_pte
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.deploy.unlike import Spread
from imgcls_search.deploy.views import VIEWS, ViewsName
from imgcls_search.errors import BuildError, DeployError, UserError, writing
from imgcls_search.jobs.bundle.card import card
from imgcls_search.jobs.bundle.metrics import CHANGED, BundleMetrics, Parity, describe, macs_of, measure
from imgcls_search.jobs.bundle.sureness import Sureness, check_target, settle
from imgcls_search.jobs.bundle.weights import Trained
from imgcls_search.models import heads
from imgcls_search.models.cost import images_within
from imgcls_search.orchestrator import study_data
from imgcls_search.probabilities import sigmoid
from imgcls_search.progress import ShowStep
from imgcls_search.space import dump
from imgcls_search.training.device import move
from imgcls_search.training.evaluation import predict
from imgcls_search.worker import image_sets, pipeline
from imgcls_search.worker.features import kept_of

PARITY_IMAGES, LEAST_PARITY_IMAGES = 1000, 100
MOST_PARITY_MACS = 5e10
"""Multiply-accumulates to spend on comparing with torch: a wrong graph is wrong on most images."""

TOLERANCE = 1e-3
"""Largest difference from torch's logits, as a share of the largest logit: sums are computed in another order."""


Format = Literal["onnx", "openvino", "executorch"]
"""Format of a bundle's model, and the runtime that serves it."""

STEPS = 6

BLOCK = 512
"""Number of training images to process at a time."""


def deliver(
    trained: Trained,
    out: Path,
    cache: Path,
    say: Callable[[str], None] = lambda text: None,
    step: ShowStep = lambda what, number, of: None,
    *,
    must_be_same: bool = False,
    target_precision: float | None = None,
    tta: ViewsName = "none",
    to: Format = "onnx",
) -> BundleMetrics:
    """Write a complete bundle, or nothing on an error; return the contents of its `metrics.json`.

    `say` gets messages for the user; `step` gets a description of each step, its number and the number of steps. With
    `must_be_same`, images other than those of the training raise an error instead of adding a note. With
    `target_precision`, the bundle answers 'unsure' below the confidence that reaches this precision. `tta` names the
    views of an image that the file averages; `to` is the format of the model.

    Raises:
        UserError: the folder is not empty or cannot be written, the precision cannot be reached, or the format needs
        a package that is not installed.
        DataError: the images of the training, which are needed to check the file, are missing.
        DeployError: the model cannot be exported, or the exported file does not agree with torch.
    """
    check_target(trained, target_precision)
    _check_format(trained, to)
    must_be_apart(trained.found.component("data"), out, "--bundle")
    with _folder(out) as folder:
        path = folder / bundle.FILES["model"]
        step("reading the validation images", 1, STEPS)
        training, images, are_same = _images(trained, cache, say)
        if must_be_same and not are_same:
            raise UserError(
                f"--data: the images in {trained.found.component('data').args.get('root')} are not those that "
                f"{trained.title} was trained on"
            )
        if not are_same:
            say(CHANGED)
        step(f"exporting {trained.title}", 2, STEPS)
        _place_model(trained, path)
        artifact = Artifact.load(path)
        plain = measure(_as_served(trained, artifact, to), images) if tta != "none" else None
        step("calibrating on the validation images", 3, STEPS)
        spread = _spread_of_features(trained, path, training) if are_same and trained.is_held_out else None
        if spread is not None:
            additions.give_distance(path, spread)
        if tta != "none":
            additions.average_views(path, tta)
        artifact = Artifact.load(path)
        logits, distances = artifact.answers(images.pixels)
        found = settle(trained, logits, distances, images.labels, are_same=are_same, target=target_precision)
        if found.calibration.is_kept:
            additions.divide_logits(path, found.calibration.temperatures)
            artifact = Artifact.load(path)
        artifact = _as_served(trained, artifact, to, tta=tta, spread=spread, sureness=found)
        step("comparing with torch", 4, STEPS)
        parity = _compare(trained, artifact, images, found, tta)
        step(f"measuring on {len(images.labels)} validation images", 5, STEPS)
        if to == "onnx" and artifact.quantized == "none":
            # The comparison with torch has shown that the file divides its logits correctly, so reuse the first ones.
            given = found.calibration.applied(logits).astype(np.float32)
        else:
            given = artifact.logits(images.pixels)
        described = describe(trained, artifact, images, given, parity=parity, are_same=are_same, sureness=found)
        if plain is not None:
            described["tta"] = {"views": tta, "count": len(VIEWS[tta]), "median_ms_without": plain["median_ms"]}
        step(f"writing {out}", 6, STEPS)
        _write_rest(trained, folder, described, found)
        # Check that the bundle can be read.
        bundle.read(folder)
    return described


def _check_format(trained: Trained, to: Format) -> None:
    if to == "onnx":
        return
    (openvino_ir if to == "openvino" else executorch_runtime).check_installed(f"--format {to}")
    if trained.scored is not None and quantization(trained.config) is not None:
        raise UserError(
            f"--format {to}: {trained.title} is quantized, by ONNX Runtime for ONNX Runtime; allowed: --format onnx"
        )


def _as_served(
    trained: Trained,
    artifact: Artifact,
    to: Format,
    *,
    tta: ViewsName = "none",
    spread: Spread | None = None,
    sureness: Sureness | None = None,
) -> Artifact:
    """Convert a file to the format of the bundle, in the same folder, and load it with that format's runtime.

    OpenVINO converts the file with everything added to it; ExecuTorch exports the network and adds it again.
    """
    if to == "onnx":
        return artifact
    if to == "openvino":
        path = artifact.path.with_name(bundle.OPENVINO["model"])
        openvino_ir.convert(artifact.path, path)
        return Artifact.load(path)
    path = artifact.path.with_name(bundle.EXECUTORCH["model"])
    data = trained.data
    is_kept = sureness is not None and sureness.calibration.is_kept
    export_pte(
        trained.model,
        path,
        shape=data.shape,
        mean=data.mean,
        std=data.std,
        views=tta,
        temperatures=sureness.calibration.temperatures if sureness is not None and is_kept else (1.0,),
        spread=spread,
    )
    return Artifact.load(path)


def refuse_taken(out: Path) -> None:
    """Refuse a folder that a bundle would overwrite, or that cannot be made, before any work is done for it.

    Raises:
        UserError: it exists and is not empty, or it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another folder, or remove it")
    with writing(out):
        above = next(folder for folder in out.absolute().parents if folder.exists())
        atomic.check_writable(above / bundle.DESCRIPTION)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Yield a draft folder beside `out` that becomes `out` if the block raises nothing."""
    refuse_taken(out)
    with writing(out), atomic.replacing(out) as draft:
        draft.mkdir(parents=True)
        yield draft


def _images(trained: Trained, cache: Path, say: Callable[[str], None]) -> tuple[Images, Images, bool]:
    """Return the training and validation images, and whether they are the same as in the training."""
    study_data.must_be_there(trained.found.component("data"))
    found = pipeline.prepare_data(trained.found, cache, say=say)
    if found.has_several_labels != trained.data.has_several_labels or found.classes != trained.data.classes:
        raise DeployError(f"{trained.weights}: the images have other classes now than when it was trained")
    return load(found, "train"), load(found, "val"), pipeline.has_prints(trained.found, found, trained.data.prints)


def _spread_of_features(trained: Trained, path: Path, training: Images) -> Spread | None:
    """Return the spread of the training images' features, None if the input of the file's last layer has none."""
    kept = _kept_features(trained)
    affordable = images_within(unlike.MOST_MACS, macs_of(trained), least=unlike.LEAST_LOOKED_AT)
    most = len(training.labels) if kept is not None else affordable
    count = min(unlike.MOST_TRAINING_IMAGES, most, len(training.labels))
    chosen = np.linspace(0, len(training.labels) - 1, count).round().astype(np.int64)
    copy = path.with_name(".features.onnx")
    try:
        if not additions.give_features(path, copy):
            return None
        if kept is not None:
            return unlike.fit(np.asarray(kept[chosen]))
        artifact = Artifact.load(copy)
        blocks = np.array_split(chosen, max(1, count // BLOCK))
        return unlike.fit(np.concatenate([artifact.features(training.pixels[block]) for block in blocks]))
    except DeployError:
        # The input of the last layer is not one row of floats per image.
        return None
    finally:
        copy.unlink(missing_ok=True)


def _kept_features(trained: Trained) -> np.ndarray[Any, Any] | None:
    """Return the cached features of the training images that the last layer gets, None if the search cached none."""
    if trained.scored is not None or trained.members:
        return None
    try:
        heads.linear_layer(trained.model)
    except BuildError:
        # The head has hidden layers, so the last layer does not get the cached features.
        return None
    return kept_of(trained.model, trained.config, trained.data, "train", "cpu")


def _place_model(trained: Trained, path: Path) -> None:
    """Copy the file that the training was scored with, or export the weights if there is none."""
    if trained.scored is not None:
        shutil.copyfile(trained.scored.path, path)
        return
    export_onnx(trained.model, path, shape=trained.data.shape, mean=trained.data.mean, std=trained.data.std)


def _compare(trained: Trained, artifact: Artifact, images: Images, found: Sureness, tta: ViewsName) -> Parity:
    """Compare the file with torch on real images.

    Raises:
        DeployError: they differ by more than rounding.
    """
    affordable = images_within(MOST_PARITY_MACS, macs_of(trained), least=LEAST_PARITY_IMAGES)
    count = min(PARITY_IMAGES, affordable, len(images.labels))
    pixels = images.pixels[np.arange(count)]
    compared = dataclasses.replace(images, pixels=pixels, labels=images.labels[:count], names=images.names[:count])
    seen = [dataclasses.replace(compared, pixels=view.of(pixels)) for view in VIEWS[tta]]
    model = move(trained.model, "cpu")
    each = [predict(model, image_sets.on_device(view, trained.data, "cpu")) for view in seen]
    reference = found.calibration.applied(np.mean(each, axis=0))
    logits = artifact.logits(pixels)
    difference = float(np.abs(logits - reference).max())
    is_quantized = artifact.quantized != "none"
    if not is_quantized and not difference <= TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise DeployError(
            f"{trained.weights}: the exported file does not agree with torch: logits differ by {difference:.2g} "
            f"on {len(pixels)} validation images"
        )
    parity: Parity = {"images": len(pixels), "max_difference": difference, "is_quantized": is_quantized}
    if found.cuts is not None:
        cuts = np.array(found.cuts)
        said, meant = (sigmoid(values) >= cuts for values in (logits, reference))
        return {**parity, "equal_labels": int((said == meant).all(axis=1).sum())}
    return {**parity, "equal_top1": int((logits.argmax(1) == reference.argmax(1)).sum())}


def _write_rest(trained: Trained, folder: Path, described: BundleMetrics, found: Sureness) -> None:
    data = trained.data
    of = f"{trained.title}: its best trial" if trained.members else trained.title
    comments = [f"The configuration of {of}, exported by imgcls-search."]
    if trained.origin is not None:
        comments.append(f"origin: {json.dumps(dict(trained.origin))}")
    files = bundle.FILES
    if described["format"] != "onnx":
        files = bundle.OPENVINO if described["format"] == "openvino" else bundle.EXECUTORCH
        (folder / bundle.FILES["model"]).unlink()
    texts = {
        "labels": json.dumps(data.classes, indent=0, ensure_ascii=False) + "\n",
        "config": dump(trained.config, comments=comments),
        "metrics": json.dumps(described, indent=2, ensure_ascii=False) + "\n",
        "card": card(described, data.classes),
    }
    for role, text in texts.items():
        atomic.write_text(folder / bundle.FILES[role], text)
    about = bundle.describe(
        folder,
        frame=data.frame,
        mean=data.mean,
        std=data.std,
        quantized=described["model"]["quantized"],
        costs=described["costs"],
        thresholds=found.cuts,
        sureness=bundle.Sureness(
            temperatures=found.calibration.temperatures,
            is_calibrated=found.calibration.is_kept,
            min_confidence=found.refusal.threshold if found.refusal is not None else None,
            unlike=found.unlike,
        ),
        files=files,
    )
    atomic.write_text(folder / bundle.DESCRIPTION, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
