"""Choose how a draft cuts the images into splits or folds."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from imgcls_search.config import Component
from imgcls_search.data import DATASETS, Source, describe
from imgcls_search.errors import CutError
from imgcls_search.jobs.init.images import ImageFacts

FEW_FOR_ONE_SPLIT = 500
"""Up to this many images outside the test split, one validation split is too small for a reliable score."""

FOLDS = (5, 3, 2)
ENOUGH_HELD_OUT = 10_000
"""More validation or test images hardly make a score more certain."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A way to cut images into splits."""

    component: Component
    source: Source
    key: str
    """The argument of the data set that sets it."""

    why: str

    @property
    def folds(self) -> int:
        """Number of networks that a trial trains."""
        return self.component.args.get("folds") or 1


def possible_cuts(component: Component, source: Source, images: ImageFacts) -> list[Cut]:
    """Return the ways to cut the images, best first; later ones take less time."""
    given = images.given_splits
    if is_said(component, "folds"):
        return [Cut(component=component, source=source, key="folds", why="as you said")]
    if is_said(component, "val"):
        return [Cut(component=component, source=source, key="val", why="as you said")]
    if "val" in given:
        why = "the images include a validation split, on which trials are compared"
        return [Cut(component=component, source=source, key="", why=why)]
    found = []
    outside = images.images_by_split["train"] + images.images_by_split["val"]
    if outside <= FEW_FOR_ONE_SPLIT and (folded := _folded(component)) is not None:
        folds = folded.args["folds"]
        why = (
            f"{outside:,} images outside the test split are few: each trial trains {folds} networks, each scored "
            "on the fold that it was not trained on, so every image counts"
        )
        found.append(Cut(component=folded, source=describe(folded), key="folds", why=why))
    return [*found, _one_split(component, source, images, outside)]


def _folded(component: Component) -> Component | None:
    """Return the data section with as many folds as the images allow, None if they allow none."""
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
    cuts_test = "test" in usual and not has_test and not is_said(component, "test")
    if cuts_test and images.images * usual["test"] > ENOUGH_HELD_OUT:
        changes["test"] = _share(ENOUGH_HELD_OUT / images.images)
    chosen = _with(component, **changes)
    is_new = chosen.args != component.args
    source = describe(chosen) if is_new else source
    counts = {split: len(names) for split, names in source.names.items()}
    why = (
        f"share of the training images on which trials are compared: {counts['val']:,} validation images, "
        f"{counts['train']:,} training images, and {counts['test']:,} test images that stay sealed until the end"
    )
    return Cut(component=chosen, source=source, key="val", why=why)


def _share(value: float) -> float:
    return max(0.001, float(f"{value:.2g}"))


def _with(component: Component, **args: Any) -> Component:
    return replace(component, args={**component.args, **args})


def defaults(component: Component) -> dict[str, Any]:
    """Return the default values of a data set's arguments."""
    parameters = inspect.signature(DATASETS[component.name]).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def is_said(component: Component, name: str) -> bool:
    """Tell whether an argument of a data section differs from its default."""
    usual = defaults(component)
    return name in usual and component.args.get(name) != usual[name]
