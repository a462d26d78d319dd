"""Pretrained weights: fetched by torchvision or timm, or read from a file, and put into a model without their head."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.config import Component
from search.errors import BuildError, CheckpointError, closest
from search.models.anatomy import Anatomy

IMAGENET = "imagenet"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


Tensors = Mapping[str, Tensor]


def is_wanted(component: Component) -> bool:
    """Tell whether a model component starts from pretrained weights."""
    return component.args.get("weights") is not None


def is_file(component: Component) -> bool:
    """Tell whether they are to be read from a file."""
    return component.args.get("weights") not in (None, IMAGENET)


def find(component: Component, model: nn.Module, *, image_size: int, channels: int, classes: int) -> Tensors:
    """Return the weights that a component asks for, all but the head, position embeddings resized to the image.

    `model` is built from the component; it may be on the meta device, and is not changed.

    Raises:
        CheckpointError: they cannot be fetched or read.
        BuildError: they do not fit the model.
    """
    path, wanted = f"{component.path}.weights", str(component.args["weights"])
    anatomy = _anatomy(path, model)
    if component.name == "timm":
        tensors = _from_timm(component, image_size, channels, classes)
    elif wanted == IMAGENET:
        tensors = _from_torchvision(path, anatomy)
    else:
        tensors = _from_file(path, wanted)
    tensors = _resized(tensors, model, image_size)
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_head(name, anatomy)}
    _must_fit(path, wanted, tensors, model, anatomy)
    return tensors


def normalisation(component: Component, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel, in 0..1, by which the weights' own images were normalised.

    A file that is not of this program does not tell; nearly all are trained with ImageNet's.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    path, wanted = f"{component.path}.weights", str(component.args["weights"])
    if component.name == "timm":
        settings: Any = model.pretrained_cfg
        return tuple(settings["mean"]), tuple(settings["std"])
    if wanted == IMAGENET:
        preset = _torchvision_weights(_anatomy(path, model)).transforms()
        return tuple(preset.mean), tuple(preset.std)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        data = json.loads(_read(path, wanted)["about"])["data"]
        return tuple(data["mean"]), tuple(data["std"])
    return IMAGENET_MEAN, IMAGENET_STD


def load_into(model: nn.Module, tensors: Tensors) -> None:
    """Give a model the weights that `find` returned; its head keeps its fresh ones."""
    model.load_state_dict(dict(tensors), strict=False)


def _anatomy(path: str, model: nn.Module) -> Anatomy:
    found = getattr(model, "anatomy", None)
    if not isinstance(found, Anatomy):
        raise BuildError(path, "this family does not tell where its head is, so no pretrained weights fit it")
    return found


def _torchvision_weights(anatomy: Anatomy) -> Any:
    from torchvision.models import get_model_weights

    assert anatomy.twin is not None, "the builder refuses what has no pretrained weights"
    return get_model_weights(anatomy.twin).DEFAULT


def _from_torchvision(path: str, anatomy: Anatomy) -> Tensors:
    return _fetched(path, str(anatomy.twin), _torchvision_weights(anatomy), torch.hub.get_dir())


@lru_cache(maxsize=2)
def _fetched(path: str, name: str, weights: Any, hub: str) -> Tensors:
    # Other folders of torch's hold other files of the same name.
    folder = Path(hub) / "checkpoints"
    try:
        state: Tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    # Whatever a network, a hash or a damaged file can raise.
    except Exception as error:
        file = weights.url.rpartition("/")[2]
        raise CheckpointError(
            f"{path}: the pretrained weights of {name} cannot be fetched ({_reason(error)}); "
            f"connect to a network, or put {file} into {folder}"
        ) from error
    return {_modern(name): tensor for name, tensor in state.items()}


def _modern(name: str) -> str:
    # The files of DenseNet are older than its layers' names: denselayer1.norm.1.weight is denselayer1.norm1.weight now.
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def _from_timm(component: Component, image_size: int, channels: int, classes: int) -> Tensors:
    from search.models.timm import create

    arguments = {name: value for name, value in component.args.items() if name != "weights"}
    try:
        # timm's own loading adapts the first layer to the channels and resizes what depends on the image's size.
        with torch.device("cpu"):
            model = create(**arguments, image_size=image_size, channels=channels, classes=classes, pretrained=True)
    except BuildError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{component.path}.weights: the pretrained weights of {component.args['name']} cannot be fetched "
            f"({_reason(error)}); connect to a network once"
        ) from error
    return model.state_dict()


def _from_file(path: str, wanted: str) -> Tensors:
    state = _read(path, wanted)
    for wrapper in ("model", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _read(path: str, wanted: str) -> Mapping[str, Any]:
    file = Path(wanted).expanduser()
    if not file.is_file():
        known = closest(wanted, [IMAGENET])
        raise CheckpointError(f"{path}: {wanted!r}: no such file{known}; allowed: imagenet, or the path of a file")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    # torch answers a damaged file with half a dozen unrelated exceptions.
    except Exception as error:
        raise CheckpointError(f"{path}: {file}: not a weights file, or damaged ({type(error).__name__})") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: {file}: not a weights file; it holds a {type(state).__name__}")
    return state


def _resized(tensors: Tensors, model: nn.Module, image_size: int) -> Tensors:
    """Return the tensors with torchvision's position embeddings brought to the number of patches of the model."""
    name = "encoder.pos_embedding"
    patch = getattr(model, "patch_size", None)
    if name not in tensors or not isinstance(patch, int) or tensors[name].shape == model.state_dict()[name].shape:
        return tensors
    from torchvision.models.vision_transformer import interpolate_embeddings

    resized: Tensors = interpolate_embeddings(image_size, patch, dict(tensors))
    return resized


def _is_head(name: str, anatomy: Anatomy) -> bool:
    return name.startswith(f"{anatomy.head}.")


def _must_fit(path: str, wanted: str, tensors: Tensors, model: nn.Module, anatomy: Anatomy) -> None:
    # Older files do not count batches; only a moving average without a momentum would need it.
    needed = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not _is_head(name, anatomy) and (name in tensors or not name.endswith("num_batches_tracked"))
    }
    for name, tensor in needed.items():
        if name not in tensors:
            missing = sum(each not in tensors for each in needed)
            raise BuildError(path, f"{wanted}: does not fit: it lacks {missing} of {len(needed)} tensors, as {name}")
        if tensors[name].shape != tensor.shape:
            theirs, ours = (tuple(each.shape) for each in (tensors[name], tensor))
            raise BuildError(path, f"{wanted}: does not fit: {name} is {theirs} there and {ours} here")
    if strange := [name for name in tensors if name not in needed]:
        raise BuildError(path, f"{wanted}: does not fit: it has {len(strange)} tensors more, as {strange[0]}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
