"""Room for the pixels of images that threads decode at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Lets threads hold no more pixels together than there is room for; one that needs more waits to be alone."""

    def __init__(self, most: int) -> None:
        self.most = self.free = most
        self.changed = threading.Condition()

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
