"""Read weights files: formats, wrappers, and names of earlier versions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgcls_search import archive
from imgcls_search.config import expand_path
from imgcls_search.errors import UNWRITTEN, CheckpointError, closest
from imgcls_search.image_size import ImageSize, normal, sides

IMAGENET = "imagenet"
"""The value for weights that a library provides, instead of a file."""

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys under which training scripts save the weights next to other data."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and Lightning add to the name of each tensor."""

# Names in EfficientNet's first PyTorch version, and in timm.
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    **_SQUEEZE,
}

Tensors = Mapping[str, Tensor]


def tensors_of(path: str, wanted: str) -> Tensors:
    """Return the tensors of a file without wrappers; `path` is the setting that names the file.

    Raises:
        CheckpointError: the file cannot be read, or contains none.
    """
    state = contents_of(path, wanted)
    while inner := next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), None):
        state = inner
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: {wanted}: holds no tensors; its entries: {examples(list(map(str, state)))}")
    return tensors


def contents_of(path: str, wanted: str) -> Mapping[str, Any]:
    """Return the contents of a file; `path` is the setting that names it.

    Raises:
        CheckpointError: the file does not exist, contains no weights, or is damaged.
    """
    file = expand_path(wanted, path)
    if not file.is_file():
        known = closest(wanted, [IMAGENET])
        raise CheckpointError(f"{path}: {str(file)!r}: no such file{known}; allowed: imagenet, or the path of a file")
    try:
        return read_file(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file of this program says about its images and its model."""

    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int | None
    """Side of the patches of a `vit`, None for other families."""


def description_of(path: str, wanted: str) -> Description | None:
    """Return what a file of this program says, None for files of others; arguments are those of `contents_of`.

    Raises:
        CheckpointError: the file does not exist, contains no weights, or is damaged.
    """
    contents = contents_of(path, wanted)
    try:
        about = json.loads(contents["about"])
        data, vit = about["data"], about["config"]["model"].get("vit")
        found = Description(
            image_size=normal(data["image_size"]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            patch_size=None if vit is None else vit["patch_size"],
        )
        lengths = [*sides(found.image_size), 1 if vit is None else found.patch_size]
        is_whole = all(type(length) is int and length > 0 for length in lengths)
        is_whole = is_whole and len(found.mean) == len(found.std) and 0 < min(found.std) <= max(found.std) < math.inf
        return found if is_whole and all(map(math.isfinite, found.mean)) else None
    except UNWRITTEN:
        return None


def read_file(file: Path) -> Mapping[str, Any]:
    """Return the contents of a weights file, without running code from it.

    Raises:
        CheckpointError: it contains no weights, or is damaged.
    """
    try:
        archive.verify(file)
        state = _read_safetensors(file) if _is_safetensors(file) else None
        if state is None:
            # Pass an open file: torch chooses another format for some names.
            with file.open("rb") as opened:
                state = torch.load(opened, map_location="cpu", weights_only=True)
    except archive.DamagedError as error:
        raise CheckpointError(f"{file}: not a weights file, or damaged ({error})") from error
    # torch raises half a dozen unrelated exceptions for damaged files.
    except Exception as error:
        raise CheckpointError(f"{file}: not a weights file, or damaged ({type(error).__name__})") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file}: not a weights file; it holds a {type(state).__name__}")
    return state


def _is_safetensors(file: Path) -> bool:
    # Decided by contents: a file that replaces another may keep its name.
    with file.open("rb") as opened:
        head = opened.read(9)
    return head[8:9] == b"{" and not head.startswith(b"PK")


def _read_safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(file, device="cpu")


def without_wrapping_prefix(tensors: Tensors, model: nn.Module) -> Tensors:
    """Remove the prefixes that DataParallel, torch.compile and Lightning add to each name."""
    # Keep prefixes that the model's own names have.
    prefixes = [prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in model.state_dict())]
    while prefix := next((each for each in prefixes if all(name.startswith(each) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def in_timms_names(tensors: Tensors, model: nn.Module) -> Tensors:
    """Rename the tensors of EfficientNet's first PyTorch version to timm's names.

    Its blocks are numbered consecutively, timm's within stages; some names depend on whether a block expands.
    """
    if "_conv_stem.weight" not in tensors or "_blocks.0._depthwise_conv.weight" not in tensors:
        return tensors
    places = [match.groups() for name in model.state_dict() if (match := re.match(r"blocks\.(\d+)\.(\d+)\.", name))]
    blocks = list(dict.fromkeys(places))
    if not blocks:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if inside and int(inside[1]) < len(blocks):
            inner = _EXPANDING if f"_blocks.{inside[1]}._expand_conv.weight" in tensors else _PLAIN
            stage, block = blocks[int(inside[1])]
            renamed[f"blocks.{stage}.{block}.{inner.get(inside[2], inside[2])}.{inside[3]}"] = tensor
        else:
            renamed[f"{_OUTER.get(first, first)}.{rest}"] = tensor
    return renamed


def modernised(state: Tensors) -> Tensors:
    """Return tensors under torchvision's current names."""
    return {_modern(name): tensor for name, tensor in state.items()}


def _modern(name: str) -> str:
    # DenseNet's files predate its current layer names: denselayer1.norm.1.weight is now denselayer1.norm1.weight.
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def examples(names: Sequence[str]) -> str:
    """Return a few names for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
