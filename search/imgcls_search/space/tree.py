"""The inner nodes of a space, `Branch` and `Group`, and walks over the whole tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from imgcls_search.config import Scalar, Value
from imgcls_search.space.parameters import Fixed, Parameter, Searched, Suggests, When, one_of
from imgcls_search.space.problems import join


@dataclass(frozen=True, kw_only=True)
class Group:
    """Named nodes next to each other: a section, or the arguments of a builder."""

    children: Mapping[str, Node]

    def sample(self, path: str, trial: Suggests) -> dict[str, Any]:
        """Return the values of all children."""
        return {key: child.sample(join(path, key), trial) for key, child in self.children.items()}

    def num_combinations(self) -> int | None:
        """Return the product, because children are independent of each other."""
        product = 1
        for child in self.children.values():
            count = child.num_combinations()
            if count is None:
                return None
            product *= count
        return product

    def combinations(self, path: str) -> Iterator[dict[str, Scalar]]:
        """Yield each combination of the children's parameters; the last child varies fastest."""
        return _product([(join(path, key), child) for key, child in self.children.items()])

    def document(self) -> dict[str, Any]:
        """Return the children as plain JSON."""
        return {key: child.document() for key, child in self.children.items()}


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A component: one of several groups. With several options it is a parameter, with one it is fixed."""

    options: Mapping[str, Group]

    def sample(self, path: str, trial: Suggests) -> dict[str, Any]:
        """Return the chosen name with its values."""
        names = tuple(self.options)
        name = names[0] if len(names) == 1 else trial.suggest_categorical(path, names)
        if not isinstance(name, str) or name not in self.options:
            raise ValueError(f"{path}: {name!r} is not in {one_of(names)}")
        return {name: self.options[name].sample(join(path, name), trial)}

    def num_combinations(self) -> int | None:
        """Return the sum, because only one option is chosen at a time."""
        counts = [option.num_combinations() for option in self.options.values()]
        return None if None in counts else sum(count for count in counts if count is not None)

    def combinations(self, path: str) -> Iterator[dict[str, Scalar]]:
        """Yield each combination of each option, with its name if there are several options."""
        for name, option in self.options.items():
            chosen: dict[str, Scalar] = {path: name} if len(self.options) > 1 else {}
            for params in option.combinations(join(path, name)):
                yield chosen | params

    def parameter(self, path: str, when: When = ()) -> Parameter | None:
        """Return the choice between the options, None if there is only one."""
        names = tuple(self.options)
        if len(names) == 1:
            return None
        return Parameter(
            path=path, kind="choice", choices=names, when=when, num_values=len(names), domain=one_of(names)
        )

    def document(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return {name: option.document() for name, option in self.options.items()}


Node = Fixed | Searched | Branch | Group


def walk(node: Node, path: str = "", when: When = ()) -> Iterator[tuple[str, Node, When]]:
    """Yield a node and all its descendants with their paths and the branches above them."""
    yield path, node, when
    match node:
        case Group():
            below = (walk(child, join(path, key), when) for key, child in node.children.items())
            yield from chain.from_iterable(below)
        case Branch():
            for name, option in node.options.items():
                condition = ((path, name),) if len(node.options) > 1 else ()
                yield from walk(option, join(path, name), when + condition)
        case _:
            pass


def parameters(root: Node) -> list[Parameter]:
    """Return all searched parameters, a branch before the parameters below it."""
    found = (node.parameter(path, when) for path, node, when in walk(root) if isinstance(node, Searched | Branch))
    return [parameter for parameter in found if parameter is not None]


def fill(group: Group, values: Mapping[str, Value], path: str = "") -> Group:
    """Return a group with `values` filled in at paths with None or `auto`."""
    return Group(children={key: _fill(child, values, join(path, key)) for key, child in group.children.items()})


def _fill(node: Node, values: Mapping[str, Value], path: str) -> Node:
    match node:
        case Group():
            return fill(node, values, path)
        case Branch():
            return Branch(options={name: fill(group, values, join(path, name)) for name, group in node.options.items()})
        case Fixed(value=None | "auto") if path in values:
            return Fixed(value=values[path])
        case _:
            return node


def _product(nodes: Sequence[tuple[str, Node]]) -> Iterator[dict[str, Scalar]]:
    if not nodes:
        yield {}
        return
    (path, node), *rest = nodes
    for params in node.combinations(path):
        for more in _product(rest):
            yield params | more
