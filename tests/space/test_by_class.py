"""Numbers by class in the space language: `class_weights: {cat: 2, dog: 1}` and `predict: {costs: ...}`."""

from __future__ import annotations

import json

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import SpaceError
from imgcls_search.space import Space, dump, parse
from imgcls_search.space.schema import schema
from jsonschema import Draft7Validator

from tests.space.test_schema import document

KNOWN = catalog()
SCHEMA = Draft7Validator(schema(KNOWN))
WEIGHTS = "model: {{vit: {{}}}}\nloss: {{cross_entropy: {{class_weights: {}}}}}\n"
COSTS = "model: {{vit: {{}}}}\npredict: {{costs: {}}}\n"
PATH = "loss.cross_entropy.class_weights"


def space_of(text: str, **arguments: list[tuple[str, str]]) -> Space:
    return parse(text, KNOWN, source="s.yaml", **arguments)


def weights_of(space: Space) -> object:
    return space.config().to_dict()["loss"]["cross_entropy"]["class_weights"]


def test_weights_are_one_value_with_names_as_they_are_written() -> None:
    space = space_of(WEIGHTS.format("{cat: 2, '7': 1_0, \"no\": 0.5, 'a.b: c': 1e0}"))
    assert space.is_config
    assert weights_of(space) == {"cat": 2.0, "7": 10.0, "no": 0.5, "a.b: c": 1.0}
    # Written as a file and read again.
    again = space_of(dump(space.config()))
    assert again.config() == space.config()
    assert again.config().digest() == space.config().digest()


def test_a_class_may_have_the_name_of_a_kind_of_range() -> None:
    assert weights_of(space_of(WEIGHTS.format("{choice: 2, int: 3}"))) == {"choice": 2.0, "int": 3.0}
    searched = space_of(WEIGHTS.format("{choice: [none, {choice: 2, float: 1}]}"))
    (parameter,) = searched.parameters()
    assert parameter.choices == ("none", '{"choice": 2.0, "float": 1.0}')


def test_weights_are_searched_beside_names_and_recorded_as_text() -> None:
    text = WEIGHTS.format("{choice: [none, balanced, {dog: 1, cat: 2}]}")
    entries = ["{cat: 2, dog: 1}", "{dog: 1.0, cat: 2.0}", '\'{"cat": 2.0, "dog": 1.0}\'', "none"]
    space = space_of(text + f"start: [{', '.join(f'{{{PATH}: {entry}}}' for entry in entries)}]\n")
    (parameter,) = space.parameters()
    recorded = '{"cat": 2.0, "dog": 1.0}'
    assert parameter.choices == ("none", "balanced", recorded)
    assert parameter.domain == f"one of none, balanced, {recorded}"
    assert [entry[PATH] for entry in space.start] == [recorded] * 3 + ["none"]
    found = space.config_of({PATH: recorded}).to_dict()["loss"]["cross_entropy"]["class_weights"]
    assert found == {"cat": 2.0, "dog": 1.0}
    assert space.document["loss"]["cross_entropy"]["class_weights"] == {"choice": ["none", "balanced", found]}
    assert json.loads(json.dumps(dict(space.document))) == space.document
    assert space_of(text).num_combinations() == 3


def test_values_are_set_from_the_command_line_dots_in_names_too() -> None:
    set_to = [(PATH, "{cat: 3}"), (f"{PATH}.b.jpg", "2")]
    assert weights_of(space_of("model: {vit: {}}", overrides=set_to)) == {"cat": 3.0, "b.jpg": 2.0}
    costly = space_of("model: {vit: {}}", overrides=[("predict.costs.cat.dog", "5")])
    assert costly.config().to_dict()["predict"] == {"costs": {"cat": {"dog": 5.0}}}


@pytest.mark.parametrize(
    ("text", "place", "path", "message"),
    [
        (WEIGHTS.format("{cat: -1}"), "2:45", PATH, "cat: -1 is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: 0}"), "2:45", PATH, "cat: 0 is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: .nan}"), "2:45", PATH, "cat: nan is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: .inf}"), "2:45", PATH, "cat: inf is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: heavy}"), "2:45", PATH, "cat: 'heavy' is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: '2'}"), "2:45", PATH, "cat: '2' is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: true}"), "2:45", PATH, "cat: true is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: }"), "2:44", PATH, "cat: null is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{cat: [1, 2]}"), "2:45", PATH, "cat: a list is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{choice: [none, {cat: 0}]}"), "2:61", PATH, "cat: 0 is not allowed; allowed: a number > 0"),
        (WEIGHTS.format("{}"), "2:39", PATH, "an empty mapping is not allowed; allowed: 'none', 'balanced' or numbers"),
        (WEIGHTS.format("[1, 2]"), "2:39", PATH, "[1, 2] is not allowed; allowed: 'none', 'balanced' or numbers > 0"),
        (WEIGHTS.format("{choice: [{a: 1}, {a: 1.0}]}"), "2:57", PATH, "{a: 1.0} is twice in the choice"),
        (
            COSTS.format("{cat: {dog: -1}}"),
            "2:30",
            "predict.costs",
            "cat.dog: -1 is not allowed; allowed: a number >= 0",
        ),
        (COSTS.format("{cat: {dog: .nan}}"), "2:30", "predict.costs", "cat.dog: nan is not allowed; allowed: a number"),
        (COSTS.format("{cat: 3}"), "2:24", "predict.costs", "cat: 3 is not allowed; allowed: null or numbers >= 0"),
        (COSTS.format("{cat: {}}"), "2:24", "predict.costs", "cat: an empty mapping is not allowed"),
        (COSTS.format("5"), "2:18", "predict.costs", "5 is not allowed; allowed: null or numbers >= 0 by class"),
        (COSTS.format("{choice: [null]}"), "2:18", "predict.costs", "is given, not searched; allowed: null or numbers"),
    ],
)
def test_what_is_no_number_of_a_class_is_one_line_at_its_place(text: str, place: str, path: str, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        space_of(text)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"s.yaml:{place}: {path}: {message}")
    # Editors say so too, except of what a schema cannot say.
    if ".nan" not in text and ".inf" not in text and "twice" not in message:
        assert not SCHEMA.is_valid(document(text))


@pytest.mark.parametrize(
    "text",
    [
        WEIGHTS.format("{cat: 2, dog: 0.5}"),
        WEIGHTS.format("{choice: [none, balanced, {cat: 2}]}"),
        WEIGHTS.format("{choice: 2}"),
        COSTS.format("{cat: {dog: 5, owl: 0}, dog: {cat: 0.5}}"),
        COSTS.format("null"),
        WEIGHTS.format("{choice: [none, {cat: 2}]}") + f"start: [{{{PATH}: {{cat: 2}}}}]\n",
    ],
)
def test_schema_takes_what_the_parser_takes(text: str) -> None:
    space_of(text)
    assert not list(SCHEMA.iter_errors(document(text)))
