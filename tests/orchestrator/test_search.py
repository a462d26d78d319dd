"""The loop of a search, event by event: what it records, says, queues and stops."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.jobs.replay import Idle, Steps
from imgcls_search.orchestrator import upcoming
from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.orchestrator.search import GLANCE_SECONDS, Search
from imgcls_search.orchestrator.stages import Stage
from imgcls_search.protocol import (
    CheckpointSaved,
    Drawn,
    EpochEnded,
    Failed,
    Job,
    MilestoneReached,
    Notice,
    Scored,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.study import record as records
from imgcls_search.trial import SIZES, Trial

from tests.orchestrator.test_endings import context, in_memory, running


class Flat:
    """Curves that do not matter."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        return {"accuracy": 0.5}


class Noting(ReplayExecutor):
    """Notes what it is asked to stop and to kill."""

    def __init__(self) -> None:
        super().__init__(Flat())
        self.asked: list[tuple[Any, ...]] = []

    def stop(self, trial: int) -> None:
        self.asked.append(("stop", trial))

    def kill(self, trial: int, reason: str) -> None:
        self.asked.append(("kill", trial, reason))

    def start(self, job: Job) -> None:
        self.asked.append(("start", job.trial, job.kind))


def searching(
    folder: Path, study: str, *trials: Trial, make: Callable[..., SearchContext] = in_memory, **more: Any
) -> tuple[Search, Noting, Steps]:
    """Return a search in which these trials are open, and each of them is on a worker."""
    there = make(folder, f"pruner: none, {study}", *trials)
    executor, steps = Noting(), Steps()
    there.files.log(0).parent.mkdir(exist_ok=True)
    search = Search(
        space=there.space,
        files=there.files,
        record=there.record,
        executor=executor,
        helper=Idle(),
        watcher=steps,
        num_classes=10,
        **more,
    )
    search.waiting.clear()
    for each in trials:
        search.working[each.number], search.heard_at[each.number] = each, 0.0
    return search, executor, steps


def epoch(number: int, accuracy: float = 0.5, seconds: float = 1.0) -> dict[str, float]:
    return {"epoch": float(number), "accuracy": accuracy, "seconds": seconds}


def to(until: int, trial: Trial) -> Trial:
    trial.until = until
    return trial


def test_a_milestone_of_a_damaged_record_is_one_that_the_trial_can_reach(tmp_path: Path) -> None:
    low, high, usual = to(0, running(0)), to(99, running(1)), to(3, running(2))
    there = in_memory(tmp_path, "pruner: none", low, high, usual)
    given: dict[str, Any] = {"executor": Noting(), "helper": Idle(), "watcher": Steps(), "num_classes": 10}
    search = Search(space=there.space, files=there.files, record=there.record, **given)
    assert [(each.number, each.until) for each in search.waiting] == [(0, 1), (1, 4), (2, 3)]


def test_history_of_a_checkpoint_fills_in_what_is_not_recorded_yet(tmp_path: Path) -> None:
    mine = to(4, running(0, 0.1, 0.2))
    search, _, steps = searching(tmp_path, "trials: 1", mine, make=context)
    search._handle(Started(trial=0, worker="worker-3", history=[epoch(1), epoch(2), epoch(3, 0.3)]))
    # What was recorded first stays.
    assert [each["accuracy"] for each in mine.epochs] == [0.1, 0.2, 0.3]
    assert steps.said == []
    search._handle(Started(trial=0, worker="worker-3", history=[epoch(1), epoch(2)]))
    assert steps.said == ["trial 0: 1 recorded epoch in no checkpoint; training resumes before that"]
    search._handle(EpochEnded(trial=0, metrics=epoch(3, 0.9)))
    assert mine.epoch == 3
    search._handle(EpochEnded(trial=0, metrics=epoch(4, 0.4)))
    assert [each["accuracy"] for each in records.load(search.files).trials[0].epochs] == [0.1, 0.2, 0.3, 0.4]
    frozen = search.record.study.trials[0].user_attrs
    assert (frozen["worker"], frozen["log"]) == ("worker-3", "s/logs/trial-00000.log")


def test_checkpoint_that_cannot_be_used_is_noted_unless_the_trial_is_new(tmp_path: Path) -> None:
    fresh, begun = to(4, running(0)), to(4, running(1, 0.1))
    search, _, steps = searching(tmp_path, "trials: 2", fresh, begun)
    for each in (fresh, begun):
        search._handle(Started(trial=each.number, history=[], dropped="its checkpoint is damaged"))
    assert (fresh.troubles, begun.troubles) == ([], ["its checkpoint is damaged"])
    assert steps.said[0] == "trial 1: its checkpoint is damaged; it trains from the start again"


