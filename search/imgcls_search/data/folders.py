"""Folders of images, one subfolder per class, in the layout of torchvision's ImageFolder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from imgcls_search.data import fingerprint, groups
from imgcls_search.data.listing import Listing
from imgcls_search.data.opening import EXTENSIONS
from imgcls_search.data.source import Folds, MaxTrain, Source, Split, SplitSeed, Test, Val
from imgcls_search.data.tally import Tally, image_files, is_broken, quoted
from imgcls_search.errors import CutError, DataError, closest
from imgcls_search.signature import Arg
from imgcls_search.words import some

SPLITS: tuple[Split, ...] = ("train", "val", "test")
ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
"""Names of split folders that would otherwise be taken for classes or overlooked."""

ALLOWED = "one subfolder of images per class, or train/ (and val/, test/) with one subfolder per class"


def folder(
    *,
    root: Annotated[str, Arg(f"a folder with {ALLOWED}", fixed=True)],
    val: Val = 0.15,
    test: Test = 0.2,
    split_seed: SplitSeed = 0,
    max_train: MaxTrain = None,
    folds: Folds = None,
    group: Annotated[
        str | None,
        Arg(
            "a regular expression on the path below root; images for which its first parentheses match the same text "
            "stay in one split",
            fixed=True,
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool, Arg("leave out images that cannot be read, and list them, instead of refusing the folder", fixed=True)
    ] = False,
    labels: Annotated[
        Literal["one", "several"],
        Arg("several: the same picture in several class folders, as links or copies, has all their labels", fixed=True),
    ] = "one",
) -> Source:
    """Read a folder of images, one subfolder per class; splits that it does not have are taken from train.

    Classes are the names of the training subfolders, sorted. Folders inside a class belong to it; hidden and system
    files and folders and files without an image's extension do not.

    Raises:
        BuildError: `group` is no regular expression with parentheses.
        DataError: there is no such folder, its layout is not one of the allowed, or a class is too small to cut.
    """
    found = _list(root)
    _refuse_wrapped(found, root)
    if labels == "several":
        found = _merged(found)
    return found.cut(
        found.given,
        groups=None if group is None else groups.of_paths(group, found.names, found.place),
        skips_unreadable=skip_unreadable,
        val=val,
        test=test,
        split_seed=split_seed,
        max_train=max_train,
        folds=folds,
    )


def _refuse_wrapped(found: _Listing, root: str) -> None:
    """Refuse a folder whose only folder holds the folders of classes or splits, as unpacked archives have it.

    Raises:
        CutError: there is only one class, all of whose images are in several folders.
    """
    inside = {name.split("/")[1] for name in found.names if name.count("/") > 1}
    if len(found.classes) == 1 and len(inside) > 1 and all(name.count("/") > 1 for name in found.names):
        (name,) = found.classes
        raise CutError(
            f"{found.place}: only one class, {name!r}, with the folders {some(sorted(inside))}: if those are the "
            f"classes or splits, give {_top(root) / name}"
        )


def has_split(root: str, split: Split) -> bool:
    """Tell whether a folder comes with a split, in a subfolder of that name."""
    return (_top(root) / split).is_dir()


def whole_folder(root: str, only: Split | None = None, *, skip_unreadable: bool = False, labels: str = "one") -> Source:
    """Read a folder as one split, `test`, with all its images, or with those of one split that it comes with.

    Nothing is cut, so one image per class is enough, and `train` may be missing.

    Raises:
        DataError: there is no such folder, or its layout is not one of the allowed.
    """
    found = _list(root, needs_train=False)
    if labels == "several":
        found = _merged(found)
    items = np.arange(len(found.paths)) if only is None else found.given[only]
    return found.as_test(items, skips_unreadable=skip_unreadable)


@dataclass(frozen=True, kw_only=True)
class _Listing(Listing):
    """The images of a folder."""

    given: Mapping[Split, npt.NDArray[np.int64]]
    """The indices of the images in each split that the folder comes with."""


def _top(root: str) -> Path:
    return Path(root).expanduser().resolve()


def _list(root: str, *, needs_train: bool = True) -> _Listing:
    top = _top(root)
    place = f"data.folder: {top}"
    tally = Tally(top)
    try:
        trees = _trees(top, place, needs_train=needs_train)
        found = {split: _tree(tree, place, tally) for split, tree in trees.items()}
        _look_beside(top, trees, tally)
        tally.refuse_broken_links(place)
        _check_classes(found, place)
        classes = _classes(found)
        number = {name: index for index, name in enumerate(classes)}
        rows = sorted((path, number[name], split) for path, name, split in _flat(found))
        paths = [path for path, _, _ in rows]
        names = [path.relative_to(top).as_posix() for path in paths]
        labels = np.array([label for _, label, _ in rows], dtype=np.int64)
        fingerprint.must_be_files(paths)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error}") from error
    splits = np.array([split for _, _, split in rows])
    given = {split: np.flatnonzero(splits == split) for split in found}
    known = (classes, names, labels, paths)
    memory = fingerprint.memory()
    return _Listing(
        name=top.name,
        place=place,
        classes=classes,
        paths=paths,
        names=names,
        labels=labels,
        given=given,
        make_prints=cache(partial(fingerprint.of_files, *known, sealed=given.get("test"), memory=memory)),
        first_fingerprint=partial(fingerprint.of_files_by_edges, *known),
        left_out=tally.left_out(),
        notes=(
            *similar_names(classes),
            *(_second_trees(trees["train"], classes, found["train"]) if "train" in trees else ()),
        ),
    )


def _merged(found: _Listing) -> _Listing:
    """Return the images of a folder with all their labels: equal files, linked or copied, are one image.

    The image gets the first of its paths as name.

    Raises:
        DataError: a picture is in several splits, or a file cannot be read.
    """
    try:
        firsts = fingerprint.first_of_equals(found.paths, fingerprint.memory())
    except OSError as error:
        raise DataError(f"{found.place}: cannot be read: {error}") from error
    splits = np.empty(len(found.paths), dtype="<U5")
    for split, items in found.given.items():
        splits[items] = split
    shared = np.flatnonzero(splits != splits[firsts])
    if len(shared):
        item, first = int(shared[0]), int(firsts[shared[0]])
        more = f" ({len(shared):,} such files)" if len(shared) > 1 else ""
        raise DataError(
            f"{found.place}: {found.names[first]!r} and {found.names[item]!r} are the same picture in {splits[first]} "
            f"and {splits[item]}{more}; allowed: each picture in one split"
        )
    kept, places = np.unique(firsts, return_inverse=True)
    flags = np.zeros((len(kept), len(found.classes)), dtype=np.uint8)
    flags[places, found.labels] = 1
    paths, names = ([listed[item] for item in kept.tolist()] for listed in (found.paths, found.names))
    given = {split: np.flatnonzero(splits[kept] == split) for split in found.given}
    known = (found.classes, names, flags, paths)
    memory = fingerprint.memory()
    repeats = len(firsts) - len(kept)
    note = f"{repeats:,} files are links to or copies of others: {len(kept):,} pictures"
    return replace(
        found,
        paths=paths,
        names=names,
        labels=flags,
        given=given,
        make_prints=cache(partial(fingerprint.of_files, *known, sealed=given.get("test"), memory=memory)),
        first_fingerprint=partial(fingerprint.of_files_by_edges, *known),
        notes=(*found.notes, note if repeats else "no picture is in several class folders: each has one label"),
    )


def _trees(top: Path, place: str, *, needs_train: bool) -> dict[Split, Path]:
    """Return the folder of classes of each split; for one tree without splits, `train` only."""
    if not top.exists():
        raise DataError(f"{place}: does not exist; allowed: a folder with {ALLOWED}")
    if not top.is_dir():
        raise DataError(f"{place}: is not a folder; allowed: a folder with {ALLOWED}")
    given = {split: top / split for split in SPLITS if (top / split).is_dir()}
    for name in _subfolders(top, Tally(top)):
        meant = ALIASES.get(name.lower(), name.lower())
        if meant in SPLITS and meant != name:
            raise DataError(f"{place}: has a folder {name!r}; rename it to {meant!r} if it holds the {meant} split")
    if needs_train and given and "train" not in given:
        raise DataError(f"{place}: has {' and '.join(given)} but no train folder; allowed: {ALLOWED}")
    return given or {"train": top}


def _tree(top: Path, place: str, tally: Tally) -> dict[str, list[Path]]:
    """Return the image files of every class folder."""
    names = _subfolders(top, tally)
    classes = {name: sorted(image_files(top / name, tally)) for name in names}
    if not classes:
        tally.refuse_broken_links(place)
        raise DataError(f"{place}: no class folders in {top}; allowed: {ALLOWED}")
    return classes


def _look_beside(top: Path, trees: Mapping[Split, Path], tally: Tally) -> None:
    """Count the files next to the class folders, and everything next to the split folders."""
    for tree in dict.fromkeys((top, *trees.values())):
        is_above = "train" in trees and trees["train"] != top and tree == top
        for entry in sorted(os.scandir(tree), key=lambda entry: entry.name):
            # Hidden folders and broken links at this level are counted already.
            if is_above and (entry.name in trees or tally.skips(entry)):
                continue
            if not is_above and (is_broken(entry) or entry.is_dir()):
                continue
            if entry.is_dir():
                tally.add(f"folder beside {trees['train'].name}/", entry.path)
            elif not is_above and tally.skips(entry):
                continue
            elif entry.name.lower().endswith(EXTENSIONS):
                tally.add("image outside of the class folders", entry.path)
            else:
                tally.add_other(entry.name, entry.path)


def similar_names(classes: Sequence[str]) -> Iterator[str]:
    """Yield a note for each set of classes whose names look the same."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        alike.setdefault(" ".join(key.split()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            forms = {unicodedata.normalize("NFC", name) for name in names}
            way = "Unicode form" if len(forms) == 1 else "case, spaces or Unicode form"
            # Escaped, since the names look alike otherwise.
            yield f"classes {some([ascii(name) for name in names])} differ in {way} only"


