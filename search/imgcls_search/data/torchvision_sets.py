"""Public image sets that torchvision can download and verify."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from imgcls_search.data import fingerprint
from imgcls_search.data.listing import from_files
from imgcls_search.data.source import Folds, MaxTrain, Source, Split, SplitSeed, Val, assemble, from_arrays
from imgcls_search.errors import BuildError, DataError, closest, one_line
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from PIL.Image import Image

Reader = Callable[[int], "Image"]
Root = Annotated[str, Arg("the folder that torchvision keeps its data sets in", fixed=True)]
Download = Annotated[bool, Arg("fetch the data set if it is not there", fixed=True)]
SetName = Literal[
    "CIFAR10", "CIFAR100", "DTD", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "KMNIST", "MNIST",
    "OxfordIIITPet", "STL10", "SVHN", "USPS",
]  # fmt: skip
"""Classification sets with one plain label per image; the others (faces, scenes, video) need further choices."""

_FLAG: Mapping[Split, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TWO: Mapping[Split, Mapping[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Mapping[Split, Mapping[str, Any]] = {**_TWO, "val": {"split": "val"}}
SPLITS: Mapping[str, Mapping[Split, Mapping[str, Any]]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "DTD": _THREE,
    "FGVCAircraft": _THREE,
    "FashionMNIST": _FLAG,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "STL10": _TWO,
    "SVHN": _TWO,
    "USPS": _FLAG,
}
"""The arguments of each torchvision class that select its splits."""

SHAPES: Mapping[str, tuple[int | None, int, int]] = {
    "CIFAR10": (32, 3, 10),
    "CIFAR100": (32, 3, 100),
    "DTD": (None, 3, 47),
    "FGVCAircraft": (None, 3, 100),
    "FashionMNIST": (28, 1, 10),
    "Flowers102": (None, 3, 102),
    "Food101": (None, 3, 101),
    "GTSRB": (None, 3, 43),
    "KMNIST": (28, 1, 10),
    "MNIST": (28, 1, 10),
    "OxfordIIITPet": (None, 3, 37),
    "STL10": (96, 3, 10),
    "SVHN": (32, 3, 10),
    "USPS": (16, 1, 10),
}
"""Side of the images (None: varies), channels and classes, known without the images."""


def cifar10(
    *,
    root: Root = "data",
    download: Download = False,
    val: Val = 0.1,
    split_seed: SplitSeed = 0,
    max_train: MaxTrain = None,
    folds: Folds = None,
) -> Source:
    """Read CIFAR-10, 60,000 photographs of 32x32 pixels, from a folder that has cifar-10-batches-py.

    Raises:
        DataError: it is not there, damaged, or cannot be fetched.
    """
    cuts = {"val": val, "split_seed": split_seed, "max_train": max_train, "folds": folds}
    return _source("CIFAR10", "data.cifar10", Path(root), download, "cifar-10-batches-py", cuts)


def torchvision_set(
    *,
    name: Annotated[SetName, Arg("the name of torchvision's class", fixed=True)],
    root: Root = "data",
    download: Download = False,
    val: Val = 0.1,
    split_seed: SplitSeed = 0,
    max_train: MaxTrain = None,
    folds: Folds = None,
) -> Source:
    """Read one of torchvision's classification sets, with its own test split.

    Raises:
        BuildError: torchvision has no such set, or it is not one of the allowed.
        DataError: it is not there, damaged, or cannot be fetched.
    """
    known = get_args(SetName)
    if name not in known:
        raise BuildError("name", f"{name!r} is not allowed{closest(name, known)}; allowed: {', '.join(known)}")
    cuts = {"val": val, "split_seed": split_seed, "max_train": max_train, "folds": folds}
    return _source(name, f"data.torchvision: {name}", Path(root), download, "it as torchvision lays it out", cuts)


def _source(name: str, place: str, root: Path, download: bool, content: str, cuts: Mapping[str, Any]) -> Source:
    root = root.expanduser().resolve()
    parts = {split: _open(name, place, root, download, content, arguments) for split, arguments in SPLITS[name].items()}
    labels = {split: np.asarray(_labels(part), dtype=np.int64) for split, part in parts.items()}
    joined = np.concatenate(list(labels.values()))
    classes = _classes(parts["train"], joined)
    first = np.cumsum([0, *(len(part) for part in labels.values())])
    given = {split: np.arange(len(part)) + start for (split, part), start in zip(labels.items(), first, strict=False)}
    in_memory = hasattr(parts["train"], "data")
    names, read, make_prints, former = (_in_memory if in_memory else _on_disk)(parts, root, classes, joined)
    return assemble(
        name=name.lower(),
        place=place,
        classes=classes,
        names=names,
        labels=joined,
        given=given,
        read=read,
        make_prints=make_prints,
        first_fingerprint=former,
        **cuts,
    )


def _open(name: str, place: str, root: Path, download: bool, content: str, arguments: Mapping[str, Any]) -> Any:
    from torchvision import datasets

    try:
        # torchvision verifies checksums before it unpickles; its prints must not mix with our output.
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, name)(str(root), download=download, **arguments)
    # torchvision raises whatever its readers raise: RuntimeError, URLError, BadZipFile, EOFError, ValueError.
    except Exception as error:
        wanted = f"point root at a folder that has {content}"
        if not download:
            raise DataError(f"{place}: no complete copy in {root}; set download: true or {wanted}") from error
        reason = one_line(error)
        raise DataError(
            f"{place}: cannot be fetched into {root}: {reason}; connect to a network or {wanted}"
        ) from error


def _labels(part: Any) -> Sequence[int]:
    for name in ("targets", "labels", "_labels"):
        if hasattr(part, name):
            labels: Sequence[int] = getattr(part, name)
            return labels
    return [label for _, label in part._samples]


def _classes(part: Any, labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    numbers = range(int(labels.max()) + 1)
    return tuple(str(name) for name in getattr(part, "classes", numbers))


def _in_memory(
    parts: Mapping[Split, Any], root: Path, classes: Sequence[str], labels: npt.NDArray[np.int64]
) -> tuple[list[str], Reader, Callable[[], fingerprint.Prints], Callable[[], str] | None]:
    stacks = [np.asarray(part.data) for part in parts.values()]
    names = [f"{split}/{item}" for split, part in parts.items() for item in range(len(part.data))]
    # STL10 and SVHN store [N, 3, H, W], the others [N, H, W, 3] or [N, H, W].
    pixels = np.concatenate([x.transpose(0, 2, 3, 1) if x.ndim == 4 and x.shape[1] == 3 else x for x in stacks])
    return names, from_arrays(pixels), cache(lambda: fingerprint.of_arrays(classes, (pixels, labels))), None


def _on_disk(
    parts: Mapping[Split, Any], root: Path, classes: Sequence[str], labels: npt.NDArray[np.int64]
) -> tuple[list[str], Reader, Callable[[], fingerprint.Prints], Callable[[], str] | None]:
    paths = [Path(path) for part in parts.values() for path in _paths(part)]
    names = [path.relative_to(root).as_posix() for path in paths]
    listed = (classes, names, labels, paths)
    first = partial(fingerprint.of_files_by_edges, *listed)
    return names, from_files(paths), cache(partial(fingerprint.of_files, *listed, memory=fingerprint.memory())), first


def _paths(part: Any) -> Sequence[str | Path]:
    # Private names, unchanged for years: the public API decodes every image to return a path or a label.
    for name in ("_image_files", "_images"):
        if hasattr(part, name):
            paths: Sequence[str | Path] = getattr(part, name)
            return paths
    return [path for path, _ in part._samples]
