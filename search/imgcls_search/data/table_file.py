"""Read columns of a table of labels: CSV and TSV with the standard library, Parquet with pyarrow."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls_search.errors import DataError, closest, first_line
from imgcls_search.words import some

DELIMITERS: Mapping[str, Sequence[str]] = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
"""Delimiters of text files, by extension; spreadsheets of many countries write CSV with `;`."""

MEMORY = 100_000
"""Number of distinct cells that are cached, so that equal cells of a million rows are one object."""
PARQUET = ".parquet"
KINDS = "a table ending in .csv, .tsv or .parquet"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Columns of a table as text, with surrounding spaces removed."""

    place: str
    """The location in error messages: `data.table: /photos/labels.csv`."""

    header: Sequence[str]
    """The names of all columns of the file."""

    cells: Mapping[str, list[str]]
    """Per requested column; empty cells are empty strings."""

    lines: Sequence[int]
    """The line of each row in a text file, or its number in a Parquet file, counted from 1."""

    is_text: bool

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int, column: str) -> str:
        """Return the location of a cell, to start an error message."""
        at = f"{self.place}:{self.lines[row]}:" if self.is_text else f"{self.place}: row {self.lines[row]},"
        return f"{at} column {column!r}"

    def line(self, row: int) -> str:
        """Return the line or row number in words."""
        return f"{'line' if self.is_text else 'row'} {self.lines[row]}"


def refuse(rows: Rows, column: str, bad: Sequence[int], what: str) -> None:
    """Raise DataError about cells of a column, if there are any; it shows the first and lists the others."""
    if bad:
        others = some([rows.line(row) for row in bad[1:]])
        raise DataError(f"{rows.where(bad[0], column)}: {what}{f'; as in {others}' if others else ''}")


def read_rows(path: Path, columns: Mapping[str, str], place: str) -> Rows:
    """Read columns of a table, given with the setting that chooses each; rows with only empty cells are skipped.

    Raises:
        DataError: the file is missing, of another kind, damaged, or lacks a column; text is not UTF-8.
    """
    _must_be_table(path, place)
    try:
        rows = (_read_parquet if path.suffix.lower() == PARQUET else _read_text)(path, columns, place)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error
    if not len(rows):
        raise DataError(f"{place}: has no rows; needed: one for each image")
    return rows


def read_header(path: Path, place: str) -> Sequence[str]:
    """Return the names of all columns of a table.

    Raises:
        DataError: the file is missing, of another kind or damaged; text is not UTF-8.
    """
    _must_be_table(path, place)
    if path.suffix.lower() != PARQUET:
        return read_rows(path, {}, place).header
    try:
        from pyarrow import parquet

        return [str(name).strip() for name in parquet.read_schema(path).names]
    # Reading the cells reports any problem, such as a missing package.
    except Exception:
        return []


def _must_be_table(path: Path, place: str) -> None:
    if not path.exists():
        raise DataError(f"{place}: does not exist; allowed: {KINDS}")
    if not path.is_file():
        raise DataError(f"{place}: is not a file; allowed: {KINDS}")
    if path.suffix.lower() not in (*DELIMITERS, PARQUET):
        raise DataError(f"{place}: is not a known kind of table; allowed: {KINDS}")


def _find(columns: Mapping[str, str], header: Sequence[str], place: str) -> dict[str, int]:
    """Return the index of each column.

    Raises:
        DataError: a column does not exist, or several have its name.
    """
    missing = [name for name in columns if name not in header]
    if missing:
        near = closest(missing[0], header)
        settings = list(dict.fromkeys(columns[name] for name in missing))
        raise DataError(
            f"{place}: has no column {some([repr(name) for name in missing])}{near}; its columns: "
            f"{some([repr(name) for name in header], 20)}; choose with {some(settings)}"
        )
    for name in columns:
        if header.count(name) > 1:
            raise DataError(f"{place}: has {header.count(name)} columns named {name!r}; rename all but one")
    return {name: header.index(name) for name in columns}


# ---------------------------------------------------------------------------------------------- text


def _read_text(path: Path, columns: Mapping[str, str], place: str) -> Rows:
    try:
        # With or without a byte order mark; newline="" leaves line breaks inside quotes to the reader.
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter, header = _header(file, DELIMITERS[path.suffix.lower()], columns, place)
            at = _find(columns, header, place)
            file.seek(0)
            return _collect(_records(file, delimiter, place), header, at, place)
    except UnicodeDecodeError:
        raise DataError(_undecodable(path, place)) from None


