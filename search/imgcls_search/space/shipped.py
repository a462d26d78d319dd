"""The spaces in the package, which commands accept by name: `vit` is `spaces/vit.yaml`."""

from __future__ import annotations

import re
from pathlib import Path

from imgcls_search.errors import UserError, closest


def folder() -> Path:
    """Return the folder of the shipped spaces: inside an installed package, or next to the source."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "spaces"
    return installed if installed.is_dir() else package.parents[1] / "spaces"


def names() -> tuple[str, ...]:
    """Return the names of all shipped spaces in alphabetical order."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def find(path: Path) -> Path:
    """Return the file for a path: the shipped space of this name if no such file exists.

    Folders do not count as files: a folder `photos` does not hide the space of that name.
    """
    name = str(path)
    if name not in names() or (path.exists() and not path.is_dir()):
        return path
    return path_of(name)


def path_of(name: str) -> Path:
    """Return the file of a shipped space.

    Raises:
        UserError: no shipped space has this name.
    """
    if name not in names():
        raise UserError(
            f"{name}: no shipped space has this name{closest(name, names())}; allowed: {', '.join(names())}"
        )
    return folder() / f"{name}.yaml"


def hint(path: Path) -> str:
    """Return a hint about shipped spaces for a missing file; empty if the path resembles none."""
    if path.suffix in ("", ".yaml", ".yml") and path.stem in names():
        return f"; the shipped space of this name is called {path.stem!r}"
    if path.name == str(path) and not path.suffix:
        return f", and no shipped space has this name{closest(path.name, names())}; shipped: {', '.join(names())}"
    return ""


def about(name: str) -> str:
    """Return the first paragraph of the leading comment in a shipped space.

    Raises:
        UserError: no shipped space has this name.
    """
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    sentences: list[str] = []
    for line in lines:
        text = line.removeprefix("#")
        is_prose = line.startswith("# ") and not text.startswith("  ") and "yaml-language-server" not in line
        if is_prose:
            sentences.append(text.strip())
        elif sentences:
            break
    return re.sub(r"\s+As shipped\b.*$", "", " ".join(sentences)).rstrip(":.")
