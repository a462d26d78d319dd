"""Inspect a data set: look at every image once, find copies, and judge labels by out-of-fold predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls_search.config import Component
from imgcls_search.data import comes_with, describe, describe_whole, file_root, is_of_files
from imgcls_search.data.copies import UnionFind, near_sets, sets_of
from imgcls_search.data.inventory import SPLITS, Inventory, inventory, uncut_inventory
from imgcls_search.data.source import Source
from imgcls_search.data.splits import UNNAMED
from imgcls_search.errors import CutError
from imgcls_search.jobs.inspect import confident, quick_model
from imgcls_search.jobs.inspect.findings import (
    ClassCount,
    Copies,
    ImageRef,
    Inspection,
    Judgement,
    Sizes,
    Suspect,
    Unread,
    count_copies,
)
from imgcls_search.jobs.inspect.looking import Known, Table, look
from imgcls_search.jobs.inspect.out_of_fold import FOLDS, Floats, Numbers, plan_folds
from imgcls_search.progress import WorkProgress

BINS = 24

Judge = Callable[[Inventory, Numbers, Numbers, WorkProgress], tuple[Floats, str]]
"""Returns out-of-fold probabilities for images, given by their numbers and folds, and the name of the model."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Options of an inspection."""

    labels: bool = True
    """Whether labels are judged."""

    with_test: bool = False
    """Whether labels of the test split are judged too."""

    epochs: int | None = None
    """Epochs of the quick model's network; None: as many as take minutes."""

    models: tuple[str, ...] = tuple(quick_model.MODELS)
    """Parts of the quick model, whose predictions are averaged."""

    seed: int = 0


def take_inventory(component: Component) -> Inventory:
    """Return all images that a data section names, cut into splits if they can be.

    Raises:
        BuildError: there is no such data set, or an argument has a value that cannot be used.
        DataError: the images are missing, a table has mistakes, or groups cannot be kept together.
    """
    try:
        return inventory(describe(component), file_root(component))
    except CutError as error:
        # Groups are known only for images that are cut.
        if not is_of_files(component) or component.args.get("group") is not None:
            raise
        why = error
    # Rows of a table without a split belong to none of those that others name.
    splits = (*SPLITS, UNNAMED) if component.name == "table" else SPLITS
    wholes: dict[str, Source] = {
        split: describe_whole(component, split) for split in splits if comes_with(component, split)
    }
    wholes = wholes or {UNNAMED: describe_whole(component)}
    root = file_root(component)
    assert root is not None, "what is of files is below a folder"
    return uncut_inventory(wholes, root, str(why))


def inspect_images(images: Inventory, wanted: Wanted, progress: WorkProgress, judge: Judge | None = None) -> Inspection:
    """Inspect a data set; the same images and seed give the same findings.

    Raises:
        DataError: a study's configuration does not fit the images.
        DivergedError: a training that judges labels diverged.
    """
    quick = wanted.labels and judge is None
    judged = _to_judge(images, wanted)
    table, pixels, trouble = look(images, judged if quick else np.array([], dtype=np.int64), progress)
    copies, is_cut = _find_copies(images, table, progress)
    judgement: Judgement | None = None
    why = None if wanted.labels else "left out by --no-labels"
    if wanted.labels:
        judgement, why = _judge(images, wanted, table, copies, judged, pixels, trouble, progress, judge)
    refs = _refs(images)
    good = [number for number, seen in enumerate(table) if isinstance(seen, Known)]
    known = [seen for seen in table if isinstance(seen, Known)]
    counts = _count_classes(images)
    totals = [entry.total for entry in counts]
    return Inspection(
        name=images.name,
        place=images.place,
        classes=counts,
        images=len(images),
        imbalance=max(totals) / max(min(totals), 1),
        groups=None if images.groups is None else len(set(images.groups)),
        uncut=images.uncut,
        sizes=_sizes(images, good, known),
        formats=dict(Counter(seen.format for seen in known).most_common()),
        kinds=dict(Counter(seen.kind for seen in known).most_common()),
        transparent=sum(seen.is_transparent for seen in known),
        turned=sum(seen.is_turned for seen in known),
        flat=tuple(refs(number) for number, seen in zip(good, known, strict=True) if seen.is_flat),
        unreadable=tuple(
            Unread(image=refs(number), reason=seen) for number, seen in enumerate(table) if isinstance(seen, str)
        ),
        left_out=images.left_out,
        notes=images.notes,
        copies=copies,
        copy_counts=count_copies(copies),
        copies_cut=is_cut,
        judgement=judgement,
        not_judged=why,
        inventory=images,
    )


