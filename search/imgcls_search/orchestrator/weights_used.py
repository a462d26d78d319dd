"""Store which files of pretrained weights the trials of a study started from, and compare them later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

from imgcls_search import digests
from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.executors.helper import Helper
from imgcls_search.study.facts import WeightsFact
from imgcls_search.study.record import Record

BY_LIBRARY = "imagenet"
"""Means the weights that a library publishes for a model."""


def name_of(config: TrialConfig) -> str:
    """Return the name of a configuration's weights in a study: the path of a file, or the model with its arguments.

    Arguments that are floats, such as dropout, do not select weights, and take many values.
    """
    model = config.component("model")
    said = {name: value for name, value in model.args.items() if value is not None and not isinstance(value, float)}
    weights = said.pop("weights", None)
    if weights != BY_LIBRARY:
        return str(weights)
    return " ".join([model.name, *(f"{name}={value}" for name, value in said.items())])


def note(record: Record, found: Mapping[str, WeightsFact]) -> Iterator[str]:
    """Store new files in a study; yield a line for each that differs from the stored one."""
    known = record.facts.get("weights", {})
    yield from differing(known, found)
    if new := {name: fact for name, fact in found.items() if name not in known}:
        record.set_fact("weights", {**known, **new})


def differing(known: Mapping[str, WeightsFact], found: Mapping[str, WeightsFact]) -> Iterator[str]:
    """Yield a line for each file that differs from the one that a study's trials started from."""
    for name, fact in found.items():
        then = known.get(name)
        if then is not None and then["sha256"] != fact["sha256"]:
            yield f"weights of {name}: were {_shown(then)}, are now {_shown(fact)}"


def of_config(
    config: TrialConfig, shape: InputShape, helper: Helper, say: Callable[[str], None] | None = None
) -> dict[str, WeightsFact]:
    """Return the file that a configuration would start from now; empty if there is none.

    `say` gets a note if it was trained on images of another size.

    Raises:
        CheckpointError: the weights cannot be fetched or read.
        BuildError: they do not fit the model.
    """
    found = helper.fetch_weights(config, shape, say)
    return {} if found is None else {name_of(config): cast(WeightsFact, found)}


def _shown(fact: WeightsFact) -> str:
    return f"{fact['file']} (sha256 {digests.shown(fact['sha256'])})"
