"""Describe the result of `auto` as plain values for a screen or a script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from imgcls_search.automatic import testing
from imgcls_search.automatic.request import Delivered
from imgcls_search.confidence import share_interval
from imgcls_search.data import Split
from imgcls_search.errors import DataError
from imgcls_search.executors.helper import image_cache
from imgcls_search.measures import is_share, sign_of
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial
from imgcls_search.words import argument


class Chosen(TypedDict):
    """The configuration that is delivered."""

    trial: int
    trials: int
    """Number of trials in the study."""

    model: dict[str, Any]
    params: dict[str, Any]
    sizes: dict[str, float]


class _Score(TypedDict):
    how: Literal["seeds", "images", "searched"]
    """Source: new seeds, one network with an interval from sampling the images, or the search."""

    score: float
    images: int | None


class AutoScore(_Score, total=False):
    """A score of the chosen configuration, on the validation or on the test images."""

    searched: float
    """The trial's score in the search, on the validation images."""

    metric: str
    """Metric of the test score, which may differ from the objective."""

    scores: list[float]
    """Score of each seed; `score` is their mean."""

    ci95: float
    low: float
    high: float


class _Baseline(TypedDict):
    name: str
    on: str
    """`validation` or `test`."""

    metric: str
    score: float
    images: int | None


# `class` is a keyword, so the class syntax cannot declare this field.
_LargestClass = TypedDict("_LargestClass", {"class": str}, total=False)


class Baseline(_Baseline, _LargestClass, total=False):
    """A score to compare with: of always predicting the largest class, or of an early trial."""

    trial: int
    after: float
    """Seconds until that trial was complete."""


class Unfinished(TypedDict):
    """A training that the time ended, with a better score so far than the chosen trial."""

    trial: int
    score: float
    epoch: int
    epochs: int


class Times(TypedDict):
    """Given and spent time in seconds."""

    given: float
    spent: dict[str, float]
    """Seconds spent, by step."""


class AutoFinding(TypedDict):
    """The result of `auto`."""

    study: str
    chosen: Chosen
    metric: str
    direction: str
    validation: AutoScore
    test: AutoScore | None
    test_openings: int
    baselines: list[Baseline]
    unfinished: Unfinished | None
    """The best training of this kind."""

    decisions: list[dict[str, Any]]
    """Decisions of the draft, see `jobs.init.draft.Decision`."""

    time: Times
    files: dict[str, str]
    """Paths by kind of result."""

    bundled: int | None
    """The trial in the bundle."""

    next: dict[str, str]
    """Commands by purpose."""

    by_hand: list[str]
    """Commands that do the same, step by step."""


def describe(made: Delivered) -> AutoFinding:
    """Describe the result."""
    record, trial = made.record, made.trial
    metric, direction = record.objectives[0]
    test = _test(made)
    return {
        "study": made.files.name,
        "chosen": {
            "trial": trial.number,
            "trials": len(record.trials),
            "model": dict(trial.candidate.config.to_dict()["model"]),
            "params": dict(trial.candidate.params),
            "sizes": dict(trial.sizes),
        },
        "metric": metric,
        "direction": direction,
        "validation": _validation(made),
        "test": test,
        "test_openings": len(record.facts.get("test_openings", [])),
        "baselines": _baselines(made, is_tested=test is not None),
        "unfinished": unfinished(record, trial),
        "decisions": [one.to_dict() for one in made.decisions],
        "time": {"given": made.account["given"], "spent": dict(made.account["spent"])},
        "files": _files(made),
        "bundled": made.account.get("bundled"),
        "next": {
            "predict": f"imgcls-search predict {argument(made.output.bundle)} IMAGES...",
            "more time": "the same command with a longer --time",
            "retrain": f"imgcls-search train {argument(made.output.config)} --seeds 3{made.files.options}",
            "look": f"imgcls-search dashboard {made.files.argument}",
        },
        "by_hand": _by_hand(made),
    }


def unfinished(record: Record, chosen: Trial) -> Unfinished | None:
    """Return the best interrupted training, if its last score is better than the chosen trial's.

    A pruner may never continue the trials that it paused, so none of them counts.
    """
    metric, direction = record.objectives[0]
    sign = sign_of(direction)
    scored = [trial for trial in record.trials if trial.state == "running" and metric in _last(trial)]
    if not scored:
        return None
    leading = max(scored, key=lambda trial: sign * _last(trial)[metric])
    score = _last(leading)[metric]
    if chosen.values is not None and sign * score <= sign * chosen.first_value:
        return None
    epochs = leading.candidate.config.epochs
    return {"trial": leading.number, "score": score, "epoch": leading.epoch, "epochs": epochs}


