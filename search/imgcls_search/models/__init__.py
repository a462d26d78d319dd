"""Model families: one file and one builder each, and this table; other packages add families as entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from inspect import signature
from typing import TYPE_CHECKING

from imgcls_search.config import Component
from imgcls_search.errors import BuildError, UserError, one_line
from imgcls_search.image_size import ImageSize, shown
from imgcls_search.models.airbench import airbench
from imgcls_search.models.alexnet import alexnet
from imgcls_search.models.convnext import convnext
from imgcls_search.models.custom import custom
from imgcls_search.models.densenet import densenet
from imgcls_search.models.efficientnet import efficientnet
from imgcls_search.models.lenet5 import lenet5
from imgcls_search.models.mobilenetv3 import mobilenetv3
from imgcls_search.models.resnet import resnet
from imgcls_search.models.timm import timm
from imgcls_search.models.vgg import vgg
from imgcls_search.models.vit import vit
from imgcls_search.signature import build

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ENTRY_POINTS", "MODELS", "build_model", "families"]

ENTRY_POINTS = "imgcls_search.models"
"""The entry point group for builders: `name = "package.module:builder"`."""

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "vit": vit,
    "resnet": resnet,
    "lenet5": lenet5,
    "alexnet": alexnet,
    "vgg": vgg,
    "densenet": densenet,
    "efficientnet": efficientnet,
    "mobilenetv3": mobilenetv3,
    "convnext": convnext,
    "airbench": airbench,
    "timm": timm,
}
"""Builders take `image_size`, `channels` and `classes` from the data and everything else from the space.

A builder imports torch in its body, so that reading its signature stays fast, and with it `check` and `--help`. It
raises `BuildError` with the name of the faulty argument.
"""


@cache
def families() -> Mapping[str, Callable[..., nn.Module]]:
    """Return all families: the built-in ones, and those of installed packages.

    Raises:
        UserError: a package's builder cannot be loaded, or has the name of another family.
    """
    found: dict[str, Callable[..., nn.Module]] = {**MODELS, "custom": custom}
    for entry in entry_points(group=ENTRY_POINTS):
        package = entry.dist.name if entry.dist is not None else entry.value
        if entry.name in found:
            raise UserError(f"the package {package} adds a model family {entry.name!r}, but there is one of that name")
        try:
            found[entry.name] = entry.load()
        # Importing a foreign module may raise anything.
        except Exception as error:
            reason = one_line(error)
            raise UserError(
                f"the model family {entry.name!r} of the package {package} cannot be loaded ({reason}); "
                "fix or remove that package"
            ) from error
    return found


def build_model(component: Component, *, image_size: ImageSize, channels: int, classes: int) -> nn.Module:
    """Build the model of a component for an image size.

    Raises:
        BuildError: the family refuses an argument, or takes square images only.
    """
    known = families()
    if not isinstance(image_size, int):
        # A family of another package takes square images only if its signature declares `image_size` as int.
        parameter = signature(known[component.name]).parameters.get("image_size")
        if parameter is not None and parameter.annotation in (int, "int", parameter.empty):
            raise BuildError(
                component.path,
                f"this family takes square images, got image.size: {shown(image_size)}; allowed: one number",
            )
    model: nn.Module = build(known, component, image_size=image_size, channels=channels, classes=classes)
    return model
