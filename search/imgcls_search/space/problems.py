"""Collecting what is wrong with a space: each problem with its position, all raised together at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from imgcls_search.config import Scalar, Value
from imgcls_search.errors import Problem, SpaceError, closest

_LONGEST = 80


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a key or a value was written: in the file, or on the command line."""

    line: int = 0
    """Counted from 1; 0 where it is not in the file."""

    column: int = 0
    origin: str = ""
    """The words of the command line, for example `--set study.trials=3`; empty for the file."""


@dataclass(frozen=True, kw_only=True, order=True)
class PlacedProblem(Problem):
    """One thing wrong at one position in the file or of the command line."""

    origin: str = ""
    """Named instead of the file, for example `--set study.trials=3`; empty for the file."""

    def render(self, source: str) -> str:
        """Return `source:line:column: path: message`, or `--set path=value: path: message`."""
        return super().render(self.origin or source)


class Report:
    """The problems found so far in one file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._problems: dict[PlacedProblem, None] = {}
        self._sections: set[str] = set()

    def add(self, position: Position, path: str, message: str) -> None:
        """Note one problem and go on."""
        problem = PlacedProblem(
            line=position.line, column=position.column, origin=position.origin, path=path, message=message
        )
        self._problems[problem] = None
        self._sections.add(_section(path))

    def concerns(self, path: str) -> bool:
        """Tell whether a problem was found in the section that a path belongs to."""
        return _section(path) in self._sections

    def raise_any(self) -> None:
        """Raise everything found as one error.

        Raises:
            SpaceError: at least one problem was found.
        """
        if self._problems:
            raise SpaceError(self.source, self._problems)


def join(path: str, key: str) -> str:
    """Return the path of a key under a path, on one short line whatever the key holds."""
    key = printable(key) or "''"
    return f"{path}.{key}" if path else key


def printable(text: str) -> str:
    """Return text as it is, or quoted and cut where it would not stay on one short line."""
    if text.isprintable() and len(text) <= _LONGEST:
        return text
    return _cut(repr(text))


def show(value: Any) -> str:
    """Return a value as a person would write it in the file, cut where it is long."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return _cut(f"[{', '.join(show(item) for item in value)}]")
        case Mapping():
            return _cut("{" + ", ".join(f"{name}: {show(below)}" for name, below in value.items()) + "}")
        case _:
            return _cut(repr(value))


def canonical(value: Value) -> Scalar:
    """Return the string that stands in the study for a list, `[1, 1, 1]`, or numbers by name; a scalar as it is."""
    if isinstance(value, Mapping):
        # Sorted, as their order means nothing.
        return json.dumps(plain(value), ensure_ascii=False, sort_keys=True)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value


def plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for tuples, dictionaries for mappings."""
    if isinstance(value, Mapping):
        return {name: plain(below) for name, below in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the sentence for a key that the catalog does not know."""
    names = list(known)
    return f"unknown key; allowed: {', '.join(names) or 'nothing'}{closest(key, names)}"


def _section(path: str) -> str:
    return path.split(".", 1)[0]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:60]} ... {text[-12:]}"
