"""Pretrain one network without labels, and write a weights file for the setting `weights`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls_search import atomic
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, must_be_apart, must_exist
from imgcls_search.data.unlabeled import look_for_unlabeled
from imgcls_search.errors import CheckpointError, UserError, writing
from imgcls_search.executors.helper import Helper
from imgcls_search.jobs.trainer import Trainer, TrainingWatcher, working_alone
from imgcls_search.orchestrator import teachers
from imgcls_search.protocol import Job
from imgcls_search.study.address import Address
from imgcls_search.trial import Origin
from imgcls_search.worker.pretrained_file import AboutBackbone, PretrainingNote


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What to pretrain, and where to write the weights."""

    config: TrialConfig
    """The whole configuration; settings for training on labels are ignored."""

    out: Path
    seed: int
    studies: Path
    """Folder of studies and decoded images."""

    origin: Origin | None = None
    """The study and trial that the configuration was exported from, if known."""

    at: Address | None = None
    """The database server of the studies, if they are on one."""


class PretrainedWeights(PretrainingNote):
    """The written weights file and its description."""

    weights: str
    """The path of the file."""

    config: Mapping[str, Any]


def pretrain(pretraining: Pretraining, watcher: TrainingWatcher) -> PretrainedWeights:
    """Pretrain a network or resume it, write its weights and return their description.

    Raises:
        UserError: the configuration, the images or the file cannot be used.
        NoResultError: the training diverged, collapsed or failed.
    """
    config, out = pretraining.config.pretraining(), pretraining.out
    must_exist(config.component("data"))
    must_be_apart(config.component("data"), pretraining.studies, "--studies")
    look_for_unlabeled(config)
    with contextlib.ExitStack() as stack:
        with writing(out):
            stack.enter_context(atomic.making(out.parent))
            atomic.check_writable(out)
        busy = f"{out}: another process is pretraining it; wait until it ends, or choose another file with -o"
        stack.enter_context(working_alone(out.with_name(f".{out.name}.lock"), busy))
        trainer = stack.enter_context(Trainer(pretraining.studies, watcher))
        # The worker imports torch while the images are read.
        devices = trainer.hire(pretraining.config, 1)
        helper = trainer.helper
        data = trainer.images(config)
        helper.measure(config, data.shape)
        prints, lines = helper.open_unlabeled(config, data, None, watcher.decoding)
        for line in lines:
            watcher.say(line)
        if data.folds:
            watcher.say(
                "folds: images of all folds take part, so that scores by folds of networks that start from these "
                "weights are too high; a search with pretrain makes one network for each fold"
            )
        known = _known(out, helper)
        job = _job(pretraining, config, data, helper)
        if known is None:
            watcher.say(f"pretraining on {devices[0]}: {_named(config)}, {config.epochs} epochs")
            trainer.train([job], ["the pretraining"])
            known = helper.describe_backbone(out)
        elif not _is_of(known, job, prints):
            raise UserError(
                f"{out}: holds other weights ({_shown(known)}); choose another file with -o, or delete it to pretrain "
                "again"
            )
        else:
            watcher.say(f"{out}: was pretrained already")
    with contextlib.suppress(OSError):
        Path(job.checkpoint).unlink(missing_ok=True)
    return {"weights": str(out), **known["pretrained"], "config": known["config"]}


def _known(out: Path, helper: Helper) -> AboutBackbone | None:
    """Return the description in an earlier call's file, None if there is no file.

    Raises:
        CheckpointError: the file was not written by a pretraining.
    """
    if not out.exists():
        return None
    try:
        return helper.describe_backbone(out)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; choose another file with -o") from None


def _is_of(known: AboutBackbone, job: Job, prints: str) -> bool:
    made, found = TrialConfig.from_dict(known["config"]), known["pretrained"]
    has_its_teacher = found["teacher"] in (None, job.teacher_digest)
    asked = job.config.digest_anywhere(), prints, job.seed
    return has_its_teacher and (made.digest_anywhere(), found["prints"], found["seed"]) == asked


def _job(pretraining: Pretraining, config: TrialConfig, data: Prepared, helper: Helper) -> Job:
    taught = teachers.settle_one(config, pretraining.studies, pretraining.at, pretraining.origin, data, helper)
    out = pretraining.out
    return Job(
        trial=0,
        config=config,
        data=data.to_dict(),
        seed=pretraining.seed,
        portion="train",
        until_epoch=config.epochs,
        from_epoch=0,
        checkpoint=str(out.with_name(f"{out.name}.part")),
        log=str(out.with_suffix(".log")),
        artifact=str(out),
        teacher=taught[0] if taught is not None else None,
        teacher_digest=taught[1]["sha256"] if taught is not None else None,
    )


def _named(config: TrialConfig) -> str:
    return f"{config.component('model').name} by {config.component('pretrain').name}"


def _shown(known: AboutBackbone) -> str:
    made, found = TrialConfig.from_dict(known["config"]), known["pretrained"]
    taught = "" if found["teacher"] is None else f", teacher {found['teacher'][:12]} (sha256)"
    return f"{_named(made)}, {found['epochs']} epochs, {found['images']:,} images, seed {found['seed']}{taught}"
