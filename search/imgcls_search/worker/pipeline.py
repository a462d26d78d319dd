"""The steps of a trial: images, model and training state; and the checks before training."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from imgcls_search.compress import sections
from imgcls_search.compress.distill import Teaching
from imgcls_search.config import TrialConfig
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
    augment,
    choose_shape,
    describe,
    look_at_test,
    mixing,
    open_all,
    prepare,
    read_headers,
    summarise,
)
from imgcls_search.data.image import CACHE_GB
from imgcls_search.errors import BuildError
from imgcls_search.image_size import sides
from imgcls_search.models import pretrained
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.progress import Progress
from imgcls_search.signature import build
from imgcls_search.training import checkpoint, custom_metrics, finetune
from imgcls_search.training.device import fastest_layout, move, pays_to_compile, resolve_precision
from imgcls_search.training.group import Group
from imgcls_search.training.losses import Loss, build_loss
from imgcls_search.training.optimizers import OPTIMIZERS, SCHEDULES
from imgcls_search.training.recipe import Finetune, Training
from imgcls_search.training.resolution import Shrinking, resolution_of
from imgcls_search.training.session import Session, Teach
from imgcls_search.words import some
from imgcls_search.worker import head_plan, networks
from imgcls_search.worker.start_weights import weights_of


def prepare_data(
    config: TrialConfig,
    cache: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    *,
    looks_at_test: bool = False,
) -> Prepared:
    """Decode the images of a configuration once; later calls find them under `cache`.

    The data set is summarised before anything slow, and the findings follow after decoding. Before a search or a
    training, the test files are also checked for readability.

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
            say(f"test images that cannot be read will be left out: {len(left_out):,}: {some(left_out)}")
    for line in prepared.findings() if say is not None else ():
        say(line)  # type: ignore[misc]
    return prepared


def open_whole(
    config: TrialConfig, source: Source, cache: Path, say: Callable[[str], None] | None = None
) -> list[Images]:
    """Return all images of a source, including the sealed split, in the shape of a configuration.

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
    """Return the limit of a configuration for decoded images on disk, bytes."""
    gigabytes: float = config.section("image").get("cache_gb", CACHE_GB)
    return gigabytes * 1e9


def has_prints(config: TrialConfig, data: Prepared, known: Prints) -> bool:
    """Tell whether a search sees the recorded data set, for any version of fingerprints.

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


def build_augmentation(config: TrialConfig, shape: InputShape) -> tuple[Augment, Mix]:
    """Build the batch augmentation of a configuration: of each image, then mixing of images."""
    section = config.section("augment")
    del section["policy"]
    # Weights saved before mixing existed lack these settings.
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
    backbone: str | None = None,
    group: Group | None = None,
) -> Session:
    """Return an untrained session; the same seed gives the same weights.

    A session that resumes from a checkpoint does not need its pretrained weights. `teacher` is the teacher's weights
    file for distillation; `backbone` is the file of a pretrained backbone to start from.

    Raises:
        BuildError: the configuration cannot be built.
        CheckpointError: the weights of the model or the teacher cannot be downloaded or read.
        DeviceError: the precision is not available on the device.
    """
    recipe = training_of(config)
    augmentation, mix = build_augmentation(config, data.shape)
    torch.manual_seed(seed)
    model = networks.build_model(config, data.shape)
    component = config.component("model")
    if from_pretrained and pretrained.is_wanted(component):
        pretrained.load_into(model, weights_of(component, model, data.shape))
    if from_pretrained and config.needs_backbone:
        assert backbone is not None, "a training starts after its backbone is made"
        start = config.starting_from(backbone).component("model")
        pretrained.load_into(model, pretrained.find(start, model, **dataclasses.asdict(data.shape)))
    model = move(model, device)
    optimizer = build(OPTIMIZERS, config.component("optimizer"), model=model)
    precision = resolve_precision(recipe.precision, device)
    if precision == "fp16" and config.component("optimizer").name == "sam":
        # `auto` chose it because there is no bf16.
        raise BuildError("training.precision", f"auto is fp16 on {device}, which sam cannot use; allowed: fp32")
    return Session(
        model=model,
        optimizer=optimizer,
        schedule=build(SCHEDULES, config.component("schedule"), epochs=config.section("training")["epochs"]),
        loss=_loss(config, data),
        augment=_shrinking(config, augmentation, data.shape),
        mix=mix,
        hold=_hold(config, model, optimizer),
        micro_batches=micro_batches,
        # Exchanges between devices do not work within a compiled network.
        is_compiled=group is None
        and pays_to_compile(
            recipe.compile, device, recipe.epochs * math.ceil(data.counts["train"] / recipe.batch_size)
        ),
        recipe=recipe,
        device=device,
        precision=precision,
        seed=seed,
        teach=_teaching(config, data, teacher, device),
        group=group,
    )


def _shrinking(config: TrialConfig, augmentation: Augment, shape: InputShape) -> Augment | Shrinking:
    """Return an augmentation that shrinks images to the size of their epoch."""
    resolution = resolution_of(config)
    if not resolution.until:
        return augmentation
    return Shrinking(augment=augmentation, resolution=resolution, full=shape.image_size, epochs=config.training_epochs)


def training_of(config: TrialConfig) -> Training:
    """Return the training settings of a configuration, with the epochs of one training."""
    return replace(Training(**config.section("training")), epochs=config.training_epochs)


def tuning_session(
    config: TrialConfig,
    data: Prepared,
    model: nn.Module,
    *,
    seed: int,
    device: str,
    teacher: str | None,
    micro_batches: int,
    group: Group | None = None,
) -> Session:
    """Return a session that fine-tunes a pruned model, with the whole schedule compressed into its few epochs."""
    plan = sections.pruning(config)
    assert plan is not None, "only what is pruned is tuned"
    # The few epochs after pruning are too early to average weights.
    recipe = replace(Training(**config.section("training")), swa=0)
    augmentation, mix = build_augmentation(config, data.shape)
    # Parts may be frozen, and averaged weights do not require gradients.
    model = model.requires_grad_(True)
    model = move(model, device)
    optimizer = build(OPTIMIZERS, config.component("optimizer"), model=model)
    _hold(config, model, optimizer)
    for rates in optimizer.param_groups:
        rates["lr"] *= plan.finetune_lr_factor
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
        group=group,
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
    assert teacher is not None, "a training starts after its teacher is settled"
    model, _, known = networks.load_weights(checkpoint.load(Path(teacher)), teacher)
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
    """Prepare an optimizer for pretrained weights, and return the function that freezes some of them."""
    if not head_plan.is_pretrained(config):
        return finetune.hold_nothing
    recipe = Finetune(**config.section("finetune"))
    anatomy = getattr(model, "anatomy", None)
    finetune.check_freeze(recipe, len(anatomy.stages) if isinstance(anatomy, Anatomy) else None)
    assert isinstance(anatomy, Anatomy), "pretrained weights need to know the head"
    finetune.slow_backbone(optimizer, model, anatomy, recipe)
    return finetune.hold(finetune.frozen_parts(anatomy, recipe), recipe)
