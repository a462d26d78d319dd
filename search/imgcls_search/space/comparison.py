"""Compare two documents of a space, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgcls_search.space.parameters import same


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()
"""Marks a key that one of the documents lacks."""

_KINDS = ("choice", "int", "float")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key that differs between two documents."""

    path: str
    old: Any
    """The value, or a range as `{"int": [2, 6]}`, or MISSING."""

    new: Any

    def __str__(self) -> str:
        return f"{self.path}: was {_show(self.old)}, is now {_show(self.new)}"

    def side_by_side(self) -> str:
        """Return the difference in words for two documents without an order in time."""
        first, second = ("absent" if value is MISSING else json.dumps(value) for value in (self.old, self.new))
        return f"{self.path}: {first} / {second}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return the differences in the order of the old document; new keys come last."""
    return _differences(old, new, "")


def _differences(old: Any, new: Any, path: str) -> list[Difference]:
    if not (_has_keys(old) and _has_keys(new)):
        return [] if _equal(old, new) else [Difference(path=path, old=old, new=new)]
    found = []
    for key in dict.fromkeys([*old, *new]):
        below = f"{path}.{key}" if path else key
        found += _differences(old.get(key, MISSING), new.get(key, MISSING), below)
    return found


def _has_keys(node: Any) -> bool:
    """Tell whether a node is a mapping of keys; ranges and choices are mappings too, but count as one value."""
    return isinstance(node, Mapping) and not any(isinstance(node.get(kind), list | tuple) for kind in _KINDS)


def _equal(old: Any, new: Any) -> bool:
    match old, new:
        case Mapping(), Mapping():
            return old.keys() == new.keys() and all(_equal(value, new[key]) for key, value in old.items())
        case ((list() | tuple()), (list() | tuple())):
            return len(old) == len(new) and all(_equal(*pair) for pair in zip(old, new, strict=True))
        case _:
            return same(old, new)


def _show(value: Any) -> str:
    return "not there" if value is MISSING else json.dumps(value)
