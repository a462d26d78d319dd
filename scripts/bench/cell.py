"""A network of cells whose edges are choices: the model family of the benchmark space `cells`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from imgcls_search.image_size import ImageSize
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

Operation = Literal["none", "skip", "pool", "conv1", "conv3"]
Edge = Annotated[Operation, Arg("what an edge computes")]
WIDTH = 12


def cell(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    first: Edge = "conv3",
    second: Edge = "conv3",
    third: Edge = "conv3",
    fourth: Edge = "conv3",
) -> nn.Module:
    """Build two equal cells with a halving between them, as in NAS-Bench-201 (Dong and Yang 2020), on a smaller scale.

    A cell has an entrance, two nodes and an exit. `first` and `second` lead from the entrance to the nodes, `third`
    from the first node to the second, `fourth` from the second node to the exit, which adds the first node.
    """
    from torch import nn

    edges = (first, second, third, fourth)
    stem = nn.Sequential(nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
    halving = nn.Sequential(
        nn.ReLU(), nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, padding=1, bias=False), nn.BatchNorm2d(2 * WIDTH)
    )
    end = nn.Sequential(
        nn.BatchNorm2d(2 * WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * WIDTH, classes)
    )
    return nn.Sequential(stem, _cell(WIDTH, edges), halving, _cell(2 * WIDTH, edges), end)


def add_family() -> None:
    """Add `cell` to the families that space files can name; call this before reading a catalog."""
    from imgcls_search import models

    cast("dict[str, Any]", models.MODELS)["cell"] = cell


def _cell(width: int, edges: tuple[Operation, ...]) -> nn.Module:
    from torch import nn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edges = nn.ModuleList([_operation(edge, width) for edge in edges])

        def forward(self, x: Any) -> Any:
            first, second, third, fourth = self.edges
            one = first(x)
            two = second(x) + third(one)
            return one + fourth(two)

    return Cell()


def _operation(name: Operation, width: int) -> nn.Module:
    from torch import nn

    class Nothing(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 0.0

    if name == "none":
        return Nothing()
    if name == "skip":
        return nn.Identity()
    if name == "pool":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    side = 1 if name == "conv1" else 3
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, side, padding=side // 2, bias=False), nn.BatchNorm2d(width))
