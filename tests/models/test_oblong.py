"""Every family on images that are no squares: one step, counted costs, pruning, ONNX, and position embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.compress import prune
from imgcls_search.config import Component
from imgcls_search.data import InputShape
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.errors import BuildError
from imgcls_search.models import MODELS, build_model, cost, position_embeddings, pretrained
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vision_transformer import interpolate_embeddings

from tests.models.small import SMALL

SIZE = (32, 64)


def build(family: str, size: Any = SIZE, **arguments: Any) -> Any:
    component = Component(path=f"model.{family}", name=family, args={**SMALL[family], **arguments})
    return build_model(component, image_size=size, channels=3, classes=5)


def test_no_family_is_left_out() -> None:
    assert set(SMALL) == set(MODELS), "add a small network of the family to tests/models/small.py"


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("size", [SIZE, (64, 32)])
def test_families_train_and_are_counted(family: str, size: tuple[int, int]) -> None:
    if family == "timm":
        pytest.importorskip("timm")
    model = build(family, size)
    logits = model.train()(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.device("meta"):
        found = cost.count(build(family, size), channels=3, image_size=size)
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    # torch does not count the operations of attention on a CPU; the oblong image is half of the square one.
    if family not in ("vit", "timm"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.rand(1, 3, *size))
        assert found.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.05)
    with torch.device("meta"):
        square = cost.count(build(family, 64), channels=3, image_size=64)
    assert found.macs < 0.7 * square.macs or family == "alexnet"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "resnet", "lenet5"])
def test_networks_are_exported_and_pruned(family: str, tmp_path: Path) -> None:
    model = build(family).eval()
    if family != "lenet5":
        prune.prune(model, "structured", 0.5, channels=3, image_size=SIZE)
    shape = InputShape(image_size=SIZE, channels=3, classes=5)
    export_onnx(model, tmp_path / "model.onnx", shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
    artifact = Artifact.load(tmp_path / "model.onnx")
    assert artifact.pixel_shape == (3, *SIZE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, *SIZE), dtype=np.uint8)
    with torch.inference_mode():
        expected = model.eval()((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.25)
    assert np.allclose(artifact.logits(pixels), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "size", "arguments", "words"),
    [
        ("vit", (32, 60), {}, "8 does not divide the image size 60"),
        ("vit", (60, 32), {}, "8 does not divide the image size 60"),
        ("resnet", (2, 64), {"depths": (1, 1, 1)}, "3 stages are too many for a 2x64 image"),
        ("lenet5", (8, 64), {"padding": "valid"}, "needs images of at least 16 pixels, got [8, 64]"),
        ("alexnet", (128, 40), {"stem": "large"}, "got [128, 40]"),
        ("vgg", (24, 96), {"stem": "large"}, "got [24, 96]"),
        ("densenet", (1, 96), {}, "got [1, 96]"),
        ("efficientnet", (4, 96), {}, "got [4, 96]"),
        ("mobilenetv3", (96, 4), {}, "got [96, 4]"),
        ("convnext", (1, 96), {}, "got [1, 96]"),
    ],
)
def test_what_a_family_cannot_is_one_line(family: str, size: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BuildError) as error:
        build(family, size, **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_family_of_others_that_knows_squares_only_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(*, image_size: int, channels: int, classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * image_size**2, classes))

    monkeypatch.setattr("imgcls_search.models.families", lambda: {"square": square})
    component = Component(path="model.square", name="square", args={})
    assert build_model(component, image_size=8, channels=1, classes=2)(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    with pytest.raises(BuildError, match=r"model.square: this family takes square images, got image.size: \[8, 12\]"):
        build_model(component, image_size=(8, 12), channels=1, classes=2)


def test_position_embeddings_are_resized_as_torchvision_does() -> None:
    embeddings = torch.randn(1, 17, 6)
    theirs = interpolate_embeddings(56, 8, {"encoder.pos_embedding": embeddings})["encoder.pos_embedding"]
    assert torch.equal(position_embeddings._stretched(embeddings, (4, 4), (7, 7)), theirs)


def saved(path: Path, size: Any, *, is_noted: bool = True) -> torch.nn.Module:
    model = build("vit", size)
    text = "image: {size: 32, channels: 3}\nmodel: {vit: {patch_size: 8, width: 16, depth: 2, heads: 2}}\n"
    config = parse(text, catalog(), source="some").config().to_dict()
    state = {"model": model.state_dict()}
    if is_noted:
        state["about"] = json.dumps({"config": config, "data": {"image_size": size, "mean": [0.5] * 3, "std": [1] * 3}})
    checkpoint.save(state, path)
    return model


def find(path: Path, size: Any) -> Any:
    component = Component(path="model.vit", name="vit", args={**SMALL["vit"], "weights": str(path)})
    return pretrained.find(component, build("vit", size, weights=None), image_size=size, channels=3, classes=5)


@pytest.mark.parametrize(("theirs", "ours"), [(32, (32, 64)), ((32, 64), (64, 32)), ((32, 64), 32), (64, (32, 128))])
def test_weights_of_another_shape_are_resized_by_rows_and_columns(tmp_path: Path, theirs: Any, ours: Any) -> None:
    model = saved(tmp_path / "a.pt", theirs)
    rows, columns = (side // 8 for side in ((theirs, theirs) if isinstance(theirs, int) else theirs))
    to = tuple(side // 8 for side in ((ours, ours) if isinstance(ours, int) else ours))
    name = "encoder.pos_embedding"
    grid = model.state_dict()[name][:, 1:].permute(0, 2, 1).reshape(1, 16, rows, columns)
    expected = torch.nn.functional.interpolate(grid, to, mode="bicubic", align_corners=True)
    found = find(tmp_path / "a.pt", ours)[name]
    assert torch.allclose(found[:, 1:], expected.flatten(2).permute(0, 2, 1))
    assert torch.equal(found[:, :1], model.state_dict()[name][:, :1])


def test_weights_of_an_unknown_oblong_shape_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt", (32, 64), is_noted=False)
    with pytest.raises(BuildError, match="32 position embeddings are of no square image"):
        find(tmp_path / "a.pt", 32)
    # Of as many patches they are taken as they are.
    assert find(tmp_path / "a.pt", (32, 64))
