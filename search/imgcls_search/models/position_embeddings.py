"""Resize a transformer's position embeddings from the image size of its weights to that of a trial."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, sides
from imgcls_search.models.weights_reading import Tensors, description_of


def resized(
    tensors: Tensors, model: nn.Module, image_size: ImageSize, path: str, noted: tuple[int, int] | None
) -> Tensors:
    """Return the tensors with torchvision's position embeddings resized to the patches of the model.

    `noted` is their number of rows and columns, if the file has it; else they form a square.

    Raises:
        BuildError: they form no square, and their rows and columns are not known.
    """
    name = "encoder.pos_embedding"
    patch = getattr(model, "patch_size", None)
    if name not in tensors or not isinstance(patch, int) or tensors[name].dim() != 3:
        return tensors
    count = tensors[name].shape[1] - 1
    side = math.isqrt(max(0, count))
    theirs = noted if noted is not None and noted[0] * noted[1] == count else (side, side)
    height, width = sides(image_size)
    ours = (height // patch, width // patch)
    is_known = theirs[0] * theirs[1] == count
    if theirs == ours if is_known else ours[0] * ours[1] == count:
        return tensors
    if count < 1 or not is_known:
        raise BuildError(path, f"its {count} position embeddings are of no square image; allowed: those of a square")
    if theirs[0] != theirs[1] or ours[0] != ours[1]:
        return {**tensors, name: _stretched(tensors[name], theirs, ours)}
    from torchvision.models.vision_transformer import interpolate_embeddings

    found: Tensors = interpolate_embeddings(height, patch, dict(tensors))
    return found


def noted_grid(path: str, wanted: str) -> tuple[int, int] | None:
    """Return the rows and columns of patches that a file of this program was trained with, None if unknown."""
    known = description_of(path, wanted)
    if known is None or known.patch_size is None:
        return None
    height, width = sides(known.image_size)
    return height // known.patch_size, width // known.patch_size


def _stretched(embeddings: Tensor, theirs: tuple[int, int], ours: tuple[int, int]) -> Tensor:
    """Resize position embeddings [1, tokens, width] to another grid of patches, as torchvision does."""
    token, patches = embeddings[:, :1], embeddings[:, 1:]
    grid = patches.permute(0, 2, 1).reshape(1, -1, *theirs)
    fitted = functional.interpolate(grid, size=ours, mode="bicubic", align_corners=True)
    return torch.cat([token, fitted.flatten(2).permute(0, 2, 1)], dim=1)
