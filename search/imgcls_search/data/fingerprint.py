"""Fingerprints: a short hash that tells whether the images have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search.data import label_sets
from imgcls_search.data.label_sets import Labels

VERSION = 2
"""Prefix of every fingerprint, as in `2-0123456789abcdef`; version 1 has no prefix."""

EDGE = 16 * 1024
"""Bytes at either end of a file in fingerprints of version 1."""

THREADS = 8
BLOCK = 1 << 20

SETTLED_SECONDS = 2.0
"""A file changed more recently than this may change again within one tick of its time stamp: do not cache its hash."""

FILE = "checked-hashes.sqlite"
"""Earlier versions have `hashes.sqlite`, whose rows have no check."""

_folders: list[Path] = []


@dataclass(frozen=True, kw_only=True)
class Prints:
    """The fingerprints of a data set."""

    whole: str
    """Of all images."""

    seen: str = ""
    """Of the images that a search may see: without a test split that the data comes with. Empty in records of earlier
    versions; equal to `whole` if the test split is cut from all images."""

    def are_of(self, known: Prints) -> bool:
        """Tell whether these match a recorded data set, apart from a test split that the data comes with."""
        return self.seen == known.seen if known.seen else self.whole == known.whole

    def differ_in_test(self, known: Prints) -> bool:
        """Tell whether only the test split that the data comes with differs from the record."""
        return bool(known.seen) and self.seen == known.seen and self.whole != known.whole


@contextlib.contextmanager
def remembering(folder: Path) -> Iterator[None]:
    """Cache hashes of files in a folder inside the context: files of the same size and time are not read again."""
    _folders.append(folder)
    try:
        yield
    finally:
        _folders.pop()


def memory() -> Path | None:
    """Return the file of the hash cache, None outside `remembering`."""
    return _folders[-1] / FILE if _folders else None


def of_arrays(classes: Sequence[str], arrays: Iterable[npt.NDArray[np.generic]]) -> Prints:
    """Return the fingerprint of images and labels in memory."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    whole = f"{VERSION}-{digest.hexdigest()[:16]}"
    return Prints(whole=whole, seen=whole)


def of_files(
    classes: Sequence[str],
    names: Sequence[str],
    labels: Labels,
    paths: Sequence[Path],
    *,
    sealed: npt.NDArray[np.int64] | None = None,
    memory: Path | None = None,
) -> Prints:
    """Return the fingerprints of image files: their names, labels and whole contents.

    `sealed` are the indices of a test split that the data comes with, None if it is cut from all images. Hashes are
    cached in the file `memory`.

    Raises:
        OSError: a file cannot be read.
    """
    contents = _whole_files(paths, memory)
    whole = f"{VERSION}-{_combined(json.dumps(list(classes)), names, labels, contents)}"
    if sealed is None:
        return Prints(whole=whole, seen=whole)
    kept = np.setdiff1d(np.arange(len(paths)), sealed)
    # The existence of this split counts too: without it, test images would be cut from these.
    begin = json.dumps({"classes": list(classes), "test": "its own"})
    seen = _combined(begin, [names[i] for i in kept], labels[kept], [contents[i] for i in kept])
    return Prints(whole=whole, seen=f"{VERSION}-{seen}")


def of_each(paths: Sequence[Path], memory: Path | None) -> list[bytes]:
    """Return a hash of the whole content of each file.

    Raises:
        OSError: a file cannot be read.
    """
    return _whole_files(paths, memory)


def first_of_equals(paths: Sequence[Path], memory: Path | None) -> npt.NDArray[np.int64]:
    """Return for each file the index of the first file with the same contents, which may be its own.

    Files of a unique size are not read, nor are several names of one file.

    Raises:
        OSError: a file cannot be read.
    """
    by_file: dict[tuple[int, int], int] = {}
    by_size: dict[int, list[int]] = {}
    firsts = np.arange(len(paths))
    for place, path in enumerate(paths):
        must_be_files([path])
        status = path.stat()
        first = by_file.setdefault((status.st_dev, status.st_ino), place)
        firsts[place] = first
        if first == place:
            by_size.setdefault(status.st_size, []).append(place)
    asked = sorted(place for places in by_size.values() if len(places) > 1 for place in places)
    known: dict[bytes, int] = {}
    for place, digest in zip(asked, _whole_files([paths[place] for place in asked], memory), strict=True):
        firsts[place] = known.setdefault(digest, place)
    # Resolve second names of a file whose first name equals another file.
    same: npt.NDArray[np.int64] = firsts[firsts]
    return same


