"""An ONNX file with a tensor in another file is refused, wherever the tensor is and however the file is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from imgcls_search.compress.quantize import quantize
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.errors import DeployError
from imgcls_search.external_data import must_be_alone
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

BIAS = np.array([3.0, 5.0], dtype=np.float32)


def tensor(name: str = "bias", place: str | None = "secret.bin") -> TensorProto:
    """Return a tensor, in a file of the working folder where `place` is one."""
    made: TensorProto = numpy_helper.from_array(BIAS, name)
    if place is not None:
        set_external_data(made, place)
        made.ClearField("raw_data")
    return made


def value(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def graph(name: str = "g") -> GraphProto:
    """Return a graph that takes pixels [N, 1, 1, 2] and gives logits [N, 2]: the pixels and a bias."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 1, 1, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])
    return helper.make_graph(nodes, name, [pixels], [logits], [tensor(place=None)])


def model(of: GraphProto | None = None) -> ModelProto:
    return helper.make_model(of or graph(), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inner(**arguments: TensorProto) -> GraphProto:
    node = helper.make_node("Constant", [], ["inner"], **arguments)
    return helper.make_graph([node], "branch", [], [value("inner")])


def with_initializer(made: ModelProto) -> None:
    made.graph.initializer.append(tensor())


def with_constant(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor()))


def with_sparse(made: ModelProto) -> None:
    sparse = made.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor())
    sparse.dims.append(9)


def with_sparse_indices(made: ModelProto) -> None:
    made.graph.sparse_initializer.add().indices.CopyFrom(tensor())


def with_sparse_constant(made: ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    attribute = node.attribute.add()
    attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
    attribute.sparse_tensor.values.CopyFrom(tensor())
    made.graph.node.append(node)


def with_lists(made: ModelProto) -> None:
    attribute = made.graph.node.add().attribute.add()
    attribute.tensors.extend([tensor(place=None), tensor()])


def with_list_of_sparse(made: ModelProto) -> None:
    made.graph.node.add().attribute.add().sparse_tensors.add().values.CopyFrom(tensor())


def with_branch(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner(value=tensor())))


def with_branch_initializer(made: ModelProto) -> None:
    deep = helper.make_graph([], "deep", [], [], [tensor()])
    outer = helper.make_graph([helper.make_node("If", ["x"], ["y"], else_branch=deep)], "outer", [], [])
    made.graph.node.append(helper.make_node("Loop", ["x"], ["y"], body=outer))


def with_list_of_graphs(made: ModelProto) -> None:
    made.graph.node.add().attribute.add().graphs.append(inner(value=tensor()))


def with_function(made: ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor())
    made.functions.append(helper.make_function("own", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))


def with_function_default(made: ModelProto) -> None:
    made.functions.add().attribute_proto.add().t.CopyFrom(tensor())


def with_training(made: ModelProto) -> None:
    made.training_info.add().algorithm.initializer.append(tensor())
    made.training_info.add().initialization.initializer.append(tensor(place=None))


def with_entries_only(made: ModelProto) -> None:
    entry = made.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "secret.bin"


def with_location_only(made: ModelProto) -> None:
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL


WHERE = [made for name, made in list(globals().items()) if name.startswith("with_")]


