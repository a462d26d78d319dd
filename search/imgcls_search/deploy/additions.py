"""Additions to an exported file: image views before the network, temperatures after it.

Names and shapes of inputs and outputs stay the same, so that the same programs can serve these files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search import atomic
from imgcls_search.deploy.artifact import FEATURES, INPUT, OUTPUT, UNLIKE
from imgcls_search.deploy.unlike import Spread
from imgcls_search.deploy.views import VIEWS, ViewsName

RAW = "raw_logits"
"""The network's logits, if the file processes them further."""


def divide_logits(path: Path, temperatures: Sequence[float]) -> None:
    """Divide a file's logits by a temperature, or by one per label, so that their softmax is calibrated."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    _rename(graph, OUTPUT, RAW)
    divisor = np.array(temperatures, dtype=np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(divisor, "temperature"))
    graph.node.append(onnx.helper.make_node("Div", [RAW, "temperature"], [OUTPUT], name="calibrate"))
    _save(model, path)


def give_features(path: Path, target: Path) -> bool:
    """Write a copy of a file that also outputs its last layer's input; return False if that layer is not linear."""
    import onnx
    from onnx import helper

    model = onnx.load(path, load_external_data=False)
    name = _features(model.graph)
    if name is None:
        return False
    model.graph.node.append(helper.make_node("Identity", [name], [FEATURES], name="give_features"))
    model.graph.output.append(helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["N", None]))
    _save(model, target)
    return True


def give_distance(path: Path, spread: Spread) -> None:
    """Make a file also output how far each image's features are from those of the training images."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    name = _features(graph)
    assert name is not None, "the features were looked at before"
    whitened = spread.directions / spread.deviations
    constants = {
        "spread_mean": spread.mean[None],
        "spread_along": whitened,
        "spread_directions": spread.directions,
        "spread_back": spread.directions.T,
        "spread_rest": np.array(1 / spread.rest),
    }
    for key, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), key))
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "spread_axis"))
    steps = [
        ("Sub", [name, "spread_mean"], "spread_away"),
        ("MatMul", ["spread_away", "spread_along"], "spread_scaled"),
        ("Mul", ["spread_scaled", "spread_scaled"], "spread_squares"),
        ("MatMul", ["spread_away", "spread_directions"], "spread_coordinates"),
        ("MatMul", ["spread_coordinates", "spread_back"], "spread_inside"),
        ("Sub", ["spread_away", "spread_inside"], "spread_beyond"),
        ("Mul", ["spread_beyond", "spread_rest"], "spread_outside"),
        ("Mul", ["spread_outside", "spread_outside"], "spread_other_squares"),
        ("Concat", ["spread_squares", "spread_other_squares"], "spread_all"),
        ("ReduceSum", ["spread_all", "spread_axis"], UNLIKE),
    ]
    more: dict[str, dict[str, Any]] = {"Concat": {"axis": 1}, "ReduceSum": {"keepdims": 0}}
    for kind, inputs, output in steps:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **more.get(kind, {})))
    graph.output.append(helper.make_tensor_value_info(UNLIKE, onnx.TensorProto.FLOAT, ["N"]))
    _save(model, path)


LINEAR = ("Gemm", "MatMul", "MatMulInteger")


def _features(graph: Any) -> str | None:
    """Return the name of the last linear layer's input, None if the last layer is not linear."""
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    node = makers.get(OUTPUT)
    while node is not None and node.op_type not in LINEAR:
        if node.op_type == "Conv":
            return None
        node = next((makers[name] for name in node.input if name in makers and name not in constants), None)
    if node is None:
        return None
    source: str = node.input[0]
    # With dynamic quantization: the tensor before it.
    before = makers.get(source)
    return str(before.input[0]) if before is not None and before.op_type == "DynamicQuantizeLinear" else source


def average_views(path: Path, name: ViewsName) -> None:
    """Make a file compute several views of each image, and output the mean of their logits."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    shape = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    views = VIEWS[name]
    for node in graph.node:
        node.input[:] = ["views" if value == INPUT else value for value in node.input]
    _rename(graph, OUTPUT, "logits_of_views")
    is_distant = len(graph.output) > 1
    if is_distant:
        _rename(graph, UNLIKE, "unlike_of_views")
    # Shapes noted for the network's own batch now apply to all views.
    del graph.value_info[:]

    def constant(name: str, values: Sequence[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    before: list[Any] = []
    names: list[str] = []
    for number, view in enumerate(views):
        # Must not collide with the network's own names.
        name_of = f"augmented_view_{number}"
        before += view.nodes(INPUT, name_of, (shape[2], shape[3]), constant)
        names.append(name_of)
    before.append(helper.make_node("Concat", names, ["views"], axis=0, name="views"))
    after = [
        helper.make_node(
            "Reshape",
            ["logits_of_views", constant("shape_of_views", [len(views), -1, classes])],
            ["logits_by_view"],
            name="by_view",
        ),
        _mean(model, "logits_by_view", OUTPUT, constant("first_axis", [0])),
    ]
    if is_distant:
        shape_of = constant("shape_of_distances", [len(views), -1])
        after.append(helper.make_node("Reshape", ["unlike_of_views", shape_of], ["unlike_by_view"], name="by_distance"))
        after.append(_mean(model, "unlike_by_view", UNLIKE, "first_axis"))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    _save(model, path)


def _mean(model: Any, source: str, target: str, axis: str) -> Any:
    from onnx import helper

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    # Axes are an input since opset 18.
    if opset >= 18:
        return helper.make_node("ReduceMean", [source, axis], [target], keepdims=0, name=f"mean_{target}")
    return helper.make_node("ReduceMean", [source], [target], axes=[0], keepdims=0, name=f"mean_{target}")


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _save(model: Any, path: Path) -> None:
    import onnx

    onnx.checker.check_model(model)
    atomic.write_bytes(path, model.SerializeToString())
