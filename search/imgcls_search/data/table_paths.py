"""Find the images of a table: paths as written in tables, below one folder."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from imgcls_search.data.opening import EXTENSIONS
from imgcls_search.data.source import LeftOut
from imgcls_search.data.table_file import Rows
from imgcls_search.errors import DataError
from imgcls_search.words import some

DRIVE = re.compile(r"[A-Za-z]:/|//")
"""The start of an absolute Windows path, with backslashes replaced by slashes."""


class FilesBelow(Sequence[Path]):
    """Paths of files below a folder, created on demand: a million of them would take half a gigabyte."""

    def __init__(self, top: Path, names: Sequence[str]) -> None:
        """Store the names only."""
        self.top, self.names = top, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> FilesBelow: ...

    def __getitem__(self, index: int | slice) -> Path | FilesBelow:
        if isinstance(index, slice):
            return FilesBelow(self.top, self.names[index])
        return self.top / self.names[index]


def names_of(rows: Rows, column: str, top: Path, root: str | None) -> list[str]:
    """Return the path of each image relative to the root, with slashes.

    Raises:
        DataError: a path is outside the root.
    """
    # If the root is a link it has two names, and cells may use either.
    written = str(top) if root is None else os.path.abspath(Path(root).expanduser())  # noqa: PTH100
    tops = [f"{place.rstrip('/')}/" for place in dict.fromkeys((written, str(top)))]
    names: list[str] = []
    for row, cell in enumerate(rows.cells[column]):
        name = _below(cell, tops)
        if name is None:
            raise DataError(
                f"{rows.where(row, column)}: {cell!r} is not inside {top}; allowed: paths below it, relative or "
                "absolute; data.table.root names another folder"
            )
        names.append(name)
    return names


def _below(cell: str, tops: Sequence[str]) -> str | None:
    """Return a path relative to a folder that has several names, None if it leads outside."""
    if "\\" in cell and not os.path.lexists(tops[0] + cell):
        cell = cell.replace("\\", "/")
        if DRIVE.match(cell):
            return None
    path = posixpath.normpath(cell if cell.startswith("/") else tops[0] + cell)
    return next((path[len(top) :] for top in tops if path.startswith(top)), None)


def look_for_files(rows: Rows, column: str, names: Sequence[str], top: Path) -> tuple[LeftOut, ...]:
    """Check that the files exist, and return images that no row names; listing folders is faster than checking each
    file.

    Raises:
        DataError: files are missing.
    """
    wanted: dict[str, dict[str, int]] = {}
    for row, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        wanted.setdefault(folder, {})[file] = row
    others = 0
    example = ""
    missing: list[int] = []
    for folder, files in wanted.items():
        here = top / folder
        for entry in _entries(here):
            if entry.name in files:
                if entry.is_file():
                    del files[entry.name]
            elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                others += 1
                shown = f"{folder}/{entry.name}" if folder else entry.name
                example = min(example or shown, shown)
        # The file system may know a file under another spelling.
        missing += [row for file, row in files.items() if not os.path.isfile(here / file)]  # noqa: PTH113
    if missing:
        missing.sort()
        shown = some([f"{names[row]!r} ({rows.line(row)})" for row in missing])
        raise DataError(
            f"{rows.where(missing[0], column)}: {len(missing):,} of {len(rows):,} images are missing: {shown}"
            f"{_twin(top, names[missing[0]])}; paths start from {top}; data.table.root names another folder"
        )
    return (LeftOut(reason="image that no row names", count=others, example=example),) if others else ()


def _twin(top: Path, name: str) -> str:
    """Return in words which file differs from a missing one in case or Unicode form only; empty if none does."""
    folder, _, file = name.rpartition("/")
    for entry in _entries(top / folder):
        if entry.name != file and _folded(entry.name) == _folded(file):
            # Escaped, since the names may look the same otherwise.
            return f"; {entry.name!a} is there, and differs from {file!a} in case or Unicode form"
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (OSError, ValueError):
        # Its files are checked one by one: a folder may allow opening files but not listing, and a damaged table may
        # name one with a NUL.
        return
