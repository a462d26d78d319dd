"""The store of features: outputs of a frozen network for every image, computed once and memory-mapped."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic, digests
from imgcls_search.data.prepared import Prepared
from imgcls_search.errors import DataError
from imgcls_search.rounding import size

Floats = npt.NDArray[np.float32]

S = TypeVar("S")
T = TypeVar("T")

VERSION = 1
"""Part of every key: raise it when the computation of features changes."""

WAIT_SECONDS = 0.2
"""Interval between attempts while another process computes the same features."""


def folder_beside(data: Prepared) -> Path:
    """Return the folder of features for decoded images: next to them, shared by all studies."""
    return Path(data.folder).parent.with_name(".features")


def features(
    cache: Path, origin: Mapping[str, Any], make: Callable[[], Floats], *, most_bytes: float = math.inf
) -> Floats:
    """Return the features [N, D], float32, for everything that determines them (`origin`), memory-mapped and read-only.

    `make` computes them if they are missing below `cache`, or damaged; of several processes, one computes.

    Raises:
        DataError: the cache cannot be written, or the features are larger than `most_bytes`.
    """

    def steps() -> Generator[None, None, Floats]:
        yield from ()
        return make()

    return finished(computing(cache, origin, steps, most_bytes=most_bytes))


def finished(steps: Generator[S, None, T], tell: Callable[[S], None] = lambda step: None) -> T:
    """Return the result of a generator; `tell` gets each step."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        tell(step)


def computing(
    cache: Path,
    origin: Mapping[str, Any],
    make: Callable[[], Generator[T, None, Floats]],
    *,
    most_bytes: float = math.inf,
) -> Generator[T | None, None, Floats]:
    """Like `features`, but yield the steps of `make`; None while another process computes the same.

    The least recently used features are deleted when all together would exceed `most_bytes`.

    Raises:
        DataError: the cache cannot be written, or the features are larger than `most_bytes`.
    """
    from filelock import FileLock, Timeout

    folder = _folder(cache, origin)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=WAIT_SECONDS)
                break
            except Timeout:
                yield None
        try:
            found = _kept(folder)
            if found is None:
                _keep(folder, (yield from make()), most_bytes)
                found = _kept(folder)
        finally:
            lock.release()
    except OSError as error:
        raise DataError(f"{cache}: features cannot be written ({error.strerror})") from error
    if found is None:
        raise DataError(f"{folder}: features were damaged as they were written")
    return found


def kept(cache: Path, origin: Mapping[str, Any]) -> Floats | None:
    """Return the features [N, D] of an `origin`, None if they are not stored."""
    return _kept(_folder(cache, origin))


def _folder(cache: Path, origin: Mapping[str, Any]) -> Path:
    return cache.expanduser().resolve() / _key(origin)


def _key(origin: Mapping[str, Any]) -> str:
    return digests.of_text(json.dumps({**origin, "version": VERSION}, sort_keys=True))[:32]


def _kept(folder: Path) -> Floats | None:
    """Return the features in a folder, None if it is missing, incomplete or damaged."""
    path = folder / "features.npy"
    try:
        digest = json.loads((folder / "meta.json").read_bytes())["sha256"]
        if digest != digests.of_file(path):
            return None
        found: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    # Mark as recently used; a read-only file system deletes nothing anyway.
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def _keep(folder: Path, values: Floats, most_bytes: float) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (folder, partial):
        atomic.remove(stale)
    if values.nbytes > most_bytes:
        raise DataError(
            f"{folder.parent}: features need {size(values.nbytes)}, image.cache_gb allows {size(most_bytes)}; set it "
            "higher"
        )
    _make_room(folder.parent, most_bytes - values.nbytes)
    free = shutil.disk_usage(folder.parent).free
    if values.nbytes > free:
        raise DataError(f"{folder.parent}: features need {size(values.nbytes)}, but only {size(free)} are free")
    with atomic.replacing(folder, draft=partial):
        partial.mkdir()
        np.save(partial / "features.npy", np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
        (partial / "meta.json").write_text(json.dumps({"sha256": digests.of_file(partial / "features.npy")}))


def _make_room(cache: Path, most_bytes: float) -> None:
    """Delete the least recently used features until at most this many bytes are kept."""
    if math.isinf(most_bytes):
        return
    kept = []
    for folder in cache.iterdir():
        # Another process may delete the same folder.
        with contextlib.suppress(OSError):
            if folder.is_dir() and not folder.name.endswith(".partial"):
                size = sum(file.stat().st_size for file in folder.iterdir())
                kept.append((folder.stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in kept)
    for _, size, folder in sorted(kept):
        if total <= most_bytes:
            return
        # A process that has mapped them can still read them.
        with contextlib.suppress(OSError):
            atomic.remove(folder)
            total -= size
