"""The signature is the schema: what is read from a builder's arguments, and what a leaf admits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from imgcls_search.config import Component
from imgcls_search.errors import BuildError, SpaceError
from imgcls_search.signature import REQUIRED, Arg, Catalog, Fields, Leaf, OneOf, first_sentence, options, read
from imgcls_search.signature import build as call
from imgcls_search.space import parse

if TYPE_CHECKING:
    from nowhere import Tensor


def build(
    *,
    image: Tensor,
    num_classes: int,
    depth: Annotated[int, Arg("number of blocks", ge=1, search="{int: [2, 8]}")] = 4,
    rate: Annotated[float, Arg("learning rate", gt=0)],
    pool: Annotated[Literal["cls", "mean"], Arg("what the head reads")] = "cls",
    widths: Annotated[int | tuple[int, ...], Arg("one width, or one a stage", ge=1)] = (8, 16),
    limit: Annotated[float | None, Arg("cut off above")] = None,
    epochs: Annotated[int, Arg("passes over the data", ge=1, fixed=True)] = 10,
) -> Tensor:
    """Build something.

    Never called.
    """
    raise NotImplementedError


def test_arguments_with_an_arg_are_read_in_order() -> None:
    fields = read(build)
    assert list(fields.fields) == ["depth", "rate", "pool", "widths", "limit", "epochs"]
    assert fields.doc == "Build something."


def test_types_literals_items_and_defaults_are_read() -> None:
    leaves = read(build).fields
    assert leaves["depth"] == Leaf(
        arg=Arg("number of blocks", ge=1, search="{int: [2, 8]}"), types=(int,), literals=(), default=4
    )
    assert leaves["rate"] == Leaf(arg=Arg("learning rate", gt=0), types=(float,), default=REQUIRED)
    assert leaves["pool"] == Leaf(arg=Arg("what the head reads"), literals=("cls", "mean"), default="cls")
    assert leaves["widths"] == Leaf(
        arg=Arg("one width, or one a stage", ge=1), types=(int,), items=(int,), default=(8, 16)
    )
    assert leaves["limit"] == Leaf(arg=Arg("cut off above"), types=(float,), literals=(None,), default=None)


def test_a_registry_is_read_whole() -> None:
    assert options({"a": build, "b": build}) == {"a": read(build), "b": read(build)}


def test_a_type_without_words_is_our_bug() -> None:
    def bad(*, lookup: Annotated[dict[str, int], Arg("a table")]) -> None: ...

    with pytest.raises(TypeError, match="has no words for"):
        read(bad)


def test_the_first_line_of_a_docstring_is_its_sentence() -> None:
    assert first_sentence(build) == "Build something."
    assert first_sentence(lambda: None) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 1),
        ("rate", 1),
        ("rate", 1e-9),
        ("pool", "mean"),
        ("widths", 3),
        ("widths", (3, 4)),
        ("widths", [3]),
        ("limit", None),
        ("limit", -1.5),
    ],
)
def test_values_that_are_admitted(name: str, value: Any) -> None:
    leaf = read(build).fields[name]
    assert isinstance(leaf, Leaf)
    assert leaf.check(value) is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("depth", 0, "0 is not allowed; allowed: int >= 1"),
        ("depth", 1.0, "1.0 is not allowed; allowed: int >= 1"),
        ("depth", True, "true is not allowed; allowed: int >= 1"),
        ("depth", "4", "'4' is not allowed; allowed: int >= 1"),
        ("depth", None, "null is not allowed; allowed: int >= 1"),
        ("depth", (1,), "[1] is not allowed; allowed: int >= 1"),
        ("rate", 0, "0 is not allowed; allowed: float > 0"),
        ("rate", math.nan, "nan is not allowed; allowed: float > 0"),
        ("rate", math.inf, "inf is not allowed; allowed: float > 0"),
        ("pool", "max", "'max' is not allowed; allowed: 'cls', 'mean'"),
        ("widths", (), "[] is not allowed; allowed: int >= 1 or a list of int >= 1"),
        ("widths", (1, 0), "[1, 0] is not allowed; allowed: int >= 1 or a list of int >= 1"),
        ("widths", (1, (2,)), "[1, (2,)] is not allowed; allowed: int >= 1 or a list of int >= 1"),
        ("limit", math.inf, "inf is not allowed; allowed: float or null"),
        ("limit", False, "false is not allowed; allowed: float or null"),
    ],
)
def test_values_that_are_refused_say_what_is_allowed(name: str, value: Any, expected: str) -> None:
    leaf = read(build).fields[name]
    assert isinstance(leaf, Leaf)
    assert leaf.check(value) == expected


def test_a_literal_is_not_confused_with_a_number_that_equals_it() -> None:
    leaf = Leaf(arg=Arg(""), literals=(True, 0))
    assert leaf.check(True) is None
    assert leaf.check(1) is not None
    assert leaf.check(0) is None
    assert leaf.check(False) is not None


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, ""),
        ({"ge": 1}, ">= 1"),
        ({"gt": 0, "lt": 1}, "> 0 and < 1"),
        ({"ge": 0.5, "le": 1e6}, ">= 0.5 and <= 1000000"),
    ],
)
def test_bounds_are_written_as_people_write_them(bounds: dict[str, float], words: str) -> None:
    assert Arg("", **bounds).bounds() == words  # type: ignore[arg-type]


def test_bounds_admit_their_ends_only_where_they_say_so() -> None:
    assert [Arg("", ge=1, lt=3).admits(value) for value in (0.9, 1, 2.9, 3)] == [False, True, True, False]
    assert [Arg("", gt=1, le=3).admits(value) for value in (1, 1.1, 3, 3.1)] == [False, True, True, False]


def test_components_and_sections_start_empty() -> None:
    assert Fields().fields == {}
    assert OneOf(options={}).default is None
    assert not OneOf(options={}).fixed


# From a builder's signature to a call of it


def tower(
    *,
    num_classes: int,
    depth: Annotated[int, Arg("number of blocks", ge=1)] = 4,
    rate: Annotated[float, Arg("share of units dropped", ge=0, lt=1)] = 0.0,
    widths: Annotated[tuple[int, ...], Arg("one a stage", ge=1)] = (8, 16),
) -> dict[str, Any]:
    """A tower."""
    if depth < len(widths):
        raise BuildError("depth", "must not be less than the number of widths")
    if num_classes < 2:
        raise BuildError("", "needs two classes")
    return {"num_classes": num_classes, "depth": depth, "rate": rate, "widths": widths}


MODELS = {"tower": tower}
TOWERS = Catalog(
    config=Fields(fields={"model": OneOf(options=options(MODELS))}),
    study=Fields(),
    limits=Fields(),
    metrics={"accuracy": "share of right answers"},
)


def test_a_builder_is_all_that_the_space_language_needs_to_know_of_a_family() -> None:
    space = parse("model: {tower: {rate: 0, widths: {choice: [[4], [4, 8]]}}}", TOWERS, source="nas.yaml")
    config = space.config_of({"model.tower.widths": "[4, 8]"})
    built = call(MODELS, config.component("model"), num_classes=10)
    assert built == {"num_classes": 10, "depth": 4, "rate": 0.0, "widths": (4, 8)}
    assert isinstance(built["rate"], float)


def test_what_a_signature_does_not_admit_is_refused_before_any_call() -> None:
    with pytest.raises(SpaceError) as caught:
        parse("model: {tower: {depth: 0, rate: 1, widths: [], num_classes: 3}}", TOWERS, source="nas.yaml")
    assert str(caught.value).split("\n") == [
        "nas.yaml:1:24: model.tower.depth: 0 is not allowed; allowed: int >= 1",
        "nas.yaml:1:33: model.tower.rate: 1.0 is not allowed; allowed: float >= 0 and < 1",
        "nas.yaml:1:44: model.tower.widths: [] is not allowed; allowed: a list of int >= 1",
        "nas.yaml:1:48: model.tower.num_classes: unknown key; allowed: depth, rate, widths",
    ]


@pytest.mark.parametrize(
    ("args", "num_classes", "path"), [({"depth": 1}, 10, "model.tower.depth"), ({}, 1, "model.tower")]
)
def test_what_a_builder_refuses_is_named_by_its_whole_path(args: dict[str, Any], num_classes: int, path: str) -> None:
    component = Component(path="model.tower", name="tower", args=args)
    with pytest.raises(BuildError) as caught:
        call(MODELS, component, num_classes=num_classes)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
