"""The networks of a study that an ensemble can use, with their predictions on the validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search import costs
from imgcls_search.compress.prune import Shapes
from imgcls_search.compress.sections import quantization
from imgcls_search.config import TrialConfig
from imgcls_search.data import Images, Prepared, load
from imgcls_search.errors import CheckpointError, DataError, StudyError, UserError
from imgcls_search.executors.helper import image_cache
from imgcls_search.image_size import by
from imgcls_search.jobs import finished
from imgcls_search.jobs.confirm import refuse_untrained
from imgcls_search.jobs.export import complete_trial
from imgcls_search.measures import CORRUPTION, sign_of
from imgcls_search.orchestrator import study_data
from imgcls_search.probabilities import probabilities_of
from imgcls_search.progress import Say, WorkProgress
from imgcls_search.study import best
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.training import calibration, checkpoint
from imgcls_search.training.calibration import Calibration
from imgcls_search.training.device import available_devices, move
from imgcls_search.training.evaluation import predict
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.trial import Trial
from imgcls_search.words import counted
from imgcls_search.worker import cross_validation, finish, image_sets, networks, pipeline

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class KeptNetwork:
    """A trial with kept weights, and its network's predictions on the validation images."""

    trial: Trial
    weights: Path
    config: TrialConfig
    """The configuration as it was trained."""

    data: Prepared
    """The images as the network sees them."""

    shapes: Shapes | None
    """Shapes of layers that structured pruning has changed."""

    logits: Array
    """[N, classes]; with folds, those of each image come from the network that was trained without it."""

    calibration: Calibration

    @cached_property
    def probabilities(self) -> Array:
        """[N, classes], calibrated if that helps."""
        several = self.data.has_several_labels
        return probabilities_of(self.calibration.applied(self.logits), several=several)


@dataclass(frozen=True, kw_only=True)
class Library:
    """The networks of a study that an ensemble can use."""

    files: StudyFiles
    record: Record
    winner: Trial
    kept: tuple[KeptNetwork, ...]
    """Includes the winner."""

    deployed: Array
    """Logits of the winner as deployed on the validation images: from the quantized file, if there is one."""

    labels: Array
    """Labels of the validation images."""

    found: Prepared
    """The images, at the winner's image size."""

    left_out: Mapping[int, str] = field(default_factory=dict)
    """Trials with kept weights that cannot be used, with the reason."""

    @property
    def first(self) -> int:
        """The index of the winner in `kept`."""
        return next(place for place, kept in enumerate(self.kept) if kept.trial is self.winner)

    @property
    def metric(self) -> str:
        """The first objective."""
        return self.record.objectives[0][0]

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return sign_of(self.record.objectives[0][1])

    @property
    def winner_config(self) -> TrialConfig:
        """The winner's configuration, with the current path of its images."""
        return self.winner.candidate.config

    def measure(self, logits: Array) -> dict[str, float]:
        """Return the scores on the validation images; with several labels, thresholds are chosen on them."""
        wanted = Wanted(
            classes=self.found.classes, named=(self.metric,), costs=costs.of(self.winner_config.tree), is_full=False
        )
        return score(logits, self.labels, wanted)


def logits_of(probabilities: Array, *, several: bool) -> Array:
    """Return logits whose softmax, or sigmoids with several labels, are the probabilities [N, classes]."""
    shares = np.log(np.clip(probabilities, 1e-12, 1.0))
    found: Array = shares - np.log(np.clip(1 - probabilities, 1e-12, 1.0)) if several else shares
    return found


def collect(files: StudyFiles, record: Record, number: int | None, *, say: Say, progress: WorkProgress) -> Library:
    """Collect the networks of a study that can form an ensemble with its best trial.

    `number` names a trial to use instead of the best; it is required if several are on the front.

    Raises:
        StudyError: fewer than two networks are kept and see the same images.
        CheckpointError: weights are damaged, or those of the best trial are missing.
        DataError: the images are missing, or are not those of the study.
        NoResultError: no trial is finished.
    """
    refuse_untrained(record, "ensemble")
    metric, _ = record.objectives[0]
    if metric == CORRUPTION:
        raise UserError(
            f"the first objective is {metric}, of worse pictures; ensemble picks by what is measured on the images "
            "as they are"
        )
    winner = _winner(files, record, number)
    there = _with_weights(files, record, winner)
    component = winner.candidate.config.component("data")
    study_data.must_be_there(component)
    study_data.refuse_other_unopened(record, component, image_cache(files.root))
    states = {trial.number: _read(files, trial) for trial in there}
    reference = states[winner.number]
    left_out = {
        number: reason
        for number, found in states.items()
        if (reason := _other_images(found.data, reference.data, winner.number)) is not None
    }
    taking_part = [trial for trial in there if trial.number not in left_out]
    _refuse_too_few(files, there, taking_part, left_out)
    found = pipeline.prepare_data(reference.config.moved(component.args), image_cache(files.root), say=say)
    if found.classes != reference.data.classes:
        raise DataError(f"{component.path}: the images have other classes now than when the study was searched")
    validation = load(found, "val")
    kept: list[KeptNetwork] = []
    labels: Array | None = None
    for done, trial in enumerate(taking_part):
        progress("running the kept networks on the validation images", done, len(taking_part))
        logits, truth = _answers(files, trial, states[trial.number], validation)
        if labels is not None and not np.array_equal(labels, truth):
            raise CheckpointError(
                f"{files.checkpoint(trial.number)}: its predictions are of other images than those of trial "
                f"{kept[0].trial.number}"
            )
        labels = truth
        if quantization(trial.candidate.config) is not None:
            say(f"trial {trial.number} is quantized; its weights before quantization are used")
        kept.append(_kept(files, trial, states[trial.number], logits, truth))
    assert labels is not None, "there are two at least"
    own = next(one for one in kept if one.trial is winner)
    return Library(
        files=files,
        record=record,
        winner=winner,
        kept=tuple(kept),
        deployed=_deployed(own, validation),
        labels=labels,
        found=found,
        left_out=left_out,
    )