@pytest.mark.parametrize("spoil", WHERE)
def test_tensor_in_another_file_is_refused_wherever_it_is(
    spoil: Callable[[ModelProto], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(BIAS.tobytes())
    made = model()
    spoil(made)
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    for load in (
        Artifact.load,
        lambda source: quantize(source, tmp_path / "new.onnx", mode="dynamic", calibration=np.zeros((1, 1, 1, 2))),
    ):
        with pytest.raises(DeployError, match=r"model.onnx: its tensor 'bias' is in another file \(external data\)"):
            load(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "secret.bin"]


@pytest.mark.parametrize("place", ["secret.bin", "./secret.bin", "/etc/hostname", "../x", "*/_ORT_MEM_ADDR_/*", ""])
def test_refused_whatever_the_file_is_called(place: str, tmp_path: Path) -> None:
    made = model()
    made.graph.initializer[0].CopyFrom(tensor(place=place))
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(DeployError, match="is in another file"):
        Artifact.load(tmp_path / "model.onnx")


def test_runtime_itself_would_have_read_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(BIAS.tobytes())
    made = model()
    made.graph.initializer[0].CopyFrom(tensor())
    # An optimization would stumble over so small a tensor.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = np.array([[[[1, 2]]]], dtype=np.uint8)
    assert session.run(None, {"pixels": pixels})[0].tolist() == [[4.0, 7.0]]


def test_whole_models_pass(tmp_path: Path) -> None:
    made = model()
    made.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner(value=tensor(place=None))))
    must_be_alone(Path("model.onnx"), made.SerializeToString())
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    logits = Artifact.load(tmp_path / "model.onnx").logits(np.array([[[[1, 2]]]], dtype=np.uint8))
    assert logits.tolist() == [[4.0, 7.0]]


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


@pytest.mark.parametrize(
    "location",
    [
        b"\x70\x81\x00",  # a 1 in more bytes than it needs
        b"\x70\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00",  # in all the ten that there may be
        b"\xf0\x80\x80\x80\x00\x01",  # a number of a field in more bytes than it needs
        b"\x70\x00\x70\x01",  # said twice; the last one counts
    ],
)
def test_odd_bytes_hide_nothing(location: bytes) -> None:
    content = field(7, field(5, location))
    # The reference reads them as an external tensor.
    assert ModelProto.FromString(content).graph.initializer[0].data_location == TensorProto.EXTERNAL
    with pytest.raises(DeployError, match="is in another file"):
        must_be_alone(Path("model.onnx"), content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x3b\x2a\x00\x3c",  # a group
        b"\x3a\x7f\x00",  # longer than the file
        b"\x08",
        b"\x00\x00",
        b"\x09\x00",
        b"\x08" + b"\xff" * 11,
        b"\x18\x00\x00\x00ORTM" + b"\x00" * 64,
    ],
)
def test_what_is_no_onnx_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(DeployError, match=r"model.onnx: not an ONNX model, or damaged") as error:
        Artifact.load(tmp_path / "model.onnx")
    assert "\n" not in str(error.value)


def test_too_deep_is_refused_without_a_crash() -> None:
    content = b""
    for _ in range(3000):
        content = field(1, field(5, field(6, content)))
    with pytest.raises(ValueError, match="nested too deep"):
        must_be_alone(Path("model.onnx"), field(7, content))


@given(st.binary(max_size=40), st.integers(0, 400))
def test_spoiled_bytes_never_crash_and_hide_no_external_tensor(noise: bytes, place: int) -> None:
    made = model()
    with_initializer(made)
    whole = made.SerializeToString()
    content = whole[:place] + noise + whole[place + len(noise) :]
    try:
        read = ModelProto.FromString(content)
    except Exception:
        read = None
    is_external = read is not None and any(t.data_location or len(t.external_data) for t in read.graph.initializer)
    try:
        must_be_alone(Path("model.onnx"), content)
    except (DeployError, ValueError):
        return
    assert not is_external


def test_exported_network_has_all_of_its_tensors(tmp_path: Path) -> None:
    from imgcls_search.data import InputShape
    from imgcls_search.deploy.onnx import export_onnx
    from imgcls_search.models import MODELS

    network: torch.nn.Module = MODELS["lenet5"](image_size=8, channels=1, classes=2)
    shape = InputShape(image_size=8, channels=1, classes=2)
    export_onnx(network, tmp_path / "model.onnx", shape=shape, mean=(0.5,), std=(0.5,))
    assert Artifact.load(tmp_path / "model.onnx").classes == 2
