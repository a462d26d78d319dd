"""The parts of a model that its forward pass does not reveal: its head, its stages, its pretrained twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.errors import BuildError
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

Weights = Annotated[
    str | None, Arg("null: from scratch; imagenet: torchvision's pretrained weights; or the path of a weights file")
]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of a model, as names of its modules and parameters."""

    head: str
    """The last layer, which outputs the logits; pretrained weights exclude it."""

    stages: tuple[tuple[str, ...], ...]
    """The stages before the head, from the image on; each as the names of its modules and parameters."""

    twin: str | None = None
    """The torchvision model with exactly these layers, whose pretrained weights fit."""


def with_anatomy(model: nn.Module, *, head: str, stages: Sequence[Sequence[str]], twin: str | None) -> nn.Module:
    """Attach an `Anatomy` to a model as its attribute `anatomy` and return the model."""
    model.anatomy = Anatomy(head=head, stages=tuple(map(tuple, stages)), twin=twin)  # type: ignore[assignment]
    return model


def refuse_imagenet(weights: str | None) -> None:
    """Refuse `weights: imagenet` for a family without torchvision weights.

    Raises:
        BuildError: `weights` is `imagenet`.
    """
    if weights == "imagenet":
        raise BuildError("weights", "there are no published weights of this network; allowed: null, or a weights file")


def find_twin(
    twins: Mapping[str, Mapping[str, Any]], weights: str | None, channels: int, given: Mapping[str, Any]
) -> str | None:
    """Return the name of torchvision's model with the `given` arguments, or None.

    Raises:
        BuildError: `weights` is `imagenet` and there are none for these arguments; it names the one to change.
    """
    for name, arguments in twins.items():
        if arguments == given:
            if weights == "imagenet" and channels != 3:
                raise BuildError("weights", f"'imagenet' takes 3 channels, got {channels}; set image.channels: 3")
            return name
    if weights == "imagenet":
        _blame(twins, given)
    return None


def _blame(twins: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> None:
    def agreement(arguments: Mapping[str, Any]) -> int:
        return sum(arguments[name] == value for name, value in given.items())

    nearest = max(twins.values(), key=agreement)
    argument = next(name for name, value in given.items() if nearest[name] != value)
    rest = {name: value for name, value in nearest.items() if name != argument}
    fits = {repr(t[argument]) for t in twins.values() if all(t[name] == value for name, value in rest.items())}
    allowed = ", ".join(sorted(fits, key=lambda text: (len(text), text)))
    raise BuildError(argument, f"{given[argument]!r} does not fit weights 'imagenet'; allowed beside them: {allowed}")
