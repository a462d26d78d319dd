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
def test_tests_run_in_forks_of_a_process_that_has_the_libraries_the_quickest_first(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nfilterwarnings = ["error"]\nmarkers = ["slow: slow"]\n'
    )
    (tmp_path / "test_bad.py").write_text("def test_bad():\n    assert False\n")
    good = tmp_path / "good"
    good.mkdir()
    for name, more in (("first", "    import time\n    time.sleep(2)\n"), ("second", "    pass\n")):
        (good / f"test_{name}.py").write_text(f"def test_{name}():\n{more}")
    (good / "test_slow.py").write_text("import pytest\n@pytest.mark.slow\ndef test_slow():\n    assert False\n")
    code = f"""
import pathlib, runpy
script = runpy.run_path({str(SCRIPT)!r})
script["_preload"]()
print(*script["quickest_first"](pathlib.Path({str(tmp_path)!r}), ("good",)))
print(script["run_tests"](pathlib.Path({str(tmp_path)!r}), ("test_bad.py",), 300)[1], flush=True)
script["quickest_first"](pathlib.Path({str(tmp_path)!r}), ("test_bad.py",))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["good/test_second.py", "good/test_first.py", "1"], done.stderr
    assert done.stderr == "error: tests fail without any change: test_bad.py\n"
