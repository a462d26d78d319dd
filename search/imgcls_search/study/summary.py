"""The state of a study as plain values, for a screen or a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypedDict

from imgcls_search.measures import by_class
from imgcls_search.study import best
from imgcls_search.study.activity import Activity, ShownState, StudyState, activity, shown_state
from imgcls_search.study.facts import KnownBackbone, Opening, Request, Run
from imgcls_search.study.outlook import outlook
from imgcls_search.study.record import Record
from imgcls_search.study.requests import pending
from imgcls_search.study.usage import UsageSummary, summarise_usage
from imgcls_search.trial import Trial

STATES: tuple[ShownState, ...] = ("complete", "running", "interrupted", "paused", "pruned", "fail")


class TrialSummary(TypedDict):
    """One trial."""

    trial: int
    state: ShownState
    values: dict[str, float]
    """By objective; empty until it ends."""

    sizes: dict[str, float]
    params: dict[str, Any]
    epochs: int
    metrics: dict[str, float]
    """Of the last epoch, over all classes."""

    classes: dict[str, dict[str, float]]
    """Precision, recall, F1 and support of each class after a full training; without images, only support."""

    deployed: dict[str, float]
    """Scores of its network as it would be deployed."""

    limited: dict[str, float]
    """The scores that limits name, once it is complete."""

    over_limits: list[str]
    seed: int
    reason: str | None
    sampler: str | None
    """The sampler that drew it; None if an older version did not store it."""

    pruner: str | None
    request: str | None
    """Id of the request that it answers."""

    origin: str | None
    """The study and number that it had before a merge, such as `vit-monday:3`."""


class Failure(TypedDict):
    """A trial that failed."""

    trial: int
    reason: str | None


class OtherTrial(TypedDict):
    """A trial that no search made."""

    trial: int
    state: str
    params: dict[str, Any]


class WorkedOnBy(TypedDict):
    """The process that works on a study, see `study.holder.Holder`."""

    process: str
    task: str


class Expected(TypedDict):
    """The likely gain from doubling the number of trials, see `study.outlook.Outlook`."""

    metric: str
    trials: int
    gain: float


class Summary(TypedDict):
    """The state of a study."""

    study: str
    state: StudyState
    stands: str
    """The state in words."""

    to_resume: int
    worked_on_by: WorkedOnBy | None
    objectives: dict[str, str]
    val_images: int | None
    trials: dict[str, int]
    """In total, and in each state."""

    rejected: dict[str, int]
    troubles: dict[str, int]
    failures: list[Failure]
    epochs: int
    training_seconds: float
    over_limits: dict[str, int]
    best: list[TrialSummary]
    outlook: Expected | None
    test_openings: list[Opening]
    others: list[OtherTrial]
    requests: list[Request]
    """Requested configurations that no run has tried yet."""

    runs: list[Run]
    usage: UsageSummary | None
    """The cost of all calls of `run`; None if it was not measured."""

    hardware: str
    backbones: dict[str, KnownBackbone]
    """The pretrained networks that trials start from, including those that are being made."""


def summarise(record: Record, now: Activity | None = None) -> Summary:
    """Return the state of a study: counts by state, rejections and troubles by reason, failures, the best trials.

    `now` is its current activity, if known already.

    Raises:
        StudyError: its database cannot be reached.
    """
    now = now or activity(record)
    states: Counter[str] = Counter(trial.state for trial in record.trials)
    if now.state != "running":
        states["interrupted"] = states.pop("running", 0)
    rejections = Counter(rejection.reason for trial in record.trials for rejection in trial.rejected_before)
    troubles = Counter(reason for trial in record.trials for reason in trial.troubles)
    done = best.ranked(record)
    ahead = outlook(record)
    return {
        "study": record.study.study_name,
        "state": now.state,
        "stands": str(now),
        "to_resume": now.to_resume,
        "worked_on_by": None if now.holder is None else {"process": now.holder.process, "task": now.holder.task},
        "objectives": dict(record.objectives),
        "val_images": record.val_images,
        "trials": {"total": len(record.trials), **{state: states[state] for state in STATES}},
        "rejected": dict(rejections.most_common()),
        "troubles": dict(troubles.most_common()),
        "failures": [
            {"trial": trial.number, "reason": trial.reason} for trial in record.trials if trial.state == "fail"
        ],
        "epochs": sum(trial.epoch for trial in record.trials),
        "training_seconds": sum(epoch.get("seconds", 0.0) for trial in record.trials for epoch in trial.epochs),
        "over_limits": dict(Counter(name for trial in record.trials for name in best.over_limits(trial)).most_common()),
        "best": [describe(trial, record) for trial in best.front(record)] if done else [],
        "outlook": None if ahead is None else {"metric": ahead.metric, "trials": ahead.trials, "gain": ahead.gain},
        "test_openings": record.facts.get("test_openings", []),
        "others": [
            {"trial": other.number, "state": other.state, "params": dict(other.params)}
            for other in record.foreign_trials.values()
        ],
        "requests": pending(record),
        "runs": record.facts.get("runs", []),
        "usage": summarise_usage(record.facts.get("usage")),
        "hardware": record.facts.get("hardware", ""),
        "backbones": record.facts.get("backbones", {}),
    }


def pretraining_lines(backbones: Mapping[str, KnownBackbone], state: StudyState) -> list[str]:
    """Return the state of a study's pretrained networks: a line for each that is being made, one for the rest."""
    counts = Counter(known.get("state", "made") for known in backbones.values())
    done = ", ".join(f"{counts[name]} {name}" for name in ("made", "failed") if counts[name])
    reasons = list(dict.fromkeys(known["reason"] for known in backbones.values() if "reason" in known))
    return [*_made_now(backbones, state), *([f"pretrained networks: {': '.join([done, *reasons])}"] if done else [])]