def _second_trees(top: Path, classes: Sequence[str], found: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """Yield notes about class folders that look like whole trees of classes, or of splits."""
    inside: dict[str, set[str]] = {}
    for name in classes:
        if not any(path.parent == top / name for path in found[name]):
            inside[name] = set(_subfolders(top / name, Tally(top)))
    for names in inside.values():
        if len(names) > 1 and len(alike := [name for name in inside if inside[name] == names]) > 1:
            yield (
                f"classes {quoted(alike)} hold the same folders ({quoted(sorted(names))}): if those are the classes, "
                "give one of the trees as the folder"
            )
            return
    for name in classes:
        folders = set(_subfolders(top / name, Tally(top)))
        if twins := sorted(folders & (set(classes) - {name})):
            what = "a folder named like another class" if len(twins) == 1 else "folders named like other classes"
            yield f"class {name!r} holds {what} ({quoted(twins)}), read as images of {name!r}: it may be a second tree"
        elif len(splits := sorted(folders & {*SPLITS, *ALIASES})) > 1:
            yield (
                f"class {name!r} holds folders named like splits ({quoted(splits)}): all of them are read as one class"
            )


def _check_classes(found: Mapping[Split, Mapping[str, Sequence[Path]]], place: str) -> None:
    trained = found.get("train", {})
    empty = [name for name, paths in trained.items() if not paths]
    if empty:
        raise DataError(
            f"{place}: no image in class {quoted(empty)}; put images there (.jpg, .png, .webp and the other raster "
            "formats of Pillow; not .heic), or delete the folder"
        )
    for split, tree in found.items():
        strange = [name for name in tree if name not in trained]
        if trained and strange:
            near = closest(strange[0], trained)
            raise DataError(
                f"{place}: class {quoted(strange)} is in {split} but not in train{near}; allowed: train's classes"
            )
        if not any(tree.values()):
            raise DataError(f"{place}: no image in {split}; fill it or remove it")


def _classes(found: Mapping[Split, Mapping[str, Sequence[Path]]]) -> list[str]:
    """Return the classes of the training images; without any, those that have an image in another split."""
    if "train" in found:
        return sorted(found["train"])
    return sorted({name for tree in found.values() for name, paths in tree.items() if paths})


def _flat(found: Mapping[Split, Mapping[str, Sequence[Path]]]) -> Iterator[tuple[Path, str, Split]]:
    for split, tree in found.items():
        for name, paths in tree.items():
            yield from ((path, name, split) for path in paths)


def _subfolders(top: Path, tally: Tally) -> list[str]:
    """Return the names of the folders that may be classes, and count the other entries."""
    entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    return [entry.name for entry in entries if not tally.skips(entry, counts_files=False) and entry.is_dir()]
