"""Load trained weights and their description, from a study's trial or from a file that `train` saved."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.errors import UNWRITTEN, CheckpointError
from imgcls_search.jobs import finished
from imgcls_search.jobs.export import complete_trial, is_origin, refuse_pretraining
from imgcls_search.measures import is_number, main_measure, share_of_images
from imgcls_search.orchestrator import study_data
from imgcls_search.rounding import measured
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.training import checkpoint
from imgcls_search.trial import Origin, Trial
from imgcls_search.worker import networks
from imgcls_search.worker.finish import find_artifact
from imgcls_search.worker.networks import Member

_SEED = re.compile(r"seed-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained weights and their description."""

    weights: Path
    model: nn.Module
    scored: Artifact | None
    """The exported network, if the training was scored with one."""

    config: TrialConfig
    """The configuration as it was trained."""

    found: TrialConfig
    """The same configuration, with the current path of its images."""

    data: Prepared
    """The images that it was trained on."""

    title: str
    origin: Origin | None
    """The study and trial that its configuration comes from, if known."""

    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """Notes for readers of the scores."""

    tested: Mapping[str, float] | None = None
    """Scores that `train` measured on the test split."""

    seeds: Mapping[str, Any] | None = None
    """The mean test accuracy over several seeds, and its interval."""

    is_held_out: bool = True
    """Whether it is known that no validation image was trained on."""

    members: tuple[Member, ...] = ()
    """The networks of an ensemble; empty for a single network."""


def from_trial(files: StudyFiles, number: int | None, moved_to: Component | None = None) -> Trained:
    """Load the weights of a finished trial, by default the confirmed or else the best one.

    `moved_to` says where its images are now.

    Raises:
        UserError: the images there are of another kind, or the search is over the pretraining.
        DataError: there is no such folder.
        StudyError: there is no such study or trial, or the trial is not finished.
        CheckpointError: its weights are missing or damaged.
        NoResultError: no trial is finished.
    """
    record = study_data.load_with_images(files, moved_to)
    refuse_pretraining(record.objectives, "a bundle")
    trial = complete_trial(files, record, number)
    weights = files.checkpoint(trial.number)
    if not weights.is_file():
        raise CheckpointError(
            f"{weights}: the weights of trial {trial.number} are not kept (study.keep: those of the best); train it "
            f"again: imgcls-search export {files.argument} --trial {trial.number} -o trial.yaml, imgcls-search train "
            "trial.yaml, imgcls-search export trained/trial/seed-1.pt --bundle DIR"
        )
    state = checkpoint.load(weights)
    model, config, data = finished.load_finished(state, str(weights))
    return Trained(
        weights=weights,
        model=model,
        scored=find_artifact(state, weights),
        config=config,
        found=config.moved(trial.candidate.config.component("data").args),
        data=data,
        title=f"{files.name}, trial {trial.number}",
        origin={"study": files.name, "trial": trial.number},
        provenance={
            "study": files.name,
            "trial": trial.number,
            "seed": trial.seed,
            "objectives": _values(record, trial),
            "trials of the search": len(record.trials),
        },
        notes=(
            *_of_a_fold(data),
            "Its configuration was chosen among many by their scores on the validation images, so the score on them is "
            "optimistic; no test image was used.",
        ),
    )


def _of_a_fold(data: Prepared) -> tuple[str, ...]:
    """Return the note about a network that was trained on one of several folds."""
    if not data.folds:
        return ()
    return (
        f"It is the network of the last of {len(data.folds)} folds: {data.counts['val']} of the images outside the "
        "test split were held out to score it, and the scores here are of these. The trial's score is the mean of all "
        "folds. To train one network on all images: export the trial, train it, and export the weights.",
    )


def from_weights(weights: Path, moved_to: Component | None = None) -> Trained:
    """Load weights that `train` saved, with its metrics.json; `moved_to` says where their images are now.

    Raises:
        UserError: the images there are of another kind.
        DataError: there is no such folder.
        CheckpointError: the file is not a trained model of this program, or its exported network is missing.
    """
    state = checkpoint.load(weights)
    model, config, data = finished.load_finished(state, str(weights))
    members, about = networks.read_ensemble(state, str(weights))
    if members:
        return _of_ensemble(weights, model, config, data, members, about, moved_to)
    report = _report(weights)
    named = _SEED.fullmatch(weights.stem)
    seed = named[1] if named else None
    origin = report.get("origin")
    on = trained_portion(weights)
    seen = "were" if on == "train+val" else "may have been"
    notes: list[str] = []
    if on != "train":
        notes.append(f"The validation images {seen} trained on, so the score on them says little.")
    if data.has_several_labels and data.thresholds is None:
        notes.append(
            "No image was left to choose thresholds on: an image has the labels with a probability of at least 0.5."
        )
    elif data.has_several_labels and on == "train+val":
        notes.append("Thresholds are those that the configuration's trial chose on its validation images.")
    return Trained(
        weights=weights,
        model=model,
        scored=find_artifact(state, weights),
        config=config,
        found=study_data.moved(config, moved_to, str(weights)),
        data=data,
        title=f"{weights.parent.name}, {weights.stem}",
        origin=origin,
        provenance={**(origin or {}), "weights": weights.name, "seed": seed or "unknown", "trained on": on},
        notes=tuple(notes),
        tested=report.get("test", {}).get(seed),
        seeds=_spread(report),
        is_held_out=on == "train",
    )