def network_of(kept: KeptNetwork) -> Any:
    """Return the network of a trial, before quantization."""
    return networks.load_finished(checkpoint.load(kept.weights), str(kept.weights))[0]


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """Description of a network in the file of a trial, without the weights."""

    config: TrialConfig
    data: Prepared
    shapes: Shapes | None


def _winner(files: StudyFiles, record: Record, number: int | None) -> Trial:
    winner = complete_trial(files, record, number)
    if not files.checkpoint(winner.number).is_file():
        raise CheckpointError(
            f"{files.checkpoint(winner.number)}: the weights of trial {winner.number} are not kept (study.keep: those "
            "of the best), so that no ensemble can be compared with it"
        )
    return winner


def _with_weights(files: StudyFiles, record: Record, winner: Trial) -> list[Trial]:
    """Return the complete trials with kept weights, best first."""
    ranked = best.ranked(record)
    if winner not in ranked:
        # The caller named it, but it is over a limit.
        ranked = [winner, *ranked]
    return [trial for trial in ranked if files.checkpoint(trial.number).is_file()]


def _read(files: StudyFiles, trial: Trial) -> _Saved:
    path = files.checkpoint(trial.number)
    state = checkpoint.load(path)
    _, config, data = finished.load_finished(state, str(path))
    return _Saved(config=config, data=data, shapes=networks.shapes_of(state))


def _other_images(data: Prepared, reference: Prepared, winner: int) -> str | None:
    """Return how a network's images differ from the winner's, None if they do not."""
    if data.classes != reference.classes or data.has_several_labels != reference.has_several_labels:
        return f"it knows other classes than trial {winner}"
    ours, theirs = data.frame, reference.frame
    if (ours.channels, ours.size) != (theirs.channels, theirs.size):
        return (
            f"it takes {by(ours.size)} pixels of {counted('channel', ours.channels)}, trial {winner} takes "
            f"{by(theirs.size)} of {theirs.channels}"
        )
    if ours.settings() != theirs.settings():
        return f"it sees images brought to their size in another way than trial {winner}"
    return None


def _refuse_too_few(
    files: StudyFiles, there: list[Trial], taking_part: list[Trial], left_out: Mapping[int, str]
) -> None:
    if len(taking_part) > 1:
        return
    if len(there) > 1:
        number, reason = next(iter(left_out.items()))
        more = f", and so on for {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise StudyError(
            f"study {files.name!r}: no network can join that of trial {taking_part[0].number}: trial {number}: "
            f"{reason}{more}; allowed: trials whose networks see the same images"
        )
    raise StudyError(
        f"study {files.name!r} keeps the weights of one finished trial, {there[0].number}; an ensemble needs two or "
        "more: search with study.keep of at least 2"
    )


def _answers(files: StudyFiles, trial: Trial, saved: _Saved, validation: Images) -> tuple[Array, Array]:
    """Return the logits [N, classes] of a trial's network on the validation images, and their labels.

    With folds, these are the stored logits of all images outside the test split, each from the network of its fold.
    """
    path = files.checkpoint(trial.number)
    state = checkpoint.load(path)
    if cross_validation.KEY in state:
        kept = cross_validation.read_out_of_fold(state, str(path))
        return kept.logits, np.asarray(kept.labels)
    model = networks.load_finished(state, str(path))[0]
    device = available_devices(saved.config.section("training")["device"])[0]
    logits = predict(move(model, device), image_sets.on_device(validation, saved.data, device))
    return logits, np.asarray(validation.labels)


def _kept(files: StudyFiles, trial: Trial, saved: _Saved, logits: Array, labels: Array) -> KeptNetwork:
    if not np.isfinite(logits).all():
        raise CheckpointError(f"{files.checkpoint(trial.number)}: its network gives NaN or infinite logits")
    return KeptNetwork(
        trial=trial,
        weights=files.checkpoint(trial.number),
        config=saved.config,
        data=saved.data,
        shapes=saved.shapes,
        logits=logits,
        calibration=calibration.calibrate(logits, labels),
    )


def _deployed(kept: KeptNetwork, validation: Images) -> Array:
    """Return the logits of the winner as deployed, which differ from its network's if it is quantized."""
    state = checkpoint.load(kept.weights)
    if quantization(kept.config) is None or cross_validation.KEY in state:
        return kept.logits
    artifact = finish.find_artifact(state, kept.weights)
    return kept.logits if artifact is None else finish.logits(artifact, validation)
