"""Export a torch network as an ExecuTorch program, for phones.

A program takes one image. Views, temperatures and the distance from the training images, which are added to finished
ONNX files afterwards, are traced here as parts of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgcls_search import atomic
from imgcls_search.data import InputShape
from imgcls_search.deploy.executorch_runtime import quiet
from imgcls_search.deploy.onnx import Served
from imgcls_search.deploy.unlike import Spread
from imgcls_search.deploy.views import VIEWS, ViewsName
from imgcls_search.errors import DeployError, first_line
from imgcls_search.image_size import sides


def export_pte(
    model: nn.Module,
    path: Path,
    *,
    shape: InputShape,
    mean: Sequence[float],
    std: Sequence[float],
    views: ViewsName = "none",
    temperatures: Sequence[float] = (1.0,),
    spread: Spread | None = None,
) -> None:
    """Write a model with its normalisation as a program, completely or not at all; the model is not changed.

    The input is `pixels`, uint8 [1, channels, height, width], the output `logits`, float32 [1, classes]; with a
    `spread` also how unlike the training images the image is, float32 [1].

    Raises:
        DeployError: ExecuTorch cannot export the model.
    """
    size = sides(shape.image_size)
    served = Served(copy.deepcopy(model).cpu().float(), mean, std).eval()
    pixels = torch.zeros(1, shape.channels, *size, dtype=torch.uint8)
    try:
        with atomic.replacing(path) as draft, quiet(), torch.no_grad():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            seen = pixels.expand(len(VIEWS[views]), *pixels.shape[1:])
            network: nn.Module = torch.export.export(served, (seen,), strict=False).module()
            if spread is not None:
                _give_features(network)
            whole = _Program(network, size, views, temperatures, spread)
            traced = torch.export.export(whole, (pixels,), strict=False)
            lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
            draft.write_bytes(bytes(lowered.to_executorch().buffer))
    except Exception as error:
        raise DeployError(f"{path}: the model cannot be exported to ExecuTorch ({first_line(error)})") from error


def _give_features(network: Any) -> None:
    """Make a traced network also return the input of its last linear layer.

    Raises:
        DeployError: the last layer is not linear.
    """
    (end,) = (node for node in network.graph.nodes if node.op == "output")
    (logits,) = end.args[0]
    node = logits
    while node.target is not torch.ops.aten.linear.default:
        if node.target is torch.ops.aten.conv2d.default or not node.all_input_nodes:
            raise DeployError("its last layer is not linear")
        node = node.all_input_nodes[0]
    end.args = ((logits, node.args[0]),)
    # The graph's output structure is also stored next to it.
    network.graph._codegen.pytree_info = network.graph._codegen.pytree_info._replace(
        out_spec=torch.utils._pytree.tree_structure((0, 0))
    )
    network.recompile()


class _Program(nn.Module):
    """A network with image views before it, and temperatures and a distance after it."""

    temperatures: Tensor
    mean: Tensor
    along: Tensor
    directions: Tensor

    def __init__(
        self,
        network: nn.Module,
        size: tuple[int, int],
        views: ViewsName,
        temperatures: Sequence[float],
        spread: Spread | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.views = len(VIEWS[views])
        for number, view in enumerate(VIEWS[views]):
            for name, places in zip(("rows", "columns"), view.places(size), strict=True):
                self.register_buffer(f"{name}_{number}", torch.from_numpy(places))
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=torch.float32))
        self.rest = None if spread is None else float(spread.rest)
        if spread is not None:
            whitened = spread.directions / spread.deviations
            for name, values in (("mean", spread.mean), ("along", whitened), ("directions", spread.directions)):
                self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.views > 1:
            pixels = torch.cat(
                [
                    pixels.index_select(2, getattr(self, f"rows_{number}")).index_select(
                        3, getattr(self, f"columns_{number}")
                    )
                    for number in range(self.views)
                ]
            )
        if self.rest is None:
            return (self.network(pixels).mean(0, keepdim=True) / self.temperatures,)
        logits, features = self.network(pixels)
        away = features - self.mean
        beyond = (away - (away @ self.directions) @ self.directions.T) / self.rest
        distance = ((away @ self.along) ** 2).sum(1) + (beyond**2).sum(1)
        return logits.mean(0, keepdim=True) / self.temperatures, distance.mean(0, keepdim=True)
