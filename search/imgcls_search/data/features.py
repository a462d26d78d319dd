"""The store of features: what a frozen network makes of every image, computed once and mapped into memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic, digests
from imgcls_search.errors import DataError

Floats = npt.NDArray[np.float32]

VERSION = 1
"""Part of every key: raise it when features are computed in another way."""


def features(cache: Path, facts: Mapping[str, Any], make: Callable[[], Floats]) -> Floats:
    """Return the features [N, D], float32, that some facts decide on, mapped from disk and read-only.

    `make` computes them where they are not kept below `cache`, or damaged there; of several processes one does.

    Raises:
        DataError: the cache cannot be written.
    """
    from filelock import FileLock

    key = digests.of_text(json.dumps({**facts, "version": VERSION}, sort_keys=True))[:32]
    folder = cache.expanduser().resolve() / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{key}.lock")):
            kept = _kept(folder)
            if kept is None:
                _keep(folder, make())
                kept = _kept(folder)
    except OSError as error:
        raise DataError(f"{cache}: features cannot be written ({error.strerror})") from error
    if kept is None:
        raise DataError(f"{folder}: features were damaged as they were written")
    return kept


def _kept(folder: Path) -> Floats | None:
    """Return what lies in a folder, None if it is not there, not whole or damaged."""
    path = folder / "features.npy"
    try:
        digest = json.loads((folder / "meta.json").read_bytes())["sha256"]
        if digest != digests.of_file(path):
            return None
        found: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _keep(folder: Path, values: Floats) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (folder, partial):
        atomic.remove(stale)
    free = shutil.disk_usage(folder.parent).free
    if values.nbytes > free:
        raise DataError(f"{folder.parent}: features need {values.nbytes / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")
    with atomic.replacing(folder, draft=partial):
        partial.mkdir()
        np.save(partial / "features.npy", np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
        (partial / "meta.json").write_text(json.dumps({"sha256": digests.of_file(partial / "features.npy")}))
