"""What ends a search, what is kept of it on the disk, and how many deaths a trial may have."""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imgcls_search import atomic
from imgcls_search.catalog import catalog
from imgcls_search.errors import NoResultError, StudyError, UserError
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.orchestrator.checkpoints import Checkpoints
from imgcls_search.orchestrator.clock import RunClock
from imgcls_search.orchestrator.context import SearchContext, study_settings
from imgcls_search.orchestrator.endings import SAVING_SECONDS, Deadline, note_run, reached_end, stopping_on_signals
from imgcls_search.orchestrator.faults import Faults, more_parts
from imgcls_search.orchestrator.milestones import Milestones
from imgcls_search.protocol import Event, Failed, FailureKind, Notice, WorkerDied
from imgcls_search.space import Space, parse
from imgcls_search.strategy.closing import RemainingBudget
from imgcls_search.strategy.draws import fixed_candidate
from imgcls_search.strategy.pruners import make_pruner
from imgcls_search.strategy.view import View
from imgcls_search.study import endings
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.memory import record_in_memory
from imgcls_search.study.outlook import outlook
from imgcls_search.study.record import Record
from imgcls_search.trial import SIZES, Trial

from tests.strategy.test_strategy import trial

SPACE = "model: {lenet5: {width: {choice: [0.5, 1]}}}\ntraining: {epochs: 4}\n"


CATALOG = catalog()
PARSED = parse(f"{SPACE}study: {{name: s}}", CATALOG, source="x.yaml")
CANDIDATE = fixed_candidate(View(PARSED, [], [], 0), {"model.lenet5.width": 0.5})


def context(folder: Path, study: str, *trials: Trial) -> SearchContext:
    """A study on the disk with these trials, each running until `end` says otherwise."""
    space = parse(f"{SPACE}study: {{name: s, {study}}}\n", CATALOG, source="x.yaml")
    files = StudyFiles(folder, "s")
    files.make()
    record = records.create(files, space.objectives, {"space": records.to_json(space.document)})
    return _context(space, files, record, trials)


def in_memory(folder: Path, study: str, *trials: Trial) -> SearchContext:
    """The same without its database, which takes longer than most tests."""
    space = parse(f"{SPACE}study: {{name: s, {study}}}\n", CATALOG, source="x.yaml")
    files = StudyFiles(folder, "s")
    files.folder.mkdir(parents=True)
    return _context(space, files, record_in_memory("s", space.objectives), trials)


def _context(space: Space, files: StudyFiles, record: Record, trials: Sequence[Trial]) -> SearchContext:
    for made in trials:
        record.add(made)
    said: list[str] = []
    return SearchContext(space=space, files=files, record=record, settings=study_settings(space), say=said.append)


def running(number: int, *accuracies: float) -> Trial:
    made = trial(number, *accuracies, state="running")
    made.until = made.judged
    made.candidate, made.sizes = CANDIDATE, dict.fromkeys(SIZES, 1.0)
    return made


@pytest.mark.parametrize(
    ("values", "over", "expected"),
    [
        ((0.9,), {}, "target"),
        ((0.8,), {}, "target"),
        ((0.79,), {}, None),
        # As good, but over a measured limit: nobody may use it.
        ((0.9,), {"limits.size_kb": 1.0}, None),
        ((0.9,), {"limits.size_kb": 0.0}, "target"),
    ],
)
def test_target_is_reached_by_what_is_within_the_limits(
    values: tuple[float, ...], over: dict[str, float], expected: str | None, tmp_path: Path
) -> None:
    there = in_memory(tmp_path, "target: 0.8", running(0, 0.9))
    assert reached_end(there, 0) is None
    there.record.complete(there.record.trials[0], values, over)
    assert reached_end(there, 0) == expected


def test_target_of_a_minimized_objective_is_reached_from_above(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "target: 0.3, objectives: {loss: minimize}", running(0, 0.9))
    there.record.complete(there.record.trials[0], (0.31,))
    assert reached_end(there, 0) is None
    there.record.trials[0].values = (0.3,)
    assert reached_end(there, 0) == "target"


