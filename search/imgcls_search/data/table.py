"""Images listed in a table, one row each: path, label and, if there is such a column, split."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from imgcls_search.data import fingerprint, label_sets
from imgcls_search.data.folders import ALIASES, SPLITS, similar_names
from imgcls_search.data.groups import Groups
from imgcls_search.data.label_sets import Labels
from imgcls_search.data.listing import Listing
from imgcls_search.data.source import Folds, MaxTrain, Source, Split, SplitSeed, Test, Val
from imgcls_search.data.table_file import Rows, read_rows, refuse
from imgcls_search.data.table_labels import read_columns, read_separated, where_first
from imgcls_search.data.table_paths import FilesBelow, look_for_files, names_of
from imgcls_search.errors import BuildError, DataError, closest
from imgcls_search.signature import Arg

Numbers = npt.NDArray[np.int64]


def table(
    *,
    file: Annotated[str, Arg("a table with a row for each image: .csv, .tsv or .parquet", fixed=True)],
    image: Annotated[str, Arg("the column of the images' paths", fixed=True)] = "image",
    label: Annotated[
        str | tuple[str, ...],
        Arg(
            "the column of the classes; several columns: of each, whether an image has the label of its name",
            fixed=True,
        ),
    ] = "label",
    separator: Annotated[
        str | None,
        Arg("what separates the labels of an image in the column; an image may have several or none", fixed=True),
    ] = None,
    split: Annotated[
        str | None, Arg("the column that says train, val or test; where its cell is empty, it is cut", fixed=True)
    ] = None,
    group: Annotated[
        str | None, Arg("the column of groups, as patients or videos: all images of one stay in one split", fixed=True)
    ] = None,
    root: Annotated[
        str | None, Arg("the folder that paths start from and stay in; null: the folder of the table", fixed=True)
    ] = None,
    val: Val = 0.15,
    test: Test = 0.2,
    split_seed: SplitSeed = 0,
    max_train: MaxTrain = None,
    folds: Folds = None,
    skip_unreadable: Annotated[
        bool, Arg("leave out images that cannot be read, and list them, instead of refusing the table", fixed=True)
    ] = False,
) -> Source:
    """Read the images that a table names; splits that no row names are taken from the rows without a split.

    Classes are the labels, sorted, or the columns of labels. The order of the rows changes nothing.

    Raises:
        BuildError: the columns of labels, or the separator, cannot be.
        DataError: the table cannot be read, a cell is not allowed, an image is missing, or a class is too small to cut.
    """
    found = _list(file, root, image=image, label=label, separator=separator, split=split, group=group)
    given, kept = found.given()
    return found.cut(
        given,
        skips_unreadable=skip_unreadable,
        val=val,
        test=test,
        split_seed=split_seed,
        max_train=max_train,
        folds=folds,
        kept=kept,
        seen=found.seen,
        groups=found.groups,
    )


def names_split(split: Split | Literal[""], *, file: str, column: str | None) -> bool:
    """Tell whether any row of a table has a split; '' for an empty cell in the column of splits.

    Raises:
        DataError: the table cannot be read, or lacks the column.
    """
    if column is None:
        return False
    path = _located(file)
    return split in read_rows(path, {column: "data.table.split"}, f"data.table: {path}").cells[column]


def whole_table(
    only: Split | Literal[""] | None,
    *,
    file: str,
    root: str | None,
    image: str,
    label: str | tuple[str, ...],
    separator: str | None = None,
    split: str | None,
    skip_unreadable: bool = False,
) -> Source:
    """Read a table as one split, `test`, with all its images, or with those of one split that rows name, or of none.

    Raises:
        DataError: the table cannot be read, a cell is not allowed, or an image is missing.
    """
    split = split if only is not None else None
    found = _list(file, root, image=image, label=label, separator=separator, split=split, needs_train=False)
    items = np.arange(len(found.names)) if only is None else np.flatnonzero(found.splits == only)
    return found.as_test(items, skips_unreadable=skip_unreadable)


@dataclass(frozen=True, kw_only=True)
class _Listing(Listing):
    """The images of a table."""

    splits: npt.NDArray[np.str_]
    """Per image; empty if its split is to be cut."""

    groups: Groups | None
    seen: Sequence[str]
    """The place of each class's first row, for error messages."""

    def given(self) -> tuple[dict[Split, Numbers], Numbers | None]:
        """Return the splits that are given, with `train` as the images to cut from.

        The second value are training images that nothing is cut from, None if there are none.
        """
        given = {split: np.flatnonzero(self.splits == split) for split in SPLITS if (self.splits == split).any()}
        free = np.flatnonzero(self.splits == "")
        if not len(free):
            return given, None
        named = given.get("train")
        if "val" in given and "test" in given and named is not None:
            # There is nothing to cut.
            return {**given, "train": np.sort(np.concatenate([named, free]))}, None
        return {**given, "train": free}, named


