"""A limit on the pixels that threads decode at a time."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

_budgets: weakref.WeakSet[PixelBudget] = weakref.WeakSet()


class PixelBudget:
    """Limits the total pixels held by threads; a request above the limit waits until it is alone."""

    def __init__(self, most: int) -> None:
        self.most = self.free = most
        self.changed = threading.Condition()
        _budgets.add(self)

    def clear(self) -> None:
        """Release everything: a forked process has none of the threads that hold pixels."""
        self.free, self.changed = self.most, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait until the pixels fit, and reserve them inside the context."""
        wanted = min(pixels, self.most)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        try:
            yield
        finally:
            with self.changed:
                self.free += wanted
                self.changed.notify_all()


def _clear_all() -> None:
    for budget in _budgets:
        budget.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clear_all)
