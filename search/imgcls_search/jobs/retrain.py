"""Train a final model: one configuration with several seeds, then scored on the test split."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from imgcls_search import atomic
from imgcls_search.confidence import Interval, interval
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, must_be_apart, must_exist
from imgcls_search.errors import CheckpointError, StudyError, UserError, writing
from imgcls_search.executors.helper import Helper
from imgcls_search.jobs.export import now
from imgcls_search.jobs.pace import numbered
from imgcls_search.jobs.pretrained import of_configuration
from imgcls_search.jobs.trainer import Trainer, TrainingWatcher, training_job, working_alone
from imgcls_search.measures import THRESHOLD
from imgcls_search.orchestrator import named_classes, study_data, teachers, weights_used
from imgcls_search.protocol import Portion
from imgcls_search.study.address import Address
from imgcls_search.study.facts import ChangedTest, DataFact, KnownTeacher, Opening
from imgcls_search.study.files import find_study
from imgcls_search.study.record import Record, load
from imgcls_search.trial import Origin


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train, how often, and where to write the results."""

    config: TrialConfig
    seeds: Sequence[int]
    portion: Portion
    out: Path
    studies: Path
    """Folder of studies and decoded images."""

    origin: Origin | None
    """The study and trial that the configuration was exported from, if known."""

    locate: Callable[[str], str] = lambda path: "the configuration"
    """Returns the place in a file at which a path of the configuration was set."""

    at: Address | None = None
    """The database server of the studies, if they are on one."""


class NotedOpening(Opening):
    """An opening of the test split."""

    noted_in_study: bool
    """Whether the study of the configuration has recorded it."""


class _TrainingReport(TypedDict):
    config: dict[str, Any]
    origin: Origin | None
    trained_on: Portion
    seeds: list[int]
    images: dict[str, int]
    fingerprint: str
    validation: dict[str, dict[str, float]]
    """Metrics of the last epoch, by seed."""

    test: dict[str, dict[str, float]]
    """Metrics by seed."""

    summary: dict[str, Interval]
    """Test scores by metric."""

    versions: dict[str, str]


class TrainingReport(_TrainingReport, total=False):
    """The contents of `metrics.json` beside trained weights."""

    teacher: KnownTeacher
    test_openings: list[NotedOpening]


def train(training: Training, watcher: TrainingWatcher) -> TrainingReport:
    """Train with every seed, save the weights, open the test split once and write `metrics.json`.

    Raises:
        UserError: the configuration, the data or the folder cannot be used.
        NoResultError: a training diverged or failed.
    """
    if (folds := training.config.folds) > 1:
        training = replace(training, portion="train+val")
        watcher.say(
            f"folds: {folds}: each seed trains one network on all images outside the test split, for as many epochs as "
            f"each fold had ({training.config.epochs // folds})"
        )
    component = training.config.component("data")
    must_exist(component)
    must_be_apart(component, training.studies, "--studies")
    must_be_apart(component, training.out, "--out")
    with _claimed(training.out):
        return _train(training, watcher)


def _train(training: Training, watcher: TrainingWatcher) -> TrainingReport:
    with Trainer(training.studies, watcher) as trainer:
        trainer.hire(training.config, len(training.seeds))
        helper = trainer.helper
        _refuse_other_images(training, helper)
        data = _with_thresholds(training, trainer.images(training.config), watcher)
        for line in named_classes.refuse_unknown(training.config.to_dict(), data.classes, training.locate):
            watcher.say(line)
        helper.measure(training.config, data.shape)
        if training.config.component("model").args.get("weights") not in (None, weights_used.BY_LIBRARY):
            # A line tells if they were trained on images of another size.
            helper.fetch_weights(training.config, data.shape, watcher.say)
        taught = teachers.settle_one(training.config, training.studies, training.at, training.origin, data, helper)
        teacher = taught[0] if taught is not None else None
        pretrained = of_configuration(trainer, data, training.origin, training.at)
        needed = pretrained.needed_by(training.config, data, portion=training.portion)
        pretrained.make(needed)
        jobs = [
            training_job(
                number,
                training.config,
                data,
                seed=seed,
                weights=weights_path(training.out, seed),
                teacher=teacher,
                backbones=pretrained.files_of(needed),
                portion=training.portion,
            )
            for number, seed in enumerate(training.seeds)
        ]
        histories = dict(zip(training.seeds, trainer.train(jobs, numbered("seed", len(jobs))), strict=True))
        watcher.say("scoring the test split")
        versions = helper.versions()
    record = _study_of(training, watcher)
    # From here on, the test split is open; record that in the study too.
    opening = Opening(by="train", at=now(), seeds=list(training.seeds), portion=training.portion)
    if (changed := _look_for_other_test(training, record, data)) is not None:
        opening["test_changed"] = changed[0]
        watcher.say(changed[1])
    is_noted = _note_opening(training, record, opening, watcher)
    report = _report(training, data, histories, versions)
    if taught is not None:
        report["teacher"] = taught[1]
    report["test_openings"] = [{**opening, "noted_in_study": is_noted}]
    metrics = training.out / "metrics.json"
    with writing(metrics):
        atomic.write_text(metrics, json.dumps(report, indent=2) + "\n")
    return report


