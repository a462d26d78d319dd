"""Which files of pretrained weights the trials of a study started from, noted in it and compared later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.executors.helper import Helper
from imgcls_search.study.facts import WeightsFact
from imgcls_search.study.record import Record

BY_LIBRARY = "imagenet"
"""Stands for the weights that a library publishes for a model."""

SHOWN_DIGITS = 12
"""Of a digest, in a sentence."""


def name_of(config: TrialConfig) -> str:
    """Return what the weights of a configuration are called in a study: a file's path, or the model that names them.

    Shares, as of dropout, decide on no weights, and there are many of them.
    """
    model = config.component("model")
    said = {name: value for name, value in model.args.items() if value is not None and not isinstance(value, float)}
    weights = said.pop("weights", None)
    if weights != BY_LIBRARY:
        return str(weights)
    return " ".join([model.name, *(f"{name}={value}" for name, value in said.items())])


def note(record: Record, found: Mapping[str, WeightsFact]) -> Iterator[str]:
    """Add files to those that a study knows; yield a line for each that is another one than it knows."""
    known = record.facts.get("weights", {})
    yield from differing(known, found)
    if new := {name: fact for name, fact in found.items() if name not in known}:
        record.set_fact("weights", {**known, **new})


def differing(known: Mapping[str, WeightsFact], found: Mapping[str, WeightsFact]) -> Iterator[str]:
    """Yield a line for each file that is not the one that a study's trials started from."""
    for name, fact in found.items():
        then = known.get(name)
        if then is not None and then["sha256"] != fact["sha256"]:
            yield f"weights of {name}: were {_shown(then)}, are now {_shown(fact)}"


def of_config(
    config: TrialConfig, shape: InputShape, helper: Helper, say: Callable[[str], None] | None = None
) -> dict[str, WeightsFact]:
    """Return the file that a configuration would start from now; nothing where there is none.

    `say` gets a note if it was trained on images of another size.

    Raises:
        CheckpointError: the weights cannot be fetched or read.
        BuildError: they do not fit the model.
    """
    found = helper.fetch_weights(config, shape, say)
    return {} if found is None else {name_of(config): cast(WeightsFact, found)}


def _shown(fact: WeightsFact) -> str:
    return f"{fact['file']} (sha256 {fact['sha256'][:SHOWN_DIGITS]})"
