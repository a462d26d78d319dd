"""The rules of a draft: what is written into the space, and why."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from imgcls_search import durations
from imgcls_search.config import Component
from imgcls_search.data import DATASETS, Source, describe
from imgcls_search.data.image import CACHE_GB
from imgcls_search.errors import CutError, DataError
from imgcls_search.image_size import shorter, sides
from imgcls_search.jobs.init.images import ImageFacts
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import Network
from imgcls_search.jobs.init.plan import Plan
from imgcls_search.jobs.init.sizes import has_one_aspect, native_size

FEW_FOR_ONE_SPLIT = 500
"""Images outside the test split below which one validation split says too little."""

FOLDS = (5, 3, 2)
ENOUGH_HELD_OUT = 10_000
"""Validation or test images of which more make a score hardly more certain."""

UNEVEN, VERY_UNEVEN = 1.5, 3.0
"""Images of the largest class for each of the smallest."""

CROP_LOSS = 0.26
"""Share of an image that a crop to the middle may lose: a little more than that of a 4:3 photograph."""

DISK_SHARE = 0.5


@dataclass
class Found:
    """A space under construction: its tree, a comment for each key, and the decisions in order."""

    tree: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    decisions: list[tuple[str, Any, str]] = field(default_factory=list)

    def put(self, path: str, value: Any, because: str | None = None) -> None:
        """Write a value at a dotted path; with a reason it is a decision."""
        *above, key = path.split(".")
        node = self.tree
        for name in above:
            node = node.setdefault(name, {})
        node[key] = value
        if because is not None:
            self.comments[path] = because[0].upper() + because[1:] + "."
            self.decisions.append((path, value, because))


def refuse_unreadable(images: ImageFacts) -> None:
    """Refuse a data set of which nothing can be read.

    Raises:
        DataError: no image that was looked at can be read.
    """
    if len(images.unreadable) == images.sampled:
        raise DataError(f"{images.place}: none of its images can be read, for example {images.unreadable[0]}")


def cut(component: Component, source: Source, images: ImageFacts) -> tuple[Component, Source, str]:
    """Return the data section with its cut into splits, the source cut so, and why."""
    given = images.given_splits
    if _is_said(component, "folds") or "val" in given:
        what = "folds as you said" if _is_said(component, "folds") else f"the images come with {' and '.join(given)}"
        return component, source, what
    outside = images.images_by_split["train"] + images.images_by_split["val"]
    if outside <= FEW_FOR_ONE_SPLIT and not _is_said(component, "val"):
        for folds in FOLDS:
            folded = _with(component, folds=folds)
            try:
                return (
                    folded,
                    describe(folded),
                    f"{outside:,} images outside the test split are few: each trial trains {folds} networks, each "
                    f"scored on the part that it has not seen, so that every image counts",
                )
            except CutError:
                continue
    if _is_said(component, "val"):
        return component, source, "validation images as you said"
    changes: dict[str, float] = {}
    if outside * 0.15 > ENOUGH_HELD_OUT:
        changes["val"] = _share(ENOUGH_HELD_OUT / outside)
    if "test" not in given and not _is_said(component, "test") and images.images * 0.2 > ENOUGH_HELD_OUT:
        changes["test"] = _share(ENOUGH_HELD_OUT / images.images)
    chosen = _with(component, **changes)
    source = describe(chosen) if changes else source
    sealed = "the test split that it comes with" if "test" in given else "a test split, sealed until the end"
    return chosen, source, f"validation images to compare trials by are cut from the training images, beside {sealed}"


def _share(value: float) -> float:
    return max(0.001, float(f"{value:.2g}"))


def _with(component: Component, **args: Any) -> Component:
    return replace(component, args={**component.args, **args})


def defaults(component: Component) -> dict[str, Any]:
    """Return the arguments of a data set that have defaults, with these."""
    parameters = inspect.signature(DATASETS[component.name]).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _is_said(component: Component, name: str) -> bool:
    """Tell whether a data section has another value than the usual one."""
    usual = defaults(component)
    return name in usual and component.args.get(name) != usual[name]


def decide(
    component: Component,
    images: ImageFacts,
    machine: Machine,
    plan: Plan,
    *,
    flips: str,
    cut: str,
    name: str,
) -> Found:
    """Return the space for a plan."""
    found = Found()
    _study(found, images, plan, name)
    _data(found, component, images, plan, cut)
    _image(found, images, machine, plan)
    _augment(found, images, plan, flips)
    _model(found, plan)
    _training(found, images, plan)
    _limits(found, plan)
    return found


def _study(found: Found, images: ImageFacts, plan: Plan, name: str) -> None:
    metric, why = _objective(images)
    found.put("study.name", name)
    found.put("study.objectives", {metric: "maximize"}, why)
    budget = plan.budget
    found.put(
        "study.timeout",
        _duration(budget.search),
        f"of {durations.show(budget.seconds)}, {durations.show(budget.search)} are for the search and "
        f"{durations.show(budget.confirm)} for retraining and testing the best (imgcls-search confirm)",
    )
    found.put("study.trials", plan.trials, "more than the time will hold: the time ends the search")
    workers = "one for each core" if plan.fit and plan.workers > 1 else "one at a time"
    found.put("study.workers", plan.workers, f"trials side by side: {workers}; null chooses again on another machine")


def _objective(images: ImageFacts) -> tuple[str, str]:
    if images.several_labels:
        return "average_precision", "images may have several labels: the mean average precision needs no threshold"
    if images.imbalance < UNEVEN:
        return "accuracy", "the classes are about equally large"
    few, many = min(images.images_by_class), max(images.images_by_class)
    return (
        "macro_f1",
        f"classes have {few:,} to {many:,} images: macro F1 counts each class the same, accuracy would favour the "
        "large ones",
    )


def _duration(seconds: float) -> str | float:
    """Return a duration as people write it."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole}s" if whole >= 1 else round(seconds, 2)
    hours, rest = divmod(round(whole / 60), 60)
    return (f"{hours}h" if hours else "") + (f"{rest}m" if rest else "")