def weights_path(out: Path, seed: int) -> Path:
    """Return the weights file of a seed."""
    return out / f"seed-{seed}.pt"


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Create the folder of the results, for this process alone; a refused training leaves no folder behind."""
    if (out / "metrics.json").exists():
        raise StudyError(f"{out}: holds the results of a training already; choose another folder with --out")
    with contextlib.ExitStack() as stack:
        with writing(out):
            stack.enter_context(atomic.making(out))
            atomic.check_writable(out / "metrics.json")
        busy = f"{out}: another process is training there; wait until it ends, or choose another folder with --out"
        stack.enter_context(working_alone(out / ".lock", busy))
        yield


def _refuse_other_images(training: Training, helper: Helper) -> None:
    """Refuse to resume trainings of an earlier call on other images.

    Raises:
        StudyError: an earlier training used other images.
    """
    for seed in training.seeds:
        path = weights_path(training.out, seed)
        try:
            known = helper.describe_weights(path)
        except CheckpointError:
            # Missing or damaged: train from the start.
            continue
        if not helper.has_prints(training.config, known.prints):
            raise StudyError(
                f"{path}: was trained on other images than are there now (then {dict(known.counts)}, fingerprint "
                f"{known.fingerprint}); put them back, choose another folder with --out, or delete {training.out} to "
                "train from the start"
            )


def _report(
    training: Training,
    data: Prepared,
    histories: Mapping[int, Sequence[Mapping[str, float]]],
    versions: Mapping[str, str],
) -> TrainingReport:
    # Imported late: until the workers are done, this process needs no torch.
    from imgcls_search.jobs.evaluate import read_network
    from imgcls_search.jobs.evaluation import measure_on

    test: dict[int, dict[str, float]] = {}
    for seed in training.seeds:
        path = weights_path(training.out, seed)
        network, config, known = read_network(path)
        # The images may have moved since the training.
        config = config.moved(training.config.component("data").args)
        # Networks with pretrained weights use the normalisation of these weights.
        seen = replace(data, mean=known.mean, std=known.std, thresholds=known.thresholds)
        test[seed] = measure_on(network, config, seen, "test").metrics
    names = list(test[training.seeds[0]])
    return {
        "config": training.config.to_dict(),
        "origin": training.origin,
        "trained_on": training.portion,
        "seeds": list(training.seeds),
        "images": dict(data.counts),
        "fingerprint": data.fingerprint,
        "validation": {str(seed): dict(history[-1]) for seed, history in histories.items() if history},
        "test": {str(seed): metrics for seed, metrics in test.items()},
        "summary": {name: interval([test[seed][name] for seed in training.seeds]) for name in names},
        "versions": dict(versions),
    }


def _with_thresholds(training: Training, data: Prepared, watcher: TrainingWatcher) -> Prepared:
    """Return the data with thresholds of its labels, if no image is left to choose them on.

    They are those that the exported trial chose on its validation images, else 0.5; a message says which.
    """
    if not data.has_several_labels or training.portion == "train":
        return data
    cuts = None
    if training.origin is not None:
        with contextlib.suppress(UserError, KeyError):
            record = load(find_study(training.studies, training.origin["study"], training.at))
            trial = record.by_number[training.origin["trial"]]
            measured = trial.scores.get(trial.epoch) or trial.epochs[-1]
            cuts = tuple(measured[f"{THRESHOLD}:{name}"] for name in data.classes)
            watcher.say(
                f"thresholds of the labels are those of study {training.origin['study']!r}, trial {trial.number}: no "
                "validation image is left to choose them on"
            )
    if cuts is None:
        watcher.say("thresholds of the labels are 0.5 each: no validation image is left to choose them on")
    return replace(data, thresholds=cuts)


def _study_of(training: Training, watcher: TrainingWatcher) -> Record | None:
    """Return the study that a configuration was exported from, None if there is none or it cannot be found."""
    if training.origin is None:
        return None
    try:
        return load(find_study(training.studies, training.origin["study"], training.at))
    except UserError as error:
        watcher.say(_not_noted(error))
        return None


def _look_for_other_test(training: Training, record: Record | None, data: Prepared) -> tuple[ChangedTest, str] | None:
    """Return the fact and the message about a test split that has changed since the study or the training began."""
    from imgcls_search.jobs.evaluate import read_network

    known: list[tuple[DataFact, str]] = []
    if record is not None:
        known.append((record.fact("data"), f"study {record.study.study_name!r} began"))
    for seed in training.seeds:
        _, _, trained_on = read_network(weights_path(training.out, seed))
        known.append((study_data.as_fact(trained_on), f"seed {seed} was trained"))
    component, cache = training.config.component("data"), Path(data.folder).parent
    found = (study_data.look_for_other_test(component, cache, facts, since) for facts, since in known)
    return next((changed for changed in found if changed is not None), None)


def _note_opening(training: Training, record: Record | None, opening: Opening, watcher: TrainingWatcher) -> bool:
    """Record in the study that its test split was opened; return False if there is none or it cannot be written."""
    if record is None or training.origin is None:
        return False
    try:
        record.append_fact("test_openings", {**opening, "trial": training.origin["trial"]})
    except UserError as error:
        watcher.say(_not_noted(error))
        return False
    return True


def _not_noted(error: UserError) -> str:
    return f"the opening of the test split is noted in metrics.json and not in a study: {error}"
