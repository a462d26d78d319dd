"""Check classes that a space names in class weights and costs against the images, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from imgcls_search import costs, terminal
from imgcls_search.errors import UserError, closest
from imgcls_search.measures import COSTED
from imgcls_search.space import Space
from imgcls_search.words import some

Locate = Callable[[str], str]
"""Returns the location of a setting, such as `spaces/vit.yaml:14:5`."""


def refuse_costs(space: Space) -> None:
    """Refuse mistakes that show without the images: a measure of costs without costs, and a cost of the right class.

    Raises:
        UserError: there is one.
    """
    stated = costs.of(space.document)
    if stated is not None:
        _refuse_costs(stated, None, space.locate)
        return
    for metric in space.named_metrics:
        if metric in COSTED:
            is_objective = any(metric == name for name, _ in space.objectives)
            path = f"{'study.objectives' if is_objective else 'limits'}.{metric}"
            raise UserError(
                f"{space.locate(path)}: {path}: needs predict.costs, as in predict: {{costs: {{cat: {{dog: 5}}}}}}"
            )


def are_in(document: Mapping[str, Any]) -> bool:
    """Tell whether a space, or a configuration as plain values, names any class in weights or costs."""
    return costs.of(document) is not None or any(True for _ in _weights(document))


def refuse_unknown(document: Mapping[str, Any], classes: Sequence[str], locate: Locate) -> list[str]:
    """Refuse unknown classes; return a line about each mapping of weights that leaves classes out.

    Raises:
        UserError: a class does not exist.
    """
    notes = []
    for path, weights in _weights(document):
        for name in weights:
            if name not in classes:
                known = f"classes: {some(classes, 20)}{closest(name, classes)}"
                raise _error(locate, f"{path}.{name}", path, f"there is no class {name!r}; {known}")
        if left_out := [name for name in classes if name not in weights]:
            notes.append(terminal.shown(f"{path}: classes without a weight get weight 1: {some(left_out, 20)}"))
    if (stated := costs.of(document)) is not None:
        _refuse_costs(stated, classes, locate)
    return notes


def _refuse_costs(stated: costs.Costs, classes: Sequence[str] | None, locate: Locate) -> None:
    if (found := costs.problem(stated, classes)) is not None:
        raise _error(locate, f"predict.costs.{found[0]}", "predict.costs", found[1])


def _error(locate: Locate, place: str, path: str, problem: str) -> UserError:
    return UserError(terminal.shown(f"{locate(place)}: {path}: {problem}"))


def _weights(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield every mapping of class weights that a trial may have, with its path."""
    for name, arguments in document["loss"].items():
        given = arguments.get("class_weights")
        options = given["choice"] if isinstance(given, Mapping) and isinstance(given.get("choice"), list) else [given]
        yield from ((f"loss.{name}.class_weights", option) for option in options if isinstance(option, Mapping))
