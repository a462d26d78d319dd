"""Weights files: written completely or not at all, and read without running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imgcls_search import archive, atomic
from imgcls_search.errors import CheckpointError


def save(state: Mapping[str, Any], path: Path) -> None:
    """Save tensors and plain values; after a crash, the file is either the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as draft, draft.open("w+b") as file:
        torch.save(dict(state), file)
        archive.seal(file)


def load(path: Path) -> dict[str, Any]:
    """Load a state onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        archive.verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except archive.DamagedError as error:
        raise CheckpointError(f"{path}: not a weights file of this program, or damaged ({error})") from error
    except Exception as error:
        # torch raises half a dozen unrelated exceptions for damaged files, some with pages of advice.
        raise CheckpointError(
            f"{path}: not a weights file of this program, or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a weights file of this program; it holds a {type(state).__name__}")
    return state
