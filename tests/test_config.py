"""The narrow waist: a configuration is frozen, equal by content, and survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from imgcls_search.config import Component, TrialConfig

TREE: dict[str, Any] = {
    "model": {"resnet": {"depths": [1, 1, 1], "width": 16}},
    "augment": {"flip": "none", "policy": {"rand": {"num_ops": 2}}},
    "training": {"epochs": 3, "clip": None},
}


def test_a_configuration_survives_json() -> None:
    config = TrialConfig.from_dict(TREE)
    assert config.to_dict() == TREE
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_configuration_cannot_be_changed() -> None:
    source = json.loads(json.dumps(TREE))
    config = TrialConfig.from_dict(source)
    source["training"]["epochs"] = 99
    config.to_dict()["training"]["epochs"] = 99
    config.section("training")["epochs"] = 99
    assert config.section("training")["epochs"] == 3
    with pytest.raises(TypeError):
        config.tree["training"]["epochs"] = 99  # type: ignore[index]
    with pytest.raises(AttributeError):
        config.tree = {}  # type: ignore[misc]


def test_lists_are_tuples_inside() -> None:
    assert TrialConfig.from_dict(TREE).component("model").args["depths"] == (1, 1, 1)


def test_components_are_found_at_any_depth() -> None:
    config = TrialConfig.from_dict(TREE)
    assert config.component("augment.policy") == Component(path="augment.policy.rand", name="rand", args={"num_ops": 2})
    assert config.section("training") == {"epochs": 3, "clip": None}


def test_what_is_not_there_is_an_error() -> None:
    config = TrialConfig.from_dict(TREE)
    with pytest.raises(KeyError):
        config.component("optimizer")
    with pytest.raises(ValueError, match="unpack"):
        config.component("training")


def test_equal_contents_have_equal_digests_and_hashes() -> None:
    config = TrialConfig.from_dict(TREE)
    other = TrialConfig.from_dict(dict(reversed(TREE.items())))
    assert config == other
    assert config.digest() == other.digest()
    assert len({config, other}) == 1


def test_a_digest_depends_on_the_named_sections_only() -> None:
    config = TrialConfig.from_dict(TREE)
    longer = TrialConfig.from_dict({**TREE, "training": {"epochs": 4, "clip": None}})
    assert config.digest("model") == longer.digest("model")
    assert config.digest("model", "training") != longer.digest("model", "training")
    assert config.digest() != longer.digest()
