"""The user's own network: a function named in the space file."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search import own_code
from imgcls_search.errors import BuildError, UserError, closest, first_line
from imgcls_search.image_size import ImageSize, shown
from imgcls_search.signature import Arg, read

if TYPE_CHECKING:
    from torch import nn

SUPPLIED = ("image_size", "channels", "classes")
"""Arguments that every function takes; the images determine them."""


def custom(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    function: Annotated[str, Arg("your function that builds the network, as module:name")],
    **arguments: Annotated[bool | int | float | str | None, Arg("any other keyword argument of that function")],
) -> nn.Module:
    """Build a network by your own function, named as module:name.

    It takes image_size, channels and classes, and gives logits [N, classes] for [N, channels, height, width].

    Raises:
        BuildError: the function cannot be imported, refuses an argument, or builds no network.
    """
    from torch import nn

    builder = _load(function)
    if (problem := problem_of(builder, arguments)) is not None:
        raise BuildError(*problem)
    parameter = inspect.signature(builder).parameters.get("image_size")
    if not isinstance(image_size, int) and parameter is not None and parameter.annotation in (int, "int"):
        got = f"{function} takes square images, got image.size: {shown(image_size)}"
        raise BuildError("", f"{got}; allowed: one number")
    try:
        model = builder(image_size=image_size, channels=channels, classes=classes, **arguments)
    except BuildError:
        raise
    # A user's function may raise anything.
    except Exception as error:
        why = first_line(error, "no message")
        raise BuildError("function", f"{function} failed ({type(error).__name__}: {why})") from error
    if not isinstance(model, nn.Module):
        raise BuildError("function", f"{function} gave a {type(model).__name__}; allowed: a torch.nn.Module")
    return model


def problem_of(builder: Any, arguments: Any) -> tuple[str, str] | None:
    """Return the faulty argument and the problem, according to a function's signature; None if there is none."""
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return "function", f"does not say which arguments it takes; allowed: a function of {', '.join(SUPPLIED)}"
    missing = [name for name in SUPPLIED if name not in parameters]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if missing and not takes_any:
        return "function", f"takes no {missing[0]}; allowed: a function of {', '.join(SUPPLIED)} and your own arguments"
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [name for name, each in parameters.items() if name not in SUPPLIED and each.kind not in several]
    required = [name for name in own if parameters[name].default is inspect.Parameter.empty]
    try:
        leaves: dict[str, Any] = dict(read(builder).fields)
    except TypeError as error:
        return "function", f"an Arg is of a type that a space has no words for: {first_line(error)}"
    for name, value in arguments.items():
        if name not in own and not takes_any:
            return name, f"unknown key; allowed: {', '.join(own) or 'none'}{closest(name, own)}"
        if name in leaves and (problem := leaves[name].check(value)) is not None:
            return name, problem
    absent = [name for name in required if name not in arguments]
    return (absent[0], "required") if absent else None


def _load(function: str) -> Any:
    try:
        return own_code.load(function)
    except UserError as error:
        raise BuildError("function", str(error)) from error
