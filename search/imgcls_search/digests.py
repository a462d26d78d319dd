"""SHA-256 of files and texts, in hexadecimal digits."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 2**20

SHOWN_DIGITS = 12
"""Digits of a digest that a message shows."""


def of_file(path: Path) -> str:
    """Return the digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def of_text(text: str) -> str:
    """Return the digest of a text as UTF-8; characters that are not valid UTF-8 count as backslash escapes."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def shown(digest: str) -> str:
    """Return the digits of a digest that a message shows."""
    return digest[:SHOWN_DIGITS]
