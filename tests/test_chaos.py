"""The short form of `scripts/bench/chaos.py`: a search that is broken on purpose loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench" / "chaos.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc"),
]


@pytest.fixture
def chaos(run_script: Callable[..., Answer], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*arguments: str) -> dict[str, Any]:
        done = run_script(SCRIPT, *arguments, cwd=tmp_path)
        assert done.code == 0, done.out + done.err
        return json.loads(done.out)  # type: ignore[no-any-return]

    return run


def test_ten_blows_to_two_workers_lose_nothing(chaos: Callable[..., dict[str, Any]]) -> None:
    found = chaos("--kills", "10", "--kills-alone", "0", "--trials", "6")["two_workers"]
    assert found["blows"] == 10
    assert found["problems"] == []


def test_search_with_one_worker_ends_as_if_nobody_had_disturbed_it(chaos: Callable[..., dict[str, Any]]) -> None:
    found = chaos("--kills", "0", "--kills-alone", "5", "--trials", "10", "--seed", "3")["one_worker"]
    assert found["blows"] >= 2
    assert found["problems"] == []
