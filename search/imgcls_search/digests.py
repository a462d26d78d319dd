"""SHA-256 of files and texts, in hexadecimal digits, and JSON that states its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BLOCK = 2**20
_KEY = "digest"

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


def sealed(values: Mapping[str, Any]) -> str:
    """Return values as JSON with their digest, by which `unsealed` knows them again."""
    return json.dumps({**values, _KEY: of_text(json.dumps(values))})


def unsealed(text: str | bytes) -> dict[str, Any] | None:
    """Return the values in a text that `sealed` wrote, None if it differs in anything."""
    try:
        values = json.loads(text)
        known = values.pop(_KEY)
        return values if known == of_text(json.dumps(values)) else None
    # JSON of other types has no such method or key.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