def _data(found: Found, component: Component, images: ImageFacts, plan: Plan, cut: str) -> None:
    usual = defaults(component)
    said = {key: value for key, value in component.args.items() if key not in usual or value != usual[key]}
    if images.unreadable:
        said["skip_unreadable"] = True
    if plan.fit.max_train is not None:
        said["max_train"] = plan.fit.max_train
    found.put(f"data.{component.name}", {key: _plain(value) for key, value in said.items()})
    splits = ", ".join(f"{split} {count:,}" for split, count in images.images_by_split.items())
    counts = f"{len(images.classes):,} classes, {images.images:,} images"
    found.comments["data"] = f"{counts}. The cut: {cut}."
    found.decisions.append(("data", splits if "folds" not in said else f"folds: {said['folds']}", cut))
    if images.unreadable:
        many = f"{len(images.unreadable):,} of {images.decoded:,} images that were read are damaged"
        found.put(
            f"data.{component.name}.skip_unreadable",
            True,
            f"{many}, for example {images.unreadable[0]}; they are left out",
        )
    if plan.fit.max_train is not None:
        found.put(
            f"data.{component.name}.max_train",
            plan.fit.max_train,
            f"of {plan.work.train:,} training images, which take too long; with more time set null: all",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _image(found: Found, images: ImageFacts, machine: Machine, plan: Plan) -> None:
    size = plan.fit.size
    height, width = sides(size)
    found.put("image.size", list(sides(size)) if height != width else height, _why_size(images, plan))
    if height == width or not has_one_aspect(images):
        fit, why = _fit(images)
        found.put("image.fit", fit, why)
    grey = "all images are grey" if images.is_grey else "the images have colours"
    if images.is_grey and plan.channels == 3:
        grey = "the images are grey, but pretrained networks take three channels"
    found.put("image.channels", plan.channels, grey)
    total = sum(images.images_by_split.values()) * plan.channels * height * width
    room = DISK_SHARE * machine.disk_bytes
    if min(total, CACHE_GB * 1e9) > room:
        found.put(
            "image.cache_gb",
            round(room / 1e9, 1),
            f"decoded images would take {total / 1e9:,.1f} GB and {machine.disk_bytes / 1e9:,.1f} GB are free: what "
            "does not fit is decoded again in every epoch",
        )


def _why_size(images: ImageFacts, plan: Plan) -> str:
    widths, heights = images.widths, images.heights
    if images.sizes == 1:
        found = f"all images are {widths[1]}x{heights[1]}"
    else:
        found = f"images are {widths[0]} to {widths[2]} wide and {heights[0]} to {heights[2]} high, mostly about "
        found += f"{widths[1]}x{heights[1]}"
    side, native = shorter(plan.fit.size), shorter(native_size(images))
    if side > native:
        return f"{found}; pretrained networks see more in enlarged ones, and the time allows this size"
    if side < min(native, min(widths[1], heights[1])):
        return f"{found}; larger ones would take too long or teach little more"
    return found


def _fit(images: ImageFacts) -> tuple[str, str]:
    low, middle, high = images.aspects
    loss = 1 - min(middle, 1 / middle)
    worst = 1 - min(low, 1 / high, 1 / low, high)
    if worst <= CROP_LOSS:
        return "crop", f"the middle is cut out, which loses at most {max(loss, worst):.0%} of nearly all images"
    return "pad", f"widths are {low:.2g} to {high:.2g} times the heights: with borders nothing is cut off"


def _augment(found: Found, images: ImageFacts, plan: Plan, flips: str) -> None:
    said = {
        "none": (
            "none",
            "mirrored images may be of another class; horizontal, or horizontal_vertical, if they are not",
        ),
        "horizontal": ("horizontal", "you said that mirrored images are of the same class"),
        "both": ("horizontal_vertical", "you said that mirrored and upside-down images are of the same class"),
    }
    value, why = said[flips]
    found.put("augment.flip", value, why)
    side = shorter(plan.fit.size)
    if side < 24:
        found.put("augment.crop_padding", {"choice": [0, 1]}, "small images are moved by a pixel")
    else:
        found.put("augment.zoom", {"choice": [0.0, 0.2]}, "a window of at least 80 % of the sides: hardly ever wrong")
    light = "moderate changes of light keep the class of nearly everything"
    found.put("augment.brightness", {"choice": [0.0, 0.2]}, light)
    found.put("augment.contrast", {"choice": [0.0, 0.2]})
    if not images.is_grey:
        found.put("augment.saturation", {"choice": [0.0, 0.2]})
    if flips != "none" and not plan.pretrained:
        found.put("augment.policy", {"none": {}, "trivial": {}}, "networks from scratch need more variety")


def _model(found: Found, plan: Plan) -> None:
    found.put("model", merged(plan.fit.networks), plan.why)
    adamw = {"lr": {"float": [3e-4, 1e-2], "log": True}, "weight_decay": {"float": [0.0, 0.2]}}
    if plan.pretrained:
        found.put("optimizer", {"adamw": adamw}, "AdamW suits fine-tuning")
    else:
        sgd = {
            "lr": {"float": [0.01, 0.3], "log": True},
            "nesterov": True,
            "weight_decay": {"float": [1e-5, 1e-2], "log": True},
        }
        found.put("optimizer", {"adamw": adamw, "sgd": sgd}, "both are worth trying from scratch")
    if plan.fit.epochs >= 5:
        found.put("schedule", {"cosine": {"warmup_epochs": 1}})


def merged(networks: tuple[Network, ...]) -> dict[str, Any]:
    """Return what stands under `model` for several networks: those of one family differ in one argument at most."""
    tree: dict[str, Any] = {}
    for network in networks:
        ((family, arguments),) = network.model.items()
        if family not in tree:
            tree[family] = dict(arguments)
            continue
        known = tree[family]
        different = [key for key in {**known, **arguments} if known.get(key) != arguments.get(key)]
        if len(different) == 1 and different[0] in known and different[0] in arguments:
            (key,) = different
            before = known[key]["choice"] if isinstance(known[key], Mapping) else [known[key]]
            known[key] = {"choice": [*before, arguments[key]]}
    return tree


def _training(found: Found, images: ImageFacts, plan: Plan) -> None:
    if images.several_labels:
        uneven = images.imbalance >= VERY_UNEVEN
        loss: dict[str, Any] = {"pos_weight": {"choice": ["none", "balanced"]}} if uneven else {}
        found.put("loss", {"binary_cross_entropy": loss}, "each label is a question of its own: yes or no")
    else:
        settings: dict[str, Any] = {"label_smoothing": {"choice": [0.0, 0.1]}}
        if images.imbalance >= VERY_UNEVEN:
            settings["class_weights"] = {"choice": ["none", "balanced"]}
        why = (
            "the classes are unequal: balanced weights make mistakes in rare ones cost more"
            if "class_weights" in settings
            else "a little smoothing helps where labels are not all right"
        )
        found.put("loss", {"cross_entropy": settings}, why)
    epochs = plan.fit.epochs
    each = durations.show(plan.fit.epoch_seconds)
    how = "measured" if plan.is_measured else "estimated"
    found.put(
        "training.epochs", epochs, f"a whole training fits {durations.show(plan.budget.trial)}: {each} an epoch, {how}"
    )
    sizes = plan.batch_sizes
    found.put(
        "training.batch_size",
        {"choice": list(sizes)} if len(sizes) > 1 else sizes[0],
        f"for {plan.fit.max_train or plan.work.train:,} training images",
    )
    if plan.pretrained:
        _finetune(found, plan)


def _finetune(found: Found, plan: Plan) -> None:
    if not plan.fit.tunes:
        found.put("finetune", {"freeze": "backbone"}, "only the head is trained: there is no time for more")
        return
    found.put(
        "finetune",
        {
            "freeze": "backbone",
            "freeze_epochs": {"choice": [1, min(plan.fit.head_epochs, plan.fit.epochs - 1)]},
            "backbone_lr_factor": {"float": [0.03, 1.0], "log": True},
        },
        "the new head is trained first, then the whole network at a smaller rate",
    )


def _limits(found: Found, plan: Plan) -> None:
    found.put(
        "limits.memory",
        float(f"{plan.memory_each:.2g}"),
        f"bytes of each of {plan.workers} trial(s) at a time: what this machine has free",
    )


def notes(images: ImageFacts) -> list[str]:
    """Return what a person should know of the images that no key stands for."""
    found = list(images.notes)
    if images.sampled < images.images:
        found.append(f"{images.images:,} images: sizes are from a sample of {images.sampled:,}")
    if images.decoded < images.sampled or images.sampled < images.images:
        found.append(f"pixels of {images.decoded:,} images were read; damaged ones among the others are named by run")
    if images.copies_across:
        found.append(
            f"{images.copies_across:,} files are copies of images in another split ({images.copy_example}): scores "
            "will be too high; imgcls-search inspect --write makes a table without them"
        )
    elif images.copies:
        found.append(
            f"{images.copies:,} files are copies of other images ({images.copy_example}); imgcls-search inspect "
            "--write makes a table without them"
        )
    if images.group_hint:
        found.append(images.group_hint)
    return found
