"""The spaces that come with the package, which commands take by name: `vit` is `spaces/vit.yaml`."""

from __future__ import annotations

import re
from pathlib import Path

from imgcls_search.errors import UserError, closest


def folder() -> Path:
    """Return the folder of the shipped spaces: in the package where it was installed, beside its source otherwise."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "spaces"
    return installed if installed.is_dir() else package.parents[1] / "spaces"


def names() -> tuple[str, ...]:
    """Return the names of all shipped spaces, in alphabetical order."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def find(path: Path) -> Path:
    """Return the file that a command means by a path: the shipped space of this name where no such file exists.

    A folder is no such file: images in `photos` do not hide the space of that name.
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
    """Return what to say of shipped spaces where a file is missing; nothing where the path resembles none."""
    if path.suffix in ("", ".yaml", ".yml") and path.stem in names():
        return f"; the shipped space of this name is called {path.stem!r}"
    if path.name == str(path) and not path.suffix:
        return f", and no shipped space has this name{closest(path.name, names())}; shipped: {', '.join(names())}"
    return ""


def about(name: str) -> str:
    """Return the first paragraph of the comment that a shipped space begins with.

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
