"""Fingerprints: a short hash that says whether the images are still the same ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

EDGE = 16 * 1024
"""Bytes hashed at either end of a file. Whole files would take minutes on a folder of 100 GB at the start of every
search; a photo that was changed and keeps its name, its size, its header and its end has not been met."""

THREADS = 8


def of_arrays(classes: Sequence[str], arrays: Iterable[npt.NDArray[np.generic]]) -> str:
    """Return the fingerprint of images and labels that lie in memory."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def of_files(classes: Sequence[str], names: Sequence[str], labels: npt.NDArray[np.int64], paths: Sequence[Path]) -> str:
    """Return the fingerprint of image files: their names, labels, sizes, first and last `EDGE` bytes.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    with ThreadPoolExecutor(THREADS) as pool:
        # In runs: one future per file would cost more than the file.
        for start in range(0, len(paths), 4096):
            stop = start + 4096
            edges = pool.map(_edges, paths[start:stop], chunksize=1)
            for name, label, edge in zip(names[start:stop], labels[start:stop], edges, strict=True):
                digest.update(os.fsencode(f"{name}\0{label}\0") + edge)
    return digest.hexdigest()[:16]


def _edges(path: Path) -> bytes:
    # A named pipe called photo.jpg would be waited on for ever.
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file (a broken link?)")
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\0".encode() + file.read(EDGE))
        if size > EDGE:
            file.seek(max(EDGE, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.digest()
