"""The head of a network: its own last layer, or a replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.config import Component, TrialConfig
from imgcls_search.errors import BuildError
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.signature import Arg, build

if TYPE_CHECKING:
    from torch import nn

Dropout = Annotated[
    float, Arg("dropout of the features, and of hidden ones", ge=0, lt=1, search="{choice: [0.0, 0.2, 0.5]}")
]

LOGISTIC = "logistic"
"""The head that is fitted instead of trained."""

OWN = "own"


def own(*, features: int, classes: int) -> nn.Module | None:
    """Keep the last layer that the family has."""
    return None


def linear(*, features: int, classes: int, dropout: Dropout = 0.0) -> nn.Module | None:
    """Build one linear layer."""
    from torch import nn

    layer = nn.Linear(features, classes)
    return nn.Sequential(nn.Dropout(dropout), layer) if dropout else layer


def mlp(
    *,
    features: int,
    classes: int,
    hidden: Annotated[int, Arg("width of the hidden layer", ge=1, search="{choice: [128, 256, 512]}")] = 256,
    dropout: Dropout = 0.0,
) -> nn.Module | None:
    """Build a hidden layer with ReLU before the linear one."""
    from torch import nn

    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


def logistic(*, features: int, classes: int) -> nn.Module | None:
    """Fit scikit-learn's logistic regression to the frozen pretrained network's features: a trial of one epoch."""
    from torch import nn

    return nn.Linear(features, classes)


HEADS: Mapping[str, Callable[..., Any]] = {"own": own, "linear": linear, "mlp": mlp, LOGISTIC: logistic}
"""Builders take the numbers of `features` and `classes`, and everything else from the space.

The fitted head comes last: the first configuration of a space, which determines the epochs of its search, must train.
"""


def head_of(config: TrialConfig) -> Component:
    """Return the head of a configuration; configurations older than this section use the model's own."""
    return config.component("head") if "head" in config.tree else Component(path="head.own", name=OWN, args={})


def with_head(model: nn.Module, head: Component) -> nn.Module:
    """Replace a model's last layer by a head, and turn off the dropout just before it.

    Raises:
        BuildError: the model's last layer is not linear, or the model does not declare it.
    """
    if head.name == OWN:
        return model
    from torch import nn

    anatomy = getattr(model, "anatomy", None)
    layer = model.get_submodule(anatomy.head) if isinstance(anatomy, Anatomy) else None
    if not isinstance(layer, nn.Linear):
        kind = (
            "does not say what its last layer is" if layer is None else f"has {type(layer).__name__} as its last layer"
        )
        raise BuildError(head.path, f"this model {kind}, and only a linear one can be replaced; allowed: own")
    assert isinstance(anatomy, Anatomy)
    if (dropout := dropout_before(model)) is not None:
        dropout.p = 0.0
    replace_head(model, build(HEADS, head, features=layer.in_features, classes=layer.out_features))
    return model


def replace_head(model: nn.Module, layer: nn.Module) -> None:
    """Put a layer in the place of a model's head; `nn.Identity` removes it."""
    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy)
    parent, _, name = anatomy.head.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def dropout_before(model: nn.Module) -> nn.Dropout | None:
    """Return the dropout directly before a model's head, which acts on its features; None if there is none."""
    from torch import nn

    anatomy = model.anatomy
    assert isinstance(anatomy, Anatomy)
    parent, _, name = anatomy.head.rpartition(".")
    siblings = list(model.get_submodule(parent).named_children()) if parent else list(model.named_children())
    place = [key for key, _ in siblings].index(name)
    # Only in a sequence is the order of the calls known.
    is_sequence = isinstance(model.get_submodule(parent), nn.Sequential)
    before = siblings[place - 1][1] if place and is_sequence else None
    return before if isinstance(before, nn.Dropout) else None


def linear_layer(model: nn.Module) -> nn.Linear:
    """Return the only linear layer of a model's head, for the weights of a logistic regression.

    Raises:
        BuildError: there is no such layer, or there are several layers.
    """
    from torch import nn

    anatomy = getattr(model, "anatomy", None)
    head = model.get_submodule(anatomy.head) if isinstance(anatomy, Anatomy) else None
    parts = [] if head is None else list(head) if isinstance(head, nn.Sequential) else [head]
    layers = [part for part in parts if not isinstance(part, nn.Dropout)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise BuildError("finetune.start", "logistic needs a head of one linear layer; allowed: random")
    return layers[0]
