"""Separate environments for other tools: created once below a folder, checked, named by tool and version."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

WHOLE = "whole"
"""The file with the installed requirements; without it an environment is incomplete."""

VERSIONS = """import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""
"""A program that prints versions."""


class LeftOutError(Exception):
    """A tool cannot take part in the comparison; the message says why."""


@dataclass(frozen=True)
class Environment:
    """The environment of a tool."""

    tool: str
    """As pip writes it, with its version."""

    check: str
    """A Python statement that fails if the tool does not work."""

    same: tuple[str, ...] = ()
    """Packages that get the version installed in this environment, so that trainings differ only by the tool."""

    more: tuple[str, ...] = ()
    """Other packages."""

    @property
    def package(self) -> str:
        """The tool's name."""
        return re.split(r"[\[=]", self.tool)[0]

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return "{}-python{}.{}".format(re.sub(r"\[.*?\]", "", self.tool).replace("==", "-"), *sys.version_info)

    @property
    def requirements(self) -> list[str]:
        """All requirements to install."""
        # Package indexes do not have local versions, such as +cpu.
        same = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in self.same]
        return [self.tool, *self.more, *same]

    def python(self, below: Path | None) -> Path:
        """Return its interpreter; create the environment if it is missing or has other requirements.

        Raises:
            LeftOutError: there is no folder for it, or the tool cannot be installed or imported.
        """
        if below is None:
            raise LeftOutError("--environments names no folder for its environment")
        folder = below / self.folder
        python = folder / "bin" / "python"
        whole = "".join(f"{line}\n" for line in self.requirements)
        if not (folder / WHOLE).exists() or (folder / WHOLE).read_text() != whole:
            print(f"making {folder.name}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            for step in self._steps(folder, python):
                _run(step, f"{self.tool} cannot be installed")
            # Otherwise the first run would spend minutes compiling. Some files of packages cannot be compiled.
            subprocess.run([python, "-m", "compileall", "-q", "-j", "0", folder / "lib"], stdout=subprocess.DEVNULL)
            # Builds of torch and torchvision may be incompatible, which the installation does not detect.
            _run([str(python), "-c", self.check], f"{self.tool} cannot be imported")
            (folder / WHOLE).write_text(whole)
        return python

    def versions(self, below: Path | None, names: Sequence[str] = ()) -> dict[str, str]:
        """Return the versions of the tool and of other packages in its environment."""
        command = [str(self.python(below)), "-c", VERSIONS, self.package, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def _steps(self, folder: Path, python: Path) -> list[list[str]]:
        if uv := shutil.which("uv"):
            return [
                [uv, "venv", "-q", "--python", sys.executable, str(folder)],
                [uv, "pip", "install", "-q", "--python", str(python), *self.requirements],
            ]
        # Install with this environment's pip: unpacking and compiling another pip takes longer than most tools.
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--disable-pip-version-check"]
        return [[sys.executable, "-m", "venv", "--without-pip", str(folder)], [*install, *self.requirements]]


def _run(command: Sequence[str], trouble: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise LeftOutError(f"{trouble}: {last}")
