"""Guess the columns of a table of labels that the user does not name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from imgcls_search.config import Component, expand_path
from imgcls_search.data.opening import EXTENSIONS
from imgcls_search.data.table_file import read_header, read_rows
from imgcls_search.jobs.init.images import OWNERS

IMAGE_SHARE = 0.9
"""Least share of the cells in a column of images that end like image files."""

SEPARATORS = (";", "|", ",")
SEPARATED_SHARE = 0.02
"""Least share of the cells in a column of several labels that contain more than one."""

KNOWN_SHARE = 0.8
"""Least share of the texts between separators that occur more than once: labels repeat, sentences do not."""

LABELS = ("label", "class", "labels", "classes", "species", "category", "target", "tags", "class_name", "label_name")
SPLITS = ("split", "subset", "partition", "set")
SPLIT_CELLS = {"train", "val", "test", ""}
YES_NO = {"0", "1", "true", "false", "yes", "no"}

Guess = tuple[str, Any, str]
"""An argument of the table, its value, and the reason."""


def guess_columns(component: Component) -> tuple[Component, list[Guess], list[str]]:
    """Return a data section with the columns that are obvious, the guesses, and hints.

    The user's arguments stay unchanged, and so does a data set that is no table or whose columns give no clue.

    Raises:
        DataError: the table is missing, damaged or of another kind.
        UserError: its path contains a variable that is not set.
    """
    if component.name != "table":
        return component, [], []
    path = expand_path(component.args["file"], f"{component.path}.file")
    place = f"data.table: {path.absolute()}"
    header = read_header(path, place)
    names = list(dict.fromkeys(name for name in header if header.count(name) == 1))
    if not names:
        return component, [], []
    cells = read_rows(path, dict.fromkeys(names, "data.table"), place).cells
    guesses = [*_image(component, cells), *_split(component, cells), *_label(component, cells)]
    found = replace(component, args={**component.args, **{name: value for name, value, _ in guesses}})
    return found, guesses, list(_group(component, names))


def _image(component: Component, cells: Mapping[str, Sequence[str]]) -> list[Guess]:
    if component.args["image"] in cells:
        return []
    found = [name for name, column in cells.items() if _share(column, _is_image) >= IMAGE_SHARE]
    return [("image", found[0], f"the cells of {found[0]!r} are names of images")] if len(found) == 1 else []


def _split(component: Component, cells: Mapping[str, Sequence[str]]) -> list[Guess]:
    if component.args["split"] is not None:
        return []
    found = [name for name in cells if name.lower() in SPLITS and set(cells[name]) <= SPLIT_CELLS]
    return [("split", found[0], f"the cells of {found[0]!r} are train, val or test")] if len(found) == 1 else []


def _label(component: Component, cells: Mapping[str, Sequence[str]]) -> list[Guess]:
    args = component.args
    if args["separator"] is not None or not isinstance(args["label"], str):
        return []
    found: list[Guess] = []
    label = args["label"]
    if label not in cells:
        named = [name for name in cells if name.lower() in LABELS]
        marks = [name for name, column in cells.items() if _is_mark(column)]
        if len(named) != 1:
            why = f"{len(marks)} columns say yes or no: each is a label, of which an image may have several"
            return [("label", marks, why)] if len(marks) > 1 and not named else []
        label = named[0]
        found = [("label", label, f"{label!r} is the column of labels")]
    for separator in SEPARATORS:
        if _are_separated(cells[label], separator):
            why = f"cells of {label!r} hold several labels, with {separator!r} between them"
            return [*found, ("separator", separator, why)]
    return found


def _group(component: Component, names: Sequence[str]) -> list[str]:
    if component.args["group"] is not None:
        return []
    named = [name for name in names if re.fullmatch(rf"(group|{OWNERS})([_\- ]?(id|no|number|name))?", name, re.I)]
    return [
        f"column {name!r} may say which images belong together: --group {name!r} keeps them in one split"
        for name in named[:1]
    ]


def _share(column: Sequence[str], is_one: Callable[[str], bool]) -> float:
    return sum(map(is_one, column)) / len(column)


def _is_image(cell: str) -> bool:
    return cell.lower().endswith(EXTENSIONS)


def _is_mark(column: Sequence[str]) -> bool:
    return {cell.lower() for cell in column} <= YES_NO and len(set(column)) > 1


def _are_separated(column: Sequence[str], separator: str) -> bool:
    """Tell whether cells contain several labels: most texts between separators occur in other cells too."""
    several = [cell.split(separator) for cell in column if separator in cell]
    if len(several) < max(2, SEPARATED_SHARE * len(column)):
        return False
    whole = {cell for cell in column if separator not in cell}
    counts = Counter(part.strip() for labels in several for part in labels)
    return sum(part in whole or count > 1 for part, count in counts.items()) >= KNOWN_SHARE * len(counts)
