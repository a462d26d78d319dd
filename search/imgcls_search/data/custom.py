"""Images from the user's own function, named in the space file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from imgcls_search import own_code
from imgcls_search.data import fingerprint
from imgcls_search.data.listing import from_files
from imgcls_search.data.source import Folds, MaxTrain, Source, Split, SplitSeed, Test, Val, assemble, from_arrays
from imgcls_search.errors import BuildError, DataError, UserError, first_line
from imgcls_search.signature import Arg

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def custom(
    *,
    function: Annotated[str, Arg("your function that returns the images, as module:name", fixed=True)],
    val: Val = 0.15,
    test: Test = 0.2,
    split_seed: SplitSeed = 0,
    max_train: MaxTrain = None,
    folds: Folds = None,
    **arguments: Annotated[
        bool | int | float | str | None, Arg("any other keyword argument of that function", fixed=True)
    ],
) -> Source:
    """Take the images of your own function, named as module:name.

    It returns a dictionary with images (uint8 [N, H, W] or [N, H, W, 3], or paths of files), labels (a name each) and,
    if you like, splits (train, val, test or an empty text each).

    Raises:
        BuildError: the function cannot be imported.
        DataError: it fails, or returns something else.
    """
    place = f"data.custom: {function}"
    try:
        read = own_code.load(function)
    except UserError as error:
        raise BuildError("function", str(error)) from error
    try:
        found = read(**arguments)
    # A user's function may raise anything.
    except Exception as error:
        why = first_line(error, "no message")
        raise DataError(f"{place}: failed ({type(error).__name__}: {why})") from error
    images, labels, splits = _parts(found, place)
    classes = tuple(sorted(set(labels)))
    numbers = np.array([classes.index(label) for label in labels], dtype=np.int64)
    known: Mapping[str, Any]
    if isinstance(images, np.ndarray):
        names = [f"{number}" for number in range(len(images))]
        pixels = np.ascontiguousarray(images)
        known = {
            "read": from_arrays(pixels),
            "make_prints": cache(lambda: fingerprint.of_arrays(classes, (pixels, numbers))),
        }
    else:
        names, paths = images, [Path(_place_of(path)) for path in images]
        listed = (classes, names, numbers, paths)
        known = {
            "read": from_files(paths),
            "make_prints": cache(partial(fingerprint.of_files, *listed, memory=fingerprint.memory())),
        }
    given: dict[Split, npt.NDArray[np.int64]] = {
        split: np.flatnonzero([entry == split for entry in splits]) for split in SPLITS
    }
    rest = np.flatnonzero([entry == "" for entry in splits])
    given = {split: items for split, items in given.items() if len(items)}
    if len(rest):
        given["train"] = np.sort(np.concatenate([given.get("train", rest[:0]), rest]))
    if "train" not in given:
        raise DataError(f"{place}: no image is of the split train")
    return assemble(
        name=own_name(function),
        place=place,
        classes=classes,
        names=names,
        labels=numbers,
        given=given,
        val=val,
        test=test,
        split_seed=split_seed,
        max_train=max_train,
        folds=folds,
        **known,
    )


def _label(label: Any) -> str:
    """Return the text of a label; torch's text of a number is `tensor(3)`."""
    is_tensor = getattr(label, "ndim", None) == 0 and not isinstance(label, (np.generic, np.ndarray))
    return str(label.item() if is_tensor else label)


def _place_of(path: str) -> str:
    """Return one text for all spellings of a path, such as `./a.png`; links are not followed."""
    # Unlike `Path.expanduser`, this leaves the name of no user as it is.
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def own_name(function: str) -> str:
    """Return the name of a data set from a function."""
    return function.partition(":")[2]


def _parts(found: Any, place: str) -> tuple[npt.NDArray[np.uint8] | list[str], list[str], list[str]]:
    """Return images, labels and splits from the return value of a function.

    Raises:
        DataError: the value has another form.
    """
    if not isinstance(found, Mapping) or not {"images", "labels"} <= set(found) <= {"images", "labels", "splits"}:
        got = f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise DataError(f"{place}: gave {got}; allowed: {{'images': ..., 'labels': ...}}, and 'splits'")
    for name in ("labels", "splits"):
        # A string is a sequence too, of letters.
        if isinstance(one := found.get(name, ()), (str, bytes, Mapping)) or not isinstance(one, Iterable):
            raise DataError(f"{place}: {name} are a {type(one).__name__}; allowed: a list, one for each image")
    images, labels = found["images"], [_label(label) for label in found["labels"]]
    if isinstance(images, np.ndarray):
        is_shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if images.dtype != np.uint8 or not is_shaped or 0 in images.shape:
            raise DataError(
                f"{place}: images are {images.dtype} {list(images.shape)}; allowed: uint8 [N, H, W] or [N, H, W, 3]"
            )
    elif isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        images = [str(path) for path in images]
        if twice := [path for path, count in Counter(map(_place_of, images)).items() if count > 1]:
            raise DataError(f"{place}: a path is there twice, {twice[0]}; allowed: each once")
    else:
        raise DataError(f"{place}: images are a {type(images).__name__}; allowed: an array, or a list of paths")
    splits = [str(split or "") for split in found.get("splits", [""] * len(images))]
    if not len(images) == len(labels) == len(splits) or not len(images):
        raise DataError(f"{place}: {len(images)} images, {len(labels)} labels, {len(splits)} splits; allowed: as many")
    if strange := set(splits) - {*SPLITS, ""}:
        raise DataError(f"{place}: the split {sorted(strange)[0]!r} is not allowed; allowed: {', '.join(SPLITS)}, ''")
    return images, labels, splits
