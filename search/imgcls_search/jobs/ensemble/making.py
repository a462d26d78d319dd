"""Pick an ensemble of a study's networks on the validation images, measure it, and save it as one weights file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from imgcls_search.config import Component
from imgcls_search.data import Images, load
from imgcls_search.deploy.artifact import Artifact, measure_latency, size_kb
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.errors import writing
from imgcls_search.jobs.ensemble.library import Array, KeptNetwork, Library, collect, logits_of, network_of
from imgcls_search.jobs.ensemble.picking import Picked, pick
from imgcls_search.orchestrator import study_data
from imgcls_search.probabilities import sigmoid
from imgcls_search.progress import Say, WorkProgress
from imgcls_search.study.files import StudyFiles
from imgcls_search.training import checkpoint
from imgcls_search.training.metrics_several import choose_thresholds
from imgcls_search.worker import networks
from imgcls_search.worker.finish import LATENCY_IMAGES, find_artifact
from imgcls_search.worker.networks import Member


class Sizes(TypedDict):
    """Sizes and latency of one network, or of several together."""

    params: float
    macs: float
    latency_ms: float
    size_kb: float


class MemberSummary(Sizes):
    """A network of the ensemble."""

    trial: int
    count: int
    score: float
    """Score of this network alone."""

    is_calibrated: bool


class EnsembleSummary(TypedDict):
    """The result of `ensemble`."""

    study: str
    metric: str
    direction: str
    winner: int
    asked_picks: int
    picks: int
    members: list[MemberSummary]
    validation: dict[str, float]
    """The first objective of `ensemble` and of `winner`, and the number of `images`."""

    sizes: dict[str, Sizes]
    """Sizes of `ensemble`, the sum over its networks, and of `winner`."""

    left_out: dict[str, str]
    weights: str


@dataclass(frozen=True, kw_only=True)
class Made:
    """A saved ensemble."""

    library: Library
    weights: Path
    summary: EnsembleSummary


def default_weights(files: StudyFiles) -> Path:
    """Return the default weights file of an ensemble."""
    return files.folder / "ensemble.pt"


def make(
    files: StudyFiles,
    *,
    picks: int,
    winner: int | None,
    weights: Path | None,
    data: Component | None,
    say: Say,
    progress: WorkProgress,
) -> Made:
    """Pick an ensemble from the kept networks of a study, compare it with the best trial, and save it.

    `winner` is the trial to start from and to compare with, by default the confirmed or else the best one; `data` says
    where the study's images are now.

    Raises:
        StudyError: there is no such study, a run works on it, or it keeps too few networks.
        CheckpointError: weights are damaged or missing.
        DataError: the images are missing, or are not those of the study.
        NoResultError: no trial is finished.
    """
    # Fails if there is no such study, before anything is created.
    study_data.load_with_images(files, data)
    path = weights or default_weights(files)
    with files.taken(task="ensemble"):
        # Load again: from now on, no other process changes the study.
        record = study_data.load_with_images(files, data)
        library = collect(files, record, winner, say=say, progress=progress)
        picked = _pick(library, picks, progress)
        _tell_of_folds(library, picked, say)
        members = _members(library, picked)
        ensemble = library.measure(_logits(library, picked.counts))
        sizes = _sizes(library, picked, progress)
        summary = _summarise(library, picked, picks, ensemble, sizes, path)
        _save(library, picked, members, summary, path)
        study_data.note_place(record, library.winner_config)
    return Made(library=library, weights=path, summary=summary)


def _tell_of_folds(library: Library, picked: Picked, say: Say) -> None:
    """Report members whose network is not the one that was scored."""
    members = [library.kept[place] for place in picked.counts]
    numbers = [str(kept.trial.number) for kept in members if kept.config.folds > 1]
    if numbers:
        say(
            f"with folds: {', '.join(numbers)}; only the network of the last fold is in the ensemble, while "
            "the validation scores are of the networks of all folds, each on the images that it was not trained on"
        )


def _pick(library: Library, picks: int, progress: WorkProgress) -> Picked:
    several = library.found.has_several_labels

    def worth(probabilities: Array) -> tuple[float, ...]:
        found = library.measure(logits_of(probabilities, several=several))
        # On few images, many ensembles have the same score; log loss breaks the ties.
        return library.sign * found[library.metric], -found["loss"]

    each = [kept.probabilities for kept in library.kept]
    return pick(
        each,
        picks=picks,
        first=library.first,
        worth=worth,
        on_pick=lambda count: progress("picking", count, picks),
    )


def _logits(library: Library, counts: Mapping[int, int]) -> Array:
    total = sum(counts.values())
    mean = sum(count / total * library.kept[place].probabilities for place, count in counts.items())
    return logits_of(np.asarray(mean), several=library.found.has_several_labels)


def _members(library: Library, picked: Picked) -> list[Member]:
    return [
        Member(
            trial=library.kept[place].trial.number,
            count=count,
            config=library.kept[place].config,
            data=library.kept[place].data,
            temperatures=library.kept[place].calibration.temperatures,
            shapes=library.kept[place].shapes,
        )
        for place, count in picked.counts.items()
    ]


def _sizes(library: Library, picked: Picked, progress: WorkProgress) -> dict[int, Sizes]:
    """Return the sizes of each member by its index, and of the winner at -1; export each temporarily to time it."""
    images = load(library.found, "val")
    # The deployed winner has a separate entry, because it may be quantized.
    found: dict[int, Sizes] = {}
    places = list(picked.counts)
    with tempfile.TemporaryDirectory(prefix="imgcls-search-") as folder:
        for done, place in enumerate(places):
            progress("timing the members", done, len(places) + 1)
            found[place] = _measured(library.kept[place], images, Path(folder) / f"{place}.onnx")
        progress("timing the members", len(places), len(places) + 1)
        kept = library.kept[library.first]
        artifact = find_artifact(checkpoint.load(kept.weights), kept.weights)
        # The winner is the first pick, so it was measured above.
        found[-1] = found[library.first] if artifact is None else _timed(kept, artifact, images)
    return found


def _measured(kept: KeptNetwork, images: Images, path: Path) -> Sizes:
    export_onnx(network_of(kept), path, shape=kept.data.shape, mean=kept.data.mean, std=kept.data.std)
    return _timed(kept, Artifact.load(path), images)


def _timed(kept: KeptNetwork, artifact: Artifact, images: Images) -> Sizes:
    pixels = np.asarray(images.pixels[np.arange(min(LATENCY_IMAGES, len(images.labels)))])
    sizes = kept.trial.sizes
    return {
        "params": sizes["params"],
        "macs": sizes["macs"],
        "latency_ms": measure_latency(artifact, pixels).median_ms,
        "size_kb": size_kb(artifact.path),
    }


def _sum(parts: list[Sizes]) -> Sizes:
    return {
        "params": sum(part["params"] for part in parts),
        "macs": sum(part["macs"] for part in parts),
        "latency_ms": sum(part["latency_ms"] for part in parts),
        "size_kb": sum(part["size_kb"] for part in parts),
    }


def _summarise(
    library: Library, picked: Picked, asked: int, ensemble: Mapping[str, float], sizes: Mapping[int, Sizes], path: Path
) -> EnsembleSummary:
    metric, direction = library.record.objectives[0]
    members: list[MemberSummary] = []
    for place, count in picked.counts.items():
        kept = library.kept[place]
        alone = library.measure(kept.logits)[metric]
        calibrated = kept.calibration.is_kept
        members.append(
            {"trial": kept.trial.number, "count": count, "score": alone, "is_calibrated": calibrated, **sizes[place]}
        )
    return {
        "study": library.files.name,
        "metric": metric,
        "direction": direction,
        "winner": library.winner.number,
        "asked_picks": asked,
        "picks": len(picked.order),
        "members": members,
        "validation": {
            "ensemble": ensemble[metric],
            "winner": library.measure(library.deployed)[metric],
            "images": len(library.labels),
        },
        "sizes": {"ensemble": _sum([sizes[place] for place in picked.counts]), "winner": sizes[-1]},
        "left_out": {str(number): reason for number, reason in library.left_out.items()},
        "weights": str(path),
    }


def _save(
    library: Library,
    picked: Picked,
    members: list[Member],
    summary: EnsembleSummary,
    path: Path,
) -> None:
    """Write the ensemble as a weights file that can be used like that of a single network."""
    first = library.kept[library.first]
    data = replace(first.data, thresholds=_thresholds(library, picked))
    model = networks.join(members, [network_of(library.kept[place]) for place in picked.counts], data)
    more = {name: summary[name] for name in ("study", "winner", "metric", "picks", "validation")}
    state = {
        "model": model.state_dict(),
        **networks.describe_ensemble(library.kept[library.first].config, data, members, more),
    }
    with writing(path):
        checkpoint.save(state, path)


def _thresholds(library: Library, picked: Picked) -> tuple[float, ...] | None:
    """Return the lowest probability at which an image has each label, None with one class per image."""
    if not library.found.has_several_labels:
        return None
    shares = sigmoid(_logits(library, picked.counts))
    return tuple(choose_thresholds(shares, library.labels.astype(bool)).tolist())
