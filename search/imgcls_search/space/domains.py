"""Read one argument of a builder from the file: a fixed value, a choice or a range."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, cast

from imgcls_search import durations
from imgcls_search.config import Scalar, Value
from imgcls_search.signature import REQUIRED, Leaf
from imgcls_search.space.parameters import MAX_STEPS, Choice, Fixed, Float, Int, Searched, exact, finest_step, same
from imgcls_search.space.problems import Position, Report, canonical, join, show, unknown_key
from imgcls_search.space.scalars import is_switch
from imgcls_search.space.yaml_nodes import ListNode, MapNode, Node, ScalarNode, advice

KINDS = ("choice", "int", "float")
FORMS = "{choice: [a, b]}, {int: [low, high]} or {float: [low, high]}"


@dataclass(frozen=True, kw_only=True)
class At:
    """The reader's position in the file."""

    position: Position
    """Position of the key; a problem in a value has the value's position."""

    path: str
    fixed: bool = False
    """True inside settings that cannot be searched."""

    def below(self, key: str, position: Position | None = None, *, fixed: bool = False) -> At:
        """Return the position of a key below this one."""
        return At(position=position or self.position, path=join(self.path, key), fixed=self.fixed or fixed)


class _WrongError(Exception):
    """The problems of an argument; reading it stops there."""

    def __init__(self, *problems: tuple[Node, str]) -> None:
        super().__init__(*problems)
        self.problems = problems


def _wrong(node: Node, message: str) -> _WrongError:
    return _WrongError((node, message))


def read_leaf(leaf: Leaf, node: Node | None, at: At, report: Report) -> Fixed | Searched:
    """Return the value or range of one argument in the file, or its default if the file has none.

    After a problem, return the default, so that reading can continue.
    """
    default = Fixed(value=None if leaf.default is REQUIRED else _normal(leaf, cast(Value, leaf.default)))
    if node is None:
        if leaf.default is REQUIRED:
            report.add(at.position, at.path, f"required; allowed: {leaf.describe()}")
        return default
    try:
        return _read(leaf, node, at.fixed or leaf.arg.fixed)
    except _WrongError as wrong:
        for where, message in wrong.problems:
            report.add(where.position, at.path, message)
        return default


def _read(leaf: Leaf, node: Node, fixed: bool) -> Fixed | Searched:
    if not isinstance(node, MapNode) or _is_by_name(leaf, node):
        return Fixed(value=_checked(leaf, node))
    kinds = [kind for kind in KINDS if kind in node.values]
    if fixed:
        takes = "is given, not searched" if kinds else "takes a value, not a mapping"
        raise _wrong(node, f"{takes}; allowed: {leaf.describe()}")
    if len(kinds) != 1:
        got = ", ".join(show(key) for key in list(node.values)[:5]) or "no key"
        raise _wrong(node, f"a mapping here must be one of {FORMS}, but got {got}; allowed: {leaf.describe()}")
    read = {"choice": _choice, "int": _int, "float": _float}[kinds[0]]
    return read(leaf, node)


def _is_by_name(leaf: Leaf, node: MapNode) -> bool:
    """Tell whether a mapping is numbers by name: `{choice: 2}` is for a class `choice`, `{choice: [2]}` is searched."""
    return leaf.names > 0 and not any(isinstance(node.values.get(kind), ListNode) for kind in KINDS)


def _choice(leaf: Leaf, node: MapNode) -> Choice:
    _only(node, "choice")
    listed = node.values["choice"]
    if not isinstance(listed, ListNode):
        raise _wrong(listed, f"`choice` takes a list, as in {{choice: [a, b]}}; allowed: {leaf.describe()}")
    if not listed.items:
        raise _wrong(listed, f"an empty choice; allowed: {leaf.describe()}")
    options: list[Value] = []
    seen: set[Scalar] = set()
    wrong: list[tuple[Node, str]] = []
    for item in listed.items:
        try:
            option = _checked(leaf, item)
        except _WrongError as error:
            wrong += error.problems
            continue
        # Optuna treats 1, 1.0 and true as equal, so a choice may not contain two of them.
        if canonical(option) in seen:
            wrong.append((item, f"{show(option)} is twice in the choice; Optuna needs different values"))
        options.append(option)
        seen.add(canonical(option))
    _raise(wrong)
    return Choice(options=tuple(options))