def _to_judge(images: Inventory, wanted: Wanted) -> Numbers:
    if not wanted.labels:
        return np.array([], dtype=np.int64)
    return np.array(
        [number for number, split in enumerate(images.splits) if wanted.with_test or split != "test"], dtype=np.int64
    )


def _refs(images: Inventory) -> Callable[[int], ImageRef]:
    return lambda number: ImageRef(
        number=number,
        name=images.names[number],
        label=images.classes[images.labels[number]],
        split=images.splits[number],
    )


def _count_classes(images: Inventory) -> tuple[ClassCount, ...]:
    splits = [split for split in (*SPLITS, "") if split in set(images.splits)]
    number = {split: place for place, split in enumerate(splits)}
    codes = np.array([number[split] for split in images.splits], dtype=np.int64)
    table = np.zeros((len(images.classes), len(splits)), dtype=np.int64)
    np.add.at(table, (images.labels, codes), 1)
    return tuple(
        ClassCount(name=name, total=int(row.sum()), by_split=dict(zip(splits, row.tolist(), strict=True)))
        for name, row in zip(images.classes, table, strict=True)
    )


def _sizes(images: Inventory, good: Sequence[int], known: Sequence[Known]) -> Sizes | None:
    if not known:
        return None
    sides = np.array([seen.size for seen in known], dtype=np.int64)
    areas = sides.prod(axis=1)
    least, most = int(areas.argmin()), int(areas.argmax())
    median = np.median(sides, axis=0)
    aspects = sides[:, 0] / sides[:, 1]
    counts, bounds = np.histogram(sides.min(axis=1), bins=BINS)
    return Sizes(
        smallest=known[least].size,
        median=(int(median[0]), int(median[1])),
        largest=known[most].size,
        smallest_name=images.names[good[least]],
        largest_name=images.names[good[most]],
        aspect=(float(aspects.min()), float(np.median(aspects)), float(aspects.max())),
        histogram=tuple(
            (float(low), float(high), int(count)) for low, high, count in zip(bounds, bounds[1:], counts, strict=False)
        ),
    )


def _find_copies(images: Inventory, table: Table, progress: WorkProgress) -> tuple[tuple[Copies, ...], bool]:
    refs = _refs(images)
    known = [seen if isinstance(seen, Known) else None for seen in table]
    # Flat images may have equal pixels without being copies, unless their files are equal.
    shown = [seen if seen is not None and not seen.is_flat else None for seen in known]
    files = sets_of([None if seen is None else seen.file for seen in known])
    pixels = sets_of([None if seen is None else seen.pixels for seen in shown])
    firsts: dict[bytes, list[int]] = {}
    for number, seen in enumerate(shown):
        if seen is not None:
            firsts.setdefault(seen.pixels, []).append(number)
    items = np.array([numbers[0] for numbers in firsts.values()], dtype=np.int64)
    looks = [shown[number] for number in items.tolist()]
    near, is_cut = near_sets(
        np.array([seen.hash for seen in looks if seen is not None], dtype=np.uint64),
        np.frombuffer(b"".join(seen.shades for seen in looks if seen is not None), dtype=np.uint8).reshape(-1, 256),
        items,
        count=len(images),
        progress=lambda done, total: progress("comparing images", done, total),
    )
    by_first = {numbers[0]: numbers for numbers in firsts.values()}
    several = [numbers for numbers in pixels if len({_file_of(shown, number) for number in numbers}) > 1]
    in_memory = images.root is None
    found = [
        *(Copies(kind="file", images=tuple(map(refs, numbers))) for numbers in files),
        *(Copies(kind="pixels", images=tuple(map(refs, numbers))) for numbers in (pixels if in_memory else several)),
        *(
            Copies(kind="near", images=tuple(map(refs, sorted(copy for first in numbers for copy in by_first[first]))))
            for numbers in near
        ),
    ]
    return tuple(found), is_cut