def test_time_and_epochs_end_a_search_when_they_are_spent(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "timeout: 60, max_epochs: 5", running(0, 0.1, 0.2), running(1, 0.1, 0.2))
    assert reached_end(there, 60.0) is None
    assert reached_end(there, 60.1) == "timeout"
    there.record.add_epoch(there.record.trials[0], {"epoch": 3.0, "accuracy": 0.1, "seconds": 1.0})
    assert reached_end(there, 60.0) == "epochs"


def test_small_gain_ends_a_search(tmp_path: Path) -> None:
    trials = [running(number, 0.5 + 0.01 * number) for number in range(20)]
    there = in_memory(tmp_path, "trials: 100", *trials)
    for each in trials:
        there.record.complete(each, [each.value_at(1)])
    found = outlook(there.record)
    assert found is not None
    assert reached_end(there, 0) is None
    for gain, expected in ((found.gain, None), (1.01 * found.gain, "gain")):
        assert reached_end(replace(there, settings=replace(there.settings, min_gain=gain)), 0) == expected


def test_end_of_a_call_is_noted_with_its_time(tmp_path: Path) -> None:
    there = context(tmp_path, "trials: 2", running(0, 0.1, 0.2))
    note_run(there.record, "timeout", 12.34567, 2.00049)
    there.record.complete(there.record.trials[0], [0.2])
    note_run(there.record, "finished", 1.0, 0.0)
    assert [{**run, "id": ""} for run in there.record.facts["runs"]] == [
        {"id": "", "seconds": 12.346, "writer_seconds": 10.345, "ending": "timeout", "trials": 1, "epochs": 2},
        {"id": "", "seconds": 1.0, "writer_seconds": 1.0, "ending": "finished", "trials": 1, "epochs": 2},
    ]


