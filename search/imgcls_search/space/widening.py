"""The additions of a space to that of a study: wider ranges, more choices, families, start configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls_search.config import Scalar
from imgcls_search.space.comparison import MISSING, Difference
from imgcls_search.space.parameters import Choice, Fixed, Float, Int, Parameter, Searched, exact, same
from imgcls_search.space.problems import canonical, printable
from imgcls_search.space.space import Space
from imgcls_search.space.tree import Branch, Node, walk
from imgcls_search.words import counted

COUNTED = 10_000
"""Ranges with at most this many values are checked value by value; of longer ones, only ends and steps."""

STRATEGY = ("sampler", "pruner")
"""Components of the `study` section that may change between trials."""


@dataclass(frozen=True, kw_only=True)
class Widening:
    """The differences of a space from its previous version."""

    added: tuple[str, ...]
    """Additions, and changes of sampler or pruner, a few words each."""

    refused: tuple[Difference, ...]
    """Other differences, which make the space not contain the previous one."""

    start: tuple[Mapping[str, Scalar], ...] = ()
    """The new start configurations."""

    novel: tuple[tuple[str, Scalar], ...] = ()
    """The new values of choices, including families, by path."""


def compare(changes: Sequence[Difference], old: Mapping[str, Any], space: Space) -> Widening:
    """Return which changes from an old document to a space are additions, and which are not."""
    nodes = {path: node for path, node, _ in walk(space.root)}
    added: dict[str, None] = {}
    refused = []
    start: list[Mapping[str, Scalar]] = []
    novel: list[tuple[str, Scalar]] = []
    for change in changes:
        words = _strategy_in_words(change, old, space) or _added_in_words(change, nodes)
        if change.path == "start" and (new := _new_start(change, space)) is not None:
            start = new
            words = f"start: {counted('more configuration', len(new))}" if new else "start: in another order"
        if words is None:
            refused.append(change)
        else:
            added[words] = None
            novel += _novel(change, nodes)
    return Widening(added=tuple(added), refused=tuple(refused), start=tuple(start), novel=tuple(novel))


def in_wider(params: Mapping[str, Scalar], old: Mapping[str, Any], space: Space) -> dict[str, Scalar]:
    """Return the parameters of an earlier configuration in a wider space.

    A setting that was fixed and is now searched becomes a parameter with the fixed value.
    """
    found: dict[str, Scalar] = {}
    for parameter in space.parameters():
        if any(found.get(component) != name for component, name in parameter.when):
            continue
        if parameter.path in params:
            found[parameter.path] = params[parameter.path]
        elif (value := _given(old, parameter)) is not MISSING:
            found[parameter.path] = value
    return found


def _strategy_in_words(change: Difference, old: Mapping[str, Any], space: Space) -> str | None:
    section, _, rest = change.path.partition(".")
    key = rest.partition(".")[0]
    if section != "study" or key not in STRATEGY:
        return None
    (before,), (now,) = old["study"][key], space.study[key]
    return f"study.{key}: {before} becomes {now}" if before != now else f"study.{key}: {now} with other arguments"


def _added_in_words(change: Difference, nodes: Mapping[str, Node]) -> str | None:
    """Return the addition in words, None if the change adds nothing or removes something."""
    above, _, name = change.path.rpartition(".")
    if change.old is MISSING:
        return f"{above}: {printable(name)} too" if isinstance(nodes.get(above), Branch) else None
    node = nodes.get(change.path)
    if change.new is MISSING or not isinstance(node, Searched) or not _contains(node, _domain(change.old)):
        return None
    return f"{change.path}: {node.parameter('').domain}"


def _novel(change: Difference, nodes: Mapping[str, Node]) -> list[tuple[str, Scalar]]:
    """Return the values that a change adds to a choice."""
    if change.path.startswith("study."):
        return []
    above, _, name = change.path.rpartition(".")
    if change.old is MISSING:
        return [(above, name)]
    node = nodes.get(change.path)
    if not isinstance(node, Choice):
        return []
    old = _domain(change.old)
    count = old.num_combinations()
    if count is None or count > COUNTED:
        return []
    before = [_as_in(node, value) for value in _values(old)]
    return [(change.path, value) for value in node.values() if not any(same(value, each) for each in before)]


def _new_start(change: Difference, space: Space) -> list[Mapping[str, Scalar]] | None:
    """Return the new start configurations; None if earlier ones are missing."""
    if change.old is MISSING or not isinstance(change.old, list):
        return None
    left = list(space.start)
    for entry in change.old:
        wider = [entry, {**_implied(entry, space), **entry}]
        found = next((known for known in left if any(same(known, each) for each in wider)), None)
        if found is None:
            return None
        left.remove(found)
    return left


def _implied(entry: Mapping[str, Scalar], space: Space) -> dict[str, Scalar]:
    """Return the branches that an entry implies for components that had one option and now have several."""
    when = {parameter.path: parameter.when for parameter in space.parameters()}
    return {component: name for path in entry for component, name in when.get(path, ())}


def _domain(document: Any) -> Fixed | Searched:
    """Return the leaf that a document describes."""
    if isinstance(document, Mapping):
        step, log = document.get("step"), bool(document.get("log"))
        match document:
            case {"choice": list(options)}:
                return Choice(options=tuple(_tuples(option) for option in options))
            case {"int": [int(low), int(high)]}:
                return Int(low=low, high=high, step=step or 1, log=log)
            case {"float": [low, high]}:
                return Float(low=float(low), high=float(high), step=step, log=log)
    return Fixed(value=_tuples(document))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _contains(new: Searched, old: Fixed | Searched) -> bool:
    """Tell whether a domain contains all values of another."""
    count = old.num_combinations()
    if isinstance(old, Fixed) or (count is not None and count <= COUNTED):
        return all(new.contains(_as_in(new, value)) for value in _values(old))
    if not isinstance(old, Int | Float) or not isinstance(new, Int | Float):
        return False
    if not all(new.contains(_as_in(new, end)) for end in (old.low, old.high)):
        return False
    if new.step is None:
        return True
    return old.step is not None and (exact(old.step) / exact(new.step)).denominator == 1


def _values(domain: Fixed | Searched) -> Iterator[Scalar]:
    if isinstance(domain, Fixed):
        return iter([canonical(domain.value)])
    return domain.values()


def _as_in(new: Searched, value: Scalar) -> Scalar:
    """Return a value as a domain records it: 2.0 becomes 2 in a domain of whole numbers."""
    if isinstance(new, Int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _given(old: Mapping[str, Any], parameter: Parameter) -> Any:
    """Return the value of an old document at a parameter's path, as the parameter records it; or MISSING."""
    node: Any = old
    for key in parameter.path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return MISSING
        node = node[key]
    value = canonical(_tuples(node)) if not isinstance(node, Mapping) else None
    if isinstance(node, Mapping) and len(node) == 1 and next(iter(node)) in parameter.choices:
        return next(iter(node))
    if parameter.kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if parameter.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return MISSING if isinstance(node, Mapping) else value
