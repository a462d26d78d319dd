"""Room for the pixels of images that threads decode at a time."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

_budgets: weakref.WeakSet[PixelBudget] = weakref.WeakSet()


class PixelBudget:
    """Lets threads hold no more pixels together than there is room for; one that needs more waits to be alone."""

    def __init__(self, most: int) -> None:
        self.most = self.free = most
        self.changed = threading.Condition()
        _budgets.add(self)

    def clear(self) -> None:
        """Forget what is held: the threads that hold it are not in a process that was forked meanwhile."""
        self.free, self.changed = self.most, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Reserve room for the pixels meanwhile, as soon as there is any."""
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
