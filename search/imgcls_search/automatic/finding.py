"""What `auto` found, as plain values for a screen or a script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls_search.automatic import testing
from imgcls_search.automatic.request import Delivered
from imgcls_search.confidence import share_interval
from imgcls_search.data import Split
from imgcls_search.errors import DataError
from imgcls_search.executors.helper import image_cache
from imgcls_search.measures import is_share
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import Confirmation, SingleScore
from imgcls_search.trial import Trial


def describe(made: Delivered, options: str) -> dict[str, Any]:
    """Return what was found; `options` are those that every command about the study needs."""
    record, trial = made.record, made.trial
    metric, direction = record.objectives[0]
    study = shlex.quote(made.files.name)
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
        "test": _test(made),
        "test_openings": len(record.facts.get("test_openings", [])),
        "baselines": _baselines(made),
        "decisions": [one.to_dict() for one in made.decisions],
        "time": {"given": made.account["given"], "spent": dict(made.account["spent"])},
        "files": _files(made),
        "bundled": made.account.get("bundled"),
        "next": {
            "predict": f"imgcls-search predict {_quoted(made.place.bundle)} IMAGES...",
            "more time": "the same command with a longer --time",
            "retrain": f"imgcls-search train {_quoted(made.place.config)} --seeds 3{options}",
            "look": f"imgcls-search dashboard {study}{options}",
        },
        "by_hand": _by_hand(made, options),
    }


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _validation(made: Delivered) -> dict[str, Any]:
    """Return the score of the chosen configuration on the images by which trials were compared."""
    record, trial = made.record, made.trial
    metric = record.objectives[0][0]
    assert trial.values is not None
    searched = {"searched": trial.values[0], "images": record.val_images}
    if made.confirmed is not None:
        return {**searched, **_of_seeds(made.confirmed)}
    known = made.account.get("test")
    if known is not None and known["trial"] == trial.number and known["metric"] == metric:
        return {**searched, **_of_images(known["validation"]), "score": trial.values[0]}
    found = {**searched, "how": "searched", "score": trial.values[0]}
    if metric in ("accuracy", "top5_accuracy", "subset_accuracy") and is_share(metric) and record.val_images:
        low, high = share_interval(trial.values[0], record.val_images)
        found |= {"low": low, "high": high}
    return found


def _of_seeds(found: Confirmation) -> dict[str, Any]:
    fresh = found["confirmed"]
    return {"how": "seeds", "score": fresh["mean"], "ci95": fresh["ci95"], "scores": found["scores"]}


def _of_images(found: SingleScore) -> dict[str, Any]:
    return {"how": "images", **found}


def _test(made: Delivered) -> dict[str, Any] | None:
    """Return the score on the sealed images, None where there are none."""
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
    return {**_of_images(known["test"]), "metric": known["metric"]}


def _baselines(made: Delivered) -> list[dict[str, Any]]:
    """Return what the chosen configuration is to be compared with."""
    record = made.record
    found: list[dict[str, Any]] = []
    component = made.trial.candidate.config.component("data")
    metric = record.objectives[0][0]
    try:
        parts: Mapping[str, Split] = {"validation": "val", "test": "test"}
        for name, split in parts.items():
            if record.fact("data")["images"].get(split):
                label, scores = testing.largest_class(component, image_cache(made.files.root), metric, split)
                entry = {"name": "always the largest class", "class": label, "on": name}
                found += [{**entry, "metric": key, "score": score} for key, score in scores.items()]
    except DataError:
        # The images have gone since; the model is there.
        found = []
    if (early := made.account.get("baseline")) is not None:
        found.append(_early(record.by_number[early["trial"]], early["seconds"], record))
    return found


def _early(trial: Trial, seconds: float, record: Record) -> dict[str, Any]:
    assert trial.values is not None
    return {
        "name": "baseline",
        "trial": trial.number,
        "on": "validation",
        "metric": record.objectives[0][0],
        "score": trial.values[0],
        "after": seconds,
    }


def _files(made: Delivered) -> dict[str, str]:
    found = {
        "space": str(made.place.space_file),
        "bundle": str(made.place.bundle),
        "configuration": str(made.place.config),
        "weights": str(made.files.checkpoint(made.trial.number)),
        "study": str(made.files.store),
    }
    return {**found, "report": str(made.place.report)} if made.has_report else found


def _by_hand(made: Delivered, options: str) -> list[str]:
    """Return the commands that do the same, step by step."""
    study, trial = shlex.quote(made.files.name), made.trial.number
    commands = [f"imgcls-search run {_quoted(made.place.space_file)}{options}"]
    if made.confirmed is not None:
        top, seeds = len(made.confirmed["ranking"]), len(made.confirmed["seeds"]["choosing"])
        commands.append(f"imgcls-search confirm {study} --top {top} --seeds {seeds}{options}")
    return [
        *commands,
        f"imgcls-search export {study} --trial {trial} --bundle {_quoted(made.place.bundle)}{options}",
        f"imgcls-search report {study} --trial {trial} -o {_quoted(made.place.report)}{options}",
    ]
