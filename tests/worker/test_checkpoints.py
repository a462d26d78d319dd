"""When a worker writes the checkpoint of a trial: often enough to lose little, seldom enough to cost little."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.data import Prepared
from imgcls_search.protocol import CheckpointSaved, EpochEnded, Job, Stopped
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.worker import job_runner, pipeline, saving

from tests.training_job import training_job

EPOCHS = 5
CONFIG = parse(
    "data: {digits: {max_train: 100}}\nmodel: {lenet5: {}}\nimage: {size: 8, channels: 1}\n"
    f"training: {{epochs: {EPOCHS}}}\n",
    catalog(),
    source="test",
).config()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return pipeline.prepare_data(CONFIG, tmp_path_factory.mktemp("images"))


def job(data: Prepared, folder: Path, until: int = EPOCHS) -> Job:
    return training_job(CONFIG, data, folder, until_epoch=until)


def saved(data: Prepared, folder: Path, until: int = EPOCHS) -> list[int]:
    """Return the epochs after which a checkpoint was written, and see that each is reported before its epoch."""
    events = list(job_runner.JobRunner("cpu").work(job(data, folder, until), threading.Event()))
    assert [event.metrics["epoch"] for event in events if isinstance(event, EpochEnded)] == [*range(1, until + 1)]
    for event, following in itertools.pairwise(events):
        if isinstance(event, CheckpointSaved):
            # A run that knows an epoch must find it on the disk, and never the other way around.
            assert isinstance(following, EpochEnded)
            assert following.metrics["epoch"] == event.epoch
    return [event.epoch for event in events if isinstance(event, CheckpointSaved)]


@pytest.mark.parametrize(
    ("share", "seconds", "expected"),
    [
        # Cheap: after each epoch.
        (1e9, 1e9, [1, 2, 3, 4, 5]),
        # Dear: after the first, whose cost nobody knows yet, and at the milestone,
        (0.0, 1e9, [1, 5]),
        # but never longer without one than this.
        (0.0, 0.0, [1, 2, 3, 4, 5]),
    ],
)
def test_checkpoints_cost_a_small_share_of_the_time(
    share: float, seconds: float, expected: list[int], data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_SHARE", share)
    monkeypatch.setattr(saving, "SAVE_SECONDS", seconds)
    assert saved(data, tmp_path) == expected


def test_every_milestone_is_on_the_disk(data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SAVE_SHARE", 0.0)
    monkeypatch.setattr(saving, "SAVE_SECONDS", 1e9)
    assert saved(data, tmp_path, until=3) == [1, 3]
    state = checkpoint.load(tmp_path / "trial.pt")
    assert len(state["history"]) == 3
    assert "optimizer" in state


def test_stop_saves_the_epoch_under_way_and_ends(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_SHARE", 0.0)
    monkeypatch.setattr(saving, "SAVE_SECONDS", 1e9)
    stop, seen = threading.Event(), []
    for event in job_runner.JobRunner("cpu").work(job(data, tmp_path), stop):
        seen.append(event)
        if isinstance(event, EpochEnded) and event.metrics["epoch"] == 2:
            # The second is on no disk: the third is trained to its end, saved and told.
            stop.set()
    assert isinstance(seen[-1], Stopped)
    assert [event.epoch for event in seen if isinstance(event, CheckpointSaved)] == [1, 3]
    assert len(checkpoint.load(tmp_path / "trial.pt")["history"]) == 3
