"""Estimate how many pretrained networks the trials of a search will need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imgcls_search.config import TrialConfig
from imgcls_search.data.unlabeled import look_for_unlabeled
from imgcls_search.orchestrator.backbones import look_early
from imgcls_search.space import Space
from imgcls_search.space.problems import plain
from imgcls_search.strategy.draws import random_configs

MOST_DRAWS = 200
"""Draw at most this many random configurations."""

TIMED_EPOCHS = 2
"""Epochs of the pretrainings that are only timed."""


@dataclass(frozen=True, kw_only=True)
class ExpectedPretrainings:
    """Pretrained networks that random trials of a space need."""

    trials: int
    """Number of random trials drawn: as many as the study has, at most `MOST_DRAWS`."""

    pretraining: int
    """How many of them start from a pretrained network."""

    networks: int
    """Number of distinct networks, one per fold; equal ones are trained once."""

    epochs: int
    """Epochs of all these networks together."""

    images: int | None
    """Images in the folder to pretrain on; None if they are the training images."""

    @property
    def sentence(self) -> str:
        """Summary for the user."""
        of = "" if self.images is None else f" over {self.images:,} images"
        return (
            f"{self.pretraining} of {self.trials} random trials start from a pretrained network: {self.networks} "
            f"distinct, {self.epochs:,} epochs of pretraining{of}"
        )


def expected(space: Space) -> ExpectedPretrainings | None:
    """Estimate how many pretrained networks the trials of a space will need; None if none starts from one.

    Raises:
        DataError: the folder to pretrain on is missing or has too few images.
    """
    if not _ways(space):
        return None
    found: dict[str, TrialConfig] = {}
    count = min(space.study["trials"], MOST_DRAWS)
    configs = [space.first()] if space.is_config else list(random_configs(space, count))
    look_early(configs)
    if space.is_of_pretraining:
        # Its trials are pretrainings themselves.
        return None
    starting = [config for config in configs if config.needs_backbone]
    for config in starting:
        found.setdefault(config.pretraining().digest("model", "image", "unlabeled", "pretrain"), config)
    return ExpectedPretrainings(
        trials=len(configs),
        pretraining=len(starting),
        networks=sum(map(_copies, found.values())),
        epochs=sum(_copies(config) * config.pretraining().epochs for config in found.values()),
        images=look_for_unlabeled(starting[0].pretraining()) if starting else None,
    )


def timed_as(space: Space) -> dict[str, str]:
    """Return the changes to a space for timing its pretrainings: every trial pretrains, for few epochs."""
    ways = _ways(space)
    return (
        {"pretrain": json.dumps({name: {**args, "epochs": TIMED_EPOCHS} for name, args in ways.items()})}
        if ways
        else {}
    )


def _ways(space: Space) -> Mapping[str, Any]:
    """Return the pretrainings that a space names, with their arguments."""
    return {name: plain(args) for name, args in space.document.get("pretrain", {}).items() if name != "none"}


def _copies(config: TrialConfig) -> int:
    """Return how many networks a configuration needs: one per fold, since it must not see the fold's images."""
    return config.folds if config.component("unlabeled").name == "train" else 1
