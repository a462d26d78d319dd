"""What a search costs: seconds by device and the share that workers wait, measured, kept and shown."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.orchestrator import metering
from imgcls_search.orchestrator.metering import MeteredExecutor
from imgcls_search.protocol import (
    EpochEnded,
    Event,
    Job,
    MilestoneReached,
    Scored,
    Started,
    WorkerDied,
)
from imgcls_search.study.record import Record

from scripts.bench import simulation
from tests.conftest import Answer, linux_only
from tests.orchestrator.test_run import SLOW_TRIALS, begin, wait_for_epochs  # noqa: F401 - a fixture
from tests.study.test_activity import SPACE


class Played:
    """An executor whose events and clock a test decides on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: deque[tuple[float, Event | None]] = deque()

    def start(self, job: Job) -> None:
        """Take a job."""

    def next_event(self, timeout: float) -> Event | None:
        seconds, event = self.events.popleft()
        self.now += seconds
        return event

    def free_slots(self) -> int:
        return 1

    def clock(self) -> float:
        return self.now

    def stop(self, trial: int) -> None: ...

    def kill(self, trial: int, reason: str) -> None: ...

    def close(self) -> None: ...


def job(trial: int, **more: Any) -> Job:
    config = TrialConfig.from_dict({"training": {"epochs": 2}, "model": {}})
    given = {"until_epoch": 2, "from_epoch": 0, "checkpoint": "", "log": "", "seed": 0, "portion": "train", **more}
    return Job(trial=trial, config=config, data={}, **given)


def metered(record: Record, executor: Played) -> MeteredExecutor:
    return MeteredExecutor(
        executor,
        record,
        workers=2,
        devices_of=lambda worker: {"w0": ["cuda:0", "cuda:1"], "w1": ["cuda:2", "cuda:3"]}[worker],
        since=90.0,
    )


def epoch(trial: int, number: int) -> EpochEnded:
    return EpochEnded(trial=trial, worker=f"w{trial}", metrics={"epoch": number})


def test_every_second_of_every_worker_is_counted_once(tmp_path: Path) -> None:
    record, played = simulation.new_record(tmp_path, SPACE, "s"), Played()
    meter = metered(record, played)
    meter.why_free = "draw"
    meter.start(job(0))
    played.events.extend([(3, None), (1, Started(trial=0, worker="w0", history=[])), (5, epoch(0, 1))])
    for _ in range(3):
        meter.next_event(1)
    # The run itself takes two seconds to decide, while one worker is free.
    played.now += 2
    meter.start(job(1))
    meter.why_free = "idle"
    played.events.extend([(1, Started(trial=1, worker="w1", history=[{"epoch": 1}])), (4, epoch(0, 2))])
    played.events.extend(
        [(2, Scored(trial=0, worker="w0", epoch=2, metrics={})), (1, MilestoneReached(trial=0, worker="w0"))]
    )
    played.events.extend([(10, WorkerDied(trial=1, worker="w1", reason="died"))])
    for _ in range(5):
        meter.next_event(1)
    played.now += 0.5
    meter.count_time("idle")
    meter.save()
    spent = record.facts["usage"]["workers"]
    assert spent == {
        "images": 20.0,
        "start": 4 + 1,
        "training": (5 + 2 + 1 + 4) + (4 + 2 + 1 + 10),
        "draw": 3 + 1 + 5,
        "exporting": 2.0,
        "decision": 2 + 1,
        "idle": 10 + 2 * 0.5,
    }
    assert sum(spent.values()) == 2 * (played.now - 90)
    assert record.facts["usage"]["devices"] == {"cuda:0": 19.0, "cuda:1": 19.0, "cuda:2": 18.0, "cuda:3": 18.0}
    # A later run resumes from there.
    later = metered(record, played)
    assert later.spent["training"] == spent["training"]


def test_workers_wait_while_a_latency_is_timed(tmp_path: Path) -> None:
    record, played = simulation.new_record(tmp_path, SPACE, "s"), Played()
    meter = metered(record, played)
    meter.start(job(0))
    meter.start(job(1, kind="time"))
    played.events.append((4, MilestoneReached(trial=1, worker="w1")))
    meter.next_event(1)
    assert meter.spent["timing"] == 8
    assert "start" not in meter.spent


def test_usage_is_written_while_trials_train(tmp_path: Path) -> None:
    record, played = simulation.new_record(tmp_path, SPACE, "s"), Played()
    meter = metered(record, played)
    meter.start(job(0))
    played.events.extend([(1, None), (metering.SAVE_SECONDS, None)])
    meter.next_event(1)
    assert "usage" not in record.facts
    meter.next_event(1)
    assert record.facts["usage"]["workers"]["start"] == 11


def usage(imgcls: Callable[..., Answer]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(imgcls("status", "tiny-digits", "--json").out)
    return found


def test_status_note_and_report_tell_what_a_search_cost(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    assert imgcls("run", tiny, "--set", "study.workers=2").code == 0
    status = usage(imgcls)
    found = status["usage"]
    # The time before the study was made is counted too.
    assert sum(found["workers"].values()) >= 2 * status["runs"][0]["seconds"] - 0.1
    assert found["workers"]["training"] >= 0.9 * status["training_seconds"]
    assert found["devices"]["cpu"] == pytest.approx(
        sum(found["workers"].get(kind, 0) for kind in ("training", "start", "exporting")), abs=2
    )
    assert 0 < found["waiting"] < 1
    assert sum(found["waiting_for"].values()) == pytest.approx(found["waiting"])
    said = imgcls("status", "tiny-digits").out
    assert "devices in use: cpu " in said
    assert "workers waited " in said
    assert imgcls("report", "tiny-digits", "-o", "page.html").code == 0
    assert "Workers waited " in (tiny.parent / "page.html").read_text()


@linux_only
def test_what_was_measured_outlives_a_kill(
    tiny: Path,
    imgcls: Callable[..., Answer],
    begin: Callable[..., Any],  # noqa: F811
) -> None:
    process = begin(tiny, *SLOW_TRIALS, "--set", "study.workers=1")
    wait_for_epochs(process, 14, tiny.parent / "studies")
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = usage(imgcls)["usage"]
    # The first trial has ended.
    assert before["workers"]["training"] > 0
    assert imgcls("run", tiny, *SLOW_TRIALS, "--set", "study.workers=1").code == 0
    after = usage(imgcls)["usage"]
    assert after["workers"]["training"] > before["workers"]["training"]
    assert after["devices"]["cpu"] > before["devices"]["cpu"]
