"""The rules of a draft: what is written into the space, and why."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imgcls_search import durations
from imgcls_search.config import Component
from imgcls_search.data import DATASETS, Source, describe
from imgcls_search.data.image import CACHE_GB
from imgcls_search.errors import CutError, DataError
from imgcls_search.image_size import ImageSize, shorter, sides
from imgcls_search.jobs.init.columns import Guess
from imgcls_search.jobs.init.images import ImageFacts
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import Network, merged
from imgcls_search.jobs.init.plan import Plan
from imgcls_search.jobs.init.sizes import SQUARE, native_size

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


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A way to cut images into splits."""

    component: Component
    source: Source
    key: str
    """The argument of the data set that says it."""

    why: str

    @property
    def folds(self) -> int:
        """Networks that a trial trains."""
        return self.component.args.get("folds") or 1


def cuts(component: Component, source: Source, images: ImageFacts) -> list[Cut]:
    """Return the ways to cut the images, the best first; the later ones cost less time."""
    given = images.given_splits
    if _is_said(component, "folds"):
        return [Cut(component=component, source=source, key="folds", why="as you said")]
    if _is_said(component, "val"):
        return [Cut(component=component, source=source, key="val", why="as you said")]
    if "val" in given:
        why = "the images come with validation images, which trials are compared by"
        return [Cut(component=component, source=source, key="", why=why)]
    found = []
    outside = images.images_by_split["train"] + images.images_by_split["val"]
    if outside <= FEW_FOR_ONE_SPLIT and (folded := _folded(component)) is not None:
        folds = folded.args["folds"]
        why = (
            f"{outside:,} images outside the test split are few: each trial trains {folds} networks, each scored on "
            "the part that it has not seen, so that every image counts"
        )
        found.append(Cut(component=folded, source=describe(folded), key="folds", why=why))
    return [*found, _one_split(component, source, images, outside)]


def _folded(component: Component) -> Component | None:
    """Return the data section with as many folds as the images allow, None where they allow none."""
    for folds in FOLDS:
        try:
            describe(folded := _with(component, folds=folds))
        except CutError:
            continue
        return folded
    return None


def _one_split(component: Component, source: Source, images: ImageFacts, outside: int) -> Cut:
    has_test = "test" in images.given_splits
    usual = defaults(component)
    changes = {"val": usual["val"]}
    if outside * usual["val"] > ENOUGH_HELD_OUT:
        changes["val"] = _share(ENOUGH_HELD_OUT / outside)
    cuts_test = "test" in usual and not has_test and not _is_said(component, "test")
    if cuts_test and images.images * usual["test"] > ENOUGH_HELD_OUT:
        changes["test"] = _share(ENOUGH_HELD_OUT / images.images)
    chosen = _with(component, **changes)
    is_new = chosen.args != component.args
    source = describe(chosen) if is_new else source
    counts = {split: len(names) for split, names in source.names.items()}
    why = (
        f"share of the training images that trials are compared by: {counts['val']:,}, beside {counts['train']:,} "
        f"to train on and {counts['test']:,} test images, sealed until the end"
    )
    return Cut(component=chosen, source=source, key="val", why=why)


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
    images: ImageFacts, machine: Machine, plan: Plan, cut: Cut, guesses: Sequence[Guess], *, flips: str, name: str
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


