"""Any model of the timm library, an optional extra."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.errors import BuildError, closest
from imgcls_search.image_size import ImageSize
from imgcls_search.models.anatomy import with_anatomy
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn


def timm(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    name: Annotated[str, Arg("timm's name of the model, for example mobilenetv4_conv_small")],
    weights: Annotated[
        str | None, Arg("null: from scratch; imagenet: timm's pretrained weights; or the path of a weights file")
    ] = None,
    **arguments: Annotated[bool | int | float | str | None, Arg("any keyword argument of timm's model")],
) -> nn.Module:
    """Build a model of the timm library (Wightman 2019) by its name, with its own keyword arguments.

    Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: timm is not installed, has no such model, or refuses an argument.
    """
    import timm as library

    settings = _settings(name)
    if weights == "imagenet" and not settings.has_weights:
        tagged = ", ".join(library.list_pretrained(f"{name.partition('.')[0]}.*")[:5])
        raise BuildError("weights", f"timm has no pretrained weights for {name!r}; allowed: {tagged or 'null'}")
    shape: dict[str, Any] = {"image_size": image_size, "channels": channels, "classes": classes}
    extra: dict[str, Any] = dict(arguments)
    model = create(name, **shape, pretrained=False, **extra)
    if weights == "imagenet" and arguments:
        _must_keep_layers(name, model, shape, arguments)
    if isinstance(settings.classifier, str):
        names = [each for each, _ in model.named_parameters()]
        return with_anatomy(
            model, head=settings.classifier, stages=_stages(model, names, settings.classifier), twin=None
        )
    # Some models have several heads or none; they train, but their head cannot be excluded from weights.
    return model


def create(
    name: str,
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    pretrained: bool,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Return timm's model of a name, optionally with its pretrained weights.

    `pretrained_cfg_overlay` overrides timm's own location of the weights.

    Raises:
        BuildError: timm refuses an argument.
    """
    import timm as library

    # Models whose layers depend on the image size, such as transformers, need it as an argument.
    size: dict[str, Any] = {"img_size": image_size} if _settings(name).fixed_input_size else {}
    try:
        model: nn.Module = library.create_model(
            name,
            pretrained=pretrained,
            pretrained_cfg_overlay=None if pretrained_cfg_overlay is None else dict(pretrained_cfg_overlay),
            in_chans=channels,
            num_classes=classes,
            **size,
            **arguments,
        )
    except TypeError as error:
        # `__init__() got an unexpected keyword argument 'width'`
        argument = str(error).rpartition("argument ")[2].strip("'\"")
        raise BuildError(argument if argument in arguments else "", " ".join(str(error).split())) from error
    return model


def _must_keep_layers(name: str, model: nn.Module, shape: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    # timm loads the tensors that fit and leaves the rest random.
    import torch

    with torch.device("meta"):
        plain = create(name, **shape, pretrained=False)
    own, theirs = ({key: tuple(value.shape) for key, value in each.state_dict().items()} for each in (model, plain))
    if own != theirs:
        blamed = next(iter(arguments)) if len(arguments) == 1 else ""
        names = ", ".join(arguments)
        raise BuildError(blamed, f"the pretrained weights of {name} do not fit the layers that {names} make")


def _settings(name: str) -> Any:
    try:
        import timm as library
    except ImportError:
        raise BuildError("", "needs a package that is not installed; pip install 'imgcls-search[timm]'") from None
    base = name.partition(".")[0]
    if not library.is_model(base):
        near = closest(base, library.list_models())
        raise BuildError(
            "name", f"timm has no model {name!r}{near}; timm.list_models() names the {_many(library)} it has"
        )
    with contextlib.suppress(Exception):
        found: Any = library.get_pretrained_cfg(name)
        if found is not None:
            return found
    tags = ", ".join(library.list_pretrained(f"{base}.*"))
    raise BuildError("name", f"timm has no tag {name.partition('.')[2]!r} of {base!r}; allowed: {tags}")


def _many(library: Any) -> int:
    return len(library.list_models())


def _stages(model: Any, names: Iterable[str], head: str) -> list[list[str]]:
    """Return the names of parameters by timm's own grouping, from the image to the head."""
    from timm.models import group_parameters

    groups: Mapping[str, int] = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    stages: dict[int, list[str]] = {}
    for name in names:
        if not name.startswith(f"{head}."):
            stages.setdefault(groups[name], []).append(name)
    return [stages[key] for key in sorted(stages)]
