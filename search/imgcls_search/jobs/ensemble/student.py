"""Train one small network from an ensemble, with the same distillation as in a search."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import TypedDict

from imgcls_search import atomic, digests
from imgcls_search.config import TrialConfig
from imgcls_search.errors import StudyError, UserError, writing
from imgcls_search.jobs.ensemble.making import Made
from imgcls_search.jobs.export import find_trial
from imgcls_search.jobs.pretrained import PretrainedNetworks
from imgcls_search.jobs.trainer import Trainer, TrainingWatcher, training_job
from imgcls_search.orchestrator import study_data, teachers
from imgcls_search.trial import Trial


class StudentSummary(TypedDict):
    """A network that learned from an ensemble."""

    trial: int
    """The trial whose configuration it has."""

    seed: int
    validation: float
    """Its score in the study's first objective."""

    params: float
    macs: float
    weights: str


def check_student(out: Path) -> None:
    """Refuse a folder that contains the results of another training.

    Raises:
        StudyError: it contains such results.
        UserError: it cannot be written.
    """
    if (out / "metrics.json").exists():
        raise StudyError(f"{out}: holds the results of a training already; choose another folder with --distill")
    if out.exists():
        with writing(out):
            atomic.check_writable(out / "metrics.json")


def student_config(trial: Trial, teacher: Path) -> TrialConfig:
    """Return a trial's configuration with a weights file as teacher."""
    tree = trial.candidate.config.to_dict()
    known = tree.get("distill", {"none": {}})
    settings = next(iter(known.values()))
    plan = {"path": str(teacher), **{name: settings.get(name, value) for name, value in _SETTINGS.items()}}
    return TrialConfig.from_dict({**tree, "distill": {"file": plan}})


_SETTINGS = {"temperature": 4.0, "alpha": 0.5}
"""Settings of the distillation if the configuration has none: the defaults of a space."""


def distil(made: Made, number: int | None, out: Path, watcher: TrainingWatcher) -> StudentSummary:
    """Train a trial's configuration, by default the best, with an ensemble as teacher; write the weights.

    The ensemble is copied into the folder. Call it again to resume an interrupted training.

    Raises:
        StudyError: there is no such trial, or the folder contains another training.
        BuildError: the trial's network sees other images than the ensemble.
        UserError: the trial has folds.
        NoResultError: the training failed.
    """
    library = made.library
    trial = library.winner if number is None else find_trial(library.record, number)
    if trial.candidate.config.folds > 1:
        raise UserError(
            f"--distill {out}: trial {trial.number} has folds; export it with imgcls-search export "
            f"{library.files.argument} --trial {trial.number} -o FILE, and train it with --set distill=file --set "
            f"{shlex.quote(f'distill.file.path={made.weights}')}"
        )
    check_student(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(library.files.taken(task="ensemble"))
        trainer = stack.enter_context(Trainer(library.files.root, watcher))
        with writing(out):
            stack.enter_context(atomic.making(out))
        # Named by its digest, so that a student of another ensemble does not resume from this one's checkpoint.
        teacher = out / f"ensemble-{digests.of_file(made.weights)[:16]}.pt"
        atomic.copy(made.weights, teacher)
        config = student_config(trial, teacher)
        trainer.hire(config, 1)
        data = trainer.images(config)
        study_data.refuse_other(library.record, config, data, trainer.helper)
        settled = teachers.settle_one(config, library.files.root, library.files.address, None, data, trainer.helper)
        assert settled is not None, "the configuration names one"
        pretrained = PretrainedNetworks.of_study(trainer, library.files, library.record)
        needed = pretrained.needed_by(config, data)
        pretrained.make(needed)
        weights = out / f"seed-{trial.seed}.pt"
        job = training_job(
            0,
            config,
            data,
            seed=trial.seed,
            weights=weights,
            teacher=settled[0],
            backbones=pretrained.files_of(needed),
            metrics=(library.metric,),
        )
        (history,) = trainer.train([job], ["the student"])
        report = {
            "config": config.to_dict(),
            "origin": {"study": library.files.name, "trial": trial.number},
            "trained_on": "train",
            "seeds": [trial.seed],
            "validation": {str(trial.seed): history[-1]},
            "teacher": settled[1],
            "test": {},
            "summary": {},
            "versions": trainer.helper.versions(),
        }
    with writing(out / "metrics.json"):
        atomic.write_text(out / "metrics.json", json.dumps(report, indent=2) + "\n")
    return {
        "trial": trial.number,
        "seed": trial.seed,
        "validation": history[-1][library.metric],
        "params": trial.sizes["params"],
        "macs": trial.sizes["macs"],
        "weights": str(weights),
    }
