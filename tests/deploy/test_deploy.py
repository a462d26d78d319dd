"""Exported files against the torch models they come from, in the runtime that serves them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.data import InputShape
from imgcls_search.deploy.artifact import Artifact, archive_kb, measure_latency, size_kb
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.errors import DeployError
from imgcls_search.models import MODELS

FAMILIES: list[tuple[str, dict[str, Any], int, int]] = [
    ("lenet5", {}, 8, 1),
    ("resnet", {"depths": (1, 1), "width": 8, "drop_path": 0.1}, 8, 3),
    ("vit", {"width": 16, "depth": 1, "heads": 2}, 8, 1),
    ("vit", {"width": 16, "depth": 1, "heads": 2, "pooling": "mean", "drop_path": 0.1}, 8, 3),
    ("alexnet", {"width": 0.1, "hidden": 8}, 16, 3),
    ("vgg", {"depth": 11, "width": 2, "hidden": 8}, 32, 1),
    ("densenet", {"depths": (1, 1), "growth_rate": 4, "width": 4}, 8, 3),
    ("efficientnet", {"width_mult": 0.25, "depth_mult": 0.1}, 16, 3),
    ("mobilenetv3", {"width_mult": 0.25}, 16, 3),
    ("convnext", {"depths": (1, 1), "width": 8, "layer_scale": 0.1}, 8, 3),
    ("airbench", {"widths": (4, 8)}, 8, 3),
    ("timm", {"name": "test_vit"}, 32, 3),
    ("timm", {"name": "test_resnet"}, 32, 1),
]


def build(family: str, arguments: dict[str, Any], size: int, channels: int) -> tuple[torch.nn.Module, InputShape]:
    torch.manual_seed(0)
    shape = InputShape(image_size=size, channels=channels, classes=5)
    model = MODELS[family](image_size=size, channels=channels, classes=5, **arguments)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a head of zeros gives equal logits to everything
            torch.nn.init.normal_(parameter, std=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # otherwise deep networks give next to nothing
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, channels, size, size))
    return model.eval(), shape


def images(shape: InputShape, count: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, shape.channels, shape.image_size, shape.image_size), dtype=np.uint8)


@torch.inference_mode()
def torch_logits(model: torch.nn.Module, pixels: np.ndarray[Any, Any], mean: float, std: float) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = model((torch.from_numpy(pixels) / 255 - mean) / std).numpy()
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("family", "arguments", "size", "channels"), FAMILIES)
def test_every_family_gives_its_logits_as_a_file(
    family: str, arguments: dict[str, Any], size: int, channels: int, tmp_path: Path
) -> None:
    if family == "timm":
        pytest.importorskip("timm", reason="timm is an extra")
    model, shape = build(family, arguments, size, channels)
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(model, tmp_path / "model.onnx", shape=shape, mean=[0.4] * channels, std=[0.2] * channels)
    assert model.training
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]
    # Nothing of this machine's folders.
    assert b"/search/" not in (tmp_path / "model.onnx").read_bytes()
    artifact = Artifact.load(tmp_path / "model.onnx")
    assert artifact.quantized == "none"
    assert (artifact.pixel_shape, artifact.classes) == ((channels, size, size), 5)
    for count in (1, 3, 70):
        pixels = images(shape, count)
        logits, expected = artifact.logits(pixels), torch_logits(model.eval(), pixels, 0.4, 0.2)
        assert logits.dtype == np.float32
        assert expected.std() > 1e-3
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_no_family_is_left_out() -> None:
    assert {family for family, *_ in FAMILIES} == MODELS.keys(), "add a small network of the family to FAMILIES"


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InputShape]:
    model, shape = build("lenet5", {}, 8, 1)
    path = tmp_path_factory.mktemp("lenet") / "model.onnx"
    export_onnx(model, path, shape=shape, mean=[0.5], std=[0.25])
    return path, shape


def test_latency_is_a_median_with_its_spread(lenet: tuple[Path, InputShape]) -> None:
    path, shape = lenet
    found = measure_latency(Artifact.load(path), images(shape, 3))
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.runs >= 50


def test_sizes_are_those_of_the_file(lenet: tuple[Path, InputShape], tmp_path: Path) -> None:
    path, _ = lenet
    assert size_kb(path) == len(path.read_bytes()) / 1024
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(2**22))
    assert size_kb(zeros) == 4096
    assert 1 < archive_kb(zeros) < 10
    assert 0.5 * size_kb(path) < archive_kb(path) < size_kb(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"", "not an ONNX model"), (b"nonsense" * 100, "not an ONNX model, or damaged")],
)
def test_bad_file_is_one_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeployError, match=said) as error:
        Artifact.load(path)
    assert "\n" not in str(error.value)


def test_cut_and_foreign_files_are_one_line(lenet: tuple[Path, InputShape], tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    path = tmp_path / "model.onnx"
    path.write_bytes(lenet[0].read_bytes()[:-500])
    with pytest.raises(DeployError, match="damaged"):
        Artifact.load(path)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(DeployError, match="not a model that this program exported"):
        Artifact.load(path)
    model = onnx.load(str(lenet[0]))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, path)
    with pytest.raises(DeployError, match="not a model that this program exported"):
        Artifact.load(path)


class Unexportable(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :5] * float(x.sum().item() > 0)


def test_model_that_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    shape = InputShape(image_size=8, channels=1, classes=5)
    with pytest.raises(DeployError, match="cannot be exported to ONNX") as error:
        export_onnx(Unexportable(), tmp_path / "model.onnx", shape=shape, mean=[0.5], std=[0.2])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_serving_imports_no_torch(lenet: tuple[Path, InputShape]) -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from imgcls_search.deploy.artifact import "
        "Artifact, measure_latency; "
        "a = Artifact.load(Path(sys.argv[1])); measure_latency(a, numpy.zeros((1, 1, 8, 8), 'uint8')); "
        "print('torch' in sys.modules, a.logits(numpy.zeros((2, 1, 8, 8), 'uint8')).shape)"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(lenet[0])], capture_output=True, text=True, check=True)
    assert shown.stdout == "False (2, 5)\n"
    assert shown.stderr == ""
