"""One trial's work in order: images, model, training state; and what is known before training."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from imgcls_search import models
from imgcls_search.compress import prune, sections
from imgcls_search.compress.distill import Teaching
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import (
    POLICIES,
    Augment,
    Frame,
    Images,
    InputShape,
    Mix,
    Prepared,
    Prints,
    Source,
    Streamed,
    augment,
    choose_shape,
    describe,
    label_sets,
    load,
    look_at_test,
    mixing,
    open_all,
    prepare,
    read_headers,
    summarise,
)
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.folds import places
from imgcls_search.data.image import CACHE_GB, MOMENTS, check_normalisation
from imgcls_search.errors import CheckpointError
from imgcls_search.image_size import sides
from imgcls_search.measures import THRESHOLD
from imgcls_search.models import pretrained
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.protocol import Portion
from imgcls_search.signature import build
from imgcls_search.train import checkpoint, custom_metrics, finetune
from imgcls_search.train.device import fastest_layout, pays_to_compile, resolve_precision
from imgcls_search.train.loop import ImageSet, Session, Teach
from imgcls_search.train.losses import Loss, build_loss
from imgcls_search.train.optimizers import OPTIMIZERS, SCHEDULES
from imgcls_search.train.recipe import Finetune, Training
from imgcls_search.worker.measuring import meta_model

GPU_SHARE = 0.25
"""The share of a GPU's free memory that a data set may take to live there."""


def prepare_data(
    config: TrialConfig,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    *,
    looks_at_test: bool = False,
) -> Prepared:
    """Decode the images of a configuration once; later calls find them under `cache`.

    What there is to read is said before anything slow, what was found while decoding after it. Before a search or a
    training, the files of the test split are looked at too, whether they can be read.

    Raises:
        DataError: the images are missing, damaged or unusable.
    """
    component = config.component("data")
    source = describe(component, cache)
    image = config.section("image")
    size, channels = image["size"], image["channels"]
    if say is not None or size is None or channels is None:
        headers = read_headers(source)
        own_size, own_channels, is_chosen = choose_shape(headers)
        chosen_size = own_size if is_chosen and size is None else None
        size, channels = size or own_size, channels or own_channels
        for line in summarise(source, headers, chosen_size=chosen_size).lines() if say is not None else ():
            say(line)  # type: ignore[misc]
    frame = Frame.of(image, size, channels)
    prepared = prepare(
        source,
        origin=component,
        image_size=frame.size,
        channels=frame.channels,
        fit=frame.fit,
        fill=frame.fill,
        margin=frame.margin,
        cache=cache,
        most_bytes=cache_bytes(config),
        progress=progress,
    )
    if looks_at_test and source.is_in_files:
        left_out = look_at_test(source, prepared, progress)
        if left_out and say is not None:
            say(f"test images that cannot be read will be left out: {len(left_out)}: {', '.join(left_out)}")
    for line in prepared.findings() if say is not None else ():
        say(line)  # type: ignore[misc]
    return prepared


def open_whole(
    config: TrialConfig, source: Source, cache: Path, say: Callable[[str], None] | None = None
) -> list[Images]:
    """Return all images of a source in the shape that a configuration names, the sealed split among them.

    Raises:
        DataError: the images are damaged, or the cache cannot be written.
    """
    image = config.section("image")
    for line in summarise(source, read_headers(source, ("train", "val", "test"))).lines() if say is not None else ():
        say(line)  # type: ignore[misc]
    return open_all(
        source,
        frame=Frame.of(image, image["size"], image["channels"]),
        cache=cache,
        most_bytes=cache_bytes(config),
    )


def cache_bytes(config: TrialConfig) -> float:
    """Return the most bytes of decoded images that a configuration allows on disk."""
    gigabytes: float = config.section("image").get("cache_gb", CACHE_GB)
    return gigabytes * 1e9


def has_prints(config: TrialConfig, data: Prepared, known: Prints) -> bool:
    """Tell whether a data set is the recorded one, as far as a search sees it, by whichever version of fingerprints.

    Raises:
        DataError: its images are missing or cannot be read.
    """
    if data.prints.are_of(known):
        return True
    return describe(config.component("data"), Path(data.folder).parent).has_prints(known)