def test_new_checkpoint_ends_the_count_of_deaths(tmp_path: Path) -> None:
    mine = to(4, running(0, 0.1))
    search, _, steps = searching(tmp_path, "trials: 1", mine, make=context)
    search._handle(WorkerDied(trial=0, reason="died"))
    assert (mine.deaths, search.waiting, search.working) == (1, [mine], {})
    search._handle(CheckpointSaved(trial=0, epoch=1))
    assert records.load(search.files).trials[0].deaths == mine.deaths == 0
    search._handle(Notice(trial=0, text="a line"))
    assert steps.said[-1] == "a line"


def test_trial_that_may_continue_is_the_next_of_its_free_worker(tmp_path: Path) -> None:
    mine, other = to(4, running(0, 0.1)), to(4, running(1, 0.1))
    search, _, _ = searching(tmp_path, "trials: 2", mine)
    search.waiting = [other]
    search.record.add(other)
    search._handle(Failed(trial=0, kind="out_of_memory", reason="out of memory"))
    assert search.waiting == [mine, other]
    assert mine.micro_batches == 2
    search.working[1] = search.waiting.pop()
    search._handle(Failed(trial=1, kind="error", reason="broken"))
    assert other.state == "fail"
    assert search.waiting == [mine]


def test_events_of_a_trial_that_has_ended_change_nothing(tmp_path: Path) -> None:
    mine = to(4, running(0, 0.1))
    search, _, _ = searching(tmp_path, "trials: 1", mine)
    search.record.prune(mine, "enough")
    for event in (EpochEnded(trial=0, metrics=epoch(2)), MilestoneReached(trial=0)):
        search._handle(event)
    assert (mine.epoch, mine.state, mine.reason) == (1, "pruned", "enough")
    assert search.working == {}


def test_trial_ended_from_outside_is_stopped_at_its_next_epoch(tmp_path: Path) -> None:
    mine = to(4, running(0, 0.1))
    search, executor, steps = searching(tmp_path, "trials: 1", mine, make=context)
    storage, number = search.record.study._storage, search.record.ids[0]
    from optuna.trial import TrialState

    storage.set_trial_state_values(number, TrialState.FAIL)
    search._handle(EpochEnded(trial=0, metrics=epoch(2)))
    assert steps.said == ["trial 0: ended from outside"]
    assert executor.asked == [("stop", 0)]


def test_measured_trial_is_timed_before_it_ends(tmp_path: Path) -> None:
    mine, other = to(4, running(0, 0.1, 0.2, 0.3, 0.4)), to(4, running(1, 0.1))
    search, executor, steps = searching(
        tmp_path, "trials: 2, objectives: {accuracy: maximize, latency_ms: minimize}", mine, other
    )
    assert steps.said[0].startswith("latency_ms: ONNX Runtime on one thread of the CPU")
    executor.now = 7.0
    search._handle(Scored(trial=0, epoch=4, metrics={"accuracy": 0.4, "size_kb": 3.0}))
    search._handle(MilestoneReached(trial=0))
    assert search.waiting == [mine]
    assert search.heard_at[1] == 0
    search._start(search.waiting.pop())
    assert executor.asked == [("start", 0, "time")]
    assert search._is_timing()
    assert not search.upcoming.can_look_ahead()
    executor.now = 9.0
    search._handle(Scored(trial=0, epoch=4, metrics={"latency_ms": 0.2}))
    # The other one had to wait: that time is not held against it.
    assert search.heard_at == {0: 9.0, 1: 9.0}
    search._handle(MilestoneReached(trial=0))
    assert (mine.state, mine.values) == ("complete", (0.4, 0.2))
    assert not search._is_timing()


def test_pictures_are_drawn_of_the_best_feasible_trials_while_the_search_goes_on(tmp_path: Path) -> None:
    best, worse, mine = (to(1, running(number, value)) for number, value in enumerate((0.9, 0.1, 0.5)))
    limited = "trials: 3, keep: 2, objectives: {accuracy: maximize}"
    search, _, steps = searching(tmp_path, limited, best, worse, mine, draws=True)
    for each in (best, worse):
        search.record.complete(each, [each.value_at(1)])
    assert search._deserves_pictures(mine)
    search.record.complete(mine, [0.5])
    low = to(1, running(3, 0.4))
    search.record.add(low)
    assert not search._deserves_pictures(low)
    search.draws = False
    assert not search._deserves_pictures(mine)
    search.draws = True
    search._handle(Drawn(trial=3, pictures={"a.png": "what"}, reason="no font"))
    assert low.pictures == {"a.png": "what"}
    assert steps.said[-1] == "trial 3: its pictures could not be drawn: no font"
    low.epochs[0]["accuracy"] = 0.95
    assert search._deserves_pictures(low)
    assert search._stop("timeout")
    assert not search._deserves_pictures(low)


