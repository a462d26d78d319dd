"""Objectives and limits that name a score of all classes, or of one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from imgcls_search.catalog import catalog
from imgcls_search.errors import SpaceError
from imgcls_search.space import Space, parse
from imgcls_search.space.schema import schema

REST = "data: {digits: {}}\nmodel: {vit: {}}\n"


def space_of(text: str, **more: Any) -> Space:
    return parse(text + REST, catalog(), source="s.yaml", **more)


def test_scores_of_a_class_are_objectives_and_limits_with_or_without_quotes() -> None:
    text = """\
study: {objectives: {recall:tumor: maximize, "precision:a b": maximize, mcc: maximize}}
limits:
  {params: 500_000, sensitivity@0.95:tumor: {at_least: 0.9}, ece: {at_most: 0.1}, kappa: {at_least: -1, at_most: 0}}
"""
    space = space_of(text)
    assert [metric for metric, _ in space.objectives] == ["recall:tumor", "precision:a b", "mcc"]
    assert space.limits == {"params": 500_000}
    assert space.score_limits == {
        "sensitivity@0.95:tumor": {"at_least": 0.9},
        "ece": {"at_most": 0.1},
        "kappa": {"at_least": -1.0, "at_most": 0.0},
    }
    assert space.named_metrics[-3:] == ("sensitivity@0.95:tumor", "ece", "kappa")
    # What a study remembers names them too, so that another limit is another search.
    assert json.loads(json.dumps(dict(space.document)))["limits"]["ece"] == {"at_most": 0.1}
    jsonschema.validate(yaml.safe_load((text + REST).replace("500_000", "500000")), schema(catalog()))


def test_excess_is_by_how_much_a_limit_is_broken_on_either_side() -> None:
    space = space_of("limits: {recall:a: {at_least: 0.9}, ece: {at_most: 0.1}, mcc: {at_least: 0.2, at_most: 0.4}}\n")
    over = space.over_score_limits({"recall:a": 0.85, "ece": 0.05, "mcc": 0.5, "accuracy": 1.0})
    assert over == pytest.approx({"recall:a": 0.05, "ece": -0.05, "mcc": 0.1})
    assert space.over_score_limits({"recall:a": 0.9, "ece": 0.1, "mcc": 0.1})["mcc"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("recall:tumor: 0.95", "0.95 does not say on which side; write at_least or at_most, as in {at_least: 0.9}"),
        ("accuracy: 0.9", "0.9 does not say on which side"),
        ("accuracy: {}", "does not say on which side"),
        ("accuracy: [0.9]", "does not say on which side"),
        ("accuracy: null", "null does not say on which side"),
        ("accuracy: {at_laest: 0.9}", "unknown key; allowed: at_least, at_most (did you mean 'at_least'?)"),
        ("accuracy: {at_least: 95}", "95 is not allowed; allowed: a number from 0 to 1"),
        ("accuracy: {at_least: .nan}", "is not allowed; allowed: a number from 0 to 1"),
        ("accuracy: {at_least: true}", "true is not allowed"),
        ("accuracy: {at_least: '0.9'}", "'0.9' is not allowed"),
        ("accuracy: {at_least: {a: 1}}", "a list or a mapping is not allowed"),
        ("loss: {at_most: -1}", "-1 is not allowed; allowed: a number >= 0"),
        ("mcc: {at_least: -2}", "-2 is not allowed; allowed: a number from -1 to 1"),
        ("mcc: {at_least: 0.5, at_most: 0.4}", "at_least must not be above at_most"),
        ("recal:tumor: {at_least: 0.9}", "unknown key"),
        ("'recall:': {at_least: 0.9}", "unknown key"),
        ("sensitivity@2:tumor: {at_least: 0.9}", "unknown key"),
        ("sensitivity:tumor: {at_least: 0.9}", "unknown key"),
    ],
)
def test_bad_limit_of_a_score_is_one_line_with_its_place(limit: str, problem: str) -> None:
    with pytest.raises(SpaceError) as raised:
        space_of(f"limits: {{{limit}}}\n")
    (line,) = raised.value.lines()
    assert line.startswith("s.yaml:1:")
    assert ": limits." in line
    assert problem in line


def test_unknown_objective_names_the_scores_of_a_class_too() -> None:
    with pytest.raises(
        SpaceError, match=r"unknown metric; allowed: accuracy, .*, recall:CLASS, .*sensitivity@0\.95:CLASS"
    ):
        space_of("study: {objectives: {recall: maximize}}\n")


def test_set_reaches_names_with_dots_in_them() -> None:
    overrides = [
        ("limits.sensitivity@0.95:a.b.at_least", "0.8"),
        ("limits.recall:a.b", "{at_most: 0.9}"),
        ("study.objectives.precision:a.b", "maximize"),
        ("limits.params", "1000"),
    ]
    space = space_of("", overrides=overrides)
    assert space.score_limits == {"sensitivity@0.95:a.b": {"at_least": 0.8}, "recall:a.b": {"at_most": 0.9}}
    assert (space.objectives, space.limits) == ((("precision:a.b", "maximize"),), {"params": 1000})
