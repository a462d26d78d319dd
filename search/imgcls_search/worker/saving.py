"""Decide when a worker writes the checkpoint of its training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imgcls_search.training import checkpoint

SAVE_SHARE = 0.02
"""A checkpoint is written every epoch if that costs at most this share of the time,"""

SAVE_SECONDS = 30.0
"""and at least this often otherwise."""


class CheckpointSaver:
    """Saves the current training, and decides when."""

    def __init__(self, is_writer: bool) -> None:
        """Only one process of a group writes files."""
        self.is_writer = is_writer
        self.epoch = 0
        self.at = 0.0
        self.seconds = 0.0

    def begin(self, epoch: int) -> None:
        """Start with a training that is saved up to an epoch."""
        self.epoch, self.at, self.seconds = epoch, time.monotonic(), 0.0

    def is_due(self, epoch_seconds: float) -> bool:
        """Tell whether to save after an epoch of this duration."""
        return self.seconds <= SAVE_SHARE * epoch_seconds or time.monotonic() - self.at > SAVE_SECONDS

    def save(self, epoch: int, path: Path, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the state of a training after an epoch.

        Raises:
            OSError: it cannot be written.
        """
        started = time.monotonic()
        if not self.is_writer:
            self.epoch = epoch
            return
        checkpoint.save(state(), path)
        self.epoch, self.at = epoch, time.monotonic()
        self.seconds = self.at - started
