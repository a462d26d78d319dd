"""Image data: sources, splits and sealed test sets, decoded once and augmented."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from imgcls_search.config import Component, expand_path
from imgcls_search.data import fingerprint
from imgcls_search.data.augment import Augment, Moment, augment
from imgcls_search.data.custom import custom
from imgcls_search.data.decode import decode
from imgcls_search.data.digits import digits
from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.folders import ALLOWED, SPLITS, folder, has_split, whole_folder
from imgcls_search.data.image import Frame, InputShape
from imgcls_search.data.mixing import Mix, mix_nothing, mixing
from imgcls_search.data.policies import POLICIES, Policy
from imgcls_search.data.prepared import Images, Prepared
from imgcls_search.data.source import LeftOut, Source, Split
from imgcls_search.data.store import load, look_at_test, open_all, open_test, prepare, remove, stored
from imgcls_search.data.stream import Streamed
from imgcls_search.data.summary import Summary, choose_shape, describe_left_out, native_shape, read_headers, summarise
from imgcls_search.data.table import names_split, table, whole_table
from imgcls_search.data.table_file import KINDS
from imgcls_search.data.torchvision_sets import SHAPES, cifar10, torchvision_set
from imgcls_search.errors import BuildError, DataError, UserError, closest

__all__ = [
    "DATASETS",
    "POLICIES",
    "Augment",
    "Frame",
    "Images",
    "InputShape",
    "LeftOut",
    "Mix",
    "Moment",
    "Policy",
    "Prepared",
    "Prints",
    "Source",
    "Split",
    "Streamed",
    "Summary",
    "augment",
    "choose_shape",
    "comes_with",
    "decode",
    "describe",
    "describe_left_out",
    "describe_whole",
    "file_root",
    "has_several_labels",
    "is_of_files",
    "is_there",
    "known_shape",
    "load",
    "look_at_test",
    "mix_nothing",
    "mixing",
    "must_be_apart",
    "must_exist",
    "native_shape",
    "open_all",
    "open_test",
    "prepare",
    "read_headers",
    "remove",
    "skipping_unreadable",
    "stored",
    "summarise",
]

DATASETS: Mapping[str, Callable[..., Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "folder": folder,
    "table": table,
    "torchvision": torchvision_set,
    "custom": custom,
}
"""Builders take all arguments from the space file and return a `Source`; they decode no image yet."""


def known_shape(component: Component, cache: Path | None = None) -> tuple[int | None, int | None, int | None]:
    """Return the image side, channels and number of classes of a data set, None for unknown values.

    Only the names in an existing folder are read.
    """
    match component.name:
        case "digits":
            return 8, 1, 10
        case "cifar10":
            return SHAPES["CIFAR10"]
        case "torchvision":
            return SHAPES[component.args["name"]]
        case _ if component.name == "custom" or is_there(component):
            return None, None, len(describe(component, cache).classes)
        case _:
            return None, None, None


def has_several_labels(component: Component) -> bool:
    """Tell whether a data section allows several labels per image, or none, instead of one class."""
    args = component.args
    is_of_columns = isinstance(args.get("label"), (list, tuple))
    return args.get("separator") is not None or is_of_columns or args.get("labels") == "several"


def is_of_files(component: Component) -> bool:
    """Tell whether a data set consists of the user's own files, which may change, move or be damaged."""
    return component.name in ("folder", "table")


def skipping_unreadable(component: Component) -> Component:
    """Return a data set that skips unreadable images, for `--skip-unreadable`.

    Raises:
        UserError: the data set is not a folder or a table.
    """
    if not is_of_files(component):
        raise UserError(
            f"--skip-unreadable: needs a folder or a table of images (data.folder, data.table), got {component.path}"
        )
    return replace(component, args={**component.args, "skip_unreadable": True})


def file_root(component: Component) -> Path | None:
    """Return the folder that image names are relative to, None if the images are not in files."""
    args = _located(component).args
    if component.name == "table" and args.get("root") is None:
        return Path(args["file"]).expanduser().resolve().parent
    return Path(args["root"]).expanduser().resolve() if args.get("root") is not None else None


def is_there(component: Component) -> bool:
    """Tell whether the folder or table of a data section exists, even if it is of the wrong kind."""
    return (
        is_of_files(component)
        and Path(_located(component).args["file" if component.name == "table" else "root"]).exists()
    )


def must_exist(component: Component) -> None:
    """Refuse a data set whose folder or table does not exist, without reading it.

    Raises:
        DataError: the folder or table is missing or of the wrong kind, and `download` is off.
    """
    if "file" in component.args:
        file = expand_path(component.args["file"], f"{component.path}.file").resolve()
        if not file.is_file():
            wrong = "is not a file" if file.exists() else "does not exist"
            raise DataError(f"{component.path}: {file}: {wrong}; allowed: {KINDS}")
    root = component.args.get("root")
    if root is None or component.args.get("download"):
        return
    top = expand_path(root, f"{component.path}.root").resolve()
    wanted = {"folder": f"a folder with {ALLOWED}", "table": "the folder that its paths start from"}.get(
        component.name, "a folder that has it, or download: true"
    )
    if not top.exists():
        raise DataError(f"{component.path}: {top}: does not exist; allowed: {wanted}")
    if not top.is_dir():
        raise DataError(f"{component.path}: {top}: is not a folder; allowed: {wanted}")


