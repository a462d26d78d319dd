"""What is added to an exported file, whoever made it: views of each image before the network, temperatures after it.

The names and shapes of what a file takes and gives stay the same, so that whatever serves a file serves these too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search import atomic
from imgcls_search.deploy.artifact import INPUT, OUTPUT
from imgcls_search.deploy.views import VIEWS, ViewsName

RAW = "raw_logits"
"""The logits of the network, where something is done to them afterwards."""


def divide_logits(path: Path, temperatures: Sequence[float]) -> None:
    """Let a file give its logits over a temperature, or over one of each label: their softmax is then calibrated."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    _rename(graph, OUTPUT, RAW)
    divisor = np.array(temperatures, dtype=np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(divisor, "temperature"))
    graph.node.append(onnx.helper.make_node("Div", [RAW, "temperature"], [OUTPUT], name="calibrate"))
    _save(model, path)


def average_views(path: Path, name: ViewsName) -> None:
    """Let a file look at several views of each image, and give the mean of their logits."""
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
    # Sizes noted for the network's own batch are those of all views now.
    del graph.value_info[:]

    def constant(name: str, values: Sequence[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    before: list[Any] = []
    names: list[str] = []
    for number, view in enumerate(views):
        name_of = f"view_{number}"
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
        _mean(model, "logits_by_view", OUTPUT, constant),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    _save(model, path)


def _mean(model: Any, source: str, target: str, constant: Any) -> Any:
    from onnx import helper

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    # The axes became an input in version 18.
    if opset >= 18:
        return helper.make_node("ReduceMean", [source, constant("first_axis", [0])], [target], keepdims=0, name="mean")
    return helper.make_node("ReduceMean", [source], [target], axes=[0], keepdims=0, name="mean")


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _save(model: Any, path: Path) -> None:
    import onnx

    onnx.checker.check_model(model)
    atomic.write_bytes(path, model.SerializeToString())
