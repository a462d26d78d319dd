"""Measure how much of each wing its own fast tests run, and fail below the floors in pyproject.toml.

    python scripts/coverage.py                  every wing that has a floor
    python scripts/coverage.py space strategy   some wings

The tests of a wing are those in tests/WING. Only lines that run in the process of the tests count. Commands that tests
start as separate processes are not measured, so wings that are tested through commands have no floor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure the wings that the command line names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors: Mapping[str, float] = settings["tool"]["imgcls-search"]["coverage"]
    wings = sys.argv[1:] or list(floors)
    if unknown := [wing for wing in wings if not (ROOT / "tests" / wing).is_dir()]:
        sys.exit(f"error: {unknown[0]}: no folder of tests; allowed: {', '.join(floors)}")
    low = [wing for wing in wings if not _is_enough(wing, floors.get(wing, 0))]
    if low:
        sys.exit(f"error: below the floor: {', '.join(low)}")


def _is_enough(wing: str, floor: float) -> bool:
    """Run the fast tests of a wing, print its coverage and return whether it reaches the floor."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder, "data"), Path(folder, "report.json")
        env = {**os.environ, "COVERAGE_FILE": str(data)}
        source = f"--source=imgcls_search.{wing}"
        tests = ("-m", "pytest", "-q", "-m", "not slow", f"tests/{wing}", f"--basetemp={folder}/tests")
        ran = subprocess.run([sys.executable, "-m", "coverage", "run", source, *tests], cwd=ROOT, env=env, check=False)
        if ran.returncode:
            sys.exit(f"error: the tests of {wing} fail")
        command = [sys.executable, "-m", "coverage", "json", "--quiet", "-o", str(report)]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        totals = json.loads(report.read_text(encoding="utf-8"))["totals"]
    covered = totals["percent_covered"]
    print(f"{wing}: {covered:.1f} % of {totals['num_statements']} lines, at least {floor:g} %", flush=True)
    return bool(covered >= floor)


if __name__ == "__main__":
    main()