def _data(found: Found, images: ImageFacts, plan: Plan, cut: Cut, guesses: Sequence[Guess]) -> None:
    component = cut.component
    usual = defaults(component)
    place = f"data.{component.name}"
    said = {key: value for key, value in component.args.items() if key not in usual or value != usual[key]}
    found.put(place, {key: _plain(value) for key, value in said.items() if key != cut.key})
    splits = f", {', '.join(images.given_splits)} given" if images.given_splits else ""
    found.comments[place] = f"{images.images:,} images of {len(images.classes):,} classes{splits}."
    for key, value, why in guesses:
        found.put(f"{place}.{key}", _plain(value), why)
    if cut.key:
        found.put(f"{place}.{cut.key}", component.args[cut.key], cut.why)
    else:
        found.decisions.append((place, {key: _plain(value) for key, value in said.items()}, cut.why))
    if images.unreadable:
        many = f"{len(images.unreadable):,} of {images.decoded:,} images that were read are damaged"
        found.put(f"{place}.skip_unreadable", True, f"{many}, as {images.unreadable[0]}, and are left out")
    if plan.fit.max_train is not None:
        found.put(
            f"{place}.max_train",
            plan.fit.max_train,
            f"all {plan.work.train:,} training images would take too long; with more time set null: all",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _image(found: Found, images: ImageFacts, machine: Machine, plan: Plan) -> None:
    size = plan.fit.size
    height, width = sides(size)
    why = _why_size(images, plan)
    if plan.fit.first_size is None:
        found.put("image.size", _written(size), why)
    else:
        both = {"choice": [_written(plan.fit.first_size), _written(size)]}
        found.put("image.size", both, f"{why}; the small one gives a first score soon, the large one mostly a better")
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


def _written(size: ImageSize) -> int | list[int]:
    """Return a size as a space says it."""
    height, width = sides(size)
    return height if height == width else [height, width]


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


def _fit(images: ImageFacts, size: ImageSize) -> tuple[str, str]:
    low, _, high = images.aspects
    height, width = sides(size)
    low, high = (aspect / (width / height) for aspect in (low, high))
    loss = 1 - min(low, high, 1 / low, 1 / high)
    if loss <= CROP_LOSS:
        return "crop", f"the middle of an image is taken, which loses at most {loss:.0%} of nearly all"
    low, _, high = images.aspects
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
    if plan.pretrained and plan.fit.views is None:
        found.put("augment.flip", "none", "the features of the images as they are, are computed once for all trials")
        return
    found.put("augment.flip", value, why)
    if plan.pretrained:
        _augment_views(found, images)
        return
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


def _augment_views(found: Found, images: ImageFacts) -> None:
    found.put(
        "augment.zoom",
        0.2,
        "a window of at least 80 % of the sides; one fixed augmentation, since each one has features of its own",
    )
    found.put("augment.brightness", 0.2, "moderate changes of light keep the class of nearly everything")
    found.put("augment.contrast", 0.2)
    if not images.is_grey:
        found.put("augment.saturation", 0.2)


def _model(found: Found, plan: Plan) -> None:
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
    found.put("training.epochs", epochs, _why_epochs(plan, each, how))
    sizes = plan.batch_sizes
    found.put(
        "training.batch_size",
        {"choice": list(sizes)} if len(sizes) > 1 else sizes[0],
        f"for {plan.fit.max_train or plan.work.train:,} training images",
    )
    if plan.pretrained:
        _finetune(found, plan)
    _start(found, plan)


def _finetune(found: Found, plan: Plan) -> None:
    fit = plan.fit
    heads: dict[str, Any] = {"logistic": {}, "linear": {"dropout": {"choice": [0.0, 0.2, 0.5]}}}
    if not fit.tunes:
        heads["mlp"] = {"hidden": {"choice": [128, 512]}, "dropout": {"choice": [0.2, 0.5]}}
    found.put(
        "head",
        heads,
        "what reads the features: logistic regression is fitted at once and always the first trial, the others are "
        "trained",
    )
    place = "finetune"
    found.put(f"{place}.freeze", "backbone", "features are computed once for all trials, so that a head takes seconds")
    if fit.views is not None:
        found.put(f"{place}.views", fit.views, "augmented versions of each image whose features are kept")
    if not fit.tunes:
        found.comments[f"{place}.freeze"] += " There is no time to train more than the head."
        return
    found.put(
        f"{place}.freeze_epochs",
        fit.head_epochs,
        f"the head alone for {fit.head_epochs} epochs; the best trials go on with all of the network",
    )
    found.put(f"{place}.start", {"choice": ["logistic", "random"]}, "the head's first weights")
    found.put(
        f"{place}.backbone_lr_factor",
        {"float": [0.01, 0.5], "log": True},
        "what is pretrained learns at a smaller rate than the head",
    )


def _why_epochs(plan: Plan, each: str, how: str) -> str:
    if not plan.fit.tunes:
        return "an epoch of a head on kept features takes a moment"
    if plan.pretrained:
        tuned = plan.fit.epochs - plan.fit.head_epochs
        return (
            f"{plan.fit.head_epochs} of the head and {tuned} of all of the network, each of which takes {each} ({how})"
        )
    return f"an epoch takes {each} ({how}), and several trials should come to their end"


SCRATCH_STARTS: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"optimizer": "sgd", "optimizer.sgd.lr": 0.1, "optimizer.sgd.weight_decay": 5e-4},
    "lenet5": {"optimizer": "adamw", "optimizer.adamw.lr": 3e-3, "optimizer.adamw.weight_decay": 0.05},
}
OTHER_START = {"optimizer": "adamw", "optimizer.adamw.lr": 2e-3, "optimizer.adamw.weight_decay": 0.05}


def _start(found: Found, plan: Plan) -> None:
    """Write the settings that are tried first."""
    starts: list[dict[str, Any]] = []
    for network in plan.fit.networks:
        named = _named(network)
        if not network.is_pretrained:
            starts.append({**named, **SCRATCH_STARTS.get(str(named["model"]), OTHER_START)})
            continue
        starts += [{**sized, **named, "head": "logistic"} for sized in _sizes(plan)]
        named = {**_sizes(plan)[-1], **named}
        trained = {**named, "head": "linear", "head.linear.dropout": 0.2, "optimizer.adamw.lr": 1e-3}
        if plan.fit.tunes:
            trained |= {"finetune.start": "logistic", "finetune.backbone_lr_factor": 0.1}
        starts.append(trained)
    # The cheapest first, so that there is a good result soon.
    starts.sort(key=lambda one: (one.get("head") != "logistic", _pixels(one.get("image.size", 0))))
    found.put("start", starts, "settings that are known to be good are tried first, in this order")


def _pixels(size: int | list[int]) -> int:
    height, width = sides(size)
    return height * width


def _sizes(plan: Plan) -> list[dict[str, Any]]:
    """Return what start settings say of the size of images, the smallest first."""
    if plan.fit.first_size is None:
        return [{}]
    return [{"image.size": _written(size)} for size in (plan.fit.first_size, plan.fit.size)]


def _named(network: Network) -> dict[str, Any]:
    """Return what a start setting names a network by: its costliest form."""
    ((family, arguments),) = network.largest.items()
    ((_, written),) = network.model.items()
    searched = [key for key, value in written.items() if isinstance(value, Mapping)]
    told = [*searched, *(key for key in ("name", "depth", "variant", "weights") if key in arguments)]
    return {"model": family, **{f"model.{family}.{key}": arguments[key] for key in told}}


def _limits(found: Found, plan: Plan) -> None:
    found.put(
        "limits.memory",
        int(float(f"{plan.memory_each:.2g}")),
        f"bytes: {plan.memory_each / 1e9:.2g} GB are free for each trial at a time",
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
