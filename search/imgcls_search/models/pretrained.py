"""Pretrained weights: downloaded by torchvision or timm, or read from a file, and loaded without their head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgcls_search.config import Component
from imgcls_search.errors import BuildError, CheckpointError, one_line
from imgcls_search.image_size import ImageSize, by, normal
from imgcls_search.models import timm_hub, weights_files
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.models.position_embeddings import noted_grid, resized
from imgcls_search.models.weights_reading import (
    IMAGENET,
    Tensors,
    description_of,
    examples,
    in_timms_names,
    modernised,
    tensors_of,
    without_wrapping_prefix,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def is_wanted(component: Component) -> bool:
    """Tell whether a model component starts from pretrained weights."""
    return component.args.get("weights") is not None


def is_file(component: Component) -> bool:
    """Tell whether the weights come from a file."""
    return component.args.get("weights") not in (None, IMAGENET)


def find(component: Component, model: nn.Module, *, image_size: ImageSize, channels: int, classes: int) -> Tensors:
    """Return the weights of a component without the head, with position embeddings resized to the image.

    `model` is built from the component; it may be on the meta device, and is not changed.

    Raises:
        CheckpointError: the weights cannot be downloaded or read.
        BuildError: they do not fit the model.
    """
    path, wanted = f"{component.path}.weights", str(component.args["weights"])
    anatomy = _anatomy(path, model)
    file = _file_of(component, anatomy)
    if component.name == "timm":
        tensors = _from_timm(component, model, anatomy, file, image_size, channels, classes)
    elif file is None:
        tensors = _fetched(path, str(anatomy.twin), _torchvision_weights(anatomy), torch.hub.get_dir())
    else:
        tensors = modernised(without_wrapping_prefix(tensors_of(path, file), model))
    noted = noted_grid(path, wanted) if wanted != IMAGENET and component.name != "timm" else None
    tensors = resized(tensors, model, image_size, path, noted)
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_head(name, anatomy)}
    _must_fit(path, file or wanted, tensors, model, anatomy)
    return tensors


def find_whole(
    component: Component, model: nn.Module, *, image_size: ImageSize, channels: int, classes: int
) -> Tensors:
    """Return the weights of a timm component with their head, which must have the same number of classes.

    Raises:
        CheckpointError: the weights cannot be downloaded or read.
        BuildError: they do not fit the model, or have another number of classes.
    """
    path = f"{component.path}.weights"
    anatomy = _anatomy(path, model)
    shape: dict[str, Any] = {"image_size": image_size, "channels": channels, "classes": classes}
    file = _file_of(component, anatomy)
    if file is None:
        _must_know(component, timm_hub.settings_of(component).num_classes, classes)
        return _fetched_by_timm(component, {k: v for k, v in component.args.items() if k != "weights"}, shape)
    body = find(component, model, **shape)
    tensors = in_timms_names(without_wrapping_prefix(tensors_of(path, file), model), model)
    head = {name: tensor for name, tensor in tensors.items() if _is_head(name, anatomy)}
    if not head:
        raise BuildError(path, f"{component.args['weights']}: has no last layer {anatomy.head}; a teacher needs one")
    _must_know(component, len(next(iter(head.values()))), classes)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if _is_head(name, anatomy)}
    if wanted != {name: tensor.shape for name, tensor in head.items()}:
        raise BuildError(path, f"{component.args['weights']}: its last layer {anatomy.head} does not fit")
    return {**body, **head}


def _must_know(component: Component, known: int, classes: int) -> None:
    if known != classes:
        raise BuildError(
            f"{component.path}.weights",
            f"{component.args['weights']}: this teacher has other classes: it knows {known:,}, the images have "
            f"{classes:,}",
        )


def size_note(component: Component, image_size: ImageSize) -> str | None:
    """Return a note if a file of this program was trained on images of another size, None otherwise."""
    if not is_file(component):
        return None
    path, wanted = f"{component.path}.weights", str(component.args["weights"])
    known = description_of(path, wanted)
    if known is None or known.image_size == normal(image_size):
        return None
    fitted = "; its position embeddings are interpolated" if component.name in ("vit", "timm") else ""
    return f"{path}: {wanted}: was trained at {by(known.image_size)} pixels, the images are {by(image_size)}{fitted}"


def used_file(component: Component, model: nn.Module) -> Path | None:
    """Return the file that `find` read the weights from, None if it is unknown."""
    if not is_wanted(component):
        return None
    anatomy = _anatomy(f"{component.path}.weights", model)
    file = _file_of(component, anatomy)
    if file is not None:
        return Path(file)
    if component.name == "timm":
        return timm_hub.cached_file(timm_hub.settings_of(component))
    fetched = weights_files.torch_cache() / file_name(_torchvision_weights(anatomy))
    return fetched if fetched.is_file() else None


def normalisation(component: Component, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation per channel, in 0..1, that the weights' own images were normalised with.

    Files of other programs do not store them; for those, use timm's values or ImageNet's, which nearly all are trained
    with.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    path, wanted = f"{component.path}.weights", str(component.args["weights"])
    if component.name == "timm":
        settings: Any = model.pretrained_cfg
        usual = tuple(settings["mean"]), tuple(settings["std"])
        return usual if wanted == IMAGENET else _noted_normalisation(path, wanted) or usual
    if wanted == IMAGENET:
        preset = _torchvision_weights(_anatomy(path, model)).transforms()
        return tuple(preset.mean), tuple(preset.std)
    return _noted_normalisation(path, wanted) or (IMAGENET_MEAN, IMAGENET_STD)


def _noted_normalisation(path: str, wanted: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    known = description_of(path, wanted)
    return None if known is None else (known.mean, known.std)


def load_into(model: nn.Module, tensors: Tensors) -> None:
    """Load the weights that `find` returned into a model; its head keeps its initial ones."""
    model.load_state_dict(dict(tensors), strict=False)


def _anatomy(path: str, model: nn.Module) -> Anatomy:
    found = getattr(model, "anatomy", None)
    if not isinstance(found, Anatomy):
        raise BuildError(path, "this family does not say where its head is, so no pretrained weights fit it")
    return found


def _torchvision_weights(anatomy: Anatomy) -> Any:
    from torchvision.models import get_model_weights

    assert anatomy.twin is not None, "the builder refuses what has no pretrained weights"
    return get_model_weights(anatomy.twin).DEFAULT


def file_of(component: Component, model: nn.Module) -> str | None:
    """Return the weights file of a model on this machine, None if a library provides the weights.

    Raises:
        BuildError: the model does not declare its head.
        UserError: a folder that the user names does not exist.
    """
    return _file_of(component, _anatomy(f"{component.path}.weights", model))


def _file_of(component: Component, anatomy: Anatomy) -> str | None:
    """Return the weights file of a component on this machine, None if a library provides the weights."""
    wanted = str(component.args["weights"])
    if wanted != IMAGENET:
        return wanted
    if component.name == "timm":
        file = timm_hub.placed_file(timm_hub.settings_of(component))
    else:
        file = weights_files.placed(str(anatomy.twin), [file_name(_torchvision_weights(anatomy))])
        # torchvision reads its own downloads itself.
        file = None if file is not None and file.parent == weights_files.torch_cache() else file
    return None if file is None else str(file)


def file_name(weights: Any) -> str:
    """Return the file name of published torchvision weights."""
    return str(weights.url.rpartition("/")[2])


@lru_cache(maxsize=2)
def _fetched(path: str, name: str, weights: Any, hub: str) -> Tensors:
    # `hub` is part of the cache key: other hub folders have other files of the same name.
    folder, file = Path(hub) / "checkpoints", file_name(weights)
    try:
        if not (folder / file).is_file():
            weights_files.must_answer(weights.url)
        state: Tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    # Network, hash and file errors may be of any type.
    except Exception as error:
        raise CheckpointError(
            f"{path}: the pretrained weights of {name} cannot be fetched ({one_line(error, 200)}); "
            f"connect to a network, or put {file} into {folder}"
        ) from error
    return modernised(state)


def _from_timm(
    component: Component,
    model: nn.Module,
    anatomy: Anatomy,
    file: str | None,
    image_size: ImageSize,
    channels: int,
    classes: int,
) -> Tensors:
    path = f"{component.path}.weights"
    arguments = {name: value for name, value in component.args.items() if name != "weights"}
    shape: dict[str, Any] = {"image_size": image_size, "channels": channels, "classes": classes}
    if file is None:
        return _fetched_by_timm(component, arguments, shape)
    tensors = in_timms_names(without_wrapping_prefix(tensors_of(path, file), model), model)
    return _adapted_by_timm(tensors, anatomy, arguments, shape)


def _adapted_by_timm(
    tensors: Tensors, anatomy: Anatomy, arguments: Mapping[str, Any], shape: Mapping[str, Any]
) -> Tensors:
    """Return a file's tensors as timm would load them: in its current names, for these channels and this size."""
    from imgcls_search.models.timm import create

    body = {name: tensor for name, tensor in tensors.items() if not _is_head(name, anatomy)}
    # No model has this number of classes, so timm leaves out the head of any file.
    overlay = {"state_dict": body, "num_classes": -1}
    try:
        with torch.device("cpu"), _loading_nothing() as loaded:
            create(**{**arguments, **shape}, pretrained=True, pretrained_cfg_overlay=overlay)
    except BuildError:
        raise
    except Exception:
        # timm fails on files of other models; the unchanged names then show the mismatch.
        return body
    return loaded[-1] if loaded else body


