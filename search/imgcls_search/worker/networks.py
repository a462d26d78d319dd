"""The networks of configurations and of saved trainings, and what a saved training carries beside its state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from imgcls_search import models
from imgcls_search.compress import prune
from imgcls_search.config import TrialConfig
from imgcls_search.data import (
    InputShape,
    Prepared,
)
from imgcls_search.errors import CheckpointError
from imgcls_search.measures import THRESHOLD
from imgcls_search.models import heads


def build_model(config: TrialConfig, shape: InputShape) -> nn.Module:
    """Build the model that a configuration describes for images of a shape, with the head that it names.

    Raises:
        BuildError: the family refuses an argument, or another head.
    """
    return heads.with_head(build_own_model(config, shape), heads.head_of(config))


def build_own_model(config: TrialConfig, shape: InputShape) -> nn.Module:
    """Build the model of a configuration with the last layer of its family.

    Raises:
        BuildError: the family refuses an argument.
    """
    return models.build_model(config.component("model"), **dataclasses.asdict(shape))


def describe_weights(config: TrialConfig, data: Prepared, shapes: prune.Shapes | None = None) -> dict[str, str]:
    """Return what a saved training carries besides its state, so that it can be used without a study.

    `shapes` tells what structured pruning has changed, None where the model is as its builder makes it.
    """
    about = {"config": config.to_dict(), "data": data.to_dict()}
    return {"about": json.dumps(about if shapes is None else {**about, "shapes": shapes})}


def load_weights(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Return the model of a saved training, its configuration and the data set it was trained on.

    Raises:
        CheckpointError: the file's contents are not a trained model of this program.
    """
    try:
        about = json.loads(state["about"])
        if "pretrained" in about:
            raise CheckpointError(f"{source}: pretrained weights without a head; allowed: as weights of a model")
        config = TrialConfig.from_dict(about["config"])
        data = Prepared.from_dict(about["data"])
        model = build_model(config, data.shape)
        if "shapes" in about:
            prune.rebuild(model, about["shapes"], state["model"])
        else:
            model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{source}: not a trained model of this program ({type(error).__name__})") from error
    return model, config, data


def load_finished(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Return what `load_weights` does, of a training that came to its end.

    Raises:
        CheckpointError: it did not, or the file's contents are not a trained model of this program.
    """
    model, config, data = load_weights(state, source)
    history, last = state.get("history"), config.epochs if "folds" in state else config.training_epochs
    # A file may come from anybody, or be older than histories.
    if isinstance(history, list) and len(history) < last:
        raise CheckpointError(
            f"{source}: a training that was interrupted after {len(history)} of {last} epochs; run the command that "
            "made it again to finish it"
        )
    if data.has_several_labels:
        # Those of a training on all images came with them.
        data = replace(data, thresholds=_thresholds(state, data.classes) or data.thresholds)
    return model, config, data


def _thresholds(state: Mapping[str, Any], classes: Sequence[str]) -> tuple[float, ...] | None:
    """Return the thresholds of the labels that a training chose on its validation images, None where it had none."""
    try:
        measured = state["metrics"] if "artifact" in state else state["history"][-1]
        return tuple(float(measured[f"{THRESHOLD}:{name}"]) for name in classes)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
