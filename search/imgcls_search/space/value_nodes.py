"""Convert Python values to the nodes of a YAML file, so that both give the same space or errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any

from imgcls_search.config import Scalar
from imgcls_search.space.problems import Position, Report, join, show
from imgcls_search.space.scalars import narrow
from imgcls_search.space.yaml_nodes import MAX_DEPTH, MAX_NODES, ListNode, MapNode, Node, ScalarNode


def node_of(values: Any, report: Report) -> Node:
    """Return plain values as nodes without positions; report all other values."""
    return _Reading(report).node(values, "", 1)


class _Reading:
    """One traversal of nested values, which may contain cycles."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.count = 0

    def node(self, value: Any, path: str, depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_NODES:
            self.report.add(
                Position(), path, f"too deep or too large; allowed: {MAX_DEPTH} levels, {MAX_NODES:,} values"
            )
            self.report.raise_any()
        if isinstance(value, Mapping):
            return self._mapping(value, path, depth)
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            items = (self.node(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
            return ListNode(position=Position(), items=tuple(items))
        return self._scalar(value, path)

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> MapNode:
        values: dict[str, Node] = {}
        for key, below in value.items():
            if not isinstance(key, str):
                if callable(key):
                    self.report.add(Position(), path, refusal(key))
                    continue
                shown = show(key) if isinstance(key, (bool, int, float)) or key is None else f"a {type(key).__name__}"
                self.report.add(Position(), join(path, str(key)), f"a key must be a name, but got {shown}")
                continue
            values[key] = self.node(below, join(path, key), depth + 1)
        return MapNode(position=Position(), values=values, keys=dict.fromkeys(values, Position()))

    def _scalar(self, value: Any, path: str) -> ScalarNode:
        plain: Scalar = None
        if isinstance(value, PathLike):
            plain = str(fspath(value))
        elif value is None or isinstance(value, (bool, str)):
            plain = value
        elif isinstance(value, Integral):
            # Includes NumPy's integers.
            plain = narrow(int(value))
        elif isinstance(value, Real):
            plain = float(value)
        else:
            self.report.add(Position(), path, refusal(value))
        if isinstance(plain, float) and not math.isfinite(plain):
            self.report.add(Position(), path, f"{plain} is not a finite number")
            plain = None
        return ScalarNode(position=Position(), value=plain, text=str(plain), quoted=isinstance(plain, str))


def refusal(value: Any) -> str:
    """Return why a value is not allowed in a space, and what to do about it."""
    name = getattr(value, "__qualname__", None)
    if not callable(value):
        return (
            f"a {type(value).__name__} is not a plain value; allowed: mappings, lists, numbers, texts, true, false, "
            "null"
        )
    shown = f"the function {name}" if name else f"a {type(value).__name__}"
    return (
        f"{shown} cannot be handed to other processes; save it in a module that is installed, or in a folder that "
        "add_code names, and write it as 'module:name'"
    )
