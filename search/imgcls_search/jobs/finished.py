"""Read finished weights of any origin: their configuration must be one of the space language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import CheckpointError, SpaceError
from imgcls_search.space import parse_values
from imgcls_search.worker import networks

NEEDED = ("data", "image", "model", "training")
"""Sections that every training has; others have defaults in earlier versions."""


def load_finished(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Return the network of a complete training, its configuration and the data set it was trained on.

    Raises:
        CheckpointError: the training is incomplete, or the file's contents are not a trained model of this program.
    """
    model, config, data = networks.load_finished(state, source)
    said = [f"{name}: is missing" for name in NEEDED if name not in config.tree]
    try:
        # A study would be named after the source; a weights file may have any name.
        parse_values(config.to_dict(), catalog(), source="weights")
    except SpaceError as error:
        said += [problem.render("").removeprefix(": ") for problem in error.problems]
    if said:
        raise CheckpointError(
            f"{source}: not a trained model of this program, or damaged; its configuration: {said[0]}"
        )
    return model, config, data
