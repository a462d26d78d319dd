"""An exported file as a model of OpenVINO: written, and loaded so that it is used as one of ONNX Runtime is."""

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
"""Ends the name of the file that describes the network; its weights are beside it."""

WEIGHTS = ".bin"

KINDS = {"u8": "tensor(uint8)", "f32": "tensor(float)"}
"""Types of numbers, as ONNX Runtime calls them."""

SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    # Some processors would take 16-bit floats otherwise.
    "INFERENCE_PRECISION_HINT": "f32",
}


def check_installed(what: str) -> None:
    """Refuse what needs OpenVINO where it is not installed; `what` is what asks for it.

    Raises:
        UserError: it is not.
    """
    if find_spec("openvino") is None:
        raise UserError(f"{what}: needs a package that is not installed; pip install 'imgcls-search[openvino]'")


def convert(source: Path, target: Path) -> None:
    """Write an ONNX file as a model of OpenVINO, with 32-bit weights beside it.

    Raises:
        DeployError: OpenVINO cannot take it.
    """
    import openvino

    try:
        # Read from memory: the path is not written into the file.
        model = openvino.Core().read_model(source.read_bytes())
        openvino.save_model(model, target, compress_to_fp16=False)
    except Exception as error:
        raise DeployError(f"{target}: the model cannot be converted to OpenVINO ({first_line(error)})") from error


@dataclass(frozen=True, kw_only=True)
class Port:
    """What a model takes or gives, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: Sequence[int | str]


class Metadata:
    """What a file says of itself beside the network: nothing."""

    custom_metadata_map: Mapping[str, str] = {}


class Session:
    """A compiled model with the methods of a session of ONNX Runtime that are used here."""

    def __init__(self, path: Path) -> None:
        """Load a model, with its weights beside it, on one thread of the CPU.

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
        # A compiled model answers one question at a time.
        self.lock = threading.Lock()

    def get_inputs(self) -> list[Port]:
        """Return what the model takes."""
        return [_port(port) for port in self.compiled.inputs]

    def get_outputs(self) -> list[Port]:
        """Return what the model gives."""
        return [_port(port) for port in self.compiled.outputs]

    def get_modelmeta(self) -> Metadata:
        """Return what the file says beside the network."""
        return Metadata()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """Return some outputs of the model, in the order of their names."""
        with self.lock:
            found = self.compiled(dict(inputs))
            return [np.array(found[name]) for name in outputs]


def _port(port: Any) -> Port:
    shape: list[int | str] = [side.get_length() if side.is_static else "N" for side in port.get_partial_shape()]
    kind = str(port.get_element_type().get_type_name())
    return Port(name=port.get_any_name(), type=KINDS.get(kind, kind), shape=shape)
