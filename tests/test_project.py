"""The project as a whole: the layers, the dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Answer

ROOT = Path(__file__).parent.parent


def test_layer_contracts_hold_and_fail_on_a_wrong_import(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "search", tmp_path / "search", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "search" / "imgcls_search"
    # The copy must be looked at, not the installed package.
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "search")}

    def lint() -> int:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert lint() == 0
    # A module without a floor is as wrong as one that reaches up.
    (package / "stray.py").write_text("")
    assert lint() != 0
    (package / "stray.py").unlink()
    assert lint() == 0
    with (package / "space" / "space.py").open("a") as file:
        file.write("\nfrom imgcls_search.study import best\n")
    assert lint() != 0


def test_dashboard_serves_the_study(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    assert imgcls("run", tiny, "--set", "study.trials=1", "--workers", "1").code == 0
    command = [sys.executable, "-m", "imgcls_search", "dashboard", "tiny-digits", "--port", "0"]
    server = subprocess.Popen(command, cwd=tiny.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
        assert address is not None
        # A loopback server is asked directly, whatever proxy is set.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{address[0]}api/studies") as answer:
            (study,) = json.load(answer)["study_summaries"]
        assert study["study_name"] == "tiny-digits"
        port = address[0].split(":")[-1].strip("/")
        taken = imgcls("dashboard", "tiny-digits", "--port", port)
        assert taken.code == 2
        assert f"--port {port}: cannot be used" in taken.err
    finally:
        server.kill()
        server.communicate()