def test_first_signal_asks_to_stop_and_the_second_ends_at_once() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    asked: list[endings.Ending] = []

    def stop(why: endings.Ending) -> bool:
        asked.append(why)
        return len(asked) < 4

    with stopping_on_signals(stop):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert asked == ["terminated", "terminated", "interrupted", "interrupted"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    # As `nohup` does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping_on_signals(stop):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, before[-1])


def test_signals_of_another_thread_are_left_alone() -> None:
    seen: list[Any] = []

    def run() -> None:
        with stopping_on_signals(lambda _: True):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


class Watch(ReplayExecutor):
    """Workers that give an event after two seconds, on a clock that a test sets."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.now = 100.0

    def next_event(self, timeout: float) -> Event | None:
        self.now += 2
        return Notice(trial=0, text="one")


def clock(there: SearchContext, deadline: Deadline | None = None) -> tuple[RunClock, Watch]:
    executor = Watch()
    return RunClock(executor=executor, settings=there.settings, record=there.record, deadline=deadline), executor


def test_clock_counts_this_call_and_how_long_it_waited(tmp_path: Path) -> None:
    found, executor = clock(in_memory(tmp_path, "timeout: 60"))
    assert found.seconds() == 0
    assert found.listen(1.0) == Notice(trial=0, text="one")
    executor.now += 3
    found.listen(1.0)
    assert (found.seconds(), found.idle_seconds, found.seconds_left()) == (7, 4, 53)


class Busy(Watch):
    """Has an event after a tenth of a second, and none before."""

    def next_event(self, timeout: float) -> Event | None:
        self.now += min(timeout, 0.1)
        return Notice(trial=0, text="one") if timeout >= 0.1 else None


def test_short_epochs_do_not_keep_a_run_from_its_time_limits(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "trials: 1")
    found = RunClock(executor=Busy(), settings=there.settings, record=there.record)
    heard = [found.listen(0.2) for _ in range(100)]
    # About once in a second the run hears nothing, and looks at them.
    assert 8 <= heard.count(None) <= 10


@pytest.mark.parametrize(
    ("study", "deadline", "left"),
    [("trials: 1", None, math.inf), ("trials: 1", 130.0, 30), ("timeout: 20", 130.0, 20), ("timeout: 40", 130.0, 30)],
)
def test_nearer_of_timeout_and_deadline_counts(study: str, deadline: float | None, left: float, tmp_path: Path) -> None:
    found, executor = clock(in_memory(tmp_path, study), None if deadline is None else lambda record: deadline)
    assert found.seconds_left() == left
    executor.now += 4
    assert found.seconds_left() == left - 4


def test_workers_that_save_too_long_at_a_deadline_are_left(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "trials: 1")
    found, executor = clock(there, lambda record: 105.0)
    executor.now = 110.0
    found.note_stop()
    executor.now += SAVING_SECONDS
    assert not found.is_overdue("timeout")
    executor.now += 0.1
    assert found.is_overdue("timeout")
    # With another ending, or without a deadline, they take the time they need.
    assert not found.is_overdue("interrupted")
    assert not found.is_overdue(None)
    plain, executor = clock(there)
    executor.now += 100
    assert not plain.is_overdue("timeout")


def test_budget_is_what_running_trials_leave_of_it(tmp_path: Path) -> None:
    first, second = running(0, 0.1, 0.2), running(1, 0.1)
    first.until = 4
    there = in_memory(tmp_path, "max_epochs: 10", first, second)
    found, _ = clock(there)
    # Three are trained, and the first will train two more.
    assert found.remaining_budget([first]) == RemainingBudget(epochs=5, seconds=math.inf)
    timed, _ = clock(replace(there, settings=replace(there.settings, max_epochs=None, timeout=60)))
    assert timed.remaining_budget([first]) == RemainingBudget(epochs=math.inf, seconds=60)
    unlimited, _ = clock(replace(there, settings=replace(there.settings, max_epochs=None)))
    assert unlimited.remaining_budget([first]) is None


def test_half_written_files_of_killed_workers_are_deleted(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "trials: 1")
    kept = checkpoint(there, 0, 0.001)
    there.files.pictures.mkdir(parents=True)
    drafts = [folder / f".x{atomic.SUFFIX}" for folder in (kept.parent, there.files.pictures)]
    for draft in drafts:
        draft.touch()
    Checkpoints(there).clear_leftovers()
    assert kept.exists()
    assert not any(draft.exists() for draft in drafts)


def test_every_setting_that_ends_a_search_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/plan-the-time-of-a-search.md").read_text()
    section = set(re.findall(r"^  (\w+): ", page, re.MULTILINE))
    missing = [setting for setting in endings.LIMITS if setting.partition(".")[2] not in section]
    assert missing == [], "explain it in docs/how-to/plan-the-time-of-a-search.md"


def checkpoint(there: SearchContext, number: int, megabytes: float) -> Path:
    path = there.files.checkpoint(number)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0" * int(megabytes * 1e6))
    return path


def test_checkpoints_beyond_the_disk_budget_are_those_of_the_worst_paused_trials(tmp_path: Path) -> None:
    # In the order in which they go: fewer epochs first, then the worse.
    trials = [running(0, 0.9), running(1, 0.2, 0.3), running(2, 0.2, 0.6), running(3, 0.1), running(4, 0.1, 0.2)]
    there = context(tmp_path, "disk_gb: 0.003, keep: 1", *trials)
    for each in trials[:4]:
        there.record.set_plan(each, until=each.epoch, paused=True)
    paths = [checkpoint(there, number, 1.0) for number in range(5)]
    checkpoints = Checkpoints(there)
    checkpoints.tidy()
    assert [path.exists() for path in paths] == [False, True, True, False, True]
    assert [each.state for each in trials] == ["pruned", "paused", "paused", "pruned", "running"]
    assert trials[0].reason == "its checkpoint was deleted to stay within study.disk_gb=0.003"
    # Within it nothing goes, also at its very end.
    checkpoints.tidy()
    assert [path.exists() for path in paths] == [False, True, True, False, True]
    assert records.load(there.files).trials[3].reason == trials[3].reason


def test_disk_budget_counts_when_a_trial_pauses_too(tmp_path: Path) -> None:
    trials = [running(0, 0.1), running(1, 0.9)]
    there = context(tmp_path, "disk_gb: 0.0015", *trials)
    paths = [checkpoint(there, number, 1.0) for number in range(2)]
    for each in trials:
        there.record.set_plan(each, until=1, paused=True)
        Checkpoints(there).tidy_after(each)
    assert [each.state for each in trials] == ["pruned", "paused"]
    assert [path.exists() for path in paths] == [False, True]


def test_files_that_people_put_beside_the_checkpoints_stay_and_do_not_count(tmp_path: Path) -> None:
    mine = running(0, 0.9)
    there = context(tmp_path, "disk_gb: 0.0015, keep: 1", mine)
    there.record.set_plan(mine, until=1, paused=True)
    paths = [checkpoint(there, number, 1.0) for number in (0, 1, 123456)]
    theirs = [paths[0].with_name(name) for name in ("trial-best.pt", "trial-00001-copy.pt")]
    for path in theirs:
        path.write_bytes(b"\0" * 1_000_000)
    Checkpoints(there).tidy()
    assert [path.exists() for path in paths] == [True, False, False]
    assert all(path.exists() for path in theirs)
    assert mine.state == "paused"


def test_running_and_best_trials_keep_their_checkpoints_however_small_the_budget(tmp_path: Path) -> None:
    trials = [running(0, 0.9), running(1, 0.8), running(2, 0.7), running(3, 0.1)]
    there = context(tmp_path, "disk_gb: 0.000001, keep: 1", *trials)
    for each in trials[:2]:
        there.record.complete(each, [each.value_at(1)])
    there.record.set_plan(trials[2], until=1, paused=True)
    paths = [checkpoint(there, number, 0.1) for number in range(4)]
    Checkpoints(there).tidy()
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert trials[2].state == "pruned"


def faults(there: SearchContext) -> Faults:
    there.files.log(0).parent.mkdir(exist_ok=True)
    return Faults(there.record, there.files, there.settings, there.say)


def died(**more: Any) -> WorkerDied:
    return WorkerDied(trial=0, reason="worker died (signal 9)", **more)


def test_trial_whose_workers_die_fails_after_its_retries_and_counts_from_its_last_checkpoint(tmp_path: Path) -> None:
    there = context(tmp_path, "retries: 2", running(0, 0.1))
    mine = there.record.trials[0]
    decide = faults(there)
    assert decide.take_death(mine, died())
    assert decide.take_death(mine, died())
    # As a run does that goes on after this one.
    again = records.load(there.files).trials[0]
    assert again.deaths == 2
    assert again.troubles == ["worker died (signal 9)"] * 2
    # A new checkpoint is a new beginning; the loop notes it so.
    mine.deaths = 0
    there.record.note(mine, deaths=0)
    assert records.load(there.files).trials[0].deaths == 0
    assert [decide.take_death(mine, died()) for _ in range(3)] == [True, True, False]
    assert mine.state == "fail"
    assert mine.reason == "worker died (signal 9), 3 times without a new checkpoint"


def test_death_for_want_of_memory_halves_the_batch_and_counts_as_no_death(tmp_path: Path) -> None:
    there = context(tmp_path, "retries: 0", running(0, 0.1))
    mine = there.record.trials[0]
    assert faults(there).take_death(mine, died(is_out_of_memory=True))
    assert (mine.deaths, mine.micro_batches) == (0, 2)
    assert records.load(there.files).trials[0].micro_batches == 2


def test_trial_out_of_time_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "trial_timeout: 5, epoch_timeout: 3", running(0, 0.1, 0.2))
    decide, mine = faults(there), there.record.trials[0]
    # Two epochs took a second each.
    assert decide.over_trial_time(mine, 3.0) is None
    assert decide.over_trial_time(mine, 3.1) == "trained longer than study.trial_timeout: 5 s"
    assert decide.over_epoch_time(3.0) is None
    assert decide.over_epoch_time(3.1) == "an epoch took longer than study.epoch_timeout: 3 s"


def test_three_failures_of_one_kind_in_a_row_stop_a_search(tmp_path: Path) -> None:
    trials = [running(number, 0.1) for number in range(8)]
    there = in_memory(tmp_path, "trials: 8", *trials)
    decide = faults(there)

    def fail(number: int, reason: str, kind: FailureKind = "error") -> None:
        assert not decide.take_failure(trials[number], Failed(trial=number, kind=kind, reason=reason))
        assert trials[number].state == "fail"

    for number, reason in enumerate(("same", "same", "other", "same", "same")):
        fail(number, reason)
    decide.note_progress()
    fail(5, "same")
    fail(6, "same")
    with pytest.raises(NoResultError, match="3 trials in a row failed in the same way, the last is trial 7: same"):
        fail(7, "same")


def test_mistake_that_every_trial_would_meet_stops_a_search_at_once(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "trials: 8", running(0, 0.1), running(1, 0.1))
    decide, (first, second) = faults(there), there.record.trials
    assert not decide.take_failure(first, Failed(trial=0, kind="diverged", reason="loss is nan"))
    assert (first.state, first.reason, first.troubles) == ("pruned", "loss is nan", ["loss is nan"])
    with pytest.raises(UserError, match="trial 1: no such file"):
        decide.take_failure(second, Failed(trial=1, kind="setup", reason="no such file"))
    assert second.state == "fail"


def test_batches_are_halved_down_to_two_images(tmp_path: Path) -> None:
    assert [more_parts(4, parts) for parts in (1, 2)] == [2, None]
    assert more_parts(3, 1) is None
    there = in_memory(tmp_path, "trials: 1, retries: 0", running(0, 0.1))
    decide, mine = faults(there), there.record.trials[0]
    said: list[str] = []
    decide.say = said.append
    size = mine.candidate.config.batch_size
    parts = 1
    while decide.take_failure(mine, Failed(trial=0, kind="out_of_memory", reason="no memory")):
        parts *= 2
        assert mine.micro_batches == parts
    assert size // parts >= 2 > size // (2 * parts)
    assert mine.reason == f"no memory (with micro-batches of {math.ceil(size / parts)} images)"
    assert said[0] == f"trial 0: no memory; it continues with micro-batches of {math.ceil(size / 2)} images"


@pytest.mark.parametrize(
    ("pruner", "shown", "expected"),
    [
        ("none", (0.1, 0.2, 0.3, 0.4), ("complete", 0, 4, None)),
        ("none", (0.1, 0.2), ("running", 2, 4, None)),
        ("{asha: {min_epochs: 2}}", (0.1, 0.2), ("paused", 2, 2, None)),
        ("{halving: {min_epochs: 2}}", (0.1, 0.9), ("running", 2, 4, None)),
        ("{halving: {min_epochs: 2}}", (0.1, 0.2), ("pruned", 0, 2, "too low at epoch 2")),
    ],
)
def test_milestone_completes_pauses_prunes_or_continues(
    pruner: str, shown: tuple[float, ...], expected: tuple[str, int, int, str | None], tmp_path: Path
) -> None:
    others = [running(number, 0.1, 0.5) for number in range(1, 4)]
    there = in_memory(tmp_path, f"pruner: {pruner}", running(0, *shown), *others)
    mine = there.record.trials[0]
    mine.judged, mine.until = 0, len(shown)
    built = make_pruner(there.space.pruner, there.space.first(), 1)
    milestones = Milestones(context=there, pruner=built, why_pruned="too low")
    assert milestones.decide(mine) == (expected[0] == "running")
    assert (mine.state, mine.judged, mine.until, mine.reason) == expected
    paused = mine.state == "paused"
    milestones.close_paused("the end")
    assert (mine.state == "pruned" and mine.reason == "the end") == paused


def test_outcome_is_that_of_the_last_epoch_with_the_excess_over_measured_limits(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "objectives: {accuracy: maximize, params: minimize}", running(0, 0.1, 0.3))
    mine = there.record.trials[0]
    assert there.sign == 1
    assert there.epochs == 4
    assert there.outcome(mine) == ([0.3, 1.0], {})
    limited = replace(there, space=replace(there.space, limits={"size_kb": 5.0, "params": 9.0}))
    with pytest.raises(StudyError, match="the record of trial 0 is damaged: its last epoch has no size_kb"):
        limited.outcome(mine)
    mine.scores[2] = {"accuracy": 0.25, "size_kb": 7.0}
    assert limited.outcome(mine) == ([0.25, 1.0], {"limits.size_kb": 2.0})
    mine.scores = {1: {"size_kb": 1.0, "accuracy": 0.9}}
    with pytest.raises(StudyError, match="size_kb"):
        limited.outcome(mine)


def test_full_disk_leaves_the_trial_as_it_is(tmp_path: Path) -> None:
    there = context(tmp_path, "retries: 0", running(0, 0.1))
    mine = there.record.trials[0]
    with pytest.raises(StudyError, match="trial 0: No space left on device"):
        faults(there).take_failure(mine, Failed(trial=0, kind="disk", reason="No space left on device"))
    assert records.load(there.files).trials[0].state == "running"
