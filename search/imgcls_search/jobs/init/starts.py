"""The configurations that a draft tries first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imgcls_search.image_size import area, written
from imgcls_search.jobs.init.networks import Network
from imgcls_search.jobs.init.plan import DraftPlan

SCRATCH_STARTS: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"optimizer": "sgd", "optimizer.sgd.lr": 0.1, "optimizer.sgd.weight_decay": 5e-4},
    "lenet5": {"optimizer": "adamw", "optimizer.adamw.lr": 3e-3, "optimizer.adamw.weight_decay": 0.05},
}
TUNED_START = {"finetune.start": "logistic", "finetune.backbone_lr_factor": 0.5}
"""Test accuracy of EfficientNet-Lite0 on TrashNet, 10 epochs at 96x128 after one of the head: 0.87 with a factor of
0.5, or of 1 with `layer_decay` 0.85; 0.82 with 0.1, which learns too little."""

HALF_STARTS: Sequence[Mapping[str, Any]] = [
    {"head": "linear", "head.linear.dropout": 0.2, "optimizer.adamw.lr": lr, "optimizer.adamw.weight_decay": 0.05}
    for lr in (1e-3, 2e-3)
]
"""Configurations with the first half of the stages frozen; the first one is that of `fits.Tuning`."""

OTHER_START = {"optimizer": "adamw", "optimizer.adamw.lr": 2e-3, "optimizer.adamw.weight_decay": 0.05}


def start_configurations(plan: DraftPlan) -> list[dict[str, Any]]:
    """Return the configurations to try first, cheapest first, for an early good result."""
    starts: list[dict[str, Any]] = []
    for network in plan.fit.networks:
        named = _named(network)
        if not network.is_pretrained:
            starts.append({**named, **SCRATCH_STARTS.get(str(named["model"]), OTHER_START)})
            continue
        starts += [{**sized, **named, "head": "logistic"} for sized in _sizes(plan)]
        named = {**_sizes(plan)[-1], **named}
        trained = {**named, "head": "linear", "head.linear.dropout": 0.2, "optimizer.adamw.lr": 1e-3}
        if plan.fit.freezes_half:
            starts += [{**named, **start} for start in HALF_STARTS]
            continue
        if plan.fit.tunes:
            trained |= TUNED_START
        starts.append(trained)
    return sorted(starts, key=lambda one: (one.get("head") != "logistic", area(one.get("image.size", 0))))


def _sizes(plan: DraftPlan) -> list[dict[str, Any]]:
    """Return the settings of start configurations for the image size, smallest first."""
    if plan.fit.first_size is None:
        return [{}]
    return [{"image.size": written(size)} for size in (plan.fit.first_size, plan.fit.size)]


def _named(network: Network) -> dict[str, Any]:
    """Return the settings of a start configuration for a network, in its most expensive form."""
    ((family, arguments),) = network.largest.items()
    ((_, written),) = network.model.items()
    searched = [key for key, value in written.items() if isinstance(value, Mapping)]
    told = [*searched, *(key for key in ("name", "depth", "variant", "weights") if key in arguments)]
    return {"model": family, **{f"model.{family}.{key}": arguments[key] for key in told}}
