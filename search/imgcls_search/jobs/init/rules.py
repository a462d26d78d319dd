"""The rules of a draft: the entries of the space, and the reasons for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imgcls_search import durations
from imgcls_search.data.image import CACHE_GB
from imgcls_search.errors import DataError
from imgcls_search.image_size import ImageSize, shorter, sides, written
from imgcls_search.jobs.init.columns import Guess
from imgcls_search.jobs.init.cuts import Cut, defaults
from imgcls_search.jobs.init.images import ImageFacts
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import merged
from imgcls_search.jobs.init.plan import DraftPlan
from imgcls_search.jobs.init.sizes import SQUARE, native_size
from imgcls_search.jobs.init.starts import start_configurations
from imgcls_search.space.problems import plain

UNEVEN, VERY_UNEVEN = 1.5, 3.0
"""Limits of imbalance: number of images in the largest class divided by that in the smallest."""

CROP_LOSS = 0.26
"""Largest share of an image that a center crop may lose: slightly more than that of a 4:3 photograph."""

DISK_SHARE = 0.5


@dataclass
class Found:
    """A space under construction: its tree, a comment for each key, and the decisions in order."""

    tree: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    decisions: list[tuple[str, Any, str]] = field(default_factory=list)

    def put(self, path: str, value: Any, because: str | None = None) -> None:
        """Write a value at a dotted path; with a reason, also record it as a decision."""
        *above, key = path.split(".")
        node = self.tree
        for name in above:
            if not isinstance(node.get(name), dict):
                # Only the name of a choice, or nothing yet.
                node[name] = {}
            node = node[name]
        node[key] = value
        if because is not None:
            self.comments[path] = because[0].upper() + because[1:] + "."
            self.decisions.append((path, value, because))


def refuse_unreadable(images: ImageFacts) -> None:
    """Refuse a data set without readable images.

    Raises:
        DataError: none of the sampled images can be read.
    """
    if len(images.unreadable) == images.sampled:
        raise DataError(f"{images.place}: none of its images can be read, for example {images.unreadable[0]}")


def decide(
    images: ImageFacts, machine: Machine, plan: DraftPlan, cut: Cut, guesses: Sequence[Guess], *, flips: str, name: str
) -> Found:
    """Return the space for a plan."""
    found = Found()
    _study(found, images, plan, name)
    _data(found, images, plan, cut, guesses)
    _image(found, images, machine, plan)
    _augment(found, images, plan, flips)
    _model(found, plan)
    _training(found, images, plan)
    _limits(found, plan)
    return found


def _study(found: Found, images: ImageFacts, plan: DraftPlan, name: str) -> None:
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
    found.put("study.trials", plan.trials, "more than fit into the time: the time ends the search")
    workers = "one for each core" if plan.workers > 1 else "one at a time"
    found.put("study.workers", plan.workers, f"trials at a time: {workers}; null chooses again on another machine")
    if not plan.fit.tunes:
        found.put(
            "study.pictures", False, "pictures would take longer than training a head; report draws the best trial"
        )


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


def _duration(seconds: float) -> str:
    """Format a duration for a space file, rounded as in its comment, for example `3m30s`."""
    return durations.show(seconds).replace(" min", "m").replace(" ", "")


def _data(found: Found, images: ImageFacts, plan: DraftPlan, cut: Cut, guesses: Sequence[Guess]) -> None:
    component = cut.component
    usual = defaults(component)
    place = f"data.{component.name}"
    said = {key: value for key, value in component.args.items() if key not in usual or value != usual[key]}
    found.put(place, {key: plain(value) for key, value in said.items() if key != cut.key})
    splits = f", {', '.join(images.given_splits)} given" if images.given_splits else ""
    found.comments[place] = f"{images.images:,} images of {len(images.classes):,} classes{splits}."
    for key, value, why in guesses:
        found.put(f"{place}.{key}", plain(value), why)
    if cut.key:
        found.put(f"{place}.{cut.key}", component.args[cut.key], cut.why)
    else:
        found.decisions.append((place, {key: plain(value) for key, value in said.items()}, cut.why))
    if images.unreadable:
        many = f"{len(images.unreadable):,} of {images.decoded:,} images that were read are damaged"
        found.put(f"{place}.skip_unreadable", True, f"{many}, as {images.unreadable[0]}, and are left out")
    if plan.fit.max_train is not None:
        found.put(
            f"{place}.max_train",
            plan.fit.max_train,
            f"all {plan.work.train:,} training images would take too long; with more time set null: all",
        )


def _image(found: Found, images: ImageFacts, machine: Machine, plan: DraftPlan) -> None:
    size = plan.fit.size
    height, width = sides(size)
    why = _why_size(images, plan)
    if plan.fit.first_size is None:
        found.put("image.size", written(size), why)
    else:
        both = {"choice": [written(plan.fit.first_size), written(size)]}
        found.put(
            "image.size", both, f"{why}; the small size gives a first score soon, the large one usually a better score"
        )
    if max(images.aspects) > SQUARE or min(images.aspects) < 1 / SQUARE:
        fit, why = _fit(images, size)
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


def _why_size(images: ImageFacts, plan: DraftPlan) -> str:
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


def _fit(images: ImageFacts, size: ImageSize) -> tuple[str, str]:
    low, _, high = images.aspects
    height, width = sides(size)
    low, high = (aspect / (width / height) for aspect in (low, high))
    loss = 1 - min(low, high, 1 / low, 1 / high)
    if loss <= CROP_LOSS:
        if round(loss, 2) == 0:
            return "crop", "nearly all images have this shape: almost nothing is cut off"
        return "crop", f"cropping to the middle loses at most {loss:.0%} of nearly all images"
    low, _, high = images.aspects
    shown = [f"{aspect:.2g}" if aspect < 10 else f"{aspect:,.0f}" for aspect in (low, high)]
    return "pad", f"widths are {' to '.join(shown)} times the heights: borders keep the whole image"


def _augment(found: Found, images: ImageFacts, plan: DraftPlan, flips: str) -> None:
    said = {
        "none": (
            "none",
            "mirrored images may show another class; set horizontal, or horizontal_vertical, if they do not",
        ),
        "horizontal": ("horizontal", "you said that mirrored images keep their class"),
        "both": ("horizontal_vertical", "you said that mirrored and upside-down images keep their class"),
    }
    value, why = said[flips]
    if plan.pretrained and plan.fit.views is None and not plan.fit.freezes_half:
        found.put("augment.flip", "none", "the features of each image, not mirrored, are computed once for all trials")
        return
    found.put("augment.flip", value, why)
    if plan.pretrained:
        _augment_moderately(found, images, plan)
        return
    side = shorter(plan.fit.size)
    if side < 24:
        found.put("augment.crop_padding", {"choice": [0, 1]}, "small images are shifted by one pixel")
    else:
        found.put(
            "augment.zoom", {"choice": [0.0, 0.2]}, "a window of at least 80 % of the sides rarely changes the class"
        )
    light = "moderate changes of light rarely change the class"
    found.put("augment.brightness", {"choice": [0.0, 0.2]}, light)
    found.put("augment.contrast", {"choice": [0.0, 0.2]})
    if not images.is_grey:
        found.put("augment.saturation", {"choice": [0.0, 0.2]})
    if flips != "none":
        found.put("augment.policy", {"none": {}, "trivial": {}}, "networks from scratch need more variety")


def _augment_moderately(found: Found, images: ImageFacts, plan: DraftPlan) -> None:
    zoom = 0.3 if plan.fit.freezes_half else 0.2
    fixed = "" if plan.fit.freezes_half else "; fixed, because each augmentation needs its own features"
    found.put("augment.zoom", zoom, f"a window of at least {1 - zoom:.0%} of the sides{fixed}".replace("%", " %"))
    found.put("augment.brightness", 0.2, "moderate changes of light rarely change the class")
    found.put("augment.contrast", 0.2)
    if not images.is_grey:
        found.put("augment.saturation", 0.2)


def _model(found: Found, plan: DraftPlan) -> None:
    found.put("model", merged(plan.fit.networks)[0], plan.why)
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


def _training(found: Found, images: ImageFacts, plan: DraftPlan) -> None:
    if images.several_labels:
        uneven = images.imbalance >= VERY_UNEVEN
        loss: dict[str, Any] = {"pos_weight": {"choice": ["none", "balanced"]}} if uneven else {}
        found.put("loss", {"binary_cross_entropy": loss}, "each label is a separate decision: yes or no")
    else:
        settings: dict[str, Any] = {"label_smoothing": 0.1 if plan.fit.freezes_half else {"choice": [0.0, 0.1]}}
        if images.imbalance >= VERY_UNEVEN:
            settings["class_weights"] = {"choice": ["none", "balanced"]}
        why = (
            "the classes differ in size: balanced weights make mistakes in rare classes cost more"
            if "class_weights" in settings
            else "a little smoothing helps if some labels are wrong"
        )
        found.put("loss", {"cross_entropy": settings}, why)
    epochs = plan.fit.epochs
    each = durations.show(plan.fit.epoch_seconds)
    how = "measured" if plan.is_measured else "estimated"
    found.put("training.epochs", epochs, _why_epochs(plan, each, how))
    sizes = plan.batch_sizes[:1] if plan.fit.freezes_half else plan.batch_sizes
    found.put(
        "training.batch_size",
        {"choice": list(sizes)} if len(sizes) > 1 else sizes[0],
        f"for {plan.fit.max_train or plan.work.train:,} training images",
    )
    if plan.fit.freezes_half:
        found.put("training.ema", 0.995, "the weights averaged over about the last 200 steps are steadier")
    if plan.pretrained:
        _finetune(found, plan)
    found.put("start", start_configurations(plan), "configurations known to be good, tried first and in this order")


def _finetune(found: Found, plan: DraftPlan) -> None:
    fit = plan.fit
    heads: dict[str, Any] = {"logistic": {}, "linear": {"dropout": {"choice": [0.0, 0.2, 0.5]}}}
    if not fit.tunes:
        heads["mlp"] = {"hidden": {"choice": [128, 512]}, "dropout": {"choice": [0.2, 0.5]}}
    found.put(
        "head",
        heads,
        "the classifier on the features: logistic regression is fitted in one step and is always the first trial; the "
        "others are trained",
    )
    place = "finetune"
    if fit.freezes_half:
        found.put(f"{place}.freeze", "half", "the first half of the stages stays as it is, which saves time")
        found.put(f"{place}.start", "logistic", "the head starts as the logistic regression")
        found.put(f"{place}.layer_decay", 0.85, "the rate of each stage / that of the next one towards the head")
        return
    found.put(f"{place}.freeze", "backbone", "features are computed once for all trials, so a head takes seconds")
    if fit.views is not None:
        found.put(f"{place}.views", fit.views, "augmented versions of each image whose features are kept")
    if not fit.tunes:
        found.comments[f"{place}.freeze"] += " There is only time to train the head."
        return
    found.put(
        f"{place}.freeze_epochs",
        fit.head_epochs,
        f"the head alone for {fit.head_epochs} epochs; the best trials continue with the whole network",
    )
    found.put(f"{place}.start", {"choice": ["logistic", "random"]}, "initial weights of the head")
    found.put(
        f"{place}.backbone_lr_factor",
        {"float": [0.1, 1.0], "log": True},
        "pretrained layers learn at the rate of the head or at a lower one",
    )


def _why_epochs(plan: DraftPlan, each: str, how: str) -> str:
    if not plan.fit.tunes:
        return "an epoch of a head on stored features is very short"
    if plan.pretrained:
        if plan.fit.freezes_half:
            return f"an epoch takes {each} ({how})"
        tuned = plan.fit.epochs - plan.fit.head_epochs
        return (
            f"{plan.fit.head_epochs} of the head and {tuned} of the whole network, each of which takes {each} ({how})"
        )
    return f"an epoch takes {each} ({how}), and several trials should be trained to the end"


def _limits(found: Found, plan: DraftPlan) -> None:
    found.put(
        "limits.memory",
        int(float(f"{plan.memory_each:.2g}")),
        f"bytes: {plan.memory_each / 1e9:.2g} GB are free for each trial at a time",
    )


def notes(images: ImageFacts) -> list[str]:
    """Return notes for the user on the images that belong to no key."""
    found = list(images.notes)
    if images.sampled < images.images:
        found.append(f"{images.images:,} images: sizes are from a sample of {images.sampled:,}")
    if images.decoded < images.sampled or images.sampled < images.images:
        found.append(f"pixels of {images.decoded:,} images were read; damaged ones among the others are named by run")
    if images.copies_across:
        found.append(
            f"{_files(images.copies_across)} an image in another split ({images.copy_example}): scores will be too "
            "high; imgcls-search inspect --write makes a table without them"
        )
    elif images.copies:
        found.append(
            f"{_files(images.copies)} another image ({images.copy_example}); imgcls-search inspect --write makes a "
            "table without them"
        )
    if images.group_hint:
        found.append(images.group_hint)
    return found


def _files(count: int) -> str:
    return "1 file is a copy of" if count == 1 else f"{count:,} files are copies of"