def test_stop_asks_each_worker_once(tmp_path: Path) -> None:
    search, executor, steps = searching(tmp_path, "trials: 2", to(4, running(0)), to(4, running(1)))
    assert search._stop("interrupted")
    assert not search._stop("terminated")
    assert search.stopping == "interrupted"
    assert executor.asked == [("stop", 0), ("stop", 1)]
    assert steps.said == ["interrupted: saving 2 running trials"]


@pytest.mark.parametrize(
    ("limits", "silent", "expected"),
    [
        ("epoch_timeout: 10", 10.0, None),
        ("epoch_timeout: 10", 10.1, "an epoch took longer than study.epoch_timeout: 10 s"),
        ("epoch_timeout: null", 1e9, None),
        # Two epochs took one second each.
        ("trial_timeout: 12", 10.0, None),
        ("trial_timeout: 12", 10.1, "trained longer than study.trial_timeout: 12 s"),
    ],
)
def test_silent_workers_are_killed_when_their_time_is_over(
    limits: str, silent: float, expected: str | None, tmp_path: Path
) -> None:
    mine = to(4, running(0, 0.1, 0.2))
    search, executor, _ = searching(tmp_path, f"trials: 1, {limits}", mine)
    search.heard_at[0] = 5.0
    executor.now = 5.0 + silent
    search._enforce_time_limits()
    assert executor.asked == ([] if expected is None else [("kill", 0, expected)])
    # Trained anew, it would take as long again.
    assert mine.state == ("fail" if "trial_timeout" in limits and expected else "running")
    if expected is not None:
        search.record.prune(mine, "enough")
        search._enforce_time_limits()
        assert len(executor.asked) == 1


def test_any_event_shows_that_a_worker_is_alive(tmp_path: Path) -> None:
    search, executor, _ = searching(tmp_path, "trials: 1, epoch_timeout: 10", to(4, running(0)))
    executor.now = 8.0
    search._handle(Notice(trial=0, text="alive"))
    executor.now = 18.0
    search._enforce_time_limits()
    assert executor.asked == []
    search._handle(Stopped(trial=0))
    assert search.working == {}


class Measuring(Idle):
    """A helper whose answer is still to come, and then is of these sizes."""

    is_measuring = True

    def __init__(self, **found: float) -> None:
        self.found = found

    def measuring(self, config: TrialConfig, shape: InputShape) -> Generator[None, None, dict[str, float]]:
        yield
        if not self.found:
            raise BuildError("model", "does not fit")
        return {**dict.fromkeys(SIZES, 0.0), **self.found}


def test_loop_listens_for_long_only_if_nothing_else_is_to_do(tmp_path: Path) -> None:
    search, _, _ = searching(tmp_path, "trials: 2", to(4, running(0)))
    assert search._patience() == 0
    search.helper = Measuring()
    assert search._patience() == GLANCE_SECONDS
    done, _, _ = searching(tmp_path / "other", "trials: 1", to(4, running(0)))
    assert done._patience() == upcoming.POLL_SECONDS


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ({"params": 100.0, "macs": 7.0}, None),
        ({"params": 101.0}, "limits.params: over 100"),
        ({}, "model: does not fit"),
    ],
)
def test_candidates_over_a_limit_are_answered_in_words(
    found: dict[str, float], answer: str | None, tmp_path: Path
) -> None:
    there = in_memory(tmp_path, "trials: 1")
    limited = replace(there, space=replace(there.space, limits={"params": 100.0, "latency_ms": 1.0}))
    config = there.space.fill({"image.size": 8, "image.channels": 1}).first()
    steps: Generator[None, None, Mapping[str, float] | str] = upcoming.sizes_within_limits(
        limited, Measuring(**found), config, 10
    )
    assert next(steps) is None
    with pytest.raises(StopIteration) as ended:
        next(steps)
    assert ended.value.value == (answer if answer is not None else {**dict.fromkeys(SIZES, 0.0), **found})


def test_seeds_of_trainings_are_those_of_earlier_versions() -> None:
    # A study that resumes with a later version trains as with this one.
    assert [upcoming._training_seed(seed, number) for seed, number in ((0, 0), (0, 1), (7, 1))] == [
        1915600865,
        450621607,
        291303631,
    ]


def test_start_jobs_of_trials_say_where_they_continue(tmp_path: Path) -> None:
    mine = to(4, running(0, 0.1, 0.2))
    search, executor, _ = searching(tmp_path, "trials: 1", mine)
    search.working.clear()
    executor.now = 3.0
    search._start(mine)
    assert executor.asked == [("start", 0, "train")]
    assert search.working == {0: mine}
    assert search.heard_at[0] == 3.0
    for event in (EpochEnded(trial=0, metrics=epoch(3)), EpochEnded(trial=0, metrics=epoch(4, 0.7))):
        search._handle(event)
    search._handle(MilestoneReached(trial=0))
    assert search.stages.now(mine) is Stage.DECIDE
    assert (mine.state, mine.values) == ("complete", (0.7,))