@contextlib.contextmanager
def _loading_nothing() -> Iterator[list[dict[str, Tensor]]]:
    """Collect state dicts instead of loading them: timm silently drops what does not fit."""
    loaded: list[dict[str, Tensor]] = []
    original = nn.Module.load_state_dict

    def collect(self: nn.Module, state: Mapping[str, Tensor], *_: Any, **__: Any) -> Any:
        loaded.append(dict(state))
        return original(self, {}, strict=False)

    nn.Module.load_state_dict = collect  # type: ignore[method-assign,assignment]
    try:
        yield loaded
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _fetched_by_timm(component: Component, arguments: Mapping[str, Any], shape: Mapping[str, Any]) -> Tensors:
    from imgcls_search.models.timm import create

    settings = timm_hub.settings_of(component)
    try:
        timm_hub.must_be_reachable(settings)
        # timm's own loading adapts the first layer to the channels and resizes whatever depends on the image size.
        with torch.device("cpu"):
            model = create(**{**arguments, **shape}, pretrained=True)
    except BuildError:
        raise
    except Exception as error:
        folder, names = weights_files.torch_cache(), timm_hub.file_names(settings)
        raise CheckpointError(
            f"{component.path}.weights: the pretrained weights of {component.args['name']} cannot be fetched "
            f"({one_line(error, 200)}); connect to a network, or put "
            f"{timm_hub.address(settings)} into {folder} as {names[0]}"
        ) from error
    return model.state_dict()


