"""Collect the problems of a space with their positions, and raise them all together at the end."""

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
    """The position of a key or a value in the file or on the command line."""

    line: int = 0
    """Counted from 1; 0 outside the file."""

    column: int = 0
    origin: str = ""
    """The command line option, for example `--set study.trials=3`; empty for the file."""


@dataclass(frozen=True, kw_only=True, order=True)
class PlacedProblem(Problem):
    """A problem at a position in the file or on the command line."""

    origin: str = ""
    """Shown instead of the file, for example `--set study.trials=3`; empty for the file."""

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
        """Record a problem and continue."""
        problem = PlacedProblem(
            line=position.line, column=position.column, origin=position.origin, path=path, message=message
        )
        self._problems[problem] = None
        self._sections.add(_section(path))

    def concerns(self, path: str) -> bool:
        """Tell whether a problem was found in the section that a path belongs to."""
        return _section(path) in self._sections

    def raise_any(self) -> None:
        """Raise all problems as one error.

        Raises:
            SpaceError: there is at least one problem.
        """
        if self._problems:
            raise SpaceError(self.source, self._problems)


def join(path: str, key: str) -> str:
    """Return the path of a key below a path, as one short line for any key."""
    key = printable(key) or "''"
    return f"{path}.{key}" if path else key


def printable(text: str) -> str:
    """Return text unchanged, or quoted and truncated if it would not fit on one short line."""
    if text.isprintable() and len(text) <= _LONGEST:
        return text
    return _cut(repr(text))


def show(value: Any) -> str:
    """Return a value in file syntax, truncated if it is long."""
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
    """Return a list, `[1, 1, 1]`, or numbers by name as the string in the study; scalars unchanged."""
    if isinstance(value, Mapping):
        # Sorted, because their order has no meaning.
        return json.dumps(plain(value), ensure_ascii=False, sort_keys=True)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value


def plain(value: Any) -> Any:
    """Return a value as in JSON: lists for tuples, dictionaries for mappings."""
    if isinstance(value, Mapping):
        return {name: plain(below) for name, below in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for a key that is not in the catalog."""
    names = list(known)
    return f"unknown key; allowed: {', '.join(names) or 'nothing'}{closest(key, names)}"


def _section(path: str) -> str:
    return path.split(".", 1)[0]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:60]} ... {text[-12:]}"
