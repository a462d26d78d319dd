"""Convert an exported file to an OpenVINO model, and load it with the interface of an ONNX Runtime session."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imgcls_search.errors import DeployError, UserError, first_line

if TYPE_CHECKING:
    from openvino import CompiledModel

SUFFIX = ".xml"
"""Extension of the file that describes the network; its weights are next to it."""

WEIGHTS = ".bin"

KINDS = {"u8": "tensor(uint8)", "f32": "tensor(float)"}
"""Data types, under ONNX Runtime's names."""

SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    # Some processors would use 16-bit floats otherwise.
    "INFERENCE_PRECISION_HINT": "f32",
}


def check_installed(what: str) -> None:
    """Refuse a request that needs OpenVINO if it is not installed; `what` starts the message.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("openvino") is None:
        raise UserError(f"{what}: needs a package that is not installed; pip install 'imgcls-search[openvino]'")


def convert(source: Path, target: Path) -> None:
    """Convert an ONNX file to an OpenVINO model, with 32-bit weights next to it.

    Raises:
        DeployError: OpenVINO cannot convert it.
    """
    import openvino

    try:
        # Read from memory, so that the path is not written into the file.
        model = openvino.Core().read_model(source.read_bytes())
        openvino.save_model(model, target, compress_to_fp16=False)
    except Exception as error:
        raise DeployError(f"{target}: the model cannot be converted to OpenVINO ({first_line(error)})") from error


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a model, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: Sequence[int | str]


class Metadata:
    """The metadata of a file: always empty."""

    custom_metadata_map: Mapping[str, str] = {}


class Session:
    """A compiled model with the ONNX Runtime session methods that are used here."""

    def __init__(self, path: Path) -> None:
        """Load a model with its weights on one CPU thread.

        Raises:
            UserError: OpenVINO is not installed.
            DeployError: a file is missing or damaged.
        """
        check_installed(str(path))
        import openvino

        weights = path.with_suffix(WEIGHTS)
        if not weights.is_file():
            raise DeployError(f"{weights}: missing; the model of OpenVINO is not whole")
        core = openvino.Core()
        model = core.read_model(path.read_bytes(), weights.read_bytes())
        self.compiled: CompiledModel = core.compile_model(model, "CPU", SETTINGS)
        # A compiled model handles one request at a time.
        self.lock = threading.Lock()

    def get_inputs(self) -> list[Port]:
        """Return the inputs of the model."""
        return [_port(port) for port in self.compiled.inputs]

    def get_outputs(self) -> list[Port]:
        """Return the outputs of the model."""
        return [_port(port) for port in self.compiled.outputs]

    def get_modelmeta(self) -> Metadata:
        """Return the metadata of the file."""
        return Metadata()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """Return some outputs of the model by name, in order."""
        with self.lock:
            found = self.compiled(dict(inputs))
            return [np.array(found[name]) for name in outputs]


def _port(port: Any) -> Port:
    shape: list[int | str] = [side.get_length() if side.is_static else "N" for side in port.get_partial_shape()]
    kind = str(port.get_element_type().get_type_name())
    return Port(name=port.get_any_name(), type=KINDS.get(kind, kind), shape=shape)
