"""Check whether an ONNX file keeps tensors in other files, from its bytes, before any library loads it. Never onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from imgcls_search.errors import DeployError

# Field numbers in onnx.proto, by message: the fields that contain a tensor, however deep.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_NAME = 8
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14

_DEEPEST = 100
"""Protocol buffers themselves refuse messages that are nested deeper."""

_LONGEST_VARINT = 10
_LARGEST_TAG = 2**32

_FLATBUFFER = b"ORTM"
"""These bytes make ONNX Runtime load a model in another format, which is not checked here."""

Field = tuple[int, int | memoryview]


def must_be_alone(path: Path, content: bytes) -> None:
    """Refuse an ONNX file if any of its tensors is in another file, whatever that file is called.

    ONNX Runtime would read it from the working folder, or from wherever the name leads.

    Raises:
        DeployError: a tensor is in another file.
        ValueError: the bytes are not an ONNX model.
    """
    if content[4:8] == _FLATBUFFER:
        raise ValueError("it is in ONNX Runtime's own format")
    name = next(_external(memoryview(content), "Model", 0), None)
    if name is not None:
        raise DeployError(
            f"{path}: its tensor {name!r:.80} is in another file (external data); allowed: a file that holds all of "
            "its tensors"
        )


def _external(content: memoryview, kind: str, depth: int) -> Iterator[str]:
    """Yield the names of the tensors in a message that are in other files."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep")
    name, is_external = "", False
    for number, value in _fields(content):
        if isinstance(value, memoryview) and number in _CHILDREN[kind]:
            yield from _external(value, _CHILDREN[kind][number], depth + 1)
        elif kind == "Tensor":
            if number == _TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value).decode(errors="replace")
            is_external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
    if is_external:
        yield name


def _fields(content: memoryview) -> Iterator[Field]:
    """Yield the number and value of each field of a message: bytes, or a whole number; other kinds as 0."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, wire = tag >> 3, tag & 7
        if tag >= _LARGEST_TAG or number == 0:
            raise ValueError("it has a field without a number")
        if wire == 0:
            value, place = _varint(content, place)
            yield number, value
        elif wire == 2:
            size, place = _varint(content, place)
            if size > len(content) - place:
                raise ValueError("it ends in the middle of a field")
            yield number, content[place : place + size]
            place += size
        elif wire in (1, 5):
            place += 8 if wire == 1 else 4
            if place > len(content):
                raise ValueError("it ends in the middle of a field")
            yield number, 0
        else:
            # Groups, which ONNX has never had: they could hide what other readers would find in them.
            raise ValueError("it has a field of an unknown kind")


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if place + index >= len(content):
            raise ValueError("it ends in the middle of a number")
        byte = content[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("it has a number without an end")
