"""The results that an earlier worker left for a job: a checkpoint to resume from, or a finished job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from imgcls_search import digests
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import UNWRITTEN, CheckpointError
from imgcls_search.protocol import (
    CheckpointSaved,
    Event,
    Job,
    MilestoneReached,
    Scored,
    Started,
)
from imgcls_search.training import checkpoint
from imgcls_search.worker import pipeline
from imgcls_search.worker.file_contents import Checkpoint


def identity(job: Job) -> str:
    """Return the identity that a checkpoint and its job must share; the location of the images does not matter."""
    return f"{job.config.digest_anywhere()} {job.seed} {job.portion}"


def _belongs_to(job: Job, state: Mapping[str, Any]) -> bool:
    known = state.get("job")
    if known == identity(job):
        return True
    # Earlier versions included the location of the images.
    try:
        config = TrialConfig.from_dict(json.loads(state["about"])["config"])
        then = f"{config.digest()} {job.seed} {job.portion}"
        return bool(known == then and config.digest_anywhere() == job.config.digest_anywhere())
    except UNWRITTEN:
        return False


def read_finished(job: Job) -> list[Event] | None:
    """Return the events of a job that an earlier worker finished without reporting them."""
    state = read_checkpoint(job)[0] if job.artifact else None
    if state is None or "artifact" not in state:
        return None
    artifact = Path(job.artifact)
    if not artifact.is_file() or digests.of_file(artifact) != state["artifact"]:
        return None
    trial, history = job.trial, list(state["history"])
    return [
        Started(trial=trial, history=history),
        CheckpointSaved(trial=trial, epoch=len(history)),
        Scored(trial=trial, epoch=len(history), metrics=state["metrics"], notes=state["notes"]),
        MilestoneReached(trial=trial),
    ]


def read_checkpoint(job: Job) -> tuple[Checkpoint | None, str]:
    """Return the job's saved state, or None and, if there is one that cannot be used, the reason.

    A lost checkpoint only costs time: the same seed gives the same epochs again.
    """
    path = Path(job.checkpoint)
    if not path.exists():
        return None, ""
    try:
        state = checkpoint.load(path)
    except CheckpointError as error:
        return None, str(error)
    if not _belongs_to(job, state):
        return None, "its checkpoint is of another training"
    if not _is_of_same_images(job, state):
        return None, "its checkpoint was trained on other images"
    return cast(Checkpoint, state), ""


def _is_of_same_images(job: Job, state: Mapping[str, Any]) -> bool:
    try:
        known = Prepared.from_dict(json.loads(state["about"])["data"])
        prints = known.prints
    except UNWRITTEN:
        return False
    return pipeline.has_prints(job.config, Prepared.from_dict(job.data), prints)
