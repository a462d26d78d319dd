"""Class activation maps: where a network looked, from the gradients of a class's score, for any family.

For feature maps, this is Grad-CAM (Selvaraju et al. 2017). Tokens of a transformer mix early, so the last ones say
little about their places; for tokens, this is gradient times activation, summed over all layers. `captum` and
`grad-cam` need the layer and the layout of tokens for each family; here both come from the shapes of layer outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEAST_CELLS = 16
"""Use the last layer with at least this many places, else the one with the most."""

MOST_EXTRA_TOKENS = 5
"""Most tokens before those of the patches: class token, registers."""

Map = Callable[[Tensor], Tensor]
"""Returns a layer's output as [N, places down, places across, features]."""


def class_maps(model: nn.Module, images: Tensor, targets: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """Return how much each place of each image supports its target class, [N, h, w] from 0 to 1.

    `images` are normalised, [N, C, H, W], on the model's device. Takes one forward and usually one backward pass.
    Returns None if no layer of the network has places, or there are no gradients.
    """
    model.eval()
    try:
        with torch.enable_grad(), _watching(model, images.shape) as layers:
            logits = model(images.detach().clone().requires_grad_())
            score = logits[torch.arange(len(images)), torch.as_tensor(targets, device=logits.device)].sum()
            return _map_of(score, layers)
    # A custom family may contain operations without gradients.
    except RuntimeError:
        return None


class _watching:  # noqa: N801 - used as a context manager
    """Record the outputs of all layers that have places, in the order of the forward pass."""

    def __init__(self, model: nn.Module, shape: Sequence[int]) -> None:
        self.model, self.sides = model, (shape[2], shape[3])
        self.seen: list[tuple[Tensor, Map, int]] = []

    def __enter__(self) -> list[tuple[Tensor, Map, int]]:
        quiet = (nn.Dropout, nn.Identity, nn.Softmax, nn.Flatten)
        self.hooks = [
            module.register_forward_hook(self._note) for module in self.model.modules() if not isinstance(module, quiet)
        ]
        return self.seen

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, module: nn.Module, given: Any, made: Any) -> None:
        if isinstance(made, Tensor) and made.requires_grad and (found := _places(made, self.sides)) is not None:
            self.seen.append((made, *found))


def _places(made: Tensor, sides: tuple[int, int]) -> tuple[Map, int] | None:
    """Return how to lay out an output on the image, and its number of places; None if it has no places."""
    if made.dim() == 4:
        if _fits(made.shape[2], made.shape[3], sides):
            return (lambda tensor: tensor.permute(0, 2, 3, 1)), made.shape[2] * made.shape[3]
        if _fits(made.shape[1], made.shape[2], sides):
            return (lambda tensor: tensor), made.shape[1] * made.shape[2]
    if made.dim() == 3:
        for extra in range(MOST_EXTRA_TOKENS + 1):
            count = made.shape[1] - extra
            down = round(math.sqrt(max(0, count) * sides[0] / sides[1]))
            if down > 1 and count % down == 0 and _fits(down, count // down, sides):
                return _as_grid(extra, down), count
    return None


def _as_grid(extra: int, down: int) -> Map:
    """Return a function that lays out tokens [N, extra + down * across, D] as a grid."""
    return lambda tensor: tensor[:, extra:].reshape(len(tensor), down, -1, tensor.shape[2])


def _fits(down: int, across: int, sides: tuple[int, int]) -> bool:
    """Tell whether a grid can cover an image: at least two places per side, each about square."""
    if not (1 < down <= sides[0] and 1 < across <= sides[1]):
        return False
    steps = sides[0] / down, sides[1] / across
    # A network rounds sides that its strides do not divide, up or down.
    return max(steps) / min(steps) <= 1.0 + 1.0 / min(down, across)


def _map_of(score: Tensor, layers: Sequence[tuple[Tensor, Map, int]]) -> np.ndarray[Any, Any] | None:
    """Return the maps from the outputs of a forward pass, scaled to a maximum of 1 per image."""
    if not layers:
        return None
    has_tokens = layers[-1][0].dim() == 3
    maps = _of_tokens(score, layers) if has_tokens else _of_feature_maps(score, layers)
    if maps is None:
        return None
    return (maps / maps.flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None]).float().cpu().numpy()


def _of_tokens(score: Tensor, layers: Sequence[tuple[Tensor, Map, int]]) -> Tensor | None:
    """Return gradient times activation, summed over the layers with as many tokens as the last, minus its mean.

    The sum is signed: a token also carries information from other places, which supports the class in one layer and
    opposes it in another, and so cancels out.
    """
    tokens = [layer for layer in layers if layer[0].dim() == 3 and layer[2] == layers[-1][2]]
    slopes = torch.autograd.grad(score, [made for made, _, _ in tokens], allow_unused=True)
    known = [
        (lay(made.detach()) * lay(slope)).sum(dim=-1)
        for (made, lay, _), slope in zip(tokens, slopes, strict=True)
        if slope is not None
    ]
    if not known:
        return None
    total = torch.stack(known).sum(dim=0)
    return (total - total.mean(dim=(1, 2), keepdim=True)).abs()


def _of_feature_maps(score: Tensor, layers: Sequence[tuple[Tensor, Map, int]]) -> Tensor | None:
    for made, lay, _ in _in_question(layers):
        found: Sequence[Tensor | None] = torch.autograd.grad(score, made, retain_graph=True, allow_unused=True)
        if found[0] is None:
            continue
        values, slopes = lay(made.detach()), lay(found[0])
        maps = torch.relu((values * slopes.mean(dim=(1, 2), keepdim=True)).sum(dim=-1))
        # If no feature supports the class on average, weight each place by its own gradient.
        each = (values * slopes).sum(dim=-1)
        for other in (torch.relu(each), each.abs()):
            empty = maps.flatten(1).amax(dim=1) <= 0
            maps[empty] = other[empty]
        if bool((maps.flatten(1).amax(dim=1) > 0).any()):
            return maps
    return None


def _in_question(layers: Sequence[tuple[Tensor, Map, int]]) -> Iterator[tuple[Tensor, Map, int]]:
    """Yield the layers to try, best first: late ones with enough places, then those with the most."""
    yield from (layer for layer in reversed(layers) if layer[2] >= LEAST_CELLS)
    few = [layer for layer in reversed(layers) if layer[2] < LEAST_CELLS]
    yield from sorted(few, key=lambda layer: -layer[2])
