"""The networks of configurations and of saved trainings, and the metadata of a saved training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from imgcls_search import models
from imgcls_search.compress import prune
from imgcls_search.config import TrialConfig
from imgcls_search.data import (
    InputShape,
    Prepared,
)
from imgcls_search.errors import UNWRITTEN, CheckpointError
from imgcls_search.measures import THRESHOLD
from imgcls_search.models import heads
from imgcls_search.models.ensemble import Ensemble, Part
from imgcls_search.worker.file_contents import Checkpoint

_OF_OTHERS = (*UNWRITTEN, RuntimeError)
"""Errors that the contents of a file raise if this program would not write them."""

MEMBERS = "members"
"""The key of an ensemble's networks in a weights file."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A network of an ensemble, with everything except its weights."""

    trial: int
    """The number of its trial in the study."""

    count: int
    """How often it was picked: its weight in the mean."""

    config: TrialConfig
    data: Prepared
    temperatures: tuple[float, ...]
    """Divisors of its logits: one number, or one per label."""

    shapes: prune.Shapes | None
    """Changes by structured pruning, None if the network is as its builder makes it."""


def build_model(config: TrialConfig, shape: InputShape) -> nn.Module:
    """Build the model of a configuration for an input shape, with the configured head.

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


def describe_weights(config: TrialConfig, data: Prepared, shapes: prune.Shapes | None = None) -> Checkpoint:
    """Return the metadata of a saved training that make it usable without a study.

    `shapes` are the changes by structured pruning, None if the model is as its builder makes it.
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
        if MEMBERS in about:
            model: nn.Module = _rebuild_ensemble(_members(about), data, state["model"])
        else:
            model = build_shaped(config, data, about.get("shapes"), state["model"])
    except _OF_OTHERS as error:
        raise CheckpointError(f"{source}: not a trained model of this program ({type(error).__name__})") from error
    return model, config, data


def build_shaped(
    config: TrialConfig, data: Prepared, shapes: prune.Shapes | None, weights: Mapping[str, Tensor]
) -> nn.Module:
    """Return the model of a configuration with its weights, shrunk to `shapes` if it was pruned.

    Raises:
        RuntimeError, KeyError, AttributeError: the weights belong to another model.
    """
    model = build_model(config, data.shape)
    if shapes is not None:
        prune.rebuild(model, shapes, weights)
    else:
        model.load_state_dict(dict(weights))
    return model


def describe_ensemble(
    config: TrialConfig, data: Prepared, members: Sequence[Member], more: Mapping[str, Any]
) -> Checkpoint:
    """Return the metadata of an ensemble's weights: `config` and `data` are those of its study's best trial.

    `more` is for messages.
    """
    about = {
        "config": config.to_dict(),
        "data": data.to_dict(),
        MEMBERS: [
            {
                "trial": member.trial,
                "count": member.count,
                "config": member.config.to_dict(),
                "data": member.data.to_dict(),
                "temperatures": list(member.temperatures),
                "shapes": member.shapes,
            }
            for member in members
        ],
        "ensemble": dict(more),
    }
    return {"about": json.dumps(about)}


def read_ensemble(state: Mapping[str, Any], source: str) -> tuple[tuple[Member, ...], Mapping[str, Any]]:
    """Return the networks of a saved ensemble and its data for messages; none for a single network.

    Raises:
        CheckpointError: the file's contents are not a trained model of this program.
    """
    try:
        about = json.loads(state["about"])
        if MEMBERS not in about:
            return (), {}
        return _members(about), dict(about["ensemble"])
    except _OF_OTHERS as error:
        raise CheckpointError(f"{source}: not a trained model of this program ({type(error).__name__})") from error


def _members(about: Mapping[str, Any]) -> tuple[Member, ...]:
    found = tuple(
        Member(
            trial=int(member["trial"]),
            count=int(member["count"]),
            config=TrialConfig.from_dict(member["config"]),
            data=Prepared.from_dict(member["data"]),
            temperatures=tuple(float(value) for value in member["temperatures"]),
            shapes=member["shapes"],
        )
        for member in about[MEMBERS]
    )
    if not found or any(member.count < 1 for member in found):
        raise ValueError("an ensemble has members, each picked at least once")
    return found


def shapes_of(state: Mapping[str, Any]) -> prune.Shapes | None:
    """Return the changes by structured pruning in a network that `load_weights` accepts, None if there are none."""
    found: prune.Shapes | None = json.loads(state["about"]).get("shapes")
    return found


def join(members: Sequence[Member], networks: Sequence[nn.Module], data: Prepared) -> Ensemble:
    """Return the ensemble of several networks: the mean of their probabilities, weighted by how often each was picked.

    Inputs are normalised with the mean and deviation of `data`.
    """
    picks = sum(member.count for member in members)
    parts = [
        Part(
            network=network,
            share=member.count / picks,
            temperatures=member.temperatures,
            mean=member.data.mean,
            std=member.data.std,
        )
        for member, network in zip(members, networks, strict=True)
    ]
    return Ensemble(parts, mean=data.mean, std=data.std, several=data.has_several_labels)


def _rebuild_ensemble(members: Sequence[Member], data: Prepared, weights: Mapping[str, Tensor]) -> Ensemble:
    networks = []
    for number, member in enumerate(members):
        prefix = f"{MEMBERS}.{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        networks.append(build_shaped(member.config, member.data, member.shapes, own))
    model = join(members, networks, data)
    # All weights belong to these networks.
    model.load_state_dict(dict(weights))
    return model


def load_finished(state: Mapping[str, Any], source: str) -> tuple[nn.Module, TrialConfig, Prepared]:
    """Like `load_weights`, but only for a complete training.

    Raises:
        CheckpointError: the training is incomplete, or the file's contents are not a trained model of this program.
    """
    model, config, data = load_weights(state, source)
    history = state.get("history")
    try:
        last = config.epochs if "folds" in state else config.training_epochs
    except _OF_OTHERS as error:
        raise CheckpointError(f"{source}: not a trained model of this program ({type(error).__name__})") from error
    if type(last) is not int:
        raise CheckpointError(f"{source}: not a trained model of this program ({last!r:.40} epochs)")
    # Files may be of any origin, or older than histories.
    if isinstance(history, list) and len(history) < last:
        raise CheckpointError(
            f"{source}: a training that was interrupted after {len(history)} of {last} epochs; run the command that "
            "made it again to finish it"
        )
    if data.has_several_labels:
        # For a training on all images, the thresholds are in its data.
        data = replace(data, thresholds=_thresholds(state, data.classes) or data.thresholds)
    return model, config, data


def _thresholds(state: Mapping[str, Any], classes: Sequence[str]) -> tuple[float, ...] | None:
    """Return the label thresholds that a training chose on its validation images, None without validation images."""
    try:
        measured = state["metrics"] if "artifact" in state else state["history"][-1]
        return tuple(float(measured[f"{THRESHOLD}:{name}"]) for name in classes)
    except UNWRITTEN:
        return None