def _header(file: Any, delimiters: Sequence[str], columns: Collection[str], place: str) -> tuple[str, list[str]]:
    """Return the first delimiter that yields the given columns, or else the one that yields most, and all columns."""
    found: list[tuple[str, list[str]]] = []
    failed: list[DataError] = []
    for delimiter in delimiters:
        file.seek(0)
        try:
            _, cells = next(_records(file, delimiter, place), (0, []))
        except DataError as error:
            # After a quoted name, the reader takes no other delimiter.
            failed.append(error)
            continue
        header = [cell.strip() for cell in cells]
        if columns and set(columns) <= set(header):
            return delimiter, header
        found.append((delimiter, header))
    if not found:
        raise failed[0]
    best = max(found, key=lambda one: len(one[1]))
    if not best[1]:
        raise DataError(f"{place}: is empty; needed: a first line with the names of the columns")
    return best


def _records(file: Any, delimiter: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line number of each row, with its cells; skip empty rows."""
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{place}:{line}: cannot be read: {error} (a quote that is never closed?)") from error


def _collect(
    records: Iterator[tuple[int, list[str]]], header: Sequence[str], at: Mapping[str, int], place: str
) -> Rows:
    next(records)
    cells: dict[str, list[str]] = {name: [] for name in at}
    adders = [(cells[name].append, place_in_row) for name, place_in_row in at.items()]
    lines = array("q")
    known: dict[str, str] = {}
    width = len(header)
    for line, row in records:
        if len(row) != width:
            raise DataError(
                f"{place}:{line}: has {len(row)} cells where the first line has {width} columns "
                "(text that holds the delimiter needs quotes)"
            )
        lines.append(line)
        for add, place_in_row in adders:
            text = row[place_in_row].strip()
            add(known.setdefault(text, text) if len(known) < MEMORY else known.get(text, text))
    return Rows(place=place, header=header, cells=cells, lines=lines, is_text=True)


OTHER_KINDS: Mapping[bytes, str] = {
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"PK\x03\x04": "a zip archive or an Excel workbook; save it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV",
    b"PAR1\x15": "a Parquet file; name it .parquet",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"SQLite format 3\0": "a SQLite database; export its table as CSV",
}
"""Magic bytes of files that are often named like tables, and what to do with them."""


def _undecodable(path: Path, place: str) -> str:
    """Return which bytes of a text file are not UTF-8, with line and column."""
    header: list[str] = []
    delimiter = ","
    with path.open("rb") as file:
        start = file.read(16)
        for magic, kind in OTHER_KINDS.items():
            if start.startswith(magic):
                return f"{place}: is {kind}; allowed: {KINDS}"
        file.seek(0)
        for number, raw in enumerate(file, start=1):
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                return f"{place}:1: is UTF-16; allowed: UTF-8; save it as UTF-8 text"
            text = raw.decode("utf-8", "surrogateescape").lstrip("\ufeff")
            if number == 1:
                delimiter = max(DELIMITERS[path.suffix.lower()], key=text.count)
            cells = text.rstrip("\r\n").split(delimiter)
            if number == 1:
                header = cells
            for index, cell in enumerate(cells):
                if (bad := next((sign for sign in cell if "\udc80" <= sign <= "\udcff"), None)) is not None:
                    name = header[index].strip() if index < len(header) and number > 1 else str(index + 1)
                    return (
                        f"{place}:{number}: column {name!r}: byte 0x{ord(bad) - 0xDC00:02x} is not UTF-8; "
                        "save the table as UTF-8 text"
                    )
    return f"{place}: is not UTF-8; save it as UTF-8 text"


# ---------------------------------------------------------------------------------------------- Parquet


def _read_parquet(path: Path, columns: Mapping[str, str], place: str) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{place}: Parquet needs a package that is not installed; pip install 'imgcls-search[tables]'"
        ) from None
    cells: dict[str, list[str]] = {name: [] for name in columns}
    known: dict[str, str] = {}
    try:
        # As an open file: pyarrow would also read a path as a URL.
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            header = [name.strip() for name in schema.names]
            for name, index in _find(columns, header, place).items():
                _must_be_text(schema.field(index).type, name, place, pyarrow.types)
            for batch in table.iter_batches(columns=[schema.names[header.index(name)] for name in columns]):
                for name, column in zip(columns, batch.columns, strict=True):
                    cells[name] += [known.setdefault(text, text) for text in map(_as_text, column.to_pylist())]
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{place}: is damaged: {first_line(error)}") from error
    count = len(next(iter(cells.values())))
    kept = [row for row in range(count) if any(column[row] for column in cells.values())]
    if len(kept) < count:
        cells = {name: [column[row] for row in kept] for name, column in cells.items()}
    lines = array("q", (row + 1 for row in kept))
    return Rows(place=place, header=header, cells=cells, lines=lines, is_text=False)


def _must_be_text(kind: Any, name: str, place: str, kinds: Any) -> None:
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_boolean, kinds.is_floating)
    if not any(test(kind) for test in (*tests, kinds.is_null)):
        raise DataError(f"{place}: column {name!r} is of type {kind}; allowed: text, numbers or booleans")


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()
