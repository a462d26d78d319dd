"""Heads in the place of a family's last layer: their shapes, their weights, and what cannot have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.compress import prune
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError
from imgcls_search.models import heads
from imgcls_search.space import parse
from imgcls_search.worker import measuring, networks

from tests.conftest import Answer, is_one_line
from tests.models.small import SMALL

SHAPE = InputShape(image_size=32, channels=3, classes=5)

HEADS = {"linear": "{dropout: 0.3}", "mlp": "{hidden: 7, dropout: 0.1}", "logistic": "{}"}


def config(family: str, head: str = "own", arguments: str = "{}") -> Any:
    text = "data: {digits: {}}\nimage: {size: 32, channels: 3}\n"
    text += f"model: {{{family}: {json.dumps(SMALL[family])}}}\nhead: {{{head}: {arguments}}}\n"
    return parse(text, catalog(), source="x").config()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", SMALL)
def test_every_family_takes_every_head(family: str, head: str) -> None:
    plain = networks.build_model(config(family), SHAPE)
    own = plain.get_submodule(plain.anatomy.head)
    trial = config(family, head, HEADS[head])
    model = networks.build_model(trial, SHAPE)
    new = model.get_submodule(model.anatomy.head)
    expected = {
        "linear": 5 * (own.in_features + 1),
        "logistic": 5 * (own.in_features + 1),
        "mlp": 7 * (own.in_features + 1) + 5 * 8,
    }
    assert sum(parameter.numel() for parameter in new.parameters()) == expected[head]
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    # Sizes are those of the network with this head.
    counted = measuring.count(trial.component("model"), SHAPE, head=measuring.head_to_count(trial))
    assert counted.params == sum(parameter.numel() for parameter in model.parameters())


def test_the_heads_dropout_is_the_only_one_on_its_features() -> None:
    plain = networks.build_model(config("efficientnet"), SHAPE)
    assert heads.dropout_before(plain).p > 0
    model = networks.build_model(config("efficientnet", "linear", "{dropout: 0.4}"), SHAPE)
    assert heads.dropout_before(model).p == 0
    assert [part.p for part in model.get_submodule("classifier.1").modules() if hasattr(part, "p")] == [0.4]


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_network_with_another_head_is_pruned_and_rebuilt(family: str) -> None:
    trial = config(family, "mlp", HEADS["mlp"])
    model = networks.build_model(trial, SHAPE)
    shapes = prune.prune(model, "structured", 0.5, channels=3, image_size=32)
    known = measuring.count(trial.component("model"), SHAPE, pruned=0.5, head=measuring.head_to_count(trial))
    assert known.params == sum(parameter.numel() for parameter in model.parameters())
    again = networks.build_model(trial, SHAPE)
    prune.rebuild(again, shapes, model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))


def test_a_model_whose_last_layer_is_none_of_the_linear_ones_keeps_it() -> None:
    model = networks.build_model(config("resnet"), SHAPE)
    model.fc = torch.nn.Conv2d(64, 5, 1)
    with pytest.raises(BuildError, match=r"^head.linear: this model has Conv2d as its last layer, and only a linear"):
        heads.with_head(model, config("resnet", "linear").component("head"))
    del model.anatomy
    with pytest.raises(BuildError, match=r"^head.linear: this model does not say what its last layer is"):
        heads.with_head(model, config("resnet", "linear").component("head"))


def test_a_fitted_head_without_pretrained_weights_is_one_line(tiny: Path, here: Callable[..., Answer]) -> None:
    tiny.write_text(f"{tiny.read_text()}head: {{own: {{}}, logistic: {{}}}}\n")
    answer = here("check", tiny)
    assert is_one_line(answer)
    assert "tiny.yaml:8:1: head.logistic: is fitted to features of pretrained weights, and no model" in answer.err


def test_a_space_with_fits_among_others_has_the_epochs_of_a_training() -> None:
    text = "data: {digits: {}}\nmodel: {resnet: {weights: a.pt}}\ntraining: {epochs: 9}\n"
    for heads_given in ("{logistic: {}, own: {}}", "{logistic: {}, mlp: {}}"):
        assert parse(f"{text}head: {heads_given}\n", catalog(), source="x").first().epochs == 9
    assert parse(f"{text}head: logistic\n", catalog(), source="x").first().epochs == 1
