"""`scripts/mutate`: which changes count, and how tests run in its forks; making the changes needs cosmic-ray."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "mutate"


def test_changes_that_correct_code_cannot_show_do_not_count() -> None:
    essence = runpy.run_path(str(SCRIPT))["_essence"]
    plain = essence("@dataclass(frozen=True)\nclass A:\n    'One.'\n    a: int | None = f(a, strict=True)")
    assert essence("@dataclass(frozen=False)\nclass A:\n    'Two.'\n    a: int & None = f(a, strict=False)") == plain
    assert essence("@dataclass(frozen=True)\nclass A:\n    'One.'\n    a: int | None = f(a, other=True)") != plain
    assert essence("a < 1") != essence("a <= 1")
    assert essence("a <") is None


@pytest.mark.slow
def test_tests_run_in_a_fork_of_a_process_that_has_the_libraries(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nfilterwarnings = ["error"]\n')
    (tmp_path / "test_good.py").write_text("def test_good():\n    assert True\n")
    (tmp_path / "test_bad.py").write_text("def test_bad():\n    assert False\n")
    code = f"""
import pathlib, runpy
script = runpy.run_path({str(SCRIPT)!r})
script["_preload"]()
for name in ("test_good.py", "test_bad.py"):
    print(script["run_tests"](pathlib.Path({str(tmp_path)!r}), (name,), 300)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