def must_be_files(paths: Iterable[Path]) -> None:
    """Refuse paths that are not regular files; reading a named pipe called photo.jpg would block forever.

    Raises:
        OSError: a path is not a file.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file (a broken link?)")


def of_files_by_edges(classes: Sequence[str], names: Sequence[str], labels: Labels, paths: Sequence[Path]) -> str:
    """Return the fingerprint of version 1: sizes and the first and last `EDGE` bytes of files.

    Raises:
        OSError: a file cannot be read.
    """
    return _combined(json.dumps(list(classes)), names, labels, _mapped(_edges, paths))


def are_equal(known: str, now: str, first_version: Callable[[], str] | None) -> bool:
    """Tell whether a recorded fingerprint matches the present images, compared in the version of the record.

    `first_version` computes a version 1 fingerprint, None if it differs only by the prefix.
    """
    if "-" in known:
        return known == now
    return known == (first_version() if first_version is not None else now.partition("-")[2])


def _combined(begin: str, names: Sequence[str], labels: Labels, contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256(begin.encode())
    for name, label, content in zip(names, label_sets.texts(labels), contents, strict=True):
        digest.update(os.fsencode(f"{name}\0{label}\0") + content)
    return digest.hexdigest()[:16]


def _mapped(hash_file: Callable[[Path], bytes], paths: Sequence[Path]) -> Iterator[bytes]:
    with ThreadPoolExecutor(THREADS) as pool:
        # In chunks: one future per file would cost more than the file.
        for start in range(0, len(paths), 4096):
            yield from pool.map(hash_file, paths[start : start + 4096], chunksize=1)


def _whole_files(paths: Sequence[Path], memory: Path | None) -> list[bytes]:
    states = [_state(path) for path in paths]
    known = _recall(memory)
    keys = [os.fsencode(path) for path in paths]
    found = [_unsealed(known.get((key, *state)), key, *state) for key, state in zip(keys, states, strict=True)]
    unknown = [place for place, digest in enumerate(found) if digest is None]
    for place, digest in zip(unknown, _mapped(_whole, [paths[place] for place in unknown]), strict=True):
        found[place] = digest
    latest = time.time_ns() - int(SETTLED_SECONDS * 1e9)
    new = [
        (keys[i], *states[i], _sealed(made, keys[i], *states[i]))
        for i in unknown
        if states[i][1] < latest and (made := found[i]) is not None
    ]
    _remember(memory, new)
    return [digest for digest in found if digest is not None]


def _state(path: Path) -> tuple[int, int]:
    must_be_files([path])
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _recall(memory: Path | None) -> dict[Any, Any]:
    """Return the hashes of the cache, unchecked, by path, size and time of their files."""
    # If the cache is broken, the files themselves can still be read.
    with contextlib.suppress(sqlite3.Error):
        if memory is not None and memory.exists():
            with contextlib.closing(sqlite3.connect(memory)) as database:
                rows = database.execute("SELECT path, size, time, digest FROM files")
                return {(path, size, then): kept for path, size, then, kept in rows}
    return {}


def _sealed(digest: bytes, path: bytes, size: int, then: int) -> bytes:
    """Return a hash with a check of its row: SQLite has none, and a damaged hash would be that of other images."""
    return digest + hashlib.blake2b(digest + path + f"{size} {then}".encode(), digest_size=8).digest()


def _unsealed(kept: Any, path: bytes, size: int, then: int) -> bytes | None:
    """Return the hash in a row, None if there is none, or it is damaged."""
    digest = kept[:-8] if isinstance(kept, bytes) else b""
    return digest if kept == _sealed(digest, path, size, then) else None


def _remember(memory: Path | None, rows: Sequence[tuple[bytes, int, int, bytes]]) -> None:
    if memory is None or not rows:
        return
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(memory)) as database, database:
            columns = "path BLOB PRIMARY KEY, size INTEGER, time INTEGER, digest BLOB"
            database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns}) WITHOUT ROWID")
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
    except sqlite3.DatabaseError as error:
        # Damaged, or not a cache; locked, full and read-only databases are kept.
        if not isinstance(error, sqlite3.OperationalError):
            memory.unlink(missing_ok=True)
    except OSError:
        # Decoded images go to the same place, and writing them reports the error.
        return


def _whole(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()


def _edges(path: Path) -> bytes:
    must_be_files([path])
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\0".encode() + file.read(EDGE))
        if size > EDGE:
            file.seek(max(EDGE, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.digest()