def _of_ensemble(
    weights: Path,
    model: nn.Module,
    config: TrialConfig,
    data: Prepared,
    members: tuple[Member, ...],
    about: Mapping[str, Any],
    moved_to: Component | None,
) -> Trained:
    """Return an ensemble that `ensemble` saved; a metrics.json of `train` in its folder is ignored.

    Raises:
        UserError: the images at `moved_to` are of another kind.
        DataError: there is no such folder.
        CheckpointError: the file is damaged.
    """
    try:
        study, winner, picks, metric = (about[name] for name in ("study", "winner", "picks", "metric"))
        scores = ", ".join(f"{name} {measured(metric, about['validation'][name])}" for name in ("ensemble", "winner"))
    except UNWRITTEN as error:
        raise CheckpointError(f"{weights}: not a trained model of this program ({type(error).__name__})") from error
    shown = ", ".join(f"trial {member.trial} x{member.count}" for member in members)
    return Trained(
        weights=weights,
        model=model,
        scored=None,
        config=config,
        found=study_data.moved(config, moved_to, str(weights)),
        data=data,
        title=f"{study}, ensemble of {picks} picks",
        origin={"study": study, "trial": winner},
        provenance={"study": study, "ensemble": shown, f"validation {metric}": scores, "weights": weights.name},
        notes=(
            *_of_a_fold(data),
            f"It is the mean of the probabilities of {len(members)} networks ({shown}), each calibrated on the "
            "validation images where that helps. They were picked by their score on these images together, so the "
            f"score on them is an optimistic one. `config.yaml` is that of trial {winner}, which alone was the best.",
        ),
        members=members,
    )


def trained_portion(weights: Path) -> str:
    """Return what weights from `train` were trained on: `train` or `train+val`; `unknown` for other weights.

    Raises:
        CheckpointError: the metrics.json beside the weights is damaged.
    """
    return str(_report(weights).get("trained_on", "unknown"))


def _report(weights: Path) -> dict[str, Any]:
    """Return the contents of metrics.json beside the weights; empty if there is no such file.

    Raises:
        CheckpointError: it is damaged.
    """
    path = weights.parent / "metrics.json"
    try:
        report = json.loads(path.read_bytes())
        problem = _problem(report)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read as JSON ({type(error).__name__})"
    if problem is not None:
        raise CheckpointError(f"{path}: damaged, {problem}; put a copy of it back, or move it away to go on without it")
    return dict(report)


def _problem(report: Any) -> str | None:
    """Return what is wrong in a report of `train`; None if all parts that are read are valid."""
    if not isinstance(report, dict):
        return f"it holds a {type(report).__name__}"
    seeds, test, summary = report.get("seeds", []), report.get("test", {}), report.get("summary", {})
    main = main_measure(summary) if isinstance(summary, dict) else ""
    accuracy = summary.get(main, {}) if isinstance(summary, dict) else None
    is_right = {
        "origin": report.get("origin") is None or is_origin(report["origin"]),
        "trained_on": isinstance(report.get("trained_on", ""), str),
        "seeds": isinstance(seeds, list) and all(type(seed) is int for seed in seeds),
        "test": isinstance(test, dict) and all(_are_metrics(one, main if summary else "") for one in test.values()),
        "summary": isinstance(accuracy, dict) and _is_spread(accuracy),
    }
    wrong = [name for name, right in is_right.items() if not right]
    return f"{wrong[0]} is not as train writes it" if wrong else None


def _are_metrics(found: Any, main: str) -> bool:
    """Tell whether a value holds the scores of a training, among them `main` unless that is empty."""
    if not isinstance(found, dict) or not {share_of_images(found), "macro_f1", *filter(None, [main])} <= found.keys():
        return False
    return all(map(is_number, found.values())) and 0 <= found[share_of_images(found)] <= 1


def _is_spread(found: dict[str, Any]) -> bool:
    # A single seed has no interval.
    return is_number(found.get("mean", 0)) and (found.get("ci95") is None or is_number(found["ci95"]))


def _spread(report: Mapping[str, Any]) -> dict[str, Any] | None:
    name = main_measure(report.get("summary", {}))
    accuracy = report.get("summary", {}).get(name, {})
    if accuracy.get("ci95") is None or "mean" not in accuracy or not report.get("test"):
        return None
    values = [metrics[name] for metrics in report["test"].values()]
    found = {"count": len(values), "values": values, "mean": accuracy["mean"], "ci95": accuracy["ci95"]}
    return found if name == "accuracy" else {**found, "measure": name}


def _values(record: Record, trial: Trial) -> str:
    pairs = zip(record.objectives, trial.values or (), strict=True)
    return ", ".join(
        f"{direction} {metric}: {measured(metric, value, record.val_images)}" for (metric, direction), value in pairs
    )
