"""Read sections and components of a file into a tree of nodes, according to the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imgcls_search.errors import closest
from imgcls_search.signature import Fields, Leaf, OneOf
from imgcls_search.space.domains import At, read_leaf
from imgcls_search.space.parameters import Fixed
from imgcls_search.space.problems import Position, Report, printable, show, unknown_key
from imgcls_search.space.tree import Branch, Group, Node
from imgcls_search.space.yaml_nodes import ListNode, MapNode, ScalarNode, advice
from imgcls_search.space.yaml_nodes import Node as YamlNode


def read_fields(fields: Fields, node: YamlNode | None, at: At, report: Report, *, also: tuple[str, ...] = ()) -> Group:
    """Return the values of a section or of a builder's arguments, with defaults for missing ones.

    `also` names keys that are allowed here but read elsewhere. Children are in the catalog's order, so that the order
    of keys in a file has no meaning.
    """
    known = fields.fields
    given = _mapping(node, [*also, *known], at, report)
    strange = [key for key in given.values if key not in known and key not in also]
    if fields.others is not None:
        known = {**known, **dict.fromkeys(strange, fields.others)}
        strange = []
    for key in strange:
        here = at.below(key, given.keys[key])
        report.add(here.position, here.path, unknown_key(key, [*also, *known]))
    children = {
        key: _read_entry(entry, given.values.get(key), at.below(key, given.keys.get(key)), report)
        for key, entry in known.items()
    }
    return Group(children=children)


def _read_entry(entry: Leaf | OneOf | Fields, node: YamlNode | None, at: At, report: Report) -> Node:
    match entry:
        case Leaf():
            return read_leaf(entry, node, at, report)
        case OneOf():
            return _read_component(entry, node, at, report)
        case Fields():
            return read_fields(entry, node, at, report)


def _mapping(node: YamlNode | None, allowed: list[str], at: At, report: Report) -> MapNode:
    """Return the node as a mapping; return an empty one for null, and for other nodes after reporting them."""
    match node:
        case MapNode():
            return node
        case None | ScalarNode(value=None):
            pass
        case _:
            got = "a list" if isinstance(node, ListNode) else show(node.value)
            report.add(
                node.position, at.path, f"takes a mapping, but got {got}; allowed: {', '.join(allowed) or 'no key'}"
            )
    return MapNode(position=at.position)


@dataclass(frozen=True, kw_only=True)
class _Given:
    """An option in the file."""

    position: Position
    node: YamlNode | None = None


def _read_component(component: OneOf, node: YamlNode | None, at: At, report: Report) -> Node:
    fixed = at.fixed or component.fixed
    given = _given(component, node, at, report)
    if fixed and len(given) > 1:
        position = node.position if node else at.position
        report.add(
            position, at.path, f"is given, not searched: exactly one of {_names(component)}, but got {', '.join(given)}"
        )
        given = dict(list(given.items())[:1])
    options = {
        name: read_fields(fields, given[name].node, at.below(name, given[name].position, fixed=fixed), report)
        for name, fields in component.options.items()
        if name in given
    }
    return Branch(options=options) if options else Fixed(value=None)


def _given(component: OneOf, node: YamlNode | None, at: At, report: Report) -> Mapping[str, _Given]:
    """Return the known options in the file, after reporting the others."""
    match node:
        case None | ScalarNode(value=None):
            if component.default is None:
                report.add(node.position if node else at.position, at.path, f"required; one of {_names(component)}")
                return {}
            return {component.default: _Given(position=at.position)}
        case ScalarNode():
            return _named(component, node, at, report)
        case ListNode():
            report.add(node.position, at.path, f"a component, not a list; {_as_keys(component, node)}")
            return {}
        case MapNode():
            return _keyed(component, node, at, report)


def _named(component: OneOf, node: ScalarNode, at: At, report: Report) -> Mapping[str, _Given]:
    name = node.value
    if isinstance(name, str) and name in component.options:
        return {name: _Given(position=node.position)}
    if isinstance(name, str):
        got = f"{show(name)} is not allowed; allowed: {_names(component)}{closest(name, component.options)}"
    else:
        got = f"a name is needed, but got {advice(node)}; allowed: {_names(component)}"
    report.add(node.position, at.path, got)
    return {}


def _keyed(component: OneOf, node: MapNode, at: At, report: Report) -> Mapping[str, _Given]:
    if not node.values:
        report.add(node.position, at.path, f"empty; one of {_names(component)} is needed")
    if "choice" in node.values and "choice" not in component.options:
        listed = node.values["choice"]
        message = f"a component takes no `choice`; {_as_keys(component, listed)}"
        report.add(node.keys["choice"], at.path, message)
        return {}
    for key in node.values:
        if key not in component.options:
            here = at.below(key, node.keys[key])
            report.add(here.position, here.path, unknown_key(key, component.options))
    return {
        key: _Given(position=node.keys[key], node=node.values[key]) for key in node.values if key in component.options
    }


def _as_keys(component: OneOf, listed: YamlNode) -> str:
    """Return the advice to write options as keys, using the listed names."""
    items = listed.items if isinstance(listed, ListNode) else ()
    names = [printable(item.text) for item in items if isinstance(item, ScalarNode)][:5]
    example = ", ".join(f"{name}: {{}}" for name in names or list(component.options)[:2])
    return f"write the options as keys, as in {{{example}}}; allowed: {_names(component)}"


def _names(component: OneOf) -> str:
    return ", ".join(component.options)
