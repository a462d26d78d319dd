"""Jobs that make the pretrained networks of a search: when they are given up, and what they leave on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imgcls_search import digests
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.errors import StudyError
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.orchestrator.backbones import IN_USE_SECONDS, Backbone, BackboneStore
from imgcls_search.orchestrator.pretraining_jobs import FIRST_NUMBER, PretrainingJobs
from imgcls_search.protocol import (
    CheckpointSaved,
    EpochEnded,
    Failed,
    MilestoneReached,
    Notice,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.worker import pipeline

from tests.orchestrator.test_endings import faults, in_memory, running
from tests.orchestrator.test_search import Noting

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
    there = replace(in_memory(folder, settings), say=said.append)
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


def noting(jobs: PretrainingJobs) -> Noting:
    """Let jobs be asked of an executor that notes what it is asked."""
    jobs.executor = executor = Noting()
    return executor


def known(jobs: PretrainingJobs) -> Mapping[str, Any]:
    return jobs.context.record.facts["backbones"][KEY]


def test_progress_is_noted_at_its_beginning_and_every_five_seconds(tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "retries: 2")
    executor = noting(jobs)
    assert said == ["pretraining lenet5 (simclr, 4 epochs); trial - waits"]
    executor.now = 100.0
    history = [{"epoch": 1.0, "seconds": 2.0}, {"epoch": 2.0, "seconds": 3.0}]
    jobs.handles(Started(trial=FIRST_NUMBER, history=history))
    assert said[-1] == "pretraining lenet5 (simclr, 4 epochs): resumes after epoch 2"
    assert (known(jobs)["state"], known(jobs)["epoch"], known(jobs)["seconds"]) == ("making", 2, 5.0)
    executor.now = 104.9
    jobs.handles(EpochEnded(trial=FIRST_NUMBER, metrics={"epoch": 3.0, "seconds": 4.0}))
    assert known(jobs)["epoch"] == 2
    executor.now = 105.0
    jobs.handles(EpochEnded(trial=FIRST_NUMBER, metrics={"epoch": 4.0, "seconds": 4.0}))
    assert (known(jobs)["epoch"], known(jobs)["seconds"]) == (4, 13.0)
    jobs.store.path(KEY).write_text("weights")
    jobs.handles(MilestoneReached(trial=FIRST_NUMBER))
    assert (known(jobs)["state"], known(jobs)["sha256"]) == ("made", digests.of_text("weights"))
    assert said[-1] == "pretraining lenet5 (simclr, 4 epochs): done, its epochs took 13 s"
    assert not jobs.is_busy(stopping=False)
    # Its name is free for others again.
    lock = jobs.store.taken(KEY)
    assert lock is not None
    lock.release()


def test_first_start_is_no_resumption_and_a_dropped_state_is_said(tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "retries: 2")
    jobs.handles(Started(trial=FIRST_NUMBER, history=[]))
    assert len(said) == 1
    jobs.handles(Started(trial=FIRST_NUMBER, history=[], dropped="its state is damaged"))
    assert said[1:] == ["pretraining lenet5 (simclr, 4 epochs): its state is damaged; it starts over"]


def test_events_of_trials_are_not_those_of_pretrainings(tmp_path: Path) -> None:
    jobs, _ = making(tmp_path, "retries: 2")
    assert not jobs.handles(Stopped(trial=0))
    assert not jobs.handles(Stopped(trial=FIRST_NUMBER + 1))
    # One that was given up may still be heard of.
    assert jobs.handles(Stopped(trial=FIRST_NUMBER - 1))
    assert jobs.is_busy(stopping=True)
    jobs.handles(Stopped(trial=FIRST_NUMBER))
    assert not jobs.is_busy(stopping=True)
    executor = noting(jobs)
    assert jobs.start_one()
    assert executor.asked == [("start", FIRST_NUMBER, "train")]
    assert not jobs.start_one()


def test_silent_pretraining_is_killed_and_a_stopped_one_is_left_alone(tmp_path: Path) -> None:
    jobs, _ = making(tmp_path, "epoch_timeout: 10")
    executor = noting(jobs)
    executor.now = 5.0
    jobs.handles(Notice(trial=FIRST_NUMBER, text="alive"))
    executor.now = 15.0
    jobs.enforce_time_limit()
    assert executor.asked == []
    executor.now = 15.1
    jobs.enforce_time_limit()
    assert executor.asked == [("kill", FIRST_NUMBER, "an epoch took longer than study.epoch_timeout: 10 s")]
    jobs.stop()
    assert executor.asked[1:] == [("stop", FIRST_NUMBER)]
    jobs.handles(Stopped(trial=FIRST_NUMBER))
    jobs.enforce_time_limit()
    jobs.stop()
    assert len(executor.asked) == 2


def test_failure_is_kept_with_its_reason_and_a_full_disk_ends_the_search(tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "retries: 2")
    with pytest.raises(StudyError, match=r"pretraining lenet5 \(simclr, 4 epochs\): no space left"):
        jobs.handles(Failed(trial=FIRST_NUMBER, kind="disk", reason="no space left"))
    jobs.handles(Failed(trial=FIRST_NUMBER, kind="diverged", reason="loss is nan"))
    assert jobs.failed == {KEY: "loss is nan"}
    assert (known(jobs)["state"], known(jobs)["reason"]) == ("failed", "loss is nan")
    assert said[-1].endswith(f"failed: loss is nan (log: {jobs.store.log(KEY)})")
    assert not jobs.making


def test_network_that_another_process_makes_is_waited_for_and_then_used(tmp_path: Path) -> None:
    jobs, said = making(tmp_path, "retries: 2")
    first = jobs.making[FIRST_NUMBER].backbone
    other = replace(first, key="other")
    lock = BackboneStore(tmp_path).taken("other")
    assert lock is not None
    jobs.wanted["other"] = other
    for _ in range(2):
        assert not jobs.start_one()
    assert said[1:] == ["pretraining lenet5 (simclr, 4 epochs): another process is training it"]
    checkpoint.save({"model": {}}, jobs.store.path("other"))
    lock.release()
    assert not jobs.start_one()
    assert jobs.wanted == {}
    # Of several, each has a number of its own.
    jobs.wanted["third"] = replace(first, key="third")
    executor = noting(jobs)
    assert jobs.start_one()
    assert executor.asked == [("start", FIRST_NUMBER - 1, "train")]
    jobs.close()
    assert not jobs.making


@pytest.mark.parametrize(("workers", "most"), [(1, 4), (2, 4), (3, 6)])
def test_few_trials_wait_for_networks_at_a_time(workers: int, most: int, tmp_path: Path) -> None:
    jobs, _ = making(tmp_path, "retries: 2")
    jobs.handles(Stopped(trial=FIRST_NUMBER))
    while jobs.may_draw(workers):
        jobs.waiting.append(running(len(jobs.waiting), 0.1))
    assert len(jobs.waiting) == most
    assert jobs.is_busy(stopping=False)
    assert not jobs.is_busy(stopping=True)
    # Nothing is pretrained here, so that none has to wait; what has ended meanwhile is forgotten.
    jobs.waiting[0].state = "fail"
    assert [each.number for each in jobs.released()] == list(range(1, most))
    assert jobs.waiting == []
