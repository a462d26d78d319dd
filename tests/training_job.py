"""The job of one training, as a run sends it to a worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.protocol import Job


def training_job(config: TrialConfig, data: Prepared, folder: Path, /, **changes: Any) -> Job:
    """Return the job of a complete training, with its files in a folder; `changes` replace fields."""
    plain = Job(
        trial=0,
        config=config,
        data=data.to_dict(),
        seed=1,
        portion="train",
        until_epoch=config.epochs,
        from_epoch=0,
        checkpoint=str(folder / "trial.pt"),
        log=str(folder / "trial.log"),
    )
    return replace(plain, **changes)
