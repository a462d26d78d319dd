"""Write a trial to the attributes of its row, and read it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from imgcls_search.config import TrialConfig
from imgcls_search.study.tables import read_distribution
from imgcls_search.trial import SIZES, Candidate, Rejection, State, Trial

STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}
"""Our states by Optuna's."""

_ARTIFACT = "artifacts:"
"""Prefix of Optuna's attributes for artifacts."""


class PlanAttribute(TypedDict):
    """The decision about an open trial."""

    judged: int
    until: int
    paused: bool


class ScoreAttribute(TypedDict):
    """Scores of a trial's network, as it would be deployed, after an epoch."""

    epoch: int
    metrics: dict[str, float]


class RejectionAttribute(TypedDict):
    """A candidate that was rejected on the way to the trial."""

    params: dict[str, Any]
    distributions: dict[str, str]
    """In Optuna's own format."""

    reason: str


class StrategyAttribute(TypedDict):
    """The sampler and pruner of a trial."""

    sampler: dict[str, Any]
    pruner: dict[str, Any]


class TrialAttributes(TypedDict, total=False):
    """The attributes of a trial's row, besides its sizes (see `imgcls_search.trial.SIZES`) and its network's notes.

    Those without a comment are the fields of `imgcls_search.trial.Trial`.
    """

    config: dict[str, Any]
    seed: int
    plan: PlanAttribute
    sampler_state: dict[str, Any]
    rejected_before: list[RejectionAttribute]
    strategy: StrategyAttribute
    request: str
    origin: dict[str, Any]
    epochs: list[dict[str, float]]
    scores: list[ScoreAttribute]
    seconds: float
    """Total of its epochs, once it has ended."""

    reason: str
    deaths: int
    micro_batches: int
    troubles: list[str]
    worker: str
    log: str
    """The path of the file, relative to the folder of the studies."""

    place: int
    """How many trials began before it; only for a trial that was enqueued."""


def attributes_of(trial: Trial) -> TrialAttributes:
    """Return the attributes to write for a trial that begins."""
    attributes = {
        "config": trial.candidate.config.to_dict(),
        "seed": trial.seed,
        "plan": plan_of(trial),
        "sampler_state": dict(trial.candidate.sampler_state),
        "rejected_before": freeze_rejections(trial.rejected_before),
        "strategy": dict(trial.strategy),
        "request": trial.request,
        **trial.sizes,
    }
    return cast(TrialAttributes, {key: value for key, value in attributes.items() if value not in ({}, [], None)})


def strategy_of(sampler: Mapping[str, Any], pruner: Mapping[str, Any]) -> StrategyAttribute:
    """Return the attribute for the sampler and pruner of a trial, including their arguments."""
    return {"sampler": TrialConfig.from_dict(sampler).to_dict(), "pruner": TrialConfig.from_dict(pruner).to_dict()}


def read_trial(frozen: FrozenTrial, metric: str) -> Trial:
    """Return a trial that a search wrote; `metric` is the first objective."""
    attributes = cast(TrialAttributes, frozen.user_attrs)
    state = STATES[frozen.state]
    plan = attributes["plan"]
    return Trial(
        number=frozen.number,
        candidate=Candidate(
            params=frozen.params,
            distributions=frozen.distributions,
            config=TrialConfig.from_dict(attributes["config"]),
            sampler_state=attributes.get("sampler_state", {}),
        ),
        seed=attributes["seed"],
        sizes={name: frozen.user_attrs[name] for name in SIZES},
        metric=metric,
        state="paused" if state == "running" and plan["paused"] else state,
        epochs=list(attributes.get("epochs", [])),
        judged=plan["judged"],
        until=plan["until"],
        scores={entry["epoch"]: entry["metrics"] for entry in attributes.get("scores", [])},
        constraints=dict(frozen.constraints),
        values=tuple(frozen.values) if frozen.values is not None else None,
        reason=attributes.get("reason"),
        deaths=attributes.get("deaths", 0),
        micro_batches=attributes.get("micro_batches", 1),
        troubles=list(attributes.get("troubles", [])),
        pictures=_thaw_pictures(frozen) if frozen.state.is_finished() else None,
        rejected_before=tuple(_thaw_rejection(entry) for entry in attributes.get("rejected_before", [])),
        strategy=attributes.get("strategy", {}),
        request=attributes.get("request"),
        origin=attributes.get("origin", {}),
    )


def artifact_attributes(trial: Trial) -> dict[str, str]:
    """Return the attributes that `optuna.artifacts.upload_artifact` would write for a trial's pictures."""
    notes = {}
    for key, name in (trial.pictures or {}).items():
        meta = {"artifact_id": key, "filename": name, "mimetype": "image/png", "encoding": None}
        notes[f"{_ARTIFACT}{key}"] = json.dumps(meta)
    return notes


def plan_of(trial: Trial) -> PlanAttribute:
    """Return the decision about an open trial."""
    return {"judged": trial.judged, "until": trial.until, "paused": trial.state == "paused"}


def freeze_scores(scores: Mapping[int, Mapping[str, float]]) -> list[ScoreAttribute]:
    """Return scores by epoch as JSON values."""
    return [{"epoch": epoch, "metrics": dict(metrics)} for epoch, metrics in scores.items()]


def freeze_rejections(rejections: Sequence[Rejection]) -> list[RejectionAttribute]:
    """Return rejections as JSON values."""
    return [_freeze_rejection(rejection) for rejection in rejections]


def _freeze_rejection(rejection: Rejection) -> RejectionAttribute:
    distributions = {name: distribution_to_json(found) for name, found in rejection.distributions.items()}
    return {"params": dict(rejection.params), "distributions": distributions, "reason": rejection.reason}


def _thaw_rejection(entry: RejectionAttribute) -> Rejection:
    distributions = {name: read_distribution(text) for name, text in entry["distributions"].items()}
    return Rejection(params=entry["params"], distributions=distributions, reason=entry["reason"])


def _thaw_pictures(frozen: FrozenTrial) -> dict[str, str]:
    notes = [text for key, text in frozen.system_attrs.items() if key.startswith(_ARTIFACT)]
    return {note["artifact_id"]: note["filename"] for note in map(json.loads, notes)}
