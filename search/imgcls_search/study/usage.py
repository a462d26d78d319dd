"""The cost of a study, in words: seconds by device, and the share of time that workers waited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from imgcls_search import durations
from imgcls_search.study.facts import UsageFact

Spent = Literal[
    "training",
    "pretraining",
    "start",
    "exporting",
    "timing",
    "pictures",
    "images",
    "draw",
    "network",
    "decision",
    "idle",
]
"""Activities of workers."""

WORK = ("training", "pretraining")

IN_WORDS: Mapping[str, str] = {
    "start": "start of a trial",
    "exporting": "exporting and scoring",
    "timing": "a latency being timed",
    "pictures": "pictures",
    "images": "images and weights",
    "draw": "no configuration ready",
    "network": "a pretrained network",
    "decision": "a decision",
    "idle": "no trial left to start",
}
"""Reasons for which workers wait."""

LEAST_SHARE = 0.005
"""The smallest share that is shown."""


class UsageSummary(TypedDict):
    """The cost of a study."""

    devices: dict[str, float]
    """Seconds in use, by device; on a CPU those of all its processes."""

    workers: dict[str, float]
    """Seconds of all workers, by activity."""

    waiting: float
    """Share of that time without training."""

    waiting_for: dict[str, float]
    """That share by reason, the largest first."""


def summarise_usage(usage: UsageFact | None) -> UsageSummary | None:
    """Return the cost of a study, or None if it was not measured."""
    total = sum(usage["workers"].values()) if usage is not None else 0.0
    if usage is None or total <= 0:
        return None
    shares = {name: seconds / total for name, seconds in usage["workers"].items() if name not in WORK}
    return UsageSummary(
        devices=dict(usage["devices"]),
        workers=dict(usage["workers"]),
        waiting=sum(shares.values()),
        waiting_for=dict(sorted(shares.items(), key=lambda pair: -pair[1])),
    )


def usage_lines(found: UsageSummary | None, hardware: str = "") -> list[str]:
    """Return the cost of a study as lines for a person."""
    if found is None:
        return []
    devices = ", ".join(f"{name} {durations.show(seconds)}" for name, seconds in sorted(found["devices"].items()))
    named = {name: share for name, share in found["waiting_for"].items() if share >= LEAST_SHARE}
    reasons = ", ".join(f"{IN_WORDS.get(name, name)} {share:.0%}" for name, share in named.items())
    on = f" ({hardware})" if hardware else ""
    return [
        *([f"devices in use: {devices}{on}"] if devices else []),
        f"workers waited {found['waiting']:.0%} of their time" + (f": {reasons}" if reasons else ""),
    ]
