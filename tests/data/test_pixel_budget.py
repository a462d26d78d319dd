"""Threads that decode images hold together no more pixels than one of the largest images has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from imgcls_search.data.decode import MAX_PIXELS, decode, upright_rgb
from imgcls_search.data.pixel_budget import PixelBudget
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_who_needs_more_than_is_free_waits() -> None:
    budget, most, held, lock = PixelBudget(10), 0, 0, threading.Lock()

    def hold(pixels: int) -> None:
        nonlocal most, held
        with budget.of(pixels):
            with lock:
                held += min(pixels, 10)
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= min(pixels, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 11, 1, 10, 6] * 10))
    assert most <= 10


class Watched(PixelBudget):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__(MAX_PIXELS)
        self.asked: list[int] = []

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Note the pixels, and reserve room for them."""
        self.asked.append(pixels)
        with super().of(pixels):
            yield


def test_decoding_takes_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    # The package has a function of the module's name.
    monkeypatch.setattr(import_module("imgcls_search.data.decode"), "_ROOM", watched)
    decode(Image.new("RGB", (40, 30)), 8, 3)
    upright_rgb(Image.new("L", (20, 10)))
    assert watched.asked == [1200, 200]
    assert watched.free == MAX_PIXELS


FORKING = """
import os, signal, sys
from imgcls_search.data.pixel_budget import PixelBudget

budget = PixelBudget(100)
with budget.of(100):
    child = os.fork()
    if not child:
        signal.alarm(60)
        with budget.of(100):
            os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_process_waits_for_no_thread_that_it_does_not_have() -> None:
    assert subprocess.run([sys.executable, "-c", FORKING]).returncode == 7