def _located(path: str) -> Path:
    return Path(path).expanduser().resolve()


def _list(
    file: str,
    root: str | None,
    *,
    image: str,
    label: str | tuple[str, ...],
    separator: str | None,
    split: str | None,
    group: str | None = None,
    needs_train: bool = True,
) -> _Listing:
    path = _located(file)
    place = f"data.table: {path}"
    of_labels = (label,) if isinstance(label, str) else label
    _check_labels(label, separator, {"image": image, "split": split, "group": group})
    used = [(image, "image"), *((name, "label") for name in of_labels), (split, "split"), (group, "group")]
    columns = {name: f"data.table.{setting}" for name, setting in used if name is not None}
    rows = read_rows(path, columns, place)
    top = path.parent if root is None else _located(root)
    if not top.is_dir():
        raise DataError(f"data.table.root: {top}: is not a folder; allowed: the folder that the paths start from")
    _refuse_empty(rows, image)
    if isinstance(label, str) and separator is None:
        _refuse_empty(rows, label)
    if group is not None:
        _refuse_empty(rows, group)
    names = names_of(rows, image, top, root)
    order = sorted(range(len(rows)), key=names.__getitem__)
    splits = _splits(rows, split)
    groups = None if group is None else Groups.of(rows.cells[group])
    if groups is not None and split is not None:
        splits = _follow_groups(splits, groups)
    _refuse_repeated(rows, image, of_labels, split, names, order)
    left_out = look_for_files(rows, image, names, top)
    classes, labels, seen = _classes(rows, label, separator, needs_train=needs_train)
    if needs_train:
        _refuse_untrained(rows, label, classes, labels, split, splits)
    splits, labels, names = splits[order], labels[order], [names[row] for row in order]
    paths = FilesBelow(top, names)
    # A row's split counts in the fingerprint, as a split's folder does.
    told = names if split is None else [f"{name}\0{part}" for name, part in zip(names, splits, strict=True)]
    if group is not None and groups is not None:
        groups = Groups(names=groups.names, numbers=groups.numbers[order])
        told = [f"{name}\0\0{groups.names[number]}" for name, number in zip(told, groups.numbers, strict=True)]
    sealed = np.flatnonzero(splits == "test") if (splits == "test").any() else None
    known = (classes, told, labels, paths)
    return _Listing(
        name=path.stem,
        place=place,
        classes=classes,
        names=names,
        paths=paths,
        labels=labels,
        splits=splits,
        groups=groups,
        seen=seen,
        make_prints=cache(partial(fingerprint.of_files, *known, sealed=sealed, memory=fingerprint.memory())),
        first_fingerprint=partial(fingerprint.of_files_by_edges, *known),
        left_out=left_out,
        notes=(
            *similar_names(classes),
            *_joined(classes, label, separator),
            *_unused(rows, {"split": split, "group": group}, columns),
        ),
    )


def _refuse_empty(rows: Rows, column: str) -> None:
    refuse(rows, column, [row for row, cell in enumerate(rows.cells[column]) if not cell], "the cell is empty")


def _splits(rows: Rows, column: str | None) -> npt.NDArray[np.str_]:
    if column is None:
        return np.zeros(len(rows), dtype="<U5")
    cells = rows.cells[column]
    bad = [row for row, cell in enumerate(cells) if cell and cell not in SPLITS]
    if bad:
        cell = cells[bad[0]]
        meant = ALIASES.get(cell.lower(), cell.lower())
        near = f" (did you mean {meant!r}?)" if meant in SPLITS else closest(cell, SPLITS)
        refuse(rows, column, bad, f"{cell!r} is not a split{near}; allowed: train, val, test, or an empty cell")
    return np.array(cells, dtype="<U5")


def _follow_groups(splits: npt.NDArray[np.str_], groups: Groups) -> npt.NDArray[np.str_]:
    """Return the splits of rows; an empty cell takes the split of another row of its group."""
    named = np.flatnonzero(splits != "")
    by_group = np.zeros(len(groups.names), dtype=splits.dtype)
    by_group[groups.numbers[named]] = splits[named]
    return np.where(splits == "", by_group[groups.numbers], splits)


