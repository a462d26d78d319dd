"""Predictions of many images as a table, CSV or Parquet, and as a one-line summary."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imgcls_search import atomic
from imgcls_search.deploy.bundle import Bundle
from imgcls_search.deploy.predict import Prediction, Skipped
from imgcls_search.errors import UserError, writing
from imgcls_search.terminal import shown

ENDINGS = (".csv", ".parquet")

SEPARATORS = (";", "|", " / ")
"""Separators for labels in one cell: the first one that occurs in no label is used."""

ROWS = 5_000
"""Number of rows written together to a Parquet file."""

Found = Prediction | Skipped
Row = list[Any]


def check_table(path: Path) -> None:
    """Refuse an output file for a table before reading any image.

    Raises:
        UserError: the extension is not allowed, a package is missing, or the file cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"-o {path}: not a table by its name; allowed: names that end in {' or '.join(ENDINGS)}")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(
            f"-o {path}: Parquet needs a package that is not installed; pip install 'imgcls-search[tables]'"
        )
    with writing(path):
        atomic.check_writable(path)


@contextmanager
def table(bundle: Bundle, path: Path) -> Iterator[Callable[[Found], None]]:
    """Yield a function that adds an image's prediction to a table; the file appears complete at the end, or not at all.

    Columns: `image`, `predicted` (several labels are joined by a separator that none of them contains), `p(CLASS)` for
    each class, `expected_cost` of the prediction if decisions have costs, `unsure` and `unlike` if known, and
    `skipped`: why an image has no prediction. A prediction must rank all classes.

    Raises:
        UserError: the file cannot be written.
    """
    columns = _columns(bundle)
    write = _to_csv if path.suffix.lower() == ".csv" else _to_parquet
    with writing(path), atomic.replacing(path) as draft, write(draft, columns) as add:
        yield lambda found: add(_row(found, bundle))


def _columns(bundle: Bundle) -> dict[str, type]:
    """Return the columns with their types."""
    costs: dict[str, type] = {"expected_cost": float} if bundle.costs is not None else {}
    classes = {f"p({shown(name)})": float for name in bundle.labels}
    return {"image": str, "predicted": str, **classes, **costs, "unsure": bool, "unlike": bool, "skipped": str}


def _row(found: Found, bundle: Bundle) -> Row:
    extra = [None] * (bundle.costs is not None)
    if isinstance(found, Skipped):
        return [shown(found.image), None, *[None] * len(bundle.labels), *extra, None, None, shown(found.reason)]
    shares = dict(found.ranked)
    predicted = found.ranked[0][0] if found.labels is None else separator(bundle.labels).join(found.labels)
    price = [found.costs[0]] if found.costs is not None else extra
    each = [shares[name] for name in bundle.labels]
    return [shown(found.image), shown(predicted), *each, *price, found.is_unsure, found.is_unlike, None]


@contextmanager
def _to_csv(path: Path, columns: dict[str, type]) -> Iterator[Callable[[Row], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([as_text(name) for name in columns])
        yield lambda row: writer.writerow([_cell(value) for value in row])


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else as_text(value) if isinstance(value, str) else value


@contextmanager
def _to_parquet(path: Path, columns: dict[str, type]) -> Iterator[Callable[[Row], None]]:
    import pyarrow
    from pyarrow import parquet

    kinds = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    rows: list[Row] = []

    def flush() -> None:
        cells = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in columns]
        arrays = [pyarrow.array(column, kind) for column, kind in zip(cells, schema.types, strict=True)]
        writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
        rows.clear()

    def add(row: Row) -> None:
        rows.append(row)
        if len(rows) == ROWS:
            flush()

    with parquet.ParquetWriter(path, schema) as writer:
        yield add
        flush()


def separator(classes: Sequence[str]) -> str:
    """Return the separator for several labels in one cell."""
    return next((sign for sign in SEPARATORS if not any(sign in name for name in classes)), SEPARATORS[0])


def as_text(cell: str) -> str:
    """Return a cell that a spreadsheet does not read as a formula, because file names are untrusted."""
    cell = shown(cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


class Summary:
    """Counts predictions for a one-line summary."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.images = self.skipped = self.unsure = self.unlike = 0

    def add(self, found: Found) -> None:
        """Count an image."""
        if isinstance(found, Skipped):
            self.skipped += 1
            return
        self.images += 1
        if found.is_unsure:
            self.unsure += 1
        else:
            self.classes.update(found.labels if found.labels is not None else [found.ranked[0][0]])
        self.unlike += bool(found.is_unlike)

    def __str__(self) -> str:
        """Return `12 images: cat 7, dog 5; 2 unsure; 1 skipped`."""
        most = 20
        common = [f"{shown(name)} {count:,}" for name, count in self.classes.most_common(most)]
        more = [f"{len(self.classes) - most} more"] if len(self.classes) > most else []
        named = ", ".join([*common, *more]) or ("no label" if self.images > self.unsure else "")
        parts = [f"{self.images:,} image{'' if self.images == 1 else 's'}" + (f": {named}" if named else "")]
        parts += [f"{self.unsure:,} unsure"] if self.unsure else []
        parts += [f"{self.unlike:,} unlike the training images"] if self.unlike else []
        parts += [f"{self.skipped:,} skipped"] if self.skipped else []
        return "; ".join(parts)
