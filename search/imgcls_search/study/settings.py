"""The settings of the `study` and `limits` sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from imgcls_search.signature import Arg
from imgcls_search.study import endings


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How much to search, and what to keep."""

    trials: Annotated[int, Arg("total number of trials, over all runs of the study", ge=1, fixed=True)] = 40
    timeout: Annotated[float | None, Arg("time that one call of `run` may take", gt=0, fixed=True, duration=True)] = (
        None
    )
    epoch_timeout: Annotated[
        float | None,
        Arg("time that an epoch may take before its worker is replaced; null: any", gt=0, fixed=True, duration=True),
    ] = 7200.0
    trial_timeout: Annotated[
        float | None, Arg("training time after which a trial fails; null: any", gt=0, fixed=True, duration=True)
    ] = None
    max_epochs: Annotated[
        int | None, Arg("epochs that all trials together may train, over all runs of the study", ge=1, fixed=True)
    ] = None
    target: Annotated[
        float | None, Arg("stop when a complete trial reaches this value of the first objective", fixed=True)
    ] = None
    min_gain: Annotated[
        float | None,
        Arg("stop when doubling the number of trials is likely to gain less; null: never", gt=0, fixed=True),
    ] = None
    seed: Annotated[int, Arg("seed of all random draws of the search", ge=0, le=2**31 - 1, fixed=True)] = 0
    learn_from: Annotated[
        Literal["auto", "none"] | tuple[str, ...],
        Arg(
            "earlier studies that a new one learns from: those in its folder or database that search the same "
            "settings, those of these names, or none",
            fixed=True,
        ),
    ] = "auto"
    name: Annotated[
        str | None, Arg("name of the study; default: from the names of the file and of the data or folder", fixed=True)
    ] = None
    storage: Annotated[
        str | None, Arg("address of a PostgreSQL database for the study; null: an SQLite file", fixed=True)
    ] = None
    workers: Annotated[
        int | None, Arg("trials at a time; default: one per CPU core, or one per GPU", ge=1, fixed=True)
    ] = None
    retries: Annotated[
        int, Arg("how many workers may die during a trial without writing a new checkpoint", ge=0, fixed=True)
    ] = 2
    keep: Annotated[int, Arg("number of best trials whose weights are kept", ge=0, fixed=True)] = 3
    pictures: Annotated[
        bool, Arg("draw pictures for the dashboard of trials ranked in the top `keep` when they finish", fixed=True)
    ] = True
    disk_gb: Annotated[float, Arg("largest size of all checkpoints together, GB", gt=0, fixed=True)] = 10.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits: the first three are checked before any training, the others on the exported network of a trial."""

    params: Annotated[float | None, Arg("largest number of parameters", gt=0, fixed=True)] = None
    macs: Annotated[float | None, Arg("largest number of multiply-accumulates for one image", gt=0, fixed=True)] = None
    memory: Annotated[
        float | None, Arg("largest estimated peak memory in training, bytes, 32-bit arithmetic", gt=0, fixed=True)
    ] = None
    latency_ms: Annotated[
        float | None, Arg("longest time for one image, milliseconds; a trial over it is not best", gt=0, fixed=True)
    ] = None
    size_kb: Annotated[
        float | None, Arg("largest file, kilobytes of 1,024 bytes; a trial over it is not best", gt=0, fixed=True)
    ] = None


FREE_TO_CHANGE = (
    *endings.LIMITS,
    "study.trials",
    "study.workers",
    "study.retries",
    "study.epoch_timeout",
    "study.trial_timeout",
    "study.keep",
    "study.disk_gb",
    "study.pictures",
    "study.learn_from",
    "study.name",
    "study.storage",
    "study.log",
    "study.log.tensorboard.folder",
    "study.log.mlflow.uri",
    "study.log.mlflow.experiment",
    "study.log.wandb.project",
    "study.log.wandb.entity",
    "study.log.wandb.mode",
    "study.log.wandb.folder",
    "training.device",
    "training.devices",
    "image.cache_gb",
)
"""Settings that may differ between runs of a study; a change of any other would mix two searches in one table."""

OF_POPULATION = ("cmaes", "nsga2")
"""Samplers that keep their state with the trials; it fits neither another space nor another sampler."""


def is_free(path: str) -> bool:
    """Tell whether a setting may differ between runs of a study."""
    # A folder of images may move; their fingerprint shows whether the images are the same.
    is_place = path.startswith("data.") and path.endswith((".root", ".file", ".download"))
    return path in (*FREE_TO_CHANGE, "unlabeled.folder.root") or is_place
