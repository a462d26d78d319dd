"""Where timm's weights come from: a hub, its cache on this machine, or a file that somebody put there."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from imgcls_search.config import Component

ANSWER_SECONDS = 5
"""A server of weights that says nothing for as long is not there."""


def settings_of(component: Component) -> Any:
    """Return what timm knows of the weights of a component."""
    import timm

    return timm.get_pretrained_cfg(component.args["name"])


def folder() -> Path:
    """Return where somebody may put weights by hand."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def file_names(settings: Any) -> list[str]:
    """Return the names under which somebody may put timm's weights by hand."""
    names = [f"{settings.architecture}{f'.{settings.tag}' if settings.tag else ''}.safetensors"]
    return [*names, settings.url.rpartition("/")[2]] if settings.url else names


def placed_file(settings: Any) -> Path | None:
    """Return the weights that somebody put there, None where there are none."""
    files = [folder() / name for name in file_names(settings)]
    return next((file for file in files if file.is_file()), None)


def address(settings: Any) -> str:
    """Return the address of timm's weights, to be fetched on another machine."""
    if not settings.hf_hub_id:
        return str(settings.url)
    from huggingface_hub import hf_hub_url

    repository, _, revision = settings.hf_hub_id.partition("@")
    return str(hf_hub_url(repository, settings.hf_hub_filename or "model.safetensors", revision=revision or None))


def must_be_reachable(settings: Any) -> None:
    """Raise an OSError at once where there is no network; the hub's own client tries again for minutes."""
    if not settings.hf_hub_id or _is_cached(settings):
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE forbids it")
    request = urllib.request.Request(address(settings), method="HEAD")  # noqa: S310 - the hub's own address
    try:
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        # Some server is there; the client knows better what to make of its answer.
        error.close()
    except urllib.error.URLError as error:
        # Certificates are the client's business too.
        if not isinstance(error.reason, ssl.SSLError):
            raise OSError(f"no network: {error.reason}") from error


def _is_cached(settings: Any) -> bool:
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = settings.hf_hub_id.partition("@")
    names = (settings.hf_hub_filename,) if settings.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    found = (
        try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE, revision=revision or None)
        for name in names
    )
    return any(isinstance(each, str) for each in found)
