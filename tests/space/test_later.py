"""Settings that came after the first studies: each has its place in one list, and changes nothing by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import IN_DIGESTS, LATER, TrialConfig, completed
from imgcls_search.signature import Fields, Leaf, OneOf
from imgcls_search.space import differences, parse
from imgcls_search.study.settings import FREE_TO_CHANGE

FIRST = set((Path(__file__).parent / "first_settings.txt").read_text().split())
"""What spaces could say before any setting of the list: never to be added to."""

TEXT = """\
data: {folder: {root: photos}}
model: {vit: {}}
loss: {cross_entropy: {class_weights: balanced}}
"""


def settings(entry: Leaf | OneOf | Fields, path: str = "", *, is_first: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield every setting with its default; of a component that is new as a whole, nothing below its name."""
    match entry:
        case Leaf():
            yield path, entry.default
        case OneOf():
            if path not in FIRST:
                yield path, {entry.default: {}}
                return
            for name, fields in entry.options.items():
                if f"{path}.{name}" in FIRST:
                    yield from settings(fields, f"{path}.{name}")
        case Fields():
            for name, below in entry.fields.items():
                yield from settings(below, f"{path}.{name}" if path else name)


def test_every_setting_is_of_the_first_or_in_the_list_with_its_default() -> None:
    known = catalog()
    found = dict(settings(known.config)) | {f"study.{path}": value for path, value in settings(known.study)}
    new = {path: value for path, value in found.items() if path not in FIRST and path not in FREE_TO_CHANGE}
    advice = "a study of an earlier version must go on: add new settings to imgcls_search.config.LATER"
    assert new == LATER, advice
    assert not FIRST & LATER.keys()


def old(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as the first versions wrote it."""
    found: dict[str, Any] = {name: dict(section) for name, section in tree.items() if name not in LATER}
    del found["predict"]
    for path in LATER:
        section, *keys = path.split(".")
        node = found.get(section, {})
        for key in keys[:-1]:
            # Of another component than the configuration has.
            if key not in node:
                node = {}
                break
            node[key] = dict(node[key])
            node = node[key]
        if keys:
            node.pop(keys[-1], None)
    return found


def test_a_configuration_of_an_earlier_version_is_completed_to_the_present_one() -> None:
    tree = parse(TEXT, catalog(), source="some").config().to_dict()
    before = old(tree)
    assert "predict" not in before
    assert not before["data"]["folder"].keys() & {"skip_unreadable", "group"}
    assert completed(before, tree) == tree
    assert not differences(completed(before, tree), tree)
    # What is said stays.
    assert completed({**before, "training": {**before["training"], "draw": "balanced"}}, tree)["training"] == {
        **tree["training"],
        "draw": "balanced",
    }


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("image", {"fit": "pad"}),
        ("augment", {"jpeg": 50}),
        ("augment", {"blur": 0.5}),
        ("training", {"draw": "balanced"}),
        ("predict", {"costs": {"cat": {"dog": 2.0}}}),
        ("loss", {"cross_entropy": {"class_weights": {"cat": 2.0}, "label_smoothing": 0.0}}),
    ],
)
def test_digests_know_what_is_said_and_not_what_is_left_out(section: str, values: dict[str, Any]) -> None:
    tree = parse(TEXT, catalog(), source="some").config().to_dict()
    before = completed(old(tree), tree, but=[path for path in LATER if path not in IN_DIGESTS])
    assert TrialConfig.from_dict(before).digest() == TrialConfig.from_dict(tree).digest()
    other = TrialConfig.from_dict({**tree, section: {**tree[section], **values}})
    assert other.digest() != TrialConfig.from_dict(tree).digest()


def test_equal_weights_in_another_order_are_one_setting() -> None:
    ways = [TEXT.replace("balanced", weights) for weights in ("{b: 2, a: 1.0}", "{a: 1, b: 2.0}")]
    one, other = (parse(way, catalog(), source="some").config() for way in ways)
    assert one.digest() == other.digest()
    assert one == other