def _int(leaf: Leaf, node: MapNode) -> Int:
    if not {int, float} & set(leaf.types):
        raise _wrong(node, f"takes no range of int; allowed: {leaf.describe()}")
    low, high, step, log = _range(leaf, node, "int", _whole)
    return Int(low=low, high=high, step=1 if step is None else step, log=log, as_float=int not in leaf.types)


def _float(leaf: Leaf, node: MapNode) -> Float:
    if float not in leaf.types:
        raise _wrong(node, f"takes no range of float; allowed: {leaf.describe()}")
    low, high, step, log = _range(leaf, node, "float", _number)
    return Float(low=low, high=high, step=step, log=log)


def _range(leaf: Leaf, node: MapNode, kind: str, convert: Callable[[Node], Any]) -> tuple[Any, Any, Any, bool]:
    _only(node, kind, "log", "step")
    ends = node.values[kind]
    if not isinstance(ends, ListNode) or len(ends.items) != 2:
        raise _wrong(ends, f"`{kind}` takes a list of two numbers, as in {{{kind}: [low, high]}}")
    low, high = (convert(end) for end in ends.items)
    log = _switch(node.values.get("log"))
    step = convert(node.values["step"]) if "step" in node.values else None
    if low > high:
        raise _wrong(ends, f"low <= high must hold, but got low={low!r}, high={high!r}")
    if math.isinf(high - low):
        raise _wrong(ends, f"too wide a range: from {low!r} to {high!r}")
    checks = ((end, leaf.check(value)) for end, value in zip(ends.items, (low, high), strict=True))
    _raise([(end, problem) for end, problem in checks if problem])
    if log:
        _check_log(node, low, step)
    if step is not None:
        _check_step(leaf, node.values["step"], low, high, step)
    return low, high, step, log


def _check_log(node: MapNode, low: float, step: float | None) -> None:
    if step is not None:
        raise _wrong(node.values["step"], "`log` and `step` exclude each other; leave one out")
    if low <= 0:
        raise _wrong(node, f"low > 0 must hold with `log`, but got low={low!r}")


def _check_step(leaf: Leaf, node: Node, low: float, high: float, step: float) -> None:
    if step <= 0:
        raise _wrong(node, f"step > 0 must hold, but got step={step!r}")
    steps = (exact(high) - exact(low)) / exact(step)
    if steps > MAX_STEPS or (isinstance(step, float) and step < finest_step(low, high)):
        raise _wrong(node, f"step={step!r} is too small for a range from {low!r} to {high!r}")
    if steps.denominator != 1:
        got = f"low={low!r}, high={high!r}, step={step!r}"
        fits = _nearest(leaf, low, steps, step)
        raise _wrong(
            node, f"high - low must be a multiple of step, but got {got}; the nearest high that fits: {fits!r}"
        )


def _nearest(leaf: Leaf, low: float, steps: Fraction, step: float) -> float:
    kind = type(step)
    lower = kind(exact(low) + int(steps) * exact(step))
    try:
        near = kind(exact(low) + round(steps) * exact(step))
    except OverflowError:
        return lower
    return lower if leaf.check(near) else near


def _only(node: MapNode, *known: str) -> None:
    _raise([(node, f"{show(key)}: {unknown_key(key, known)}") for key in node.values if key not in known])


def _raise(wrong: list[tuple[Node, str]]) -> None:
    if wrong:
        raise _WrongError(*wrong)


def _number(node: Node) -> float:
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(node, f"a number is needed, but got {_written(node)}")
    if not math.isfinite(value):
        raise _wrong(node, f"a finite number is needed, but got {show(value)}")
    return float(value)


