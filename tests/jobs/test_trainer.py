"""The one rule by which a training outside a search is tried again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.errors import NoResultError, UserError
from imgcls_search.jobs.pace import Pace
from imgcls_search.jobs.trainer import MOST_DEATHS, _Training
from imgcls_search.protocol import Failed, Job, WorkerDied

CONFIG = TrialConfig.from_dict({"training": {"batch_size": 8, "epochs": 3}})


def training() -> _Training:
    job: dict[str, Any] = {"trial": 0, "config": CONFIG, "data": {}, "seed": 7, "portion": "train"}
    whole = Job(**job, until_epoch=3, from_epoch=0, checkpoint="seed-7.partial.pt", log="seed-7.log")
    return _Training(whole, "seed 1/1", Pace(3))


@pytest.mark.parametrize(
    "trouble",
    [
        Failed(trial=0, kind="out_of_memory", reason="out of memory"),
        WorkerDied(trial=0, reason="killed by the system", is_out_of_memory=True),
    ],
)
def test_memory_that_ran_out_is_met_with_more_micro_batches_until_there_are_no_more(
    trouble: Failed | WorkerDied,
) -> None:
    mine = training()
    # Of 8 images, two at least in each.
    for parts in (2, 4):
        assert mine.retry(trouble) == f"{trouble.reason}; it continues with {parts} micro-batches a batch"
        assert mine.job.micro_batches == parts
    for _ in range(MOST_DEATHS if isinstance(trouble, WorkerDied) else 0):
        assert mine.retry(trouble).endswith("it resumes from its last checkpoint")
    with pytest.raises(NoResultError, match=r"^seed 7: "):
        mine.retry(trouble)
    assert mine.job.micro_batches == 4


@pytest.mark.parametrize(
    "trouble",
    [
        Failed(trial=0, kind="out_of_memory", reason="out of memory"),
        WorkerDied(trial=0, reason="killed by the system", is_out_of_memory=True),
    ],
)
def test_memory_that_ran_out_where_a_batch_stays_whole_ends_with_advice(trouble: Failed | WorkerDied) -> None:
    mine = training()
    mine.job = replace(mine.job, config=TrialConfig.from_dict({"pretrain": {"simclr": {"batch_size": 8, "epochs": 3}}}))
    with pytest.raises(NoResultError) as raised:
        mine.retry(trouble)
    assert raised.value.lines() == [
        f"{trouble.reason}; the loss compares all images of a batch, so the batch cannot be split: set "
        "pretrain.simclr.batch_size below 8, or a smaller image.size"
    ]
    assert mine.job.micro_batches == 1


def test_a_worker_may_die_so_often_and_no_oftener() -> None:
    mine, died = training(), WorkerDied(trial=0, reason="worker-0 died (exit code 1)")
    for _ in range(MOST_DEATHS):
        assert mine.retry(died) == "worker-0 died (exit code 1); it resumes from its last checkpoint"
    with pytest.raises(NoResultError, match=rf"^seed 7: worker-0 died \(exit code 1\), {MOST_DEATHS + 1} times$"):
        mine.retry(died)
    assert mine.job == training().job


@pytest.mark.parametrize("kind", ["diverged", "error"])
def test_a_training_that_failed_is_not_tried_again(kind: Any) -> None:
    with pytest.raises(NoResultError, match=r"^seed 7: the loss is nan \(log: seed-7.log\)$"):
        training().retry(Failed(trial=0, kind=kind, reason="the loss is nan"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("disk", "seed 7: w.pt: No space left on device; make room, then run the same command again to resume"),
        ("setup", "seed 7: w.pt: No space left on device"),
    ],
)
def test_what_the_user_can_mend_is_no_result_of_the_training(kind: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        training().retry(Failed(trial=0, kind=kind, reason="w.pt: No space left on device"))
    assert raised.value.lines() == [said]
