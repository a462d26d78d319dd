"""The short form of `scripts/bench/chaos.py`: a search that is broken on purpose loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench" / "chaos.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc"),
]


def chaos(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_ten_blows_to_two_workers_lose_nothing() -> None:
    found = chaos("--kills", "10", "--kills-alone", "0", "--trials", "6")["two_workers"]
    assert found["blows"] == 10
    assert found["problems"] == []


def test_search_with_one_worker_ends_as_if_nobody_had_disturbed_it() -> None:
    found = chaos("--kills", "0", "--kills-alone", "5", "--trials", "10", "--seed", "3")["one_worker"]
    assert found["blows"] >= 2
    assert found["problems"] == []
