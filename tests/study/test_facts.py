"""What a study says of itself: each value is refused where it is not of the shape that is declared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from imgcls_search.study import shape
from imgcls_search.study.facts import StudyFacts

from tests.study.test_damage import LATER_FACTS

FACTS: dict[str, Any] = {
    **LATER_FACTS,
    "objectives": [["accuracy", "maximize"]],
    "space": {"study": {"sampler": {"tpe": {}}, "pruner": {"none": {}}, "seed": 0}, "data": {"digits": {}}},
    "data": {"fingerprint": "2-abc", "classes": ["0", "1"], "images": {"train": 5, "val": 3}},
    "versions": {"torch": "2.8"},
    "hardware": "a CPU",
    "teachers": {"study:big": {"sha256": "0" * 64, "study": "big", "trial": 3}},
    "runs": [{"seconds": 1.5, "writer_seconds": 0.5}],
}

Path = tuple[Any, ...]


def _leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values without parts."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _leaves(part, (*path, key))
    if not isinstance(value, (dict, list)):
        yield path


def _with(path: Path, value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(FACTS))
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def _named(path: Path) -> str:
    return "study" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


def _at(path: Path) -> Any:
    node: Any = FACTS
    for key in path:
        node = node[key]
    return node


def _may_stand_for(other: Any, path: Path) -> bool:
    value = _at(path)
    if isinstance(value, float):
        is_finite = type(other) in (int, float) and other == other
        return is_finite or (other is None and path[0] == "ablation" and path[-1] in ("std", "ci95"))
    return type(other) is type(value) and other != -1


CHECKED = [path for path in _leaves(FACTS) if path[:2] not in (("space", "data"), ("space", "study"))]


def test_what_a_search_writes_passes_and_so_does_what_it_does_not_know() -> None:
    shape._must_be(json.loads(json.dumps(FACTS)), StudyFacts, "study")
    shape._must_be({**FACTS, "ours": object(), "confirmed": {**FACTS["confirmed"], "more": 1}}, StudyFacts, "study")
    # Studies of earlier versions lack facts; one that was opened by `train` names no trial.
    shape._must_be({"test_openings": [{}]}, StudyFacts, "study")
    one_seed = {"changes": [], "scores": [0.5], "mean": 0.5, "std": None, "ci95": None}
    shape._must_be({"ablation": {**FACTS["ablation"], "steps": [one_seed]}}, StudyFacts, "study")


@pytest.mark.parametrize("path", CHECKED, ids=map(_named, CHECKED))
def test_every_value_of_another_kind_is_refused_by_its_name(path: Path) -> None:
    for other in ({"a": 1}, [1], "text", 1.5, -1, True, None, float("nan")):
        if _may_stand_for(other, path):
            continue
        with pytest.raises(TypeError) as refused:
            shape._must_be(_with(path, other), StudyFacts, "study")
        assert str(refused.value).startswith(f"{_named(path)} is ")


@pytest.mark.parametrize("name", ["confirmed", "ablation", "data"])
def test_a_missing_part_is_named(name: str) -> None:
    for key in FACTS[name]:
        parts = {other: value for other, value in FACTS[name].items() if other != key}
        with pytest.raises(ValueError, match=rf"study\.{name}\.{key} is missing"):
            shape._must_be({name: parts}, StudyFacts, "study")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, True])
def test_numbers_that_no_table_can_show_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"study\.confirmed\.searched is "):
        shape._must_be(_with(("confirmed", "searched"), value), StudyFacts, "study")
