"""Cache the sizes of models, by architecture, in one small file that all studies under a folder share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imgcls_search import digests
from imgcls_search.errors import BuildError
from imgcls_search.models import ENTRY_POINTS

COUNTED_BY = (
    "imgcls_search.image_size",
    "imgcls_search.models",
    "imgcls_search.compress",
    "imgcls_search.training.optimizers",
    "imgcls_search.training.losses",
    "imgcls_search.training.recipe",
    "imgcls_search.training.resolution",
    "imgcls_search.worker.measuring",
)
"""Modules, and packages with all their modules, whose code determines an answer; a test traces an answer to them."""


class Counts:
    """A cache of answers; if its file cannot be written, it lasts as long as the process."""

    def __init__(self, path: Path) -> None:
        """Answers are kept in the SQLite file `path`, which need not exist."""
        self.known: dict[str, Any] = {}
        self.file: sqlite3.Connection | None = None
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several helpers and runs write to it; each answer is one statement.
            self.file = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self.file.execute("PRAGMA journal_mode=WAL")
            self.file.execute("PRAGMA synchronous=OFF")
            self.file.execute("CREATE TABLE IF NOT EXISTS counts (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, question: Mapping[str, Any]) -> Any:
        """Return the cached answer to a question, or None.

        Raises:
            BuildError: the cached answer is this error.
        """
        key = _key(question)
        if key not in self.known:
            self.known[key] = self._read(key)
        return _thaw(self.known[key])

    def ask(self, question: Mapping[str, Any], answer: Callable[[], Any]) -> Any:
        """Return the cached answer, or a new one (plain JSON), which is then cached.

        Raises:
            BuildError: the answer is this error.
        """
        known = self.get(question)
        if known is not None:
            return known
        try:
            found: dict[str, Any] = {"answer": answer()}
        except BuildError as error:
            found = {"error": [error.path, error.message]}
        key = _key(question)
        self.known[key] = found
        self._write(key, found)
        return _thaw(found)

    def _read(self, key: str) -> Any:
        if self.file is not None:
            with contextlib.suppress(sqlite3.Error):
                row = self.file.execute("SELECT answer FROM counts WHERE key = ?", (key,)).fetchone()
                return digests.unsealed(row[0]) if row else None
        return None

    def _write(self, key: str, found: Mapping[str, Any]) -> None:
        if self.file is not None:
            with contextlib.suppress(sqlite3.Error):
                self.file.execute("INSERT OR REPLACE INTO counts VALUES (?, ?)", (key, digests.sealed(found)))


def _thaw(found: Any) -> Any:
    if found is None:
        return None
    if "error" in found:
        raise BuildError(*found["error"])
    return found["answer"]


def _key(question: Mapping[str, Any]) -> str:
    text = json.dumps([_versions(), question], sort_keys=True)
    return digests.of_text(text)


@cache
def _versions() -> dict[str, str]:
    """Return what may change the answers: versions of libraries that build models, and a digest of our own code."""
    found = {}
    for name in ("torch", "torchvision", "timm", "torch-pruning"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    texts = [path.read_bytes() for path in counted_files()]
    return {**found, "builders": hashlib.sha256(b"".join(texts)).hexdigest()}


def counted_files() -> list[Path]:
    """Return the files of `COUNTED_BY`, and those of model families from other packages."""
    paths: list[Path] = []
    for name in COUNTED_BY:
        spec = find_spec(name)
        assert spec is not None, f"{name} has moved: name it in COUNTED_BY where it is now"
        assert spec.origin is not None
        file = Path(spec.origin)
        paths += sorted(file.parent.glob("*.py")) if spec.submodule_search_locations else [file]
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        spec = find_spec(entry.module)
        if spec is not None and spec.origin is not None:
            paths.append(Path(spec.origin))
    return paths