def state_in_words(found: Summary) -> str:
    """Return the state of a study in words, with the pretrained networks that are being made."""
    return "; ".join([found["stands"], *_made_now(found["backbones"], found["state"])])


def _made_now(backbones: Mapping[str, KnownBackbone], state: StudyState) -> list[str]:
    lines = []
    for known in backbones.values():
        if known.get("state") == "making":
            fold = f", fold {known['fold'] + 1}" if "fold" in known else ""
            far = "" if state == "running" else "interrupted at "
            epochs = f"epoch {known.get('epoch', 0)}/{known['epochs']}"
            lines.append(f"pretraining {known['model']} ({known['pretrain']}{fold}): {far}{epochs}")
    return lines


def describe(trial: Trial, record: Record) -> TrialSummary:
    """Return one trial with its values, sizes, parameters, last epoch, and the scores of its network as deployed."""
    values = trial.values or ()
    metrics, classes = by_class(trial.epochs[-1] if trial.epochs else {})
    deployed, classes_deployed = by_class(trial.scores.get(trial.epoch, {}))
    shown = {**(trial.epochs[-1] if trial.epochs else {}), **trial.scores.get(trial.epoch, {})}
    limited = record.score_limits if trial.state == "complete" else ()
    return {
        "trial": trial.number,
        "state": shown_state(trial, record),
        "values": {metric: value for (metric, _), value in zip(record.objectives, values, strict=False)},
        "sizes": dict(trial.sizes),
        "params": dict(trial.candidate.params),
        "epochs": trial.epoch,
        "metrics": metrics,
        "classes": classes_deployed or classes,
        "deployed": deployed,
        "limited": {name: shown[name] for name in limited if name in shown},
        "over_limits": list(best.over_limits(trial)),
        "seed": trial.seed,
        "reason": trial.reason,
        "sampler": next(iter(trial.strategy.get("sampler", ())), None),
        "pruner": next(iter(trial.strategy.get("pruner", ())), None),
        "request": trial.request,
        "origin": f"{trial.origin.get('study')}:{trial.origin.get('trial')}" if trial.origin else None,
    }
