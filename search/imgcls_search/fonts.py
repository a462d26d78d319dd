"""Fonts for names in any script: matplotlib finds them among those of the system, whatever a user's settings are."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Hide a user's `matplotlibrc`, which may be damaged, from the import of matplotlib, even in the working folder."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    ours = {"MATPLOTLIBRC": str(Path(spec.origin).parent / "mpl-data" / "matplotlibrc")}
    before = {name: os.environ.pop(name, None) for name in ("MATPLOTLIBRC", "MPLBACKEND")}
    exists = os.path.exists

    def exists_elsewhere(path: Any) -> bool:
        # matplotlib looks for this file before all others, and no variable changes that.
        return path != "matplotlibrc" and exists(path)

    os.environ.update(ours)
    os.path.exists = exists_elsewhere
    try:
        yield
    finally:
        os.path.exists = exists
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# It reports the folder of its list of fonts, which users need not know.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
with _own_settings():
    import matplotlib as mpl
from matplotlib import font_manager, ft2font  # noqa: E402

USUAL = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
"""The font of every picture; it comes with matplotlib."""


def families(texts: Iterable[str], files: Sequence[str] | None = None) -> list[str]:
    """Return the families to draw texts with, after the usual one, from the given font files or the system's."""
    missing = {ord(character) for text in texts for character in text} - _characters(USUAL) - {ord("\n")}
    found: list[str] = []
    for path, family in _fonts(files) if missing else ():
        if has := missing & _characters(path):
            missing -= has
            found.append(family)
        if not missing:
            break
    return found


def written(text: str, files: Sequence[str] | None = None) -> str:
    """Return a text with a backslash form in place of each character that no font has."""
    known = _characters(USUAL)
    if all(ord(character) in known for character in text):
        return text
    paths = [path for path, _ in _fonts(files)]
    return "".join(
        character
        if character == "\n" or ord(character) in known or any(ord(character) in _characters(path) for path in paths)
        else character.encode("ascii", "backslashreplace").decode()
        for character in text
    )


def file_for(text: str, files: Sequence[str] | None = None) -> tuple[str, str]:
    """Return a text and one font file to draw all of it with; characters that the font lacks are in backslash form."""
    needed = {ord(character) for character in text} - {ord("\n")}
    if not needed <= _characters(USUAL):
        for path, _ in _fonts(files):
            if needed <= _characters(path):
                return text, path
    return written(text, ()), USUAL


def _fonts(files: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """Return the path and family of each font, in a stable order."""
    return _system_fonts() if files is None else tuple((path, _family(path)) for path in files)


@cache
def _system_fonts() -> tuple[tuple[str, str], ...]:
    entries = [
        # Matplotlib cannot draw coloured fonts, and last-resort fonts have a box for each character.
        (entry.fname, entry.name)
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.variant) == ("normal", "normal")
        and not ("Color" in entry.name or "Last Resort" in entry.name)
    ]
    # The files that `families` leads to, not bolder ones of the same name.
    chosen = {family: _file_of(family) for _, family in entries}
    return tuple(sorted((path, family) for family, path in chosen.items() if path))


def _file_of(family: str) -> str:
    properties = font_manager.FontProperties(family=[family])
    try:
        return str(font_manager.findfont(properties, fallback_to_default=False))
    except ValueError:
        return ""


@cache
def _family(path: str) -> str:
    font_manager.fontManager.addfont(path)
    return str(font_manager.fontManager.ttflist[-1].name)


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the characters that a font file has; none if it cannot be read or does not scale."""
    try:
        font = ft2font.FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