def _whole(node: Node) -> int:
    number = _number(node)
    value = node.value if isinstance(node, ScalarNode) else None
    if not isinstance(value, int):
        raise _wrong(node, f"a whole number is needed for a range of int, but got {number!r}")
    if abs(value) > MAX_STEPS:
        raise _wrong(node, f"a number up to 2**53 is needed, but got {value}; larger ones cannot be told apart")
    return value


def _switch(node: Node | None) -> bool:
    if node is None:
        return False
    if isinstance(node, ScalarNode) and isinstance(node.value, bool):
        return node.value
    raise _wrong(node, f"`log` is true or false, but got {_written(node)}")


def _checked(leaf: Leaf, node: Node) -> Value:
    if leaf.names and isinstance(node, MapNode):
        return _by_name(leaf, node, leaf.names)
    value = _value(node)
    if isinstance(node, ScalarNode) and _is_misread(leaf, node):
        raise _wrong(node, f"got {advice(node)}; allowed: {leaf.describe()}")
    value = _normal(leaf, value)
    if problem := leaf.check(value):
        raise _wrong(node, problem.replace(_long(value), show(value)))
    return value


def _by_name(leaf: Leaf, node: Node, depth: int, above: str = "") -> Mapping[str, Value]:
    """Return numbers by name; report every problem in them at its position."""
    if not isinstance(node, MapNode) or not node.values:
        got = "an empty mapping" if isinstance(node, MapNode) else _written(node)
        raise _wrong(node, f"{above and above + ': '}{got} is not allowed; allowed: {leaf.describe()}")
    found: dict[str, Value] = {}
    wrong: list[tuple[Node, str]] = []
    for name, below in node.values.items():
        path = join(above, name)
        try:
            found[name] = _by_name(leaf, below, depth - 1, path) if depth > 1 else _number_of(leaf, below, path)
        except _WrongError as error:
            wrong += error.problems
    _raise(wrong)
    return found


def _number_of(leaf: Leaf, node: Node, path: str) -> float:
    value = node.value if isinstance(node, ScalarNode) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not leaf.arg.admits(value):
        raise _wrong(node, f"{path}: {_written(node)} is not allowed; allowed: a number {leaf.arg.bounds()}")
    return float(value)


def _value(node: Node) -> Value:
    match node:
        case ScalarNode():
            return node.value
        case ListNode():
            return tuple(_value(item) for item in node.items)
        case _:
            raise _wrong(node, "a value or a list of values is needed, but got a mapping")


def _is_misread(leaf: Leaf, node: ScalarNode) -> bool:
    """Tell whether an unquoted word in place of a name was read by YAML as something else."""
    if isinstance(node.value, str):
        return False
    if any(node.text == literal for literal in leaf.literals):
        return True
    if leaf.check(_normal(leaf, node.value)) is None:
        return False
    takes_names = any(isinstance(literal, str) for literal in leaf.literals)
    return (takes_names and is_switch(node.text)) or (str in leaf.types and node.value is not None)


def _normal(leaf: Leaf, value: Value) -> Value:
    """Return a value with whole numbers as floats if the builder takes only floats: 1 and 1.0 are one value.

    Durations such as `90m` become seconds.
    """
    if isinstance(value, tuple):
        return tuple(_normal(replace(leaf, types=leaf.items), item) for item in value)
    if leaf.arg.duration and isinstance(value, str) and re.fullmatch(durations.PATTERN, value):
        return cast(float, durations.parse(value))
    literal = any(same(value, other) and isinstance(value, type(other)) for other in leaf.literals)
    if type(value) is int and float in leaf.types and int not in leaf.types and not literal:
        return float(value)
    return value


def _long(value: Any) -> str:
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _written(node: Node) -> str:
    match node:
        case ScalarNode():
            return show(node.value)
        case ListNode():
            return "a list"
        case _:
            return "a mapping"
