"""Workers that are several processes, one for each device: what ends one ends all, and the trial resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.errors import DeviceError
from imgcls_search.executors import local, processes
from imgcls_search.executors.local import LocalExecutor, usable_groups, usable_slots
from imgcls_search.executors.worker_process import WorkerProcess
from imgcls_search.protocol import (
    EpochEnded,
    Event,
    Failed,
    Job,
    MilestoneReached,
    Notice,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, loopback
from imgcls_search.worker import pipeline
from imgcls_search.worker.job_runner import JobRunner

from tests.conftest import PATIENCE, Answer, is_one_line, linux_only
from tests.executors.test_ray import LOOPBACK, listening
from tests.orchestrator.test_run import is_alive, open_study

SPACE = """
data: {digits: {max_train: 100}}
model: {resnet: {depths: [1], width: 4}}
training: {epochs: %d, batch_size: 50, devices: 2}
"""


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    made = LocalExecutor([("cpu", "cpu")])
    yield made
    made.close()


def job_of(folder: Path, epochs: int, text: str = SPACE, **more: Any) -> Job:
    config = parse(text.replace("%d", str(epochs)), catalog(), source="space.yaml").config()
    data = pipeline.prepare_data(config, folder.parent / "images")
    given: dict[str, Any] = {"until_epoch": epochs, "from_epoch": 0, "seed": 1, "portion": "train", **more}
    return Job(
        trial=1,
        config=config,
        data=data.to_dict(),
        checkpoint=str(folder / "1.pt"),
        log=str(folder / "1.log"),
        **given,
    )


def until(executor: LocalExecutor, kind: type[Event] | tuple[type[Event], ...]) -> list[Event]:
    events: list[Event] = []
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        event = executor.next_event(0.2)
        if event is not None:
            events.append(event)
            if isinstance(event, kind):
                return events
            if isinstance(event, Failed):
                break
    raise AssertionError(f"it did not come: {events[-3:]}")


def losses(events: list[Event]) -> list[float]:
    return [event.metrics["train_loss"] for event in events if isinstance(event, EpochEnded)]


def pids(executor: LocalExecutor) -> list[int]:
    (worker,) = executor.workers
    return [process.pid for process in worker._processes()]


@linux_only
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_process_of_a_group_is_a_killed_worker(executor: LocalExecutor, tmp_path: Path, rank: int) -> None:
    whole = job_of(tmp_path, 40)
    executor.start(whole)
    events = until(executor, EpochEnded)
    members = pids(executor)
    os.kill(members[rank], signal.SIGKILL)
    events += until(executor, (WorkerDied, MilestoneReached))
    died = events[-1]
    assert isinstance(died, WorkerDied)
    assert died.reason == f"worker-0, device {rank + 1} of 2, died (killed by SIGKILL)"
    assert not any(map(is_alive, members)), "none outlives another"
    assert executor.free_slots() == 1
    # It resumes from its checkpoint, in new processes, and ends as if it had not been disturbed.
    executor.start(whole)
    after = until(executor, MilestoneReached)
    assert isinstance(after[0], Started)
    assert after[0].history
    assert not any(isinstance(event, Notice) for event in after)
    known = [epoch["train_loss"] for epoch in after[0].history] + losses(after)
    Path(whole.checkpoint).unlink()
    executor.start(Job(**{**whole.__dict__, "trial": 2}))
    assert known == losses(until(executor, MilestoneReached))


@linux_only
def test_group_listens_at_the_loopback_interface_only(executor: LocalExecutor, tmp_path: Path) -> None:
    executor.start(job_of(tmp_path, 2))
    until(executor, EpochEnded)
    found = listening(set(pids(executor)))
    assert found <= LOOPBACK
    connected = {
        line.split()[1].partition(":")[0]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[9] in sockets(pids(executor))
    }
    assert connected == {"0100007F"}, "the processes talk over it"


def sockets(members: list[int]) -> set[str]:
    links = [str(link.readlink()) for pid in members for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}


def test_group_stops_where_it_is_asked_to_and_goes_on(executor: LocalExecutor, tmp_path: Path) -> None:
    job = job_of(tmp_path, 3000)
    executor.start(job)
    until(executor, EpochEnded)
    executor.stop(1)
    until(executor, Stopped)
    members = pids(executor)
    done = len(checkpoint.load(Path(job.checkpoint))["history"])
    executor.start(job_of(tmp_path, 3000, from_epoch=done, until_epoch=done + 1))
    events = until(executor, MilestoneReached)
    assert len(losses(events)) == 1
    assert pids(executor) == members, "the same processes"


def test_failure_of_one_process_is_that_of_the_trial(executor: LocalExecutor, tmp_path: Path) -> None:
    text = SPACE.replace("model:", "optimizer: {sgd: {lr: 1.0e+30}}\nmodel:")
    executor.start(job_of(tmp_path, 3, text))
    failed = until(executor, Failed)[-1]
    assert isinstance(failed, Failed)
    assert failed.kind == "diverged"
    assert executor.free_slots() == 1
    # The next one finds new processes.
    executor.start(job_of(tmp_path, 1))
    until(executor, MilestoneReached)


SWA_OF_FOLDS = """
data: {digits: {max_train: 100, folds: 2}}
model: {resnet: {depths: [1], width: 4}}
distill: {file: {path: %s, alpha: 0.5}}
training: {epochs: 2, batch_size: 50, devices: 2, swa: 1}
"""
HEAD_THEN_ALL = """
data: {digits: {max_train: 100}}
image: {channels: 3}
model: {resnet: {depths: [1], width: 4, weights: %s}}
finetune: {freeze: backbone, freeze_epochs: 2, start: logistic}
training: {epochs: 4, batch_size: 50, devices: 2, swa: 1}
"""


@pytest.mark.parametrize("text", [SWA_OF_FOLDS, HEAD_THEN_ALL], ids=["folds", "head"])
def test_folds_averages_teachers_and_heads_of_two_devices_are_those_of_one(
    text: str, executor: LocalExecutor, tmp_path: Path
) -> None:
    channels = "image: {channels: 3}\n" if text == HEAD_THEN_ALL else ""
    first = job_of(tmp_path, 1, SPACE + channels)
    list(JobRunner("cpu").work(first, threading.Event()))
    known = checkpoint.load(Path(first.checkpoint))
    given = tmp_path / "given.pt"
    torch.save(known["model"] if text == HEAD_THEN_ALL else known, given)
    more = {} if text == HEAD_THEN_ALL else {"teacher": str(given)}
    parts = {}
    for way in ("together", "alone"):
        (tmp_path / way).mkdir()
        made = job_of(tmp_path / way, 4, text % given, **more)
        if way == "together":
            executor.start(made)
            parts[way] = until(executor, (MilestoneReached, Failed))
        else:
            parts[way] = list(JobRunner("cpu").work(made, threading.Event()))
        assert isinstance(parts[way][-1], MilestoneReached), parts[way][-1]
    found, expected = (
        [event.metrics for event in parts[way] if isinstance(event, EpochEnded)] for way in ("together", "alone")
    )
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("train_loss", "loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_checkpoint_of_two_devices_goes_on_with_one_and_says_so(executor: LocalExecutor, tmp_path: Path) -> None:
    job = job_of(tmp_path, 4)
    executor.start(job_of(tmp_path, 4, until_epoch=2))
    first = losses(until(executor, MilestoneReached))
    alone = LocalExecutor(["cpu"])
    try:
        alone.start(job)
        events = until(alone, MilestoneReached)
    finally:
        alone.close()
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "trial 1: its checkpoint is of 2 devices, and it goes on with 1: the epochs to come may differ in their "
        "last digits"
    ]
    Path(job.checkpoint).unlink()
    executor.start(Job(**{**job.__dict__, "trial": 2}))
    assert first + losses(events) == pytest.approx(losses(until(executor, MilestoneReached)), rel=1e-4)


def test_where_one_process_cannot_be_started_the_others_end_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started: list[Any] = []

    def starts_one(*given: Any) -> Any:
        if started:
            raise OSError("no more processes")
        started.append(processes.start(*given))
        return started[0]

    with pytest.raises(OSError, match="no more processes"):
        WorkerProcess("worker-0", ["cpu", "cpu"], starts_one)
    ((process, connection),) = started
    assert not process.is_alive()
    assert connection.closed
    assert not list(tmp_path.glob("imgcls-search-*"))


def test_devices_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "num_cores", lambda: 8)
    gpus = [f"cuda:{number}" for number in range(4)]
    assert usable_groups(gpus, 1, 6, 9) == [(device,) for device in usable_slots(gpus, 6, 9)]
    assert usable_groups(["cpu"], 1, None, 9) == [("cpu",)] * 8
    assert usable_groups(gpus, 2, None, 9) == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
    assert usable_groups(gpus, 2, None, 1) == [("cuda:0", "cuda:1")]
    assert usable_groups(gpus, 3, 2, 9) == [("cuda:0", "cuda:1", "cuda:2"), ("cuda:3", "cuda:0", "cuda:1")]
    assert usable_groups(gpus, "auto", 2, 9) == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]
    assert usable_groups(gpus, "auto", None, 9) == [tuple(gpus)]
    assert usable_groups(gpus, "auto", 5, 9) == [("cuda:0",), ("cuda:1",), ("cuda:2",), ("cuda:3",), ("cuda:0",)]
    assert usable_groups(["cpu"], "auto", 2, 9) == [("cpu",) * 4] * 2
    assert usable_groups(["cpu"], 8, None, 9) == [("cpu",) * 8]
    with pytest.raises(
        DeviceError, match=r"^training.devices: 5: this machine has 4 GPUs; allowed here: auto, 1 to 4$"
    ):
        usable_groups(gpus, 5, None, 9)
    with pytest.raises(
        DeviceError, match=r"^training.devices: 9: this machine has 8 CPU cores; allowed here: auto, 1 "
    ):
        usable_groups(["cpu"], 9, None, 9)
    with pytest.raises(
        DeviceError, match=r"^training.devices: 2: this machine has 1 mps device; allowed here: auto, 1$"
    ):
        usable_groups(["mps"], 2, None, 9)


def test_without_a_loopback_interface_a_trial_has_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "num_cores", lambda: 8)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "eth0")])
    for wanted in (2, "auto"):
        with pytest.raises(DeviceError) as caught:
            usable_groups(["cpu"], wanted, 2, 9)
        assert str(caught.value) == (
            f"training.devices: {wanted}: this machine has no network interface for its own processes (loopback); "
            "allowed here: 1"
        )
    assert usable_groups(["cpu"], 1, 2, 9) == [("cpu",), ("cpu",)]
    assert usable_groups(["cpu"], "auto", 8, 9) == [("cpu",)] * 8


def test_loopback_interface_is_known_by_its_flags_else_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = {"eth0": "0x1003", "lo": "0x8", "inner0": "0x9"}
    monkeypatch.setattr(loopback, "NETWORKS", tmp_path)
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(there, start=1)))
    assert loopback.interface() == "lo", "nothing says what the others are"
    for name, flags in there.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(flags + "\n")
    assert loopback.interface() == "inner0", "lo is down"
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "eth0"), (2, "lo0")])
    assert loopback.interface() == "lo0", "macOS"

    def fail() -> list[tuple[int, str]]:
        raise OSError("not here")

    monkeypatch.setattr(socket, "if_nameindex", fail)
    assert loopback.interface() is None


SEARCH = """
study: {trials: 3, pruner: {halving: {min_epochs: 1, eta: 2}}, pictures: false, workers: 1, learn_from: none}
data: {digits: {max_train: 100}}
model: {lenet5: {width: 0.5}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 3, batch_size: 50, devices: 2}
prune: {structured: {amount: 0.3, finetune_epochs: 1}}
"""


@pytest.mark.slow
@linux_only
def test_search_and_training_with_two_devices(imgcls: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SEARCH)
    both = imgcls("run", "space.yaml", "--name", "both")
    alone = imgcls("run", "space.yaml", "--name", "alone", "--set", "training.devices=1")
    assert (both.code, alone.code) == (0, 0), both.err + alone.err
    found, expected = (open_study(tmp_path / "studies", name) for name in ("both", "alone"))
    assert [trial.params for trial in found.trials] == [trial.params for trial in expected.trials]
    for ours, theirs in zip(found.trials, expected.trials, strict=True):
        assert ours.state == theirs.state
        assert ours.intermediate_values == pytest.approx(theirs.intermediate_values, abs=0.03)
    # More epochs of the same study, on one device.
    more = imgcls("run", "space.yaml", "--name", "both", "--set", "training.devices=1", "--set", "study.trials=4")
    assert more.code == 0, more.err
    trained = imgcls("export", "both", "-o", "best.yaml")
    assert trained.code == 0
    trained = imgcls("train", "best.yaml", "--seeds", "1", "--out", "trained")
    assert trained.code == 0, trained.err
    assert json.loads((tmp_path / "trained" / "metrics.json").read_text())
    assert checkpoint.load(tmp_path / "trained" / "seed-1.pt")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("training.devices=0", "training.devices: 0 "),
        ("training.devices=some", "training.devices: 'some' is not allowed; allowed: int >= 1 or 'auto'"),
        ("training.batch_norm=some", "training.batch_norm: 'some' is not allowed; allowed: 'sync', 'local'"),
        ("training.devices=30", "training.batch_size: 50 images are too few with training.devices: 30; allowed: >= 60"),
        (
            "training.devices=16 training.batch_norm=local",
            "training.batch_size: 50 images are too few with training.devices: 16; allowed: >= 64",
        ),
        ("training.compile=true", "training.compile: a compiled network exchanges nothing with training.devices: 2"),
        ("training.compile=reduce_overhead", "training.compile: a compiled network exchanges nothing"),
        ("training.device=mps", "training.device: mps is one device"),
        ("training.devices=auto training.batch_norm=local", "training.batch_norm: local: statistics of each"),
    ],
)
def test_what_devices_cannot_do_together_is_one_line(
    settings: str, said: str, tmp_path: Path, here: Callable[..., Answer]
) -> None:
    (tmp_path / "space.yaml").write_text(SEARCH)
    for command in ("check", "run"):
        answer = here(command, "space.yaml", *(part for each in settings.split() for part in ("--set", each)))
        assert is_one_line(answer), answer.err
        assert said in answer.err
    assert not list(tmp_path.glob("studies/*.db"))


def test_draw_whose_batch_is_too_small_is_no_trial_and_memory_is_that_of_a_device(
    tmp_path: Path, here: Callable[..., Answer]
) -> None:
    text = SEARCH.replace("batch_size: 50", "batch_size: {choice: [8, 64]}").replace(
        "lr: {float: [1e-4, 1e-2], log: true}", "lr: 0.01"
    )
    (tmp_path / "space.yaml").write_text(text)
    ranges = {}
    for devices in (1, 8):
        answer = here("check", "space.yaml", "--json", "--set", f"training.devices={devices}")
        assert answer.code == 0, answer.err
        ranges[devices] = json.loads(answer.out)["survey"]
    assert [ranges[devices]["fit"] for devices in (1, 8)] == [2, 1]
    assert ranges[8]["impossible"][0]["path"] == "training.batch_size"
    most = [ranges[devices]["families"]["lenet5"]["memory"]["max"] for devices in (1, 8)]
    assert most[0] > most[1]


@linux_only
def test_more_devices_than_there_are_is_one_line(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "space.yaml").write_text(SEARCH.replace("batch_size: 50", "batch_size: 5000"))
    answer = imgcls("run", "space.yaml", "--set", "training.devices=999")
    assert is_one_line(answer)
    cores = local.num_cores()
    assert f"training.devices: 999: this machine has {cores} CPU core" in answer.err
    assert not list(tmp_path.glob("studies/*.db"))


CONFIRMED = """
data: {digits: {max_train: 120}}
model: {resnet: {depths: [1], width: 4}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 2, batch_size: 40, device: cpu}
study: {name: s, trials: 2, pruner: none, pictures: false, learn_from: none}
"""


@pytest.mark.slow
@linux_only
def test_a_trial_is_reproduced_and_confirmed_on_two_devices_as_on_one(
    imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(CONFIRMED)
    found = {}
    for devices in (1, 2):
        place = ("--studies", f"of-{devices}")
        ran = imgcls("run", "space.yaml", *place, "--set", f"training.devices={devices}", "--workers", "1")
        assert ran.code == 0, ran.err
        again = imgcls("reproduce", "s", "--trial", "1", *place)
        # With as many processes as the trial had: bit for bit.
        assert again.out.startswith("identical"), again.out + again.err
        confirmed = imgcls("confirm", "s", "--top", "1", "--seeds", "2", *place, "--json")
        assert confirmed.code == 0, confirmed.err
        found[devices] = json.loads(confirmed.out)
        logs = [path.read_text() for path in (tmp_path / f"of-{devices}/s/confirm").glob("*.log")]
        histories = [[float(loss) for loss in re.findall(r"'train_loss': ([0-9.]+)", log)] for log in sorted(logs)]
        found[devices]["losses"] = histories
    one, two = found[1], found[2]
    assert (one["chosen"], one["seeds"]) == (two["chosen"], two["seeds"])
    assert [len(losses) for losses in two["losses"]] == [2] * 4
    for ours, theirs in zip(two["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    # Rounding may turn a few of the images.
    assert two["test"]["scores"] == pytest.approx(one["test"]["scores"], abs=0.01)