def _last(trial: Trial) -> Mapping[str, float]:
    return trial.epochs[-1] if trial.epochs else {}


def _validation(made: Delivered) -> AutoScore:
    """Return the score of the chosen configuration on the validation images."""
    record, trial = made.record, made.trial
    metric = record.objectives[0][0]
    searched, images = trial.first_value, record.val_images
    if made.confirmed is not None:
        fresh = made.confirmed["confirmed"]
        return {
            "searched": searched,
            "images": images,
            "how": "seeds",
            "score": fresh["mean"],
            "ci95": fresh["ci95"],
            "scores": made.confirmed["scores"],
        }
    known = made.account.get("test")
    is_of_trial = known is not None and (known["trial"], known["metric"]) == (trial.number, metric)
    single = known["validation"] if known is not None and is_of_trial else None
    # The interval of one fold says little about a score of all folds.
    if single is not None and single["images"] == images:
        return {
            "searched": searched,
            "images": single["images"],
            "how": "images",
            "score": searched,
            "low": single["low"],
            "high": single["high"],
        }
    found: AutoScore = {"searched": searched, "images": images, "how": "searched", "score": searched}
    is_of_images = metric in ("accuracy", "top5_accuracy", "subset_accuracy") and is_share(metric)
    if is_of_images and 0 <= searched <= 1 and images:
        found["low"], found["high"] = share_interval(searched, images)
    return found


def _test(made: Delivered) -> AutoScore | None:
    """Return the score on the test images, None if they were not scored."""
    if made.confirmed is not None:
        test = made.confirmed["test"]
        return {
            "how": "seeds",
            "metric": made.confirmed["metric"],
            "score": test["mean"],
            "ci95": test["ci95"],
            "scores": test["scores"],
            "images": test["images"],
        }
    known = made.account.get("test")
    if known is None or known["trial"] != made.trial.number:
        return None
    single = known["test"]
    return {
        "how": "images",
        "score": single["score"],
        "low": single["low"],
        "high": single["high"],
        "images": single["images"],
        "metric": known["metric"],
    }


def _baselines(made: Delivered, *, is_tested: bool) -> list[Baseline]:
    """Return the scores to compare the chosen configuration with."""
    record = made.record
    found: list[Baseline] = []
    component = made.trial.candidate.config.component("data")
    metric = record.objectives[0][0]
    try:
        parts: Mapping[str, Split] = {"validation": "val", **({"test": "test"} if is_tested else {})}
        for name, split in parts.items():
            largest = testing.largest_class(component, image_cache(made.files.root), metric, split)
            found += [
                {
                    "name": "always the largest class",
                    "class": largest.name,
                    "on": name,
                    "metric": key,
                    "score": score,
                    "images": largest.images,
                }
                for key, score in largest.scores.items()
            ]
    except DataError:
        # The images were deleted meanwhile; report the model without these baselines.
        found = []
    if (early := made.account.get("baseline")) is not None:
        trial = record.by_number.get(early["trial"])
        if trial is not None and trial.values:
            found.append(_early(trial, early["seconds"], record))
    return found


def _early(trial: Trial, seconds: float, record: Record) -> Baseline:
    return {
        "name": "baseline",
        "trial": trial.number,
        "on": "validation",
        "metric": record.objectives[0][0],
        "score": trial.first_value,
        "images": record.val_images,
        "after": seconds,
    }


def _files(made: Delivered) -> dict[str, str]:
    found = {
        "space": str(made.output.space_file),
        "bundle": str(made.output.bundle),
        "configuration": str(made.output.config),
        "weights": str(made.files.checkpoint(made.trial.number)),
        "study": str(made.files.store),
    }
    return {**found, "report": str(made.output.report)} if made.has_report else found


def _by_hand(made: Delivered) -> list[str]:
    """Return the commands that do the same, step by step."""
    study, trial = made.files.argument, made.trial.number
    commands = [f"imgcls-search run {argument(made.output.space_file)}{made.files.options}"]
    if made.confirmed is not None:
        top, seeds = len(made.confirmed["ranking"]), len(made.confirmed["seeds"]["choosing"])
        commands.append(f"imgcls-search confirm {study} --top {top} --seeds {seeds}")
    return [
        *commands,
        f"imgcls-search export {study} --trial {trial} --bundle {argument(made.output.bundle)}",
        f"imgcls-search report {study} --trial {trial} -o {argument(made.output.report)}",
    ]