def versions() -> dict[str, str]:
    """Return the versions that a training's numbers depend on."""
    names = ("imgcls-search", "torch", "torchvision", "optuna", "numpy", "scikit-learn", "pillow")
    ours = {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
    return {**ours, **custom_metrics.versions()}


def check_weights(component: Component, shape: InputShape) -> None:
    """Fetch or read the pretrained weights of a model component, and see that they fit.

    Raises:
        CheckpointError: they cannot be fetched or read.
        BuildError: they do not fit the model.
    """
    pretrained.find(component, meta_model(component, shape), **dataclasses.asdict(shape))


def with_normalisation(config: TrialConfig, data: Prepared) -> Prepared:
    """Return the data set with the mean and deviation that a configuration names, by itself or by its weights.

    Raises:
        CheckpointError: the weights cannot be read.
        BuildError: there are no such numbers.
    """
    component, section = config.component("model"), config.section("image")
    has_weights = pretrained.is_wanted(component)
    check_normalisation(section, data.channels, has_weights=has_weights)
    wanted = {name: section.get(name, "auto") for name in MOMENTS}
    named = {name: "weights" if value == "auto" and has_weights else value for name, value in wanted.items()}
    if "weights" in named.values():
        mean, std = pretrained.normalisation(component, meta_model(component, data.shape))
        data = replace(
            data,
            mean=mean if named["mean"] == "weights" else data.mean,
            std=std if named["std"] == "weights" else data.std,
        )
    # One number is meant for all channels.
    given: dict[str, Any] = {
        name: tuple(value) * (data.channels // len(value))
        for name, value in named.items()
        if not isinstance(value, str)
    }
    return replace(data, **given) if given else data


def build_model(config: TrialConfig, shape: InputShape) -> nn.Module:
    """Build the model that a configuration describes for images of a shape.

    Raises:
        BuildError: the family refuses an argument.
    """
    return models.build_model(config.component("model"), **dataclasses.asdict(shape))


def build_augmentation(config: TrialConfig, shape: InputShape) -> tuple[Augment, Mix]:
    """Build what a configuration does to a batch: to each image, then to images with each other."""
    section = config.section("augment")
    del section["policy"]
    # Weights saved before there was any mixing say nothing of it.
    mixed = {name: section.pop(name) for name in ("mixup", "cutmix") if name in section}
    policy = build(POLICIES, config.component("augment.policy"))
    sized = replace(augment(policy=policy, **section), size=sides(shape.image_size))
    return sized, mixing(classes=shape.classes, **mixed)


def new_session(
    config: TrialConfig,
    data: Prepared,
    *,
    seed: int,
    device: str,
    from_pretrained: bool = True,
    micro_batches: int = 1,
    teacher: str | None = None,
) -> Session:
    """Return an untrained session; the same seed gives the same weights.

    A session that goes on from a checkpoint does not need the pretrained weights that it started with. `teacher` is the
    weights file of the network to learn from, where the configuration distils.

    Raises:
        BuildError: the configuration cannot be built.
        CheckpointError: the pretrained weights cannot be fetched or read, or the teacher's.
        DeviceError: the precision is not available on the device.
    """
    recipe = Training(**config.section("training"))
    augmentation, mix = build_augmentation(config, data.shape)
    torch.manual_seed(seed)
    model = build_model(config, data.shape)
    component = config.component("model")
    if from_pretrained and pretrained.is_wanted(component):
        pretrained.load_into(model, pretrained.find(component, model, **dataclasses.asdict(data.shape)))
    model = model.to(device, memory_format=fastest_layout(model))  # type: ignore[call-overload]
    optimizer = build(OPTIMIZERS, config.component("optimizer"), model=model)
    return Session(
        model=model,
        optimizer=optimizer,
        schedule=build(SCHEDULES, config.component("schedule"), epochs=recipe.epochs),
        loss=_loss(config, data),
        augment=augmentation,
        mix=mix,
        hold=_hold(config, model, optimizer),
        micro_batches=micro_batches,
        is_compiled=pays_to_compile(
            recipe.compile, device, recipe.epochs * math.ceil(data.counts["train"] / recipe.batch_size)
        ),
        recipe=recipe,
        device=device,
        precision=resolve_precision(recipe.precision, device),
        seed=seed,
        teach=_teaching(config, data, teacher, device),
    )


def tuning_session(
    config: TrialConfig,
    data: Prepared,
    model: nn.Module,
    *,
    seed: int,
    device: str,
    teacher: str | None,
    micro_batches: int,
) -> Session:
    """Return a session that trains a pruned model on, with the whole schedule squeezed into its few epochs."""
    plan = sections.pruning(config)
    assert plan is not None, "only what is pruned is tuned"
    recipe = Training(**config.section("training"))
    augmentation, mix = build_augmentation(config, data.shape)
    # Parts may have been frozen, and an average never learns.
    model = model.requires_grad_(True)
    model = model.to(device, memory_format=fastest_layout(model))  # type: ignore[call-overload, unused-ignore]
    optimizer = build(OPTIMIZERS, config.component("optimizer"), model=model)
    _hold(config, model, optimizer)
    for group in optimizer.param_groups:
        group["lr"] *= plan.finetune_lr_factor
    whole = build(SCHEDULES, config.component("schedule"), epochs=recipe.epochs)
    return Session(
        model=model,
        optimizer=optimizer,
        schedule=lambda progress: float(whole(progress * recipe.epochs / plan.finetune_epochs)),
        loss=_loss(config, data),
        augment=augmentation,
        mix=mix,
        micro_batches=micro_batches,
        recipe=recipe,
        device=device,
        precision=resolve_precision(recipe.precision, device),
        seed=seed,
        teach=_teaching(config, data, teacher, device),
    )


def _loss(config: TrialConfig, data: Prepared) -> Loss:
    return build_loss(
        config.component("loss"),
        class_counts=data.class_counts,
        classes=data.classes,
        images=data.counts["train"],
    )


def _teaching(config: TrialConfig, data: Prepared, teacher: str | None, device: str) -> Teach | None:
    plan = sections.distillation(config)
    if plan is None:
        return None
    assert teacher is not None, "whoever starts a training has settled its teacher"
    model, _, known = load_weights(checkpoint.load(Path(teacher)), teacher)
    model = model.to(memory_format=fastest_layout(model))
    return Teaching(
        model,
        temperature=plan.temperature,
        alpha=plan.alpha,
        seen_as=(data.mean, data.std),
        taught_as=(known.mean, known.std),
        device=device,
        several=data.has_several_labels,
    )


def _hold(config: TrialConfig, model: nn.Module, optimizer: Optimizer) -> finetune.Hold:
    """Prepare an optimizer for pretrained weights, and return what freezes a part of them."""
    if not pretrained.is_wanted(config.component("model")):
        return finetune.hold_nothing
    recipe = Finetune(**config.section("finetune"))
    anatomy = getattr(model, "anatomy", None)
    finetune.check_freeze(recipe, len(anatomy.stages) if isinstance(anatomy, Anatomy) else None)
    assert isinstance(anatomy, Anatomy), "pretrained weights need to know the head"
    finetune.slow_backbone(optimizer, model, anatomy.head, recipe.backbone_lr_factor)
    return finetune.hold(finetune.frozen_parts(anatomy, recipe), recipe)


def image_sets(data: Prepared, portion: Portion, device: str) -> tuple[ImageSet, ImageSet | None]:
    """Return the images to train on, and those to measure by where the portion leaves any."""
    # Crops are cut from the margin; what is measured has none.
    train = load(data, "train", whole=True)
    if portion == "train":
        validation = load(data, "val")
        return on_device(train, data, device), on_device(validation, data, device)
    validation = load(data, "val", whole=True)
    pixels: Any
    if isinstance(train.pixels, Streamed) and isinstance(validation.pixels, Streamed):
        pixels = train.pixels.joined(validation.pixels)
    else:
        pixels = np.concatenate([train.pixels, validation.pixels])
    labels = np.concatenate([train.labels, validation.labels])
    return on_device(replace(train, pixels=pixels, labels=labels), data, device), None


def fold_data(data: Prepared, fold: int) -> Prepared:
    """Return what the network that is scored on a fold sees: counts of its images; the normalisation is that of all.

    The mean and deviation of the pixels are no matter of labels, and one network input serves all folds.
    """
    train, scored = _fold_places(data, fold)
    labels = np.concatenate([load(data, "train").labels, load(data, "val").labels])[train]
    return replace(
        data,
        counts={**data.counts, "train": len(train), "val": len(scored)},
        class_counts=tuple(label_sets.count(labels, len(data.classes)).tolist()),
    )


def fold_sets(data: Prepared, fold: int, device: str) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and to score by, where a fold is held out."""
    train, scored = _fold_places(data, fold)
    return _chosen(data, train, device, whole=True), _chosen(data, scored, device, whole=False)


def _fold_places(data: Prepared, fold: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    scored = places(data.folds, data.counts["train"])[fold]
    return np.setdiff1d(np.arange(data.counts["train"] + data.counts["val"]), scored), scored


def _chosen(data: Prepared, items: np.ndarray[Any, Any], device: str, *, whole: bool) -> ImageSet:
    parts = [load(data, "train", whole=whole), load(data, "val", whole=whole)]
    pixels: Any = Chosen([part.pixels for part in parts], items)
    is_stored = all(isinstance(part.pixels, np.ndarray) for part in parts)
    if device.startswith("cuda") and is_stored:
        size = math.prod(pixels.shape)
        if size < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            pixels = pixels[np.arange(len(items))]
    labels = np.concatenate([part.labels for part in parts])[items]
    names = [name for part in parts for name in part.names]
    images = Images(pixels=pixels, labels=labels, names=tuple(names[item] for item in items.tolist()))
    return on_device(images, data, device)


def on_device(images: Images, data: Prepared, device: str) -> ImageSet:
    """Return images ready for training: on a GPU as a whole where they fit, otherwise mapped from disk."""
    pixels: Any = images.pixels
    labels: Any = images.labels
    is_stored = isinstance(pixels, np.ndarray)
    if device.startswith("cuda") and is_stored and pixels.nbytes < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        pixels = torch.from_numpy(np.array(pixels)).to(device)
        labels = torch.from_numpy(np.array(images.labels)).to(device)
    return ImageSet(pixels=pixels, labels=labels, mean=data.mean, std=data.std, device=device)


def describe_weights(config: TrialConfig, data: Prepared, shapes: prune.Shapes | None = None) -> dict[str, str]:
    """Return what a saved training carries besides its state, so that it can be used without a study.

    `shapes` tells what structured pruning has changed, None where the model is as its builder makes it.
    """
    about = {"config": config.to_dict(), "data": data.to_dict()}
    return {"about": json.dumps(about if shapes is None else {**about, "shapes": shapes})}


def load_weights(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Return the model of a saved training, its configuration and the data set it was trained on.

    Raises:
        CheckpointError: the file's contents are not a trained model of this program.
    """
    try:
        about = json.loads(state["about"])
        config = TrialConfig.from_dict(about["config"])
        data = Prepared.from_dict(about["data"])
        model = build_model(config, data.shape)
        if "shapes" in about:
            prune.rebuild(model, about["shapes"], state["model"])
        else:
            model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{source}: not a trained model of this program ({type(error).__name__})") from error
    return model, config, data


def load_finished(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Return what `load_weights` does, of a training that came to its end.

    Raises:
        CheckpointError: it did not, or the file's contents are not a trained model of this program.
    """
    model, config, data = load_weights(state, source)
    history, last = state.get("history"), config.epochs if "folds" in state else config.section("training")["epochs"]
    # A file may come from anybody, or be older than histories.
    if isinstance(history, list) and len(history) < last:
        raise CheckpointError(
            f"{source}: a training that was interrupted after {len(history)} of {last} epochs; run the command that "
            "made it again to finish it"
        )
    if data.has_several_labels:
        # Those of a training on all images came with them.
        data = replace(data, thresholds=_thresholds(state, data.classes) or data.thresholds)
    return model, config, data


def _thresholds(state: Mapping[str, Any], classes: Sequence[str]) -> tuple[float, ...] | None:
    """Return the thresholds of the labels that a training chose on its validation images, None where it had none."""
    try:
        measured = state["metrics"] if "artifact" in state else state["history"][-1]
        return tuple(float(measured[f"{THRESHOLD}:{name}"]) for name in classes)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