def must_be_apart(component: Component, written: Path, option: str) -> None:
    """Refuse to write a folder or a picture among images, where it would count as one; hidden folders do not count.

    Raises:
        UserError: it is in a folder of classes.
    """
    if component.name != "folder":
        return
    root, place = component.args["root"], written.resolve()
    top = expand_path(root, f"{component.path}.root").resolve()
    for tree in [top / split for split in SPLITS if (top / split).is_dir()] or [top]:
        if place.is_relative_to(tree) and not any(part[0] == "." for part in place.relative_to(tree).parts):
            raise UserError(
                f"{option} {written}: is in the folder of the images, {root}, where it would count as a class or an "
                f"image; run this outside of it, or name another folder with {option}"
            )


def describe(component: Component, cache: Path | None = None) -> Source:
    """Build the source of a configuration's `data` section; hashes of its files are cached in `cache`.

    Raises:
        BuildError: there is no such data set, or an argument's value has no effect.
        DataError: the images are missing or cannot be split.
    """
    if component.name not in DATASETS:
        known = ", ".join(DATASETS)
        raise BuildError(component.path, f"no such data set{closest(component.name, DATASETS)}; allowed: {known}")
    located = _located(component)
    _refuse_idle_val(component)
    remembering = fingerprint.remembering(cache) if cache is not None else contextlib.nullcontext()
    try:
        with remembering:
            found = DATASETS[component.name](**located.args)
    except BuildError as error:
        # A builder does not know the full path of its argument in the file.
        raise BuildError(f"{component.path}.{error.path}", error.message) from error
    return replace(found, notes=(*found.notes, *_idle_shares(component)))


def describe_once(component: Component, cache: Path) -> Source:
    """Like `describe`, but keep the last few sources: workers ask for each job, and listing a large folder is slow."""
    return _described(json.dumps({"name": component.name, "args": dict(component.args)}), cache)


@lru_cache(maxsize=4)
def _described(component: str, cache: Path) -> Source:
    found = json.loads(component)
    return describe(Component(path=f"data.{found['name']}", **found), cache)


def _refuse_idle_val(component: Component) -> None:
    if component.args.get("folds") is None or "val" not in component.args:
        return
    usual = inspect.signature(DATASETS[component.name]).parameters["val"].default
    if component.args["val"] != usual:
        raise BuildError(
            f"{component.path}.val",
            f"{component.args['val']:g} has no use beside folds: {component.args['folds']}, which score every image "
            "outside the test split; leave one of them out",
        )


def _idle_shares(component: Component) -> Iterator[str]:
    """Yield a note for each share of a split that somebody has set, but that the images come with.

    A note only, because the split may have been added to the images of a study that has the setting.
    """
    usual = inspect.signature(DATASETS[component.name]).parameters
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        share = component.args.get(split)
        if share is not None and split in usual and share != usual[split].default and comes_with(component, split):
            yield f"{component.path}.{split}: {share:g} has no effect: the images come with a {split} split"


def comes_with(component: Component, split: Split | Literal[""]) -> bool:
    """Tell whether a data set is a folder or a table that comes with a split, so that none has to be cut.

    With '', tell whether it is a table that names the split of some rows at most.

    Raises:
        BuildError: the path uses a variable that is not set.
        DataError: the table cannot be read, or lacks its split column.
    """
    if component.name == "table":
        args = _located(component).args
        return names_split(split, file=args["file"], column=args.get("split"))
    return component.name == "folder" and split != "" and has_split(_located(component).args["root"], split)


def describe_whole(component: Component, only: Split | Literal[""] | None = None) -> Source:
    """Build a source of all images of a data set, even if they are too few to cut into splits.

    `only` is a split that the folder or table comes with, see `comes_with`; '' are the rows of a table without one.

    Raises:
        BuildError: there is no such data set, or an argument's value has no effect.
        DataError: the images are missing.
    """
    located = _located(component)
    if component.name == "table":
        whole = ("file", "root", "image", "label", "separator", "split", "skip_unreadable")
        return whole_table(only, **{name: located.args[name] for name in whole if name in located.args})
    if component.name != "folder":
        return describe(component)
    args = located.args
    assert only != "", "a folder leaves no image without a split if it has any"
    return whole_folder(
        args["root"], only, skip_unreadable=args.get("skip_unreadable", False), labels=args.get("labels", "one")
    )


def _located(component: Component) -> Component:
    """Return a data section with its folder and file as paths of this machine."""
    paths = {
        name: str(expand_path(component.args[name], f"{component.path}.{name}"))
        for name in ("root", "file")
        if component.args.get(name) is not None
    }
    return replace(component, args={**component.args, **paths})
