"""The networks that a draft chooses from: pretrained ones on this machine, and small ones to train from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from imgcls_search.catalog import catalog
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError, CheckpointError
from imgcls_search.image_size import ImageSize, shorter, sides
from imgcls_search.jobs.weights import at_hand
from imgcls_search.models.cost import Cost
from imgcls_search.models.weights_files import own_folders
from imgcls_search.space import parse
from imgcls_search.worker import measuring, start_weights

Model = Mapping[str, Mapping[str, Any]]
"""The section `model` of a space; values may be domains."""

MOST_PRETRAINED = 8
"""Use at most this many pretrained networks, in the search order of weights."""

TRIED_SIZE = 64
"""A candidate must be buildable for square images of this many pixels."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One architecture, or a few of one family."""

    model: Model
    """As in a space, with its choices."""

    largest: Model
    """With the most expensive choices, which are used to estimate its time."""

    is_pretrained: bool
    about: str

    @property
    def name(self) -> str:
        """A short name to display."""
        ((family, arguments),) = self.model.items()
        return str(arguments.get("name", family))

    @property
    def key(self) -> str:
        """A unique key, also within its family."""
        return json.dumps(self.largest, sort_keys=True)

    def config(self, size: ImageSize, channels: int, *, batch: int, several: bool = False) -> TrialConfig:
        """Return a configuration that trains it on images of a shape; the other data settings are placeholders."""
        text = json.dumps(
            {
                "study": {"name": "unnamed"},
                "data": {"digits": {}},
                "image": {"size": sides(size), "channels": channels},
                "augment": {"zoom": 0.2, "brightness": 0.2, "contrast": 0.2},
                "model": self.largest,
                "loss": {"binary_cross_entropy" if several else "cross_entropy": {}},
                "training": {"batch_size": batch, "compile": False},
            }
        )
        return parse(text, catalog(), source=self.name).config()

    def memory(self, size: ImageSize, channels: int, classes: int, *, batch: int) -> float:
        """Return its estimated peak memory in training, in bytes.

        Raises:
            BuildError: it cannot be built for such images.
        """
        shape = InputShape(image_size=size, channels=channels, classes=classes)
        config = self.config(size, channels, batch=batch)
        return measuring.measure(config, shape, self._cost(shape))["memory"]

    def macs(self, size: ImageSize, channels: int, classes: int) -> int:
        """Return its multiply-accumulates for one image.

        Raises:
            BuildError: it cannot be built for such images.
        """
        shape = InputShape(image_size=size, channels=channels, classes=classes)
        return self._cost(shape).macs

    def params(self, size: ImageSize, channels: int, classes: int) -> int:
        """Return its number of parameters.

        Raises:
            BuildError: it cannot be built for such images.
        """
        shape = InputShape(image_size=size, channels=channels, classes=classes)
        return self._cost(shape).params

    def _cost(self, shape: InputShape) -> Cost:
        return _count(self.key, shape)


@cache
def _count(key: str, shape: InputShape) -> Cost:
    # The rules compare the same few networks and sizes again and again.
    return measuring.count(component_of(json.loads(key)), shape)


def component_of(model: Model) -> Component:
    """Return the model component of a configuration."""
    ((family, arguments),) = model.items()
    return Component(path=f"model.{family}", name=family, args=dict(arguments))


def pretrained_at_hand(classes: int) -> tuple[list[Network], list[str]]:
    """Return the networks with usable weights on this machine, and why other weights cannot be used.

    Raises:
        UserError: a folder that the user names does not exist.
    """
    found: dict[str, Network] = {}
    troubles: list[str] = []
    own = set(map(str, own_folders()))
    for one in at_hand():
        if one.model is None:
            troubles.append(f"{one.file}: {one.about}")
            continue
        key = json.dumps(one.model, sort_keys=True)
        if key in found or len(found) == MOST_PRETRAINED:
            continue
        # A run without the user's --weights-dir finds files in that folder only by their paths.
        models = list(_by_path(one.model, one.file)) if one.place in own else [one.model]
        problems = [_trouble(model, classes) for model in models]
        if None in problems:
            model = models[problems.index(None)]
            about = f"{one.about}, {one.place}"
            found[key] = Network(model=model, largest=model, is_pretrained=True, about=about)
        else:
            troubles.append(f"{one.file}: {problems[0]}")
    return list(found.values()), troubles


def _by_path(model: Model, file: str) -> Iterator[Model]:
    """Yield models that start from a file by its path; the stem is known only for published weights."""
    ((family, arguments),) = model.items()
    path = str(Path(file).absolute())
    yield {family: {**arguments, "weights": path}}
    if family != "timm":
        yield {family: {**arguments, "stem": "large", "weights": path}}


def _trouble(model: Model, classes: int) -> str | None:
    """Return why the weights that a model names cannot be used, None if they can."""
    shape = InputShape(image_size=TRIED_SIZE, channels=3, classes=classes)
    try:
        start_weights.check_weights(component_of(model), shape)
    except (BuildError, CheckpointError) as error:
        return str(error)
    return None


def from_scratch(size: ImageSize, channels: int, classes: int) -> list[Network]:
    """Return small networks that can be built for images of a size, the cheapest of each family first."""
    return [one for one in _ladder(shorter(size)) if _can_build(one, size, channels, classes)]


def _ladder(side: int) -> Iterator[Network]:
    if side < 24:
        yield _network("lenet5", {}, {"width": [1, 2, 4]})
        yield _network("resnet", {}, {"depths": [[1, 1, 1], [2, 2, 2]], "width": [16, 32]})
        yield _network("vit", {"heads": 4}, {"patch_size": [2], "width": [64, 96], "depth": [4, 6]})
        return
    for widths in ([16, 32], [32, 64]):
        yield _network("resnet", {}, {"depths": [[1, 1, 1], [2, 2, 2]], "width": widths})
    for factors in ([0.5, 0.75], [0.75, 1.0]):
        yield _network("mobilenetv3", {"size": "small"}, {"width_mult": factors})
    yield _network("convnext", {}, {"depths": [[1, 1, 1], [2, 2, 2]], "width": [32, 48]})


def _network(family: str, fixed: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]) -> Network:
    choices = {name: {"choice": list(values)} if len(values) > 1 else values[0] for name, values in searched.items()}
    most = {name: values[-1] for name, values in searched.items()}
    return Network(
        model={family: {**fixed, **choices}}, largest={family: {**fixed, **most}}, is_pretrained=False, about="scratch"
    )


def _can_build(network: Network, size: ImageSize, channels: int, classes: int) -> bool:
    try:
        network.macs(size, channels, classes)
    except BuildError:
        return False
    return True


def merged(networks: Sequence[Network]) -> tuple[dict[str, Any], list[Network]]:
    """Return the section `model` for several networks, and the networks that it includes.

    A family can occur only once, so networks of one family can differ in only one plain argument.
    """
    tree: dict[str, Any] = {}
    kept = []
    for network in networks:
        ((family, arguments),) = network.model.items()
        if family not in tree:
            tree[family] = dict(arguments)
            kept.append(network)
            continue
        known = tree[family]
        different = [key for key in {**known, **arguments} if known.get(key) != arguments.get(key)]
        if (
            len(different) == 1
            and {different[0]} <= {*known} & {*arguments}
            and not isinstance(arguments[different[0]], Mapping)
        ):
            (key,) = different
            before = known[key]["choice"] if isinstance(known[key], Mapping) else [known[key]]
            known[key] = {"choice": [*before, arguments[key]]}
            kept.append(network)
    return tree, kept
