"""Jobs that make the pretrained networks of a search: when they are given up, and what they leave on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.orchestrator.backbones import IN_USE_SECONDS, Backbone
from imgcls_search.orchestrator.pretraining_jobs import FIRST_NUMBER, PretrainingJobs
from imgcls_search.protocol import CheckpointSaved, EpochEnded, Failed, MilestoneReached, Notice, WorkerDied
from imgcls_search.space import parse
from imgcls_search.worker import pipeline

from tests.orchestrator.test_endings import context, faults

BASE = "data: {digits: {max_train: 50}}\nimage: {size: 8, channels: 1}\nmodel: {lenet5: {}}\n"
SIMCLR = "simclr: {epochs: 4, batch_size: 32}"
IMITATE = "imitate: {epochs: 4, batch_size: 32, size: 16}"
KEY = "key"


class Flat:
    """Curves that do not matter."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        return {"spread": 0.5}


def making(folder: Path, settings: str, pretrain: str = SIMCLR) -> tuple[PretrainingJobs, list[str]]:
    """Return jobs of which one has begun, and the lines that they say."""
    config = parse(f"{BASE}pretrain: {{{pretrain}}}\n", catalog(), source="x").config().pretraining()
    data = pipeline.prepare_data(config, folder / ".images")
    said: list[str] = []
    there = replace(context(folder, settings), say=said.append)
    jobs = PretrainingJobs(context=there, executor=ReplayExecutor(Flat()), finder=None, faults=faults(there))
    jobs.wanted[KEY] = Backbone(config=config, data=data, seed=0, has_own_seed=False, fold=None, teacher=None, key=KEY)
    assert jobs.start_one()
    return jobs, said


def test_workers_that_die_before_a_new_checkpoint_are_counted_however_many_epochs_they_train(tmp_path: Path) -> None:
    jobs, _ = making(tmp_path, "retries: 2")
    # The epoch that no checkpoint holds is trained again after each death.
    trained = EpochEnded(trial=FIRST_NUMBER, metrics={"epoch": 2.0, "seconds": 1.0})
    died = WorkerDied(trial=FIRST_NUMBER, reason="worker died (signal 9)")
    for _ in range(2):
        for event in (trained, died):
            assert jobs.handles(event)
        assert jobs.start_one()
    # A new checkpoint is a new beginning.
    jobs.handles(CheckpointSaved(trial=FIRST_NUMBER, epoch=2))
    for _ in range(2):
        for event in (trained, died):
            jobs.handles(event)
        assert jobs.failed == {}
        assert jobs.start_one()
    for event in (trained, died):
        jobs.handles(event)
    assert jobs.failed == {KEY: "worker died (signal 9), 3 times without a new checkpoint"}
    assert not jobs.making


def test_a_batch_that_must_stay_whole_is_given_up_with_advice_when_memory_runs_out(tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "retries: 2")
    jobs.handles(Failed(trial=FIRST_NUMBER, kind="out_of_memory", reason="out of memory"))
    assert jobs.failed == {
        KEY: "out of memory; the loss compares all images of a batch, so the batch cannot be split: set "
        "pretrain.simclr.batch_size below 32, or a smaller image.size"
    }
    assert said[-1].startswith("pretraining lenet5 (simclr, 4 epochs) failed: out of memory; the loss compares all")


@pytest.mark.parametrize("is_death", [False, True])
def test_imitation_continues_in_smaller_parts_when_memory_runs_out(is_death: bool, tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "retries: 0", IMITATE)
    jobs.handles(
        WorkerDied(trial=FIRST_NUMBER, reason="out of memory", is_out_of_memory=True)
        if is_death
        else Failed(trial=FIRST_NUMBER, kind="out_of_memory", reason="out of memory")
    )
    assert jobs.failed == {}
    assert jobs.start_one()
    assert isinstance(jobs.executor, ReplayExecutor)
    assert jobs.executor.jobs[FIRST_NUMBER].micro_batches == 2
    assert said[-1] == "pretraining lenet5 (imitate, 4 epochs): out of memory; it continues with each batch in 2 parts"
    jobs.close()


def test_a_new_network_displaces_old_ones_beyond_the_disk_budget(tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "disk_gb: 0.0001")
    for key in ("old", KEY):
        jobs.store.path(key).write_bytes(b"0" * 80_000)
    then = time.time() - IN_USE_SECONDS - 100
    os.utime(jobs.store.path("old"), (then, then))
    jobs.handles(Notice(trial=FIRST_NUMBER, text="the probe is poor"))
    assert said[-1] == "pretraining lenet5 (simclr, 4 epochs): the probe is poor"
    jobs.handles(MilestoneReached(trial=FIRST_NUMBER))
    assert [path.name for path in jobs.store.folder.glob("*.pt")] == [f"{KEY}.pt"]
    assert said[-1] == "deleted, to stay within study.disk_gb: 1 pretrained network, unused for longest"
    assert jobs.context.record.facts["backbones"][KEY]["state"] == "made"
