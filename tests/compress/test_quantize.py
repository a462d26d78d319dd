"""Quantized files: smaller, close to the floats they come from, and honest about how they were made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from imgcls_search.compress.quantize import quantize
from imgcls_search.data import InputShape
from imgcls_search.deploy.artifact import Artifact, size_kb
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.errors import DeployError
from imgcls_search.models import MODELS

from tests.deploy.test_deploy import images

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": ("resnet", {"depths": (1, 1), "width": 32}),
    "vit": ("vit", {"width": 96, "depth": 1, "heads": 2}),
    "narrow": ("vit", {"width": 32, "depth": 1, "heads": 2}),
}
SHAPE = InputShape(image_size=16, channels=3, classes=5)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    for name, (family, arguments) in NETS.items():
        model = MODELS[family](image_size=16, channels=3, classes=5, **arguments)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        export_onnx(model, folder / f"{name}.onnx", shape=SHAPE, mean=[0.5] * 3, std=[0.25] * 3)
    return {name: folder / f"{name}.onnx" for name in NETS}


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "mode", "used"), [("conv", "static", "static"), ("conv", "auto", "static"), ("vit", "auto", "dynamic")]
)
def test_quantized_file_is_small_and_close(
    net: str, mode: Any, used: str, nets: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "int8.onnx"
    assert quantize(nets[net], target, mode=mode, calibration=images(SHAPE, 32)) == used
    assert list(tmp_path.iterdir()) == [target]
    assert size_kb(target) < 0.5 * size_kb(nets[net])
    assert Artifact.load(target).quantized == used
    whole, small = (Artifact.load(path).logits(images(SHAPE, 50)) for path in (nets[net], target))
    assert np.abs(whole - small).max() < 0.1 * np.abs(whole).max()
    assert np.abs(whole - small).max() > 0
    head = [node for node in onnx.load(target).graph.node if node.op_type in ("Cast", "Mul", "Add")][:3]
    assert [node.input[0] for node in head] == ["pixels", head[0].output[0], head[1].output[0]]
    assert ("DynamicQuantizeLinear" in kinds(target)) == (used == "dynamic")
    if used == "static":
        scales = {value.name: value for value in onnx.load(target).graph.initializer}
        weights = [value for name, value in scales.items() if name.endswith("_quantized") and len(value.dims) == 4]
        assert len(weights) == kinds(target).count("Conv")
        per_channel = [scales[value.name.removesuffix("_quantized") + "_scale"].dims for value in weights]
        assert [list(dims) for dims in per_channel] == [[value.dims[0]] for value in weights]


@pytest.mark.slow
def test_auto_leaves_a_net_without_large_products_as_it_was(nets: dict[str, Path], tmp_path: Path) -> None:
    assert quantize(nets["narrow"], tmp_path / "auto.onnx", mode="auto", calibration=images(SHAPE, 2)) == "none"
    assert (tmp_path / "auto.onnx").read_bytes() == nets["narrow"].read_bytes()
    assert Artifact.load(tmp_path / "auto.onnx").quantized == "none"
    # Asked for by name it is done, gain or not.
    assert quantize(nets["narrow"], tmp_path / "all.onnx", mode="dynamic", calibration=images(SHAPE, 2)) == "dynamic"
    assert kinds(tmp_path / "all.onnx").count("MatMulInteger") == 5


@pytest.mark.slow
def test_an_images_logits_do_not_depend_on_its_neighbours(nets: dict[str, Path], tmp_path: Path) -> None:
    pixels = images(SHAPE, 20)
    pixels[7] = 255
    for net in ("conv", "vit"):
        quantize(nets[net], tmp_path / net, mode="auto", calibration=pixels)
        artifact = Artifact.load(tmp_path / net)
        alone = np.concatenate([artifact.logits(pixels[place : place + 1]) for place in range(20)])
        np.testing.assert_array_equal(alone, artifact.logits(pixels))


@pytest.mark.slow
def test_what_cannot_be_quantized_is_one_line_and_leaves_nothing(nets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(nets["conv"].read_bytes()[:-500])
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    export_onnx(model, tmp_path / "plain.onnx", shape=SHAPE, mean=[0.5] * 3, std=[0.25] * 3)
    for source, calibration, said in (
        ("bad.onnx", 4, "the quantizer cannot take this model"),
        ("plain.onnx", 4, "nothing in it can be quantized"),
        ("missing.onnx", 4, "no such ONNX file"),
        (nets["conv"], 0, "no images to calibrate by"),
    ):
        with pytest.raises(DeployError, match=said) as error:
            quantize(tmp_path / source, tmp_path / "out.onnx", mode="auto", calibration=images(SHAPE, calibration))
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx", "plain.onnx"]


@pytest.mark.slow
def test_quantizing_imports_no_torch_and_says_nothing(nets: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from imgcls_search.compress.quantize import quantize; "
        "quantize(Path(sys.argv[1]), Path('o.onnx'), mode='static', calibration=numpy.zeros((2, 3, 16, 16), 'uint8')); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(nets["conv"])]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (shown.stdout, shown.stderr) == ("False\n", "")