def _file_of(shown: Sequence[Known | None], number: int) -> bytes | None:
    seen = shown[number]
    return None if seen is None else seen.file


def _judge(
    images: Inventory,
    wanted: Wanted,
    table: Table,
    copies: Sequence[Copies],
    judged: Numbers,
    pixels: npt.NDArray[np.uint8] | None,
    trouble: str | None,
    progress: WorkProgress,
    judge: Judge | None,
) -> tuple[Judgement | None, str | None]:
    """Return the judgement of the labels, or why there is none."""
    if trouble is not None:
        return None, trouble
    units = _units(images, copies)
    places = np.array([place for place, number in enumerate(judged) if isinstance(table[number], Known)], np.int64)
    places, left_out = _enough(images, judged, places, units)
    numbers = judged[places]
    kept, labels = np.unique(images.labels[numbers], return_inverse=True)
    if len(kept) < 2:
        return None, f"fewer than two classes have {FOLDS} readable images (or groups) to be judged by"
    folds = plan_folds(labels, units[numbers], wanted.seed)
    if judge is not None:
        probabilities, by = judge(images, numbers, folds, progress)
        probabilities = probabilities[:, kept]
        probabilities = probabilities / np.maximum(probabilities.sum(axis=1, keepdims=True), 1e-12)
    else:
        assert pixels is not None, "the quick model judges by small copies"
        by = quick_model.NAME
        probabilities = quick_model.predict_out_of_fold(
            pixels if len(places) == len(pixels) else pixels[places],
            labels,
            folds,
            classes=len(kept),
            epochs=wanted.epochs or quick_model.default_epochs(len(places)),
            models=wanted.models,
            seed=wanted.seed,
            progress=progress,
        )
    found, likely = confident.suspects(probabilities, labels)
    joint = confident.confident_joint(probabilities, labels)
    shares = confident.joint_distribution(joint, np.bincount(labels, minlength=len(kept)))
    refs = _refs(images)
    return Judgement(
        by=by,
        folds=FOLDS,
        images=len(numbers),
        agreement=float((probabilities.argmax(axis=1) == labels).mean()),
        suspects=tuple(
            Suspect(
                image=refs(int(numbers[place])),
                likely=images.classes[kept[other]],
                confidence=float(probabilities[place, other]),
                given=float(probabilities[place, labels[place]]),
            )
            for place, other in zip(found.tolist(), likely.tolist(), strict=True)
        ),
        estimated_wrong=float(1 - np.trace(shares)),
        left_out=left_out,
        with_test=wanted.with_test,
    ), None


def _units(images: Inventory, copies: Sequence[Copies]) -> Numbers:
    """Return a number for each image, equal for images that stay in one fold: those of a group, and exact copies."""
    joined = UnionFind(len(images))
    if images.groups is not None:
        first: dict[str, int] = {}
        for number, group in enumerate(images.groups):
            joined.join(first.setdefault(group, number), number)
    for each in copies:
        if each.kind != "near":
            for image in each.images[1:]:
                joined.join(each.images[0].number, image.number)
    return np.array([joined.first(number) for number in range(len(images))], dtype=np.int64)


def _enough(images: Inventory, judged: Numbers, places: Numbers, units: Numbers) -> tuple[Numbers, tuple[str, ...]]:
    """Return the places of judged images whose class has enough units for all folds, and the other classes."""
    labels = images.labels[judged[places]]
    pairs = np.unique(np.stack([labels, units[judged[places]]]), axis=1)[0] if len(places) else labels
    counts = np.bincount(pairs, minlength=len(images.classes))
    few = tuple(name for name, count in zip(images.classes, counts.tolist(), strict=True) if count < FOLDS)
    return places[counts[labels] >= FOLDS], few
