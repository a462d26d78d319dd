"""The signature is the schema: what a builder accepts, read from its typed keyword-only arguments.

A builder is a function such as

    def vit(*, image: ImageShape, patch_size: Annotated[int, Arg("side of a patch, in pixels", ge=1)] = 4) -> ...

Arguments without an `Arg` are supplied by the code that calls the builder (the image's shape, the number of
classes) and do not exist in the space language.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from imgcls_search import durations
from imgcls_search.config import Component, Value
from imgcls_search.errors import BuildError


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()
"""The default of an argument that has none."""


@dataclass(frozen=True)
class Arg:
    """The meaning of an argument, its bounds, and a range worth searching, which its type cannot say."""

    doc: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    search: str | None = None
    """A range that makes sense, in the space language, for example `{int: [2, 8]}`."""

    fixed: bool = False
    """True for an argument that may be given but not searched, such as `training.epochs`."""

    duration: bool = False
    """True for seconds, which people may also write as `90m`."""

    def bounds(self) -> str:
        """Return the bounds as people write them, for example `>= 1 and < 10`; empty without any."""
        pairs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:.12g}" for sign, bound in pairs if bound is not None)

    def admits(self, value: float) -> bool:
        """Tell whether a finite number is within the bounds."""
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One argument that takes a value: a number, a word, a list of them, or nothing."""

    arg: Arg
    types: tuple[type, ...] = ()
    """Of `bool`, `int`, `float` and `str`; an `int` is allowed wherever a `float` is."""

    items: tuple[type, ...] = ()
    """The types of the items if the value may be a list; empty if it may not."""

    num_items: int | None = None
    """How many items a list must have; None: any number except 0."""

    names: int = 0
    """How many names lead to a number if the value may be numbers by name: 1 in `{cat: 2}`; 0 if it may not."""

    literals: tuple[Value, ...] = ()
    """Single values that are allowed too, including `None` if it is."""

    default: Value | _Required = REQUIRED

    def check(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None: `3 is not allowed; allowed: int >= 4`."""
        if self._admits(value):
            return None
        return f"{_show(value)} is not allowed; allowed: {self.describe()}"

    def describe(self) -> str:
        """Return what is allowed in words, for example `int >= 1` or `'cls', 'mean'`."""
        words = ", ".join(_show(literal) for literal in self.literals)
        number = "" if self.num_items is None else f"{self.num_items} of "
        many = f"a list of {number}{self._typed(self.items)}" if self.items else ""
        return " or ".join(part for part in (self._typed(self.types), many, words, self._named()) if part)

    def _named(self) -> str:
        """Describe numbers by name in words; empty if they are not allowed."""
        example = {0: "", 1: "{cat: 2, dog: 1}", 2: "{cat: {dog: 5, bird: 2}}"}[self.names]
        return f"numbers {self.arg.bounds()} by class, as in {example}" if self.names else ""

    def _typed(self, kinds: tuple[type, ...]) -> str:
        if self.arg.duration:
            return f"seconds {self.arg.bounds()}, as a number or as in {durations.EXAMPLES}"
        names = " or ".join(kind.__name__ for kind in kinds)
        return f"{names} {self.arg.bounds()}".strip() if names else ""

    def _admits(self, value: Any) -> bool:
        if any(value == literal and type(value) is type(literal) for literal in self.literals):
            return True
        if isinstance(value, Mapping):
            return self._admits_names(value, self.names)
        if isinstance(value, (list, tuple)):
            is_long_enough = bool(value) if self.num_items is None else len(value) == self.num_items
            return is_long_enough and all(self._admits_scalar(item, self.items) for item in value)
        return self._admits_scalar(value, self.types)

    def _admits_names(self, value: Any, depth: int) -> bool:
        if not depth:
            return self._admits_scalar(value, (float,))
        below = value.items() if isinstance(value, Mapping) else ()
        return bool(below) and all(isinstance(k, str) and self._admits_names(v, depth - 1) for k, v in below)

    def _admits_scalar(self, value: Any, kinds: tuple[type, ...]) -> bool:
        if isinstance(value, bool):
            return bool in kinds
        if isinstance(value, int):
            return (int in kinds or float in kinds) and self.arg.admits(value)
        if isinstance(value, float):
            return float in kinds and self.arg.admits(value)
        return isinstance(value, str) and str in kinds


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """A component: exactly one of several builders, each with its own arguments."""

    options: Mapping[str, Fields]
    default: str | None = None
    """The option taken when the section is left out; None makes the section required."""

    fixed: bool = False
    """True when it is given, not searched, as `data` is."""

    doc: str = ""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Named arguments, sections or components."""

    fields: Mapping[str, Leaf | OneOf | Fields] = field(default_factory=dict)
    doc: str = ""
    others: Leaf | None = None
    """The kind of further arguments with any name; None if there are none."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that a space file may contain; the parser knows no other names."""

    config: Fields
    """The sections of a `TrialConfig`: data, image, augment, model, optimizer and so on."""

    study: Fields
    """The `study` section: trials, sampler, pruner and so on. Never searched."""

    limits: Fields
    """The `limits` section: the largest params, MACs and so on. Never searched."""

    metrics: Mapping[str, str]
    """Metrics that may be objectives, with one sentence about each."""

    scores: Mapping[str, str] = field(default_factory=dict)
    """Those of them that score images, which `limits` may bound on either side."""

    class_scores: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Scores of one class, such as `recall:CLASS`, each with its pattern and one sentence."""

    default_metric: str = "accuracy"
    """The objective if a file names none."""

    of_data: Callable[[Catalog, str, Mapping[str, Any]], Catalog] | None = None
    """Returns the catalog for a data set, by its name and arguments, as defaults may depend on its kind of labels."""


@cache
def read(builder: Callable[..., Any]) -> Fields:
    """Return the arguments of a builder that carry an `Arg`, in the order of its signature.

    Raises:
        TypeError: an argument has a type that the space language has no words for (our bug, not the user's).
    """
    parameters = inspect.signature(builder).parameters.values()
    hints = {p.name: _resolve(p.annotation, builder) for p in parameters}
    leaves = {p.name: _leaf(hints[p.name], p.default) for p in parameters if _arg(hints[p.name]) is not None}
    others = next((leaves.pop(p.name) for p in parameters if p.kind is p.VAR_KEYWORD and p.name in leaves), None)
    return Fields(fields=leaves, doc=first_sentence(builder), others=others)


def options(registry: Mapping[str, Callable[..., Any]]) -> dict[str, Fields]:
    """Return the arguments of every builder of a registry."""
    return {name: read(builder) for name, builder in registry.items()}


def first_sentence(builder: Callable[..., Any]) -> str:
    """Return the first line of a builder's docstring."""
    return (inspect.getdoc(builder) or "").split("\n", 1)[0]


def _resolve(hint: Any, builder: Callable[..., Any]) -> Any:
    """Return an annotation as an object; None if it names a class that only type checkers import, such as torch's."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, vars(sys.modules[builder.__module__]))  # noqa: S307 - our own source, not a user's file
    except NameError:
        if "Annotated" in hint:
            raise
        return None


def _arg(hint: Any) -> Arg | None:
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Arg)), None)


def _leaf(hint: Any, default: Any) -> Leaf:
    arg = _arg(hint)
    assert arg is not None
    kinds: list[type] = []
    items: list[type] = []
    num_items: int | None = None
    names = 0
    literals: list[Value] = []
    for part in _alternatives(typing.get_args(hint)[0]):
        if part is type(None):
            literals.append(None)
        elif typing.get_origin(part) is Literal:
            literals.extend(typing.get_args(part))
        elif typing.get_origin(part) is tuple:
            within = typing.get_args(part)
            items.append(within[0])
            num_items = None if within[-1] is Ellipsis else len(within)
        elif typing.get_origin(part) is Mapping:
            names = _depth(part)
        elif part in (bool, int, float, str):
            kinds.append(part)
        else:
            raise TypeError(f"the space language has no words for an argument of type {part!r}")
    given = REQUIRED if default is inspect.Parameter.empty else default
    return Leaf(
        arg=arg,
        types=tuple(kinds),
        items=tuple(items),
        num_items=num_items,
        names=names,
        literals=tuple(literals),
        default=given,
    )


def _depth(hint: Any) -> int:
    """Return how many names lead to a number: 1 in a `Mapping[str, float]`."""
    if typing.get_origin(hint) is Mapping:
        return 1 + _depth(typing.get_args(hint)[1])
    if hint is not float:
        raise TypeError(f"the space language has no words for {hint!r} by name")
    return 0


def _alternatives(hint: Any) -> Iterable[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _show(value: Any) -> str:
    match value:
        case None | bool():
            return str(value).lower().replace("none", "null")
        case tuple():
            return repr(list(value))
        case Mapping():
            return "{" + ", ".join(f"{name}: {_show(below)}" for name, below in value.items()) + "}"
        case _:
            return repr(value)


def build(registry: Mapping[str, Callable[..., Any]], component: Component, **supplied: Any) -> Any:
    """Call the chosen builder of a registry with its arguments from the space and those the code supplies.

    Raises:
        BuildError: the builder refuses an argument; the error names its whole path, such as `model.vit.heads`.
    """
    try:
        return registry[component.name](**supplied, **component.args)
    except BuildError as error:
        # An error about the builder as a whole names no argument.
        path = f"{component.path}.{error.path}" if error.path else component.path
        raise BuildError(path, error.message) from None