def _is_head(name: str, anatomy: Anatomy) -> bool:
    return name.startswith(f"{anatomy.head}.")


def _must_fit(path: str, wanted: str, tensors: Tensors, model: nn.Module, anatomy: Anatomy) -> None:
    # Older files lack batch counters, which only matter for moving averages without a momentum.
    needed = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not _is_head(name, anatomy) and (name in tensors or not name.endswith("num_batches_tracked"))
    }
    missing = [name for name in needed if name not in tensors]
    strange = [name for name in tensors if name not in needed]
    shapes = {
        name: (tuple(tensors[name].shape), tuple(tensor.shape))
        for name, tensor in needed.items()
        if name in tensors and tensors[name].shape != tensor.shape
    }
    said = []
    if missing:
        said.append(f"it lacks {len(missing)} of {len(needed)} tensors, as {examples(missing)}")
    if strange:
        said.append(f"it has {len(strange)} tensors more, as {examples(strange)}")
    if shapes:
        name, (theirs, ours) = next(iter(shapes.items()))
        more = f" ({len(shapes)} tensors have other shapes)" if len(shapes) > 1 else ""
        said.append(f"{name} is {theirs} there and {ours} here{more}")
    if missing and (prefix := _common_prefix(tensors)):
        fitting = sum(name.removeprefix(prefix) in needed for name in tensors)
        said.append(f"every name begins with {prefix}, and {fitting} of {len(tensors)} names fit without it")
    if said:
        raise BuildError(path, f"{wanted}: does not fit: {'; '.join(said)}")


def _common_prefix(tensors: Tensors) -> str:
    firsts = {name.partition(".")[0] for name in tensors}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""
