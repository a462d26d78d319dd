"""What becomes of trials in trouble: model code that exits, crashes, hangs or needs too much memory."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from imgcls_search import atomic
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.executors.helper import Helper
from imgcls_search.orchestrator.faults import more_parts
from imgcls_search.protocol import Failed
from imgcls_search.space import parse
from imgcls_search.training.batches import micro_batches
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.worker import image_sets, pipeline
from imgcls_search.worker.job_runner import JobRunner
from PIL import Image

from tests.conftest import PATIENCE, Answer
from tests.orchestrator.test_run import begin, linux_only, open_study, wait_for_epochs, worker_of  # noqa: F401 - a fixture
from tests.training_job import training_job

TROUBLE = '''
import ctypes, sys, time
import torch
from torch import nn
from typing import Annotated, Literal
from imgcls_search.signature import Arg

What = Annotated[Literal["exit", "segfault", "hang", "greedy", "meta", "nothing"], Arg("what goes wrong")]

class Net(nn.Module):
    def __init__(self, features, classes, what):
        super().__init__()
        self.layer, self.what = nn.Linear(features, classes), what

    def forward(self, images):
        if self.what == "meta" and images.is_meta:
            ctypes.string_at(0)
        if self.training and not images.is_meta:
            self.go_wrong(images)
        return self.layer(images.flatten(1))

    def go_wrong(self, images):
        if self.what == "exit":
            sys.exit("tired")
        if self.what == "segfault":
            ctypes.string_at(0)
        if self.what == "hang":
            time.sleep(1000)
        if self.what == "greedy" and len(images) > 6:
            torch.empty(10**17)

def trouble(*, image_size, channels, classes, what: What = "nothing"):
    """Build a network that goes wrong in training."""
    return Net(channels * image_size**2, classes, what)
'''

SPACE = """
study: {{trials: 4, pruner: none, seed: 1, pictures: false}}
data: {{digits: {{max_train: 100}}}}
model: {{trouble: {{what: {what}}}}}
optimizer: {{sgd: {{lr: {{float: [0.01, 0.1]}}}}}}
training: {{epochs: 2, batch_size: 20}}
"""


@pytest.fixture
def search_with(tmp_path: Path, imgcls: Callable[..., Answer]) -> Callable[..., Answer]:
    """Search among networks that go wrong in a certain way."""
    site = tmp_path / "site"
    about = site / "trouble-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "trouble.py").write_text(TROUBLE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: trouble\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[imgcls_search.models]\ntrouble = trouble:trouble\n")

    def search(what: str, *arguments: str) -> Answer:
        (tmp_path / "space.yaml").write_text(SPACE.format(what=what))
        path = os.pathsep.join([str(site), str(Path(__file__).parents[2] / "search"), os.environ.get("PYTHONPATH", "")])
        return imgcls("run", "space.yaml", "--workers", "1", *arguments, env={"PYTHONPATH": path})

    return search


def trials_in(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return open_study(folder / "studies", "space-digits").trials


@pytest.mark.slow
def test_model_that_exits_fails_its_trials_and_three_alike_stop_the_search(
    search_with: Callable[..., Answer], imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = search_with("exit")
    assert answer.code == 1
    assert "3 trials in a row failed in the same way, the last is trial 2: SystemExit: tired" in answer.err
    assert [(trial.state.name, trial.user_attrs["reason"]) for trial in trials_in(tmp_path)] == [
        ("FAIL", "SystemExit: tired")
    ] * 3
    assert "go_wrong" in (tmp_path / "studies" / trials_in(tmp_path)[0].user_attrs["log"]).read_text()
    assert "trial 2 failed: SystemExit: tired" in imgcls("status", "space-digits").out


@pytest.mark.slow
@linux_only
def test_model_that_crashes_is_retried_then_failed_with_its_stack_in_the_log(
    search_with: Callable[..., Answer], imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = search_with("segfault", "--set", "study.retries=1", "--set", "study.trials=1")
    assert answer.code == 1
    (trial,) = trials_in(tmp_path)
    assert trial.user_attrs["reason"] == "worker-0 died (killed by SIGSEGV), 2 times without a new checkpoint"
    log = (tmp_path / "studies" / trial.user_attrs["log"]).read_text()
    assert log.count("Segmentation fault") == 2
    assert "go_wrong" in log
    assert "fault: 1 x worker-0 died (killed by SIGSEGV)" in imgcls("status", "space-digits").out


@pytest.mark.slow
def test_model_that_crashes_while_it_is_measured_is_rejected_with_the_reason(
    search_with: Callable[..., Answer],
) -> None:
    answer = search_with("meta")
    assert answer.code == 1
    assert "200 x model: the helper process died 3 times (exit code -11) while it was measured" in answer.err


def test_helper_that_was_killed_is_replaced_and_asked_again(tmp_path: Path) -> None:
    helper = Helper(tmp_path)
    try:
        before = helper.versions()
        assert helper.process is not None
        killed = helper.process.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert helper.versions() == before
        assert helper.process.pid != killed
    finally:
        helper.close()


@pytest.mark.slow
def test_epoch_that_hangs_is_ended_by_its_limit(search_with: Callable[..., Answer], tmp_path: Path) -> None:
    limits = ("--set", "study.epoch_timeout=1.5", "--set", "study.retries=1", "--set", "study.trials=1")
    answer = search_with("hang", *limits)
    assert answer.code == 1
    (trial,) = trials_in(tmp_path)
    assert trial.state.name == "FAIL"
    told = "an epoch took longer than study.epoch_timeout: 1.5 s"
    assert trial.user_attrs["reason"] == f"{told}, 2 times without a new checkpoint"
    assert f"trial 0: {told}; it resumes from its last checkpoint" in answer.out


@pytest.mark.slow
def test_trial_that_takes_too_long_fails_at_once(search_with: Callable[..., Answer], tmp_path: Path) -> None:
    answer = search_with("hang", "--set", "study.trial_timeout=1.5", "--set", "study.trials=1")
    assert answer.code == 1
    (trial,) = trials_in(tmp_path)
    assert (trial.state.name, trial.user_attrs["reason"]) == (
        "FAIL",
        "trained longer than study.trial_timeout: 1.5 s",
    )
    assert "troubles" not in trial.user_attrs


@pytest.mark.slow
def test_training_out_of_memory_goes_on_with_smaller_micro_batches(
    search_with: Callable[..., Answer], imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = search_with("greedy", "--set", "study.trials=1")
    assert answer.code == 0, answer.err
    (trial,) = trials_in(tmp_path)
    assert trial.state.name == "COMPLETE"
    # 20 images at a time, then 10, then 5.
    assert trial.user_attrs["micro_batches"] == 4
    assert answer.out.count("out of memory") == 2
    assert "it continues with micro-batches of 5 images" in answer.out
    status = imgcls("status", "space-digits", "--json")
    assert sum(json.loads(status.out)["troubles"].values()) == 2


@pytest.mark.slow
@linux_only
def test_stopped_worker_is_replaced_and_the_trial_goes_on(
    tiny: Path,
    begin: Callable[..., Any],  # noqa: F811
) -> None:
    studies = tiny.parent / "studies"
    long = ("--set", "training.epochs=300", "--set", "study.pruner=none", "--set", "study.trials=1")
    process = begin(tiny, "--workers", "1", "--set", "study.epoch_timeout=10", *long)
    wait_for_epochs(process, 2, studies)
    worker = worker_of(process.pid)
    os.kill(worker, signal.SIGSTOP)
    # What it would have been writing when it is killed.
    draft = next(studies.rglob("trial-00000.pt")).with_name(f".trial-00000.pt.{worker}-0123abcd{atomic.SUFFIX}")
    draft.touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "study.epoch_timeout: 10 s; it resumes from its last checkpoint" in out
    assert not draft.exists()
    (trial,) = open_study(studies).trials
    assert [epoch["epoch"] for epoch in trial.user_attrs["epochs"]] == list(range(1, 301))


def test_image_that_vanished_during_a_search_fails_the_trial_and_not_the_search(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / f"photos/{'cat' if number % 2 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
    # Nothing fits into the store: images are decoded in each epoch.
    config = config_of(
        f"data: {{folder: {{root: {tmp_path / 'photos'}}}}}\nimage: {{cache_gb: 1e-9}}\nmodel: lenet5\n"
        "training: {epochs: 2, batch_size: 10}"
    )
    data = pipeline.prepare_data(config, tmp_path / "images")
    gone = next(name for name in load(data, "train").names)
    (tmp_path / "photos" / gone).unlink()
    *_, last = JobRunner("cpu").work(training_job(config, data, tmp_path), threading.Event())
    assert isinstance(last, Failed)
    assert last.kind == "error"
    assert Path(gone).name in last.reason


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    # No batch normalisation, whose statistics are those of a micro-batch.
    config = config_of(
        "data: {digits: {max_train: 200}}\nmodel: {vit: {patch_size: 4, width: 32, depth: 2, heads: 2}}\n"
        "optimizer: {sgd: {lr: 0.1}}\ntraining: {epochs: 2, batch_size: 50, clip: 1.0}"
    )
    data = pipeline.prepare_data(config, tmp_path)
    found = [_trained(config, data, parts) for parts in (1, 2, 5)]
    for weights, history in found[1:]:
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, found[0][0][name], rtol=1e-4, atol=1e-5)
        assert history[-1]["train_loss"] == pytest.approx(found[0][1][-1]["train_loss"], rel=1e-4)


def _trained(config: TrialConfig, data: Prepared, parts: int) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    session = pipeline.new_session(config, data, seed=1, device="cpu", micro_batches=parts)
    train, validation = image_sets.image_sets(data, "train", "cpu")
    assert isinstance(train, ImageSet)
    history = list(fit(session, train, validation, until_epoch=2))
    return session.model.state_dict(), history


def test_no_micro_batch_is_too_small_for_batch_normalisation() -> None:
    batch = torch.arange(7.0)
    sizes = [len(part) for part, _ in micro_batches(batch, batch, 64)]
    assert sizes == [3, 2, 2]
    assert [len(part) for part, _ in micro_batches(batch[:1], batch[:1], 4)] == [1]
    assert more_parts(20, 1) == 2
    assert more_parts(20, 8) is None
