"""Quantize exported networks to 8-bit integers with ONNX Runtime's quantizer. Never imports torch."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic
from imgcls_search.errors import DeployError, first_line
from imgcls_search.external_data import must_be_alone

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Mode = Literal["dynamic", "static", "auto"]
Pixels = npt.NDArray[np.uint8]

MATRIX_PRODUCTS = ["MatMul", "Gemm"]
WEIGHTED = ["Conv", *MATRIX_PRODUCTS]

LEAST_WEIGHTS = 8192
LEAST_MACS = 100_000
"""Smaller products lose more by measuring the range of their inputs than they gain (ViTs of width 32 to 192)."""


def quantize(source: Path, target: Path, *, mode: Mode, calibration: Pixels) -> str:
    """Write an exported file with 8-bit weights, per channel; return the mode used, as chosen by `auto`.

    `static` fixes the range of every activation with the calibration images, uint8 [N, C, H, W]; `dynamic` measures the
    range per image, in matrix products only. `auto` uses static for networks that mostly compute convolutions,
    otherwise dynamic for products large enough to gain from it, and `none` if there are none: the file is then copied.
    The normalisation at the beginning stays in floats.

    Raises:
        DeployError: the quantizer cannot handle the model, a tensor of it is in another file, or there are no
            calibration images.
    """
    if not source.is_file():
        raise DeployError(f"{source}: no such ONNX file")
    if len(calibration) == 0:
        raise DeployError(f"{source}: no images to calibrate by")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent) as folder, _quiet():
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "model.onnx"
        try:
            must_be_alone(source, source.read_bytes())
            _prepare(source, prepared)
            used = _write(prepared, result, mode, calibration)
            if used == "none":
                shutil.copyfile(source, result)
            else:
                _mark(result, used)
        except DeployError:
            raise
        # The quantizer raises exceptions of any type.
        except Exception as error:
            raise DeployError(f"{source}: the quantizer cannot take this model ({first_line(error)})") from error
        atomic.publish(result, target)
    return used


def _write(prepared: Path, result: Path, mode: Mode, calibration: Pixels) -> str:
    import onnx

    model = onnx.load(str(prepared))
    products = [node.name for node in model.graph.node if node.op_type in MATRIX_PRODUCTS]
    if mode == "auto":
        work = _work(model)
        convolutions = sum(part.macs for part in work if part.kind == "Conv")
        mode = "static" if 2 * convolutions > sum(part.macs for part in work) else "dynamic"
        products = [p.name for p in work if p.kind != "Conv" and p.weights >= LEAST_WEIGHTS and p.macs >= LEAST_MACS]
    if mode == "static":
        _static(prepared, result, calibration, unquantized=_normalising(model))
    elif products:
        _dynamic(prepared, result, products)
    return mode if mode == "static" or products else "none"


def _static(prepared: Path, result: Path, calibration: Pixels, *, unquantized: list[str]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(prepared),
        str(result),
        _reader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # Without VNNI, the sum of two 8-bit products overflows 16 bits: 7-bit weights are safe on every processor.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=unquantized,
    )


def _dynamic(prepared: Path, result: Path, products: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        prepared,
        result,
        op_types_to_quantize=MATRIX_PRODUCTS,
        # The quantizer first replaces every Gemm by a MatMul of this name.
        nodes_to_quantize=[*products, *(f"{name}_MatMul" for name in products)],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


@dataclass(frozen=True)
class _Part:
    """A node that multiplies by weights."""

    name: str
    kind: str
    weights: int
    macs: int
    """Multiply-accumulates for one image."""


def _work(model: ModelProto) -> list[_Part]:
    """Return the nodes of a model that have weights, with shapes for one image."""
    import onnx

    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    # Remove the shapes that were inferred for any number of images.
    del single.graph.value_info[:], single.graph.output[0].type.tensor_type.shape.dim[:]
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    weights = {value.name: list(value.dims) for value in graph.initializer}
    return [
        _part(node, weights[node.input[1]], shapes.get(node.output[0], []))
        for node in graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights
    ]


def _part(node: NodeProto, weights: list[int], outputs: list[int]) -> _Part:
    # Each output number is a sum over the weights of one output channel.
    count, out = math.prod(weights), outputs[1 if node.op_type == "Conv" else -1] if outputs else 1
    return _Part(node.name, node.op_type, count, math.prod(outputs) * count // max(out, 1))


def _prepare(source: Path, prepared: Path) -> None:
    """Write a copy in which every tensor's shape is known; otherwise the quantizer leaves it in floats."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # The exporter already stores all shapes with symbols; symbolic inference would import torch.
    quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    import onnx

    model = onnx.load(str(prepared))
    if not any(node.op_type in WEIGHTED for node in model.graph.node):
        raise DeployError(f"{source}: nothing in it can be quantized; quantizable: {', '.join(WEIGHTED)}")


def _normalising(model: ModelProto) -> list[str]:
    """Return the names of the nodes that normalise the pixels: all before the first node with weights."""
    names = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names


def _mark(result: Path, mode: str) -> None:
    """Store the mode in the file: its users must know how images may be batched."""
    import onnx

    model = onnx.load(str(result))
    onnx.helper.set_model_props(model, {"quantized": mode})
    onnx.save(model, str(result))


def _reader(calibration: Pixels) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(calibration)

        def get_next(self) -> dict[str, Pixels] | None:
            image = next(self.images, None)
            return None if image is None else {"pixels": np.asarray(image)[None]}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice, which goes to the root logger; errors are still raised."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