def _refuse_repeated(
    rows: Rows, image: str, labels: Sequence[str], split: str | None, names: Sequence[str], order: Sequence[int]
) -> None:
    """Refuse images that are in two rows; sorted by name, these are neighbours."""
    twice = [(one, two) for one, two in itertools.pairwise(order) if names[one] == names[two]]
    for column in (*labels, split, image):
        cells = rows.cells[column] if column is not None and column != image else None
        pairs = [(one, two) for one, two in twice if cells is None or cells[one] != cells[two]]
        if column is None or not pairs:
            continue
        one, two = min(pairs, key=lambda pair: pair[1])
        first = f"{names[two]!r} is in {rows.line(one)} too"
        said = f"{first}, there as {cells[one]!r}, here as {cells[two]!r}" if cells is not None else first
        count = f" ({len(pairs):,} such rows)" if len(pairs) > 1 else ""
        raise DataError(f"{rows.where(two, column)}: {said}{count}; allowed: one row for each image")


def _check_labels(label: str | tuple[str, ...], separator: str | None, others: Mapping[str, str | None]) -> None:
    """Refuse label columns or a separator that cannot work.

    Raises:
        BuildError: there is only one label column, a column is given twice or has another role; or there is a separator
            besides label columns.
    """
    if separator == "":
        raise BuildError("separator", "'' is not allowed; allowed: what separates labels, such as ';', or null")
    if isinstance(label, str):
        return
    if separator is not None:
        raise BuildError("separator", "needs one column of labels; leave it out, or name one column in label")
    twice = [name for name in label if label.count(name) > 1]
    taken = [(role, name) for role, name in others.items() if name in label]
    if len(label) < 2:
        raise BuildError("label", f"{list(label)} is one column; for a class of each image write label: {label[0]}")
    if twice:
        raise BuildError("label", f"{twice[0]!r} is given twice; allowed: each column once")
    if taken:
        raise BuildError("label", f"{taken[0][1]!r} is the column {taken[0][0]!r} already; allowed: other columns")


def _classes(
    rows: Rows, label: str | tuple[str, ...], separator: str | None, *, needs_train: bool
) -> tuple[tuple[str, ...], Labels, list[str]]:
    """Return the classes, the class number or labels of each row, and the place of each class's first row.

    Raises:
        DataError: a cell is not allowed, with several labels per image.
    """
    if isinstance(label, str) and separator is None:
        cells = rows.cells[label]
        classes = tuple(sorted(set(cells)))
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.fromiter((numbers[cell] for cell in cells), dtype=np.int64, count=len(cells))
        firsts = np.unique(labels, return_index=True)[1]
        return classes, labels, [rows.where(int(row), label) for row in firsts]
    if isinstance(label, str):
        assert separator is not None
        # Images for evaluation only may have few labels.
        classes, flags = read_separated(rows, label, separator, least=2 if needs_train else 1)
    else:
        classes, flags = read_columns(rows, label, may_lack=not needs_train)
    return classes, flags, where_first(rows, label, classes, flags)


def _refuse_untrained(
    rows: Rows,
    label: str | tuple[str, ...],
    classes: Sequence[str],
    labels: Labels,
    split: str | None,
    splits: npt.NDArray[np.str_],
) -> None:
    """Raise DataError if no row is for training, or a label of a held-out split has no training row."""
    is_trained = (splits == "train") | (splits == "")
    if not is_trained.any():
        assert split is not None
        raise DataError(f"{rows.place}: column {split!r}: no row says train or is empty; needed: training images")
    strange = np.flatnonzero(label_sets.count(labels[is_trained], len(classes)) == 0).tolist()
    if not strange:
        return
    items, numbers = label_sets.pairs(labels)
    # np.unique returns the first index of equal numbers.
    known, places = np.unique(numbers, return_index=True)
    first = dict(zip(known.tolist(), items[places].tolist(), strict=True))
    number = min(strange, key=first.__getitem__)
    row = first[number]
    near = closest(classes[number], [name for other, name in enumerate(classes) if other not in strange])
    what = f"{classes[number]!r} is in {splits[row]} but not in train{near}; allowed: labels of the training rows"
    if isinstance(label, str):
        refuse(rows, label, sorted({first[other] for other in strange}), what)
    refuse(rows, classes[number], [row], what)


def _joined(classes: Sequence[str], label: str | tuple[str, ...], separator: str | None) -> Iterator[str]:
    """Yield a note if classes look like several labels in one cell."""
    if separator is not None or not isinstance(label, str):
        return
    for sign in (";", "|", ","):
        if 2 * sum(sign in name for name in classes) >= len(classes):
            yield (
                f"most classes hold {sign!r}: if these are several labels of an image, --set "
                f"'data.table.separator=\"{sign}\"' reads them"
            )
            return


def _unused(rows: Rows, roles: Mapping[str, str | None], used: Collection[str]) -> Iterator[str]:
    """Yield notes about unused columns that look meant to be used."""
    for role, column in roles.items():
        if column is None and role in rows.header and role not in used:
            yield f"the column {role!r} is not used; --set data.table.{role}={role} uses it"
