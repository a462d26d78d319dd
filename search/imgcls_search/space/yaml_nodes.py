"""Read YAML safely into nodes with positions; no file can run code, loop, or grow without bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import yaml

from imgcls_search.config import Scalar, Value
from imgcls_search.space.problems import Position, Report, join, printable, show
from imgcls_search.space.scalars import resolve

MAX_DEPTH = 50
MAX_NODES = 10_000

_PLAIN_WORDS = {
    "expected a single document in the stream": "one file holds one document, but another begins here",
    "found character '\\t' that cannot start any token": "a tab; YAML is indented with spaces",
    "mapping values are not allowed here": "a colon where YAML expects none; quote the text or fix its indentation",
}


@dataclass(frozen=True, kw_only=True)
class ScalarNode:
    """A single value."""

    position: Position
    value: Scalar
    text: str
    """The text as written, for advice: `off` if the value is False."""

    quoted: bool = False


@dataclass(frozen=True, kw_only=True)
class ListNode:
    """A list of nodes."""

    position: Position
    items: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class MapNode:
    """A mapping; `keys` holds the positions of its keys."""

    position: Position
    values: Mapping[str, Node] = field(default_factory=dict)
    keys: Mapping[str, Position] = field(default_factory=dict)


Node = ScalarNode | ListNode | MapNode


def read(text: str, report: Report, *, origin: str = "", path: str = "") -> Node | None:
    """Return YAML text as a node, empty text as null; for broken YAML, report the problem and return None.

    In problems, `origin` and `path` identify a command line value, in place of line and column.
    """

    def position(mark: yaml.Mark | None) -> Position:
        return (
            Position(origin=origin) if origin or mark is None else Position(line=mark.line + 1, column=mark.column + 1)
        )

    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        for tag, mark in loader.tags:
            report.add(
                position(mark), path, f"the tag {printable(tag)} is not allowed; a space holds plain values only"
            )
        if root is None:
            return ScalarNode(position=Position(origin=origin), value=None, text="")
        return _Reading(report, position).node(root, path)
    except yaml.reader.ReaderError as error:
        report.add(Position(origin=origin) if origin else _position(text, error.position), path, _unprintable(error))
    except yaml.MarkedYAMLError as error:
        report.add(position(error.problem_mark or error.context_mark), path, _sentence(error))
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML passes `"\UFFFFFFFF"` and a directive of 5,000 digits on to chr() and int().
        report.add(Position(origin=origin), path, f"not readable as YAML: {printable(str(error))}")
    return None


class _RefusedError(yaml.MarkedYAMLError):
    """Well-formed YAML that is too deep, too large or endless."""


class _Loader(yaml.SafeLoader):
    """Composes nodes, records tags, and stops early if the text is too deep or too large."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: list[tuple[str, yaml.Mark]] = []
        self._depth = 0
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            self.tags.append(("".join(event.tag), event.start_mark))
        self._count += 1
        self._depth += 1
        _check_size(self._depth, self._count, event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass
class _Reading:
    """One traversal of composed nodes that expands aliases and merge keys."""

    report: Report
    position: Callable[[yaml.Mark | None], Position]
    count: int = 0
    open: list[int] = field(default_factory=list)

    def node(self, raw: yaml.Node, path: str) -> Node:
        self.count += 1
        _check_size(len(self.open) + 1, self.count, raw.start_mark)
        if id(raw) in self.open:
            raise _RefusedError(problem="an alias stands inside its own anchor", problem_mark=raw.start_mark)
        self.open.append(id(raw))
        read = self._read(raw, path)
        self.open.pop()
        return read

    def _read(self, raw: yaml.Node, path: str) -> Node:
        position = self.position(raw.start_mark)
        match raw:
            case yaml.MappingNode():
                return self._mapping(raw, position, path)
            case yaml.SequenceNode():
                items = (self.node(item, f"{path}[{index}]") for index, item in enumerate(raw.value))
                return ListNode(position=position, items=tuple(items))
            case _:
                return self._scalar(raw, position, path)

    def _scalar(self, raw: yaml.Node, position: Position, path: str) -> ScalarNode:
        text = str(raw.value)
        if not _encodable(text):
            self.report.add(position, path, "half a surrogate pair, which is not a character; write the whole one")
            text = ""
        quoted = _is_quoted(raw)
        return ScalarNode(position=position, value=text if quoted else resolve(text), text=text, quoted=quoted)

    def _mapping(self, raw: yaml.MappingNode, position: Position, path: str) -> MapNode:
        values: dict[str, Node] = {}
        keys: dict[str, Position] = {}
        merged: list[MapNode] = []
        for raw_key, raw_value in raw.value:
            if _is_merge(raw_key):
                merged.extend(self._merged(raw_value, path))
                continue
            key = self._key(raw_key, path)
            where = self.position(raw_key.start_mark)
            if key is None:
                continue
            if key in values:
                first = f" (first on line {keys[key].line})" if keys[key].line else ""
                self.report.add(where, join(path, key), f"the same key twice{first}; keep one of them")
                continue
            values[key] = self.node(raw_value, join(path, key))
            keys[key] = where
        for other in merged:
            # Keys of the mapping itself override merged ones, and earlier merged mappings override later ones.
            values = {**other.values, **values}
            keys = {**other.keys, **keys}
        return MapNode(position=position, values=values, keys=keys)

    def _key(self, raw: yaml.Node, path: str) -> str | None:
        position = self.position(raw.start_mark)
        if not isinstance(raw, yaml.ScalarNode):
            self.report.add(position, path, "a key must be a name, but got a list or a mapping")
            return None
        key = self._scalar(raw, position, path)
        if isinstance(key.value, str):
            return key.value
        self.report.add(position, join(path, key.text or "null"), f"a key must be a name, but got {advice(key)}")
        return None

    def _merged(self, raw: yaml.Node, path: str) -> list[MapNode]:
        node = self.node(raw, join(path, "<<"))
        parts = node.items if isinstance(node, ListNode) else (node,)
        maps = [part for part in parts if isinstance(part, MapNode)]
        if len(maps) < len(parts):
            self.report.add(node.position, path, "`<<` merges mappings; it takes one or a list of them")
        return maps


def value_of(node: Node) -> Value:
    """Return a node as plain values; lists become tuples."""
    match node:
        case ScalarNode():
            return node.value
        case ListNode():
            return tuple(value_of(item) for item in node.items)
        case MapNode():
            return {name: value_of(below) for name, below in node.values.items()}


def advice(node: ScalarNode) -> str:
    """Return how YAML read a word meant as a name: `false; YAML reads off as false; write "off" in quotes`."""
    quoted = f'write "{printable(node.text)}" in quotes'
    if isinstance(node.value, bool) and node.text.lower() != show(node.value):
        return f"{show(node.value)}; YAML reads {node.text} as {show(node.value)}; {quoted}"
    return f"{show(node.value)}; {quoted}"


def _check_size(depth: int, count: int, mark: yaml.Mark) -> None:
    if depth > MAX_DEPTH:
        raise _RefusedError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=mark)
    if count > MAX_NODES:
        raise _RefusedError(problem=f"more than {MAX_NODES:,} values, aliases included", problem_mark=mark)


def _is_quoted(raw: yaml.Node) -> bool:
    return isinstance(raw, yaml.ScalarNode) and raw.style is not None


def _is_merge(raw: yaml.Node) -> bool:
    return isinstance(raw, yaml.ScalarNode) and raw.value == "<<" and not _is_quoted(raw)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _position(text: str, position: int) -> Position:
    before = text[:position]
    return Position(line=before.count("\n") + 1, column=position - before.rfind("\n"))


def _unprintable(error: yaml.reader.ReaderError) -> str:
    return f"the character {int(error.character):#06x} cannot stand in YAML; remove it"


def _sentence(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _RefusedError):
        return str(error.problem)
    for part in (error.context, error.problem):
        if part in _PLAIN_WORDS:
            return _PLAIN_WORDS[part]
    context = f"{error.context}: " if error.context else ""
    return f"not readable as YAML: {context}{error.problem}".replace("'<stream end>'", "the end of the text")
