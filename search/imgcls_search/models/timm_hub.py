"""Locations of timm's weights: a file on this machine, a hub, or the hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imgcls_search.config import Component
from imgcls_search.models import weights_files


def settings_of(component: Component) -> Any:
    """Return timm's settings for the weights of a component."""
    import timm

    return timm.get_pretrained_cfg(component.args["name"])


def file_names(settings: Any) -> list[str]:
    """Return the file names under which users may provide timm's weights."""
    names = [f"{settings.architecture}{f'.{settings.tag}' if settings.tag else ''}.safetensors"]
    return [*names, settings.url.rpartition("/")[2]] if settings.url else names


def placed_file(settings: Any) -> Path | None:
    """Return the file of timm's weights on this machine, None if there is none.

    Raises:
        UserError: a folder that the user names does not exist.
    """
    return weights_files.placed(settings.architecture, file_names(settings))


def address(settings: Any) -> str:
    """Return the URL of timm's weights, for a download on another machine."""
    if not settings.hf_hub_id:
        return str(settings.url)
    from huggingface_hub import hf_hub_url

    repository, _, revision = settings.hf_hub_id.partition("@")
    return str(hf_hub_url(repository, settings.hf_hub_filename or "model.safetensors", revision=revision or None))


def must_be_reachable(settings: Any) -> None:
    """Raise an OSError at once if there is no network; the hub's own client retries for minutes."""
    if not settings.hf_hub_id or cached_file(settings) is not None:
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE forbids it")
    weights_files.must_answer(address(settings))


def cached_file(settings: Any) -> Path | None:
    """Return the file of timm's weights in the hub's cache, None if it is not there."""
    if not settings.hf_hub_id:
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = settings.hf_hub_id.partition("@")
    names = (settings.hf_hub_filename,) if settings.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    found = (
        try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE, revision=revision or None)
        for name in names
    )
    return next((Path(each) for each in found if isinstance(each, str)), None)
