"""Apply command line changes to a file before it is read: `--set path=value` and `--data folder:photos`."""

from __future__ import annotations

import re

from imgcls_search.config import Value
from imgcls_search.signature import REQUIRED, Fields, Leaf, OneOf
from imgcls_search.space.problems import Position, Report, printable, unknown_key
from imgcls_search.space.yaml_nodes import MAX_DEPTH, ListNode, MapNode, Node, ScalarNode, read, value_of

PLACED = ("--data ", "--unlabeled ")
"""Beginnings of the origins of values that `with_data` puts into a file."""

_TABLE = re.compile(r"(.+?\.(?:csv|tsv|parquet))(?::(.+))?", re.IGNORECASE | re.DOTALL)
"""The path of a table, and the root of its images if one is given."""


def with_data(
    root: MapNode, data: str, known: Leaf | OneOf | Fields, report: Report, *, section: str = "data"
) -> MapNode:
    """Return the file with another data set in a section: `digits`, `folder:photos` or `torchvision:STL10:sets`.

    Required arguments of the data set come first, then its root; values are taken literally. If the file has a data set
    of the same kind, its other arguments stay, such as the split shares.
    """
    position = Position(origin=f"--{section} {printable(data)}")
    name, colon, location = data.partition(":")
    if not name or (colon and not location):
        examples = "digits or folder:photos" if section == "data" else "train or folder:photos"
        report.add(position, section, f"takes a name, or a name and a place, as in {examples}")
        return root
    if isinstance(known, OneOf) and name not in known.options:
        also = "" if colon else f"; a folder is written folder:{printable(data)}"
        report.add(position, f"{section}.{printable(name)}", f"{unknown_key(name, known.options)}{also}")
        return root
    option = known.options.get(name) if isinstance(known, OneOf) else None
    names = _required(option) if option is not None else []
    if "root" not in names and (option is None or option.others is None):
        names.append("root")
    values = _values(location, names) if colon else []
    args = {
        key: ScalarNode(position=position, value=value, text=value, quoted=True)
        for key, value in zip(names, values, strict=False)
    }
    own = _arguments_of(root.values.get(section), name)
    arguments = MapNode(
        position=position, values={**own.values, **args}, keys={**own.keys, **dict.fromkeys(args, position)}
    )
    return _replaced(root, section, _single(name, arguments, position), position)


def _values(location: str, names: list[str]) -> list[str]:
    """Return the parts of a location between colons; a table's path may have colons itself, and has an ending."""
    table = _TABLE.fullmatch(location) if names[:1] == ["file"] else None
    if table is not None:
        return [part for part in table.groups() if part is not None]
    return location.split(":", len(names) - 1)


def _arguments_of(data: Node | None, name: str) -> MapNode:
    """Return the arguments of a data set in the file; empty if the file has another kind of data."""
    found = data.values.get(name) if isinstance(data, MapNode) and len(data.values) == 1 else None
    return found if isinstance(found, MapNode) else MapNode(position=Position())


def _required(option: Fields) -> list[str]:
    return [name for name, leaf in option.fields.items() if isinstance(leaf, Leaf) and leaf.default is REQUIRED]


def with_value(root: MapNode, path: str, text: str, report: Report) -> MapNode:
    """Return the file with one value replaced; missing mappings on the path are created."""
    position = Position(origin=f"--set {printable(path)}={printable(text)}")
    parts = _parts(path)
    shown = printable(path)
    if not all(parts) or len(parts) > MAX_DEPTH:
        report.add(position, shown, "a path is names joined by single dots, as in model.vit.depth")
        return root
    value = read(text, report, origin=position.origin, path=shown)
    if value is None:
        return root
    if (origin := _origin_of(root, parts)).startswith(PLACED):
        report.add(position, shown, f"is what {origin} gives; leave one of them out")
        return root
    try:
        return _put(root, parts, value, position)
    except _BlockedError as blocked:
        report.add(
            position, shown, f"{printable(blocked.path)} is {blocked.kind}, not a mapping; nothing can be set below it"
        )
        return root


def _origin_of(node: Node, parts: list[str]) -> str:
    """Return the command line option that a value comes from; empty if there is none, or no value."""
    for part in parts:
        if not isinstance(node, MapNode) or part not in node.values:
            return ""
        node = node.values[part]
    return node.position.origin


def _parts(path: str) -> list[str]:
    """Return the keys of a path; a metric's name is one key, even with dots: `limits.sensitivity@0.95:tumor.at_least`.

    The name of a class in `class_weights` is one key too.
    """
    weights, marker, name = path.partition(".class_weights.")
    if marker:
        return [*weights.split("."), "class_weights", name]
    above = next((top for top in ("limits.", "study.objectives.") if path.startswith(top)), "")
    if not above or ":" not in path:
        return path.split(".")
    metric, dot, side = path.removeprefix(above).rpartition(".")
    is_side = dot and side in ("at_least", "at_most")
    return [*above[:-1].split("."), *([metric, side] if is_side else [path.removeprefix(above)])]


class _BlockedError(Exception):
    """A node along a path is not a mapping."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(path)
        self.path = path
        self.kind = kind


def refuse_unreadable(path: str, text: str) -> None:
    """Refuse a `--set` value that YAML cannot read.

    Raises:
        SpaceError: the value cannot be read.
    """
    origin = f"--set {printable(path)}={printable(text)}"
    report = Report(origin)
    read(text, report, origin=origin, path=printable(path))
    report.raise_any()


def plain_value(text: str) -> Value:
    """Return a `--set` value as plain values; it must have been read without problems before."""
    node = read(text, Report(""))
    assert node is not None
    return value_of(node)


def _put(node: Node, parts: list[str], value: Node, position: Position, done: str = "") -> MapNode:
    key, *rest = parts
    mapping = _as_mapping(node, key, position, done)
    if rest:
        child = mapping.values.get(key) or MapNode(position=position)
        value = _put(child, rest, value, position, f"{done}.{key}" if done else key)
    return _replaced(mapping, key, value, position, keep_key=bool(rest))


def _as_mapping(node: Node, key: str, position: Position, path: str) -> MapNode:
    match node:
        case MapNode():
            return node
        case ScalarNode(value=None):
            return MapNode(position=position)
        case ScalarNode(value=str(name)) if name == key:
            # `model: vit` is short for `model: {vit: {}}`.
            return _single(name, MapNode(position=node.position), node.position)
        case ListNode():
            raise _BlockedError(path, "a list")
        case _:
            raise _BlockedError(path, "a single value")


def _replaced(mapping: MapNode, key: str, value: Node, position: Position, *, keep_key: bool = False) -> MapNode:
    key_position = mapping.keys.get(key, position) if keep_key else position
    return MapNode(
        position=mapping.position, values={**mapping.values, key: value}, keys={**mapping.keys, key: key_position}
    )


def _single(key: str, value: Node, position: Position) -> MapNode:
    return MapNode(position=position, values={key: value}, keys={key: position})
