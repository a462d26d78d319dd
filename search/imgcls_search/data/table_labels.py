"""Several labels per image in a table: one column with a separator, or a yes/no column per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imgcls_search.data.table_file import Rows, refuse
from imgcls_search.errors import DataError

YES = ("1", "1.0", "true", "yes")
NO = ("0", "0.0", "false", "no")
CELLS = "0 or 1, true or false, yes or no"

Flags = npt.NDArray[np.uint8]


def read_separated(rows: Rows, column: str, separator: str, *, least: int = 2) -> tuple[tuple[str, ...], Flags]:
    """Return the labels in the cells of a column, sorted, and which of them each row has.

    An empty cell is an image without a label.

    Raises:
        DataError: a cell has an empty label, or one twice; or all cells together have fewer labels than `least`.
    """
    cells = [[part.strip() for part in cell.split(separator)] if cell else [] for cell in rows.cells[column]]
    bad = [row for row, labels in enumerate(cells) if "" in labels]
    if bad:
        refuse(rows, column, bad, f"{rows.cells[column][bad[0]]!r} has an empty label beside {separator!r}")
    bad = [row for row, labels in enumerate(cells) if len(set(labels)) < len(labels)]
    if bad:
        twice = next(label for label in cells[bad[0]] if cells[bad[0]].count(label) > 1)
        refuse(rows, column, bad, f"{rows.cells[column][bad[0]]!r} names {twice!r} twice")
    classes = tuple(sorted({label for labels in cells for label in labels}))
    if len(classes) < least:
        named = f"the only label is {classes[0]!r}" if classes else "no cell names a label"
        raise DataError(
            f"{rows.place}: column {column!r}: {named}; needed: at least {least} (is {separator!r} the separator?)"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    found = np.zeros((len(rows), len(classes)), dtype=np.uint8)
    for row, labels in enumerate(cells):
        for label in labels:
            found[row, numbers[label]] = 1
    return classes, found


def read_columns(rows: Rows, columns: Sequence[str], *, may_lack: bool = False) -> tuple[tuple[str, ...], Flags]:
    """Return the labels, which are the column names, and which of them each row has.

    Raises:
        DataError: a cell is neither yes nor no; or no row has a label, unless `may_lack`.
    """
    found = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for number, column in enumerate(columns):
        cells = [cell.lower() for cell in rows.cells[column]]
        known = {cell: cell in YES for cell in (*YES, *NO)}
        bad = [row for row, cell in enumerate(cells) if cell not in known]
        if bad:
            cell = rows.cells[column][bad[0]]
            refuse(
                rows, column, bad, f"{f'{cell!r} is not allowed' if cell else 'the cell is empty'}; allowed: {CELLS}"
            )
        found[:, number] = [known[cell] for cell in cells]
        if not may_lack and not found[:, number].any():
            raise DataError(f"{rows.place}: column {column!r}: no row has this label; leave it out of data.table.label")
    return tuple(columns), found


def where_first(rows: Rows, label: str | Sequence[str], classes: Sequence[str], found: Flags) -> list[str]:
    """Return the location of each label's first row, to start an error message."""
    firsts = found.argmax(axis=0).tolist()
    return [
        rows.where(row, label if isinstance(label, str) else name) for row, name in zip(firsts, classes, strict=True)
    ]
