"""Folders of images, one subfolder per class, as people and torchvision's ImageFolder keep them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt

from search.data import fingerprint
from search.data.source import MaxTrain, Source, Split, SplitSeed, Test, Val, assemble
from search.errors import DataError
from search.signature import Arg

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
"""Names that would be taken for classes, or overlooked, if nothing were said."""

ALLOWED = "one subfolder of images per class, or train/ (and val/, test/) with one subfolder per class"


def folder(
    *,
    root: Annotated[str, Arg(f"a folder with {ALLOWED}", fixed=True)],
    val: Val = 0.15,
    test: Test = 0.2,
    split_seed: SplitSeed = 0,
    max_train: MaxTrain = None,
) -> Source:
    """Read a folder of images, one subfolder per class; val and test are cut from train where it has none of its own.

    Classes are the names of the training subfolders, sorted. Folders inside a class belong to it; hidden files and
    files without an image's extension do not.

    Raises:
        DataError: there is no such folder, its layout is not one of the allowed, or a class is too small to cut.
    """
    found = _list(root)
    return assemble(
        name=found.top.name,
        place=found.place,
        classes=found.classes,
        names=found.names,
        labels=found.labels,
        given=found.given,
        read=from_files(found.paths),
        fingerprint=found.fingerprint,
        first_fingerprint=found.first_fingerprint,
        val=val,
        test=test,
        split_seed=split_seed,
        max_train=max_train,
    )


def has_split(root: str, split: Split) -> bool:
    """Tell whether a folder comes with a split of its own, in a subfolder of that name."""
    return (_top(root) / split).is_dir()


def whole_folder(root: str, only: Split | None = None) -> Source:
    """Read a folder as one split, `test`, that holds all its images, or those of one split that it comes with.

    Nothing is cut, so one image a class is enough, and `train` need not be there.

    Raises:
        DataError: there is no such folder, or its layout is not one of the allowed.
    """
    found = _list(root, needs_train=False)
    items = np.arange(len(found.paths)) if only is None else found.given[only]
    nothing = np.array([], dtype=np.int64)
    return Source(
        name=found.top.name,
        place=found.place,
        classes=tuple(found.classes),
        labels={"train": nothing, "val": nothing, "test": found.labels[items]},
        names={"train": (), "val": (), "test": tuple(found.names[item] for item in items)},
        read=lambda split, index: from_files(found.paths)(int(items[index])),
        fingerprint=found.fingerprint,
        first_fingerprint=found.first_fingerprint,
    )


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The images of a folder, in order."""

    top: Path
    place: str
    classes: Sequence[str]
    paths: Sequence[Path]
    names: Sequence[str]
    """The paths below `top`."""

    labels: npt.NDArray[np.int64]
    given: Mapping[Split, npt.NDArray[np.int64]]
    """The numbers of the images in each split that the folder comes with."""

    fingerprint: str
    first_fingerprint: Callable[[], str]


def _top(root: str) -> Path:
    return Path(root).expanduser().resolve()


def _list(root: str, *, needs_train: bool = True) -> _Listing:
    top = _top(root)
    place = f"data.folder: {top}"
    try:
        found = {split: _tree(tree, place) for split, tree in _trees(top, place, needs_train=needs_train).items()}
        _check_classes(found, place)
        classes = _classes(found)
        number = {name: index for index, name in enumerate(classes)}
        rows = sorted((path, number[name], split) for path, name, split in _flat(found))
        paths = [path for path, _, _ in rows]
        names = [path.relative_to(top).as_posix() for path in paths]
        labels = np.array([label for _, label, _ in rows], dtype=np.int64)
        contents = fingerprint.of_files(classes, names, labels, paths)
        first = partial(fingerprint.of_files_by_edges, classes, names, labels, paths)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error}") from error
    splits = np.array([split for _, _, split in rows])
    return _Listing(
        top=top,
        place=place,
        classes=classes,
        paths=paths,
        names=names,
        labels=labels,
        given={split: np.flatnonzero(splits == split) for split in found},
        fingerprint=contents,
        first_fingerprint=first,
    )


def from_files(paths: Sequence[Path]) -> Callable[[int], Image]:
    """Return a reader of image files; only their headers are read until pixels are asked for."""
    from PIL import Image

    return lambda item: Image.open(paths[item])


def _trees(top: Path, place: str, *, needs_train: bool) -> dict[Split, Path]:
    """Return the folder of classes of every split that is given; `train` alone for one tree without splits."""
    if not top.exists():
        raise DataError(f"{place}: does not exist; allowed: a folder with {ALLOWED}")
    if not top.is_dir():
        raise DataError(f"{place}: is not a folder; allowed: a folder with {ALLOWED}")
    given = {split: top / split for split in SPLITS if (top / split).is_dir()}
    for name in _subfolders(top):
        meant = ALIASES.get(name.lower(), name.lower())
        if meant in SPLITS and meant != name:
            raise DataError(f"{place}: has a folder {name!r}; rename it to {meant!r} if it holds the {meant} split")
    if needs_train and given and "train" not in given:
        raise DataError(f"{place}: has {' and '.join(given)} but no train folder; allowed: {ALLOWED}")
    return given or {"train": top}


def _tree(top: Path, place: str) -> dict[str, list[Path]]:
    """Return the image files of every class folder."""
    classes = {name: sorted(image_files(top / name)) for name in _subfolders(top)}
    if not classes:
        raise DataError(f"{place}: no class folders in {top}; allowed: {ALLOWED}")
    return classes


def _check_classes(found: Mapping[Split, Mapping[str, Sequence[Path]]], place: str) -> None:
    trained = found.get("train", {})
    empty = [name for name, paths in trained.items() if not paths]
    if empty:
        raise DataError(f"{place}: no image in class {_some(empty)}; allowed: files ending in {' '.join(EXTENSIONS)}")
    for split, tree in found.items():
        strange = [name for name in tree if name not in trained]
        if trained and strange:
            raise DataError(f"{place}: class {_some(strange)} is in {split} but not in train; allowed: train's classes")
        if not any(tree.values()):
            raise DataError(f"{place}: no image in {split}; fill it or remove it")


def _classes(found: Mapping[Split, Mapping[str, Sequence[Path]]]) -> list[str]:
    """Return the classes of the training images; without any, those that have an image in another split."""
    if "train" in found:
        return sorted(found["train"])
    return sorted({name for tree in found.values() for name, paths in tree.items() if paths})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(repr(name) for name in names[:10]) + more


def _flat(found: Mapping[Split, Mapping[str, Sequence[Path]]]) -> Iterator[tuple[Path, str, Split]]:
    for split, tree in found.items():
        for name, paths in tree.items():
            yield from ((path, name, split) for path in paths)


def _subfolders(top: Path) -> list[str]:
    return sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def image_files(top: Path) -> Iterator[Path]:
    """Yield the image files below a folder, entering every real folder once: links may run in circles."""
    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that the same tree gives the same names where two links lead to one folder.
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append(Path(entry.path))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield Path(entry.path)
