"""Read finished weights of any origin: their configuration must be one of the space language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import CheckpointError, SpaceError
from imgcls_search.space import parse_values
from imgcls_search.space.problems import join
from imgcls_search.worker import networks

NEEDED = {"data": (), "image": ("size", "channels"), "model": (), "training": ("device",)}
"""Sections and settings that every training has and that are read; others have defaults in earlier versions."""


def load_finished(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Return the network of a complete training, its configuration and the data set it was trained on.

    Raises:
        CheckpointError: the training is incomplete, or the file's contents are not a trained model of this program.
    """
    model, config, data = networks.load_finished(state, source)
    for problem in _problems(config.to_dict()):
        raise CheckpointError(
            f"{source}: not a trained model of this program, or damaged; its configuration: {problem}"
        )
    return model, config, data


def _problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield what no configuration has that this program saves."""
    yield from (f"{name}: is missing" for name in NEEDED if name not in tree)
    try:
        # A study would be named after the source; a weights file may have any name.
        whole = parse_values(tree, catalog(), source="weights").config().to_dict()
    except SpaceError as error:
        yield from (problem.render("").removeprefix(": ") for problem in error.problems)
        return
    yield from _short_forms(whole, tree, "")
    yield from (
        f"{join(name, key)}: is missing" for name, keys in NEEDED.items() for key in keys if key not in tree[name]
    )


def _short_forms(whole: Mapping[str, Any], tree: Mapping[str, Any], above: str) -> Iterator[str]:
    """Yield what a file of a user may write shorter, as in `data: digits`, and a saved configuration never has."""
    for name, value in tree.items():
        path, full = join(above, name), whole[name]
        if isinstance(value, Mapping) != isinstance(full, Mapping):
            yield f"{path}: {value!r:.40} is not as a training saves it"
        elif isinstance(value, Mapping):
            yield from _short_forms(full, value, path)
