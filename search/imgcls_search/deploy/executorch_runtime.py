"""Load an ExecuTorch program with the interface of an ONNX Runtime session. Its Python runtime uses torch tensors."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search.deploy.openvino_ir import Metadata, Port
from imgcls_search.errors import UserError

METHOD = "forward"
BYTE, FLOAT = 0, 6
"""Data types in ExecuTorch's numbering."""

KINDS = {BYTE: "tensor(uint8)", FLOAT: "tensor(float)"}


def check_installed(what: str) -> None:
    """Refuse a request that needs ExecuTorch if it is not installed; `what` starts the message.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("executorch") is None:
        raise UserError(f"{what}: needs a package that is not installed; pip install 'imgcls-search[executorch]'")


class Session:
    """A loaded program with the ONNX Runtime session methods that are used here."""

    def __init__(self, path: Path, *, takes: str, gives: Sequence[str]) -> None:
        """Load a program on one CPU thread; `takes` and `gives` name its tensors, which are unnamed in the file.

        Raises:
            UserError: ExecuTorch is not installed.
            RuntimeError: the program is damaged.
        """
        check_installed(str(path))
        self.takes, self.gives = takes, gives
        with quiet(), _silent_runtime():
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime, Verification

            _unsafe_reset_threadpool(1)
            # Keep a reference: the method reads its weights from the program.
            self.program = Runtime.get().load_program(path.read_bytes(), verification=Verification.InternalConsistency)
            self.method: Any = self.program.load_method(METHOD)
        self.about = self.method.metadata
        # All results of a method share one memory.
        self.lock = threading.Lock()

    def get_inputs(self) -> list[Port]:
        """Return the inputs of the program."""
        return [_port(self.takes, self.about.input_tensor_meta(place)) for place in range(self.about.num_inputs())]

    def get_outputs(self) -> list[Port]:
        """Return the outputs of the program."""
        names = self.gives[: self.about.num_outputs()]
        return [_port(name, self.about.output_tensor_meta(place)) for place, name in enumerate(names)]

    def get_modelmeta(self) -> Metadata:
        """Return the metadata of the file."""
        return Metadata()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """Return some outputs of the program by name, in order; each image is computed alone."""
        import torch

        names = [port.name for port in self.get_outputs()]
        rows = []
        with self.lock:
            for image in inputs[self.takes]:
                found = self.method.execute([torch.from_numpy(np.ascontiguousarray(image[None]))])
                rows.append([tensor.numpy().copy() for tensor in found])
        return [np.concatenate([row[names.index(name)] for row in rows]) for name in outputs]


def _port(name: str, about: Any) -> Port:
    """Return the description of a tensor; its first dimension counts images."""
    return Port(name=name, type=KINDS.get(about.dtype(), str(about.dtype())), shape=["N", *about.sizes()[1:]])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's messages about its internals."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _silent_runtime() -> Iterator[None]:
    """Silence the runtime's messages about the processor and the file; it has no option for that.

    Some of them go to the file descriptor, the rest through Python's stream.
    """
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
