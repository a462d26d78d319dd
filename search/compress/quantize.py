"""Eight-bit integers in place of floats, by ONNX Runtime's quantizer. Never torch."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from search.errors import DeployError

if TYPE_CHECKING:
    from onnx import ModelProto

Mode = Literal["dynamic", "static", "auto"]
Pixels = npt.NDArray[np.uint8]

MATRIX_PRODUCTS = ["MatMul", "Gemm"]
WEIGHTED = ["Conv", *MATRIX_PRODUCTS]


def quantize(source: Path, target: Path, *, mode: Mode, calibration: Pixels) -> str:
    """Write an exported file with 8-bit weights, per channel; return the mode used, which `auto` leaves open.

    `static` fixes the range of every activation by the calibration images, uint8 [N, C, H, W]; `dynamic` finds the
    ranges anew for each image, in matrix products only. `auto` takes static for convolutional networks and dynamic for
    others. The normalisation at the head stays in floats.

    Raises:
        DeployError: the quantizer cannot take the model, or there are no calibration images.
    """
    if not source.is_file():
        raise DeployError(f"{source}: no such ONNX file")
    if len(calibration) == 0:
        raise DeployError(f"{source}: no images to calibrate by")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent) as folder, _quiet():
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "model.onnx"
        try:
            used = _choose(source) if mode == "auto" else mode
            _prepare(source, prepared)
            WRITERS[used](prepared, result, calibration)
            _mark(result, used)
        except DeployError:
            raise
        # The quantizer raises whatever its parts raise.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DeployError(f"{source}: the quantizer cannot take this model ({reason})") from error
        result.replace(target)
    return used


def _static(prepared: Path, result: Path, calibration: Pixels) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(prepared),
        str(result),
        _reader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # Without VNNI two products of 8 bits overflow 16: weights of 7 bits are safe on every processor.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_head(onnx.load(str(prepared))),
    )


def _dynamic(prepared: Path, result: Path, calibration: Pixels) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        prepared,
        result,
        op_types_to_quantize=MATRIX_PRODUCTS,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


WRITERS: Mapping[str, Callable[[Path, Path, Pixels], None]] = {"static": _static, "dynamic": _dynamic}


def _choose(source: Path) -> str:
    import onnx

    kinds = [node.op_type for node in onnx.load(str(source)).graph.node]
    return "dynamic" if "Softmax" in kinds else "static"


def _prepare(source: Path, prepared: Path) -> None:
    """Write a copy in which every tensor's shape is known, without which the quantizer leaves it in floats."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # The exporter notes all shapes with symbols in them; to find them symbolically would import torch.
    quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    import onnx

    model = onnx.load(str(prepared))
    if not any(node.op_type in WEIGHTED for node in model.graph.node):
        raise DeployError(f"{source}: nothing in it can be quantized; quantizable: {', '.join(WEIGHTED)}")


def _head(model: ModelProto) -> list[str]:
    """Return the names of the nodes that normalise the pixels: all before the first one with weights."""
    names = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            break
        names.append(node.name)
    return names


def _mark(result: Path, mode: str) -> None:
    """Note the mode in the file: whoever runs it must know how images may be put together."""
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
    """Silence the quantizer's advice, which goes to the root logger; errors are raised."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
