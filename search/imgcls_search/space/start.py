"""The `start` section: known-good configurations, checked against the space and converted to Optuna parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgcls_search.config import Scalar
from imgcls_search.errors import closest
from imgcls_search.space.parameters import Choice, Fixed, Float, Int, Searched, When, one_of, same
from imgcls_search.space.problems import Position, Report, canonical, join, show
from imgcls_search.space.scalars import is_switch
from imgcls_search.space.tree import Branch, Group, Node, walk
from imgcls_search.space.yaml_nodes import ListNode, MapNode, ScalarNode, advice, value_of
from imgcls_search.space.yaml_nodes import Node as YamlNode

ADVICE = "start takes a list of configurations, as in [{model: vit, model.vit.depth: 4}]"


def read_start(section: YamlNode | None, root: Group, report: Report) -> tuple[dict[str, Scalar], ...]:
    """Return each configuration as parameters, with the branches that it implies."""
    match section:
        case None | ScalarNode(value=None):
            return ()
        case ListNode():
            known = {path: _Known(node=node, when=when) for path, node, when in walk(root) if path}
            return tuple(_entry(item, f"start[{index}]", known, report) for index, item in enumerate(section.items))
        case _:
            report.add(section.position, "start", ADVICE)
            return ()


def start_of(given: Mapping[str, Any], root: Group, *, source: str = "not of this space") -> dict[str, Scalar]:
    """Return a configuration that does not come from a file as parameters, with the branches that it implies.

    Error messages begin with `source`.

    Raises:
        SpaceError: the space has no such setting.
    """
    report = Report(source)
    node = MapNode(
        position=Position(),
        values={path: _node(value) for path, value in given.items()},
        keys=dict.fromkeys(given, Position()),
    )
    known = {path: _Known(node=found, when=when) for path, found, when in walk(root) if path}
    params = _entry(node, "", known, report)
    report.raise_any()
    return params


def _node(value: Any) -> YamlNode:
    match value:
        case list() | tuple():
            return ListNode(position=Position(), items=tuple(map(_node, value)))
        case dict():
            values = {name: _node(below) for name, below in value.items()}
            return MapNode(position=Position(), values=values, keys=dict.fromkeys(values, Position()))
    return ScalarNode(position=Position(), value=value, text=str(value), quoted=True)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A node of the space and the branches above it."""

    node: Node
    when: When


def _entry(entry: YamlNode, path: str, known: dict[str, _Known], report: Report) -> dict[str, Scalar]:
    if not isinstance(entry, MapNode):
        report.add(entry.position, path, ADVICE)
        return {}
    configuration = _StartConfiguration(path, report)
    for key, node in _named_first(entry, known):
        if report.concerns(key):
            continue  # the section to check against has problems itself
        where = join(path, key)
        if key not in known:
            report.add(entry.keys[key], where, f"the space has no such path{closest(key, known)}")
        elif refusal := _refusal(known[key].node, node):
            report.add(node.position, where, refusal)
        else:
            configuration.imply(key, entry.keys[key], known[key].when)
            if _is_parameter(known[key].node):
                configuration.params[key] = _recorded(known[key].node, node)
    return configuration.params


class _StartConfiguration:
    """The parameters of one entry, and the branches that they imply."""

    def __init__(self, path: str, report: Report) -> None:
        self.params: dict[str, Scalar] = {}
        self._path = path
        self._report = report
        self._sayers: dict[str, str] = {}

    def imply(self, key: str, position: Position, when: When) -> None:
        """Record the branches above a key; report two different branches of one component as a contradiction."""
        for component, name in when:
            chosen = self.params.setdefault(component, name)
            sayer = self._sayers.setdefault(component, key)
            if chosen != name:
                other = f"but the entry has {component}: {chosen}"
                because = f" (for {sayer})" if sayer != key else ""
                self._report.add(position, join(self._path, key), f"needs {component}: {name}, {other}{because}")


def _named_first(entry: MapNode, known: dict[str, _Known]) -> list[tuple[str, YamlNode]]:
    # Keys that name a branch come before keys that imply one, so that a contradiction is reported for the latter; of
    # two nested components, the outer one has the shorter path.
    def rank(item: tuple[str, YamlNode]) -> tuple[bool, int]:
        key = item[0]
        names = key in known and isinstance(known[key].node, Branch)
        return not names, len(key) if names else 0

    return sorted(entry.values.items(), key=rank)


def _is_parameter(known: Node) -> bool:
    return isinstance(known, Searched) or (isinstance(known, Branch) and known.parameter("") is not None)


def _refusal(known: Node, node: YamlNode) -> str | None:
    """Return why a value is not allowed in an entry, None if it is."""
    value = _recorded(known, node)
    match known:
        case Group():
            return "takes no value; name the parameters below it"
        case Branch() if value not in known.options:
            return f"{_got(known, node)}; allowed: {one_of(tuple(known.options))}"
        case Searched() if not known.contains(value):
            return f"{_got(known, node)}; allowed: {known.parameter('').domain}"
        case Fixed() if not same(value_of(node), known.value):
            return f"{_got(known, node)}; the space fixes it to {show(known.value)}"
        case _:
            return None


def _recorded(known: Node, node: YamlNode) -> Scalar:
    """Return a value as the study records it: a list as a string, 1 as 1.0 if the parameter is a float."""
    match known, value_of(node):
        case Choice(), value:
            option = next((option for option in known.options if same(option, value)), value)
            return canonical(option)
        case Float(), int() | float() as value if not isinstance(value, bool):
            return float(value)
        case Int(), float() as value if value.is_integer():
            return int(value)
        case _:
            return canonical(value_of(node))


def _got(known: Node, node: YamlNode) -> str:
    options = known.options if isinstance(known, Choice) else (known.value,) if isinstance(known, Fixed) else ()
    takes_names = any(isinstance(option, Mapping) for option in options)
    match node:
        case MapNode() if not takes_names:
            return "got a mapping; write dotted paths, as in model.vit.depth"
        case ScalarNode() if not isinstance(node.value, str) and is_switch(node.text):
            return f"got {advice(node)}"
        case _:
            return f"{show(value_of(node))} is not allowed"
