"""What ends a search, what is kept of it on the disk, and how many deaths a trial may have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import StudyError
from imgcls_search.orchestrator.checkpoints import Checkpoints
from imgcls_search.orchestrator.context import SearchContext, study_settings
from imgcls_search.orchestrator.endings import reached_end
from imgcls_search.orchestrator.faults import Faults
from imgcls_search.protocol import Failed, WorkerDied
from imgcls_search.space import parse
from imgcls_search.study import endings
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.trial import SIZES, Candidate, Trial

from tests.strategy.test_strategy import trial

SPACE = "model: {lenet5: {width: {choice: [0.5, 1]}}}\ntraining: {epochs: 4}\n"


def context(folder: Path, study: str, *trials: Trial) -> SearchContext:
    """A study on the disk with these trials, each running until `end` says otherwise."""
    space = parse(f"{SPACE}study: {{name: s, {study}}}\n", catalog(), source="x.yaml")
    files = StudyFiles(folder, "s")
    files.make()
    record = records.create(files, space.objectives, {"space": records.to_json(space.document)})
    for made in trials:
        record.add(made)
    said: list[str] = []
    return SearchContext(space=space, files=files, record=record, settings=study_settings(space), say=said.append)


def running(number: int, *accuracies: float) -> Trial:
    made = trial(number, *accuracies, state="running")
    made.until = made.judged
    config = parse(f"{SPACE}study: {{name: s}}", catalog(), source="x.yaml").first()
    made.candidate, made.sizes = Candidate(params={}, distributions={}, config=config), dict.fromkeys(SIZES, 1.0)
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
    there = context(tmp_path, "target: 0.8", running(0, 0.9))
    assert reached_end(there, 0) is None
    there.record.complete(there.record.trials[0], values, over)
    assert reached_end(there, 0) == expected


def test_target_of_a_minimized_objective_is_reached_from_above(tmp_path: Path) -> None:
    there = context(tmp_path, "target: 0.3, objectives: {loss: minimize}", running(0, 0.9))
    there.record.complete(there.record.trials[0], (0.31,))
    assert reached_end(there, 0) is None
    there.record.trials[0].values = (0.3,)
    assert reached_end(there, 0) == "target"


def test_time_and_epochs_end_a_search_when_they_are_spent(tmp_path: Path) -> None:
    there = context(tmp_path, "timeout: 60, max_epochs: 5", running(0, 0.1, 0.2), running(1, 0.1, 0.2))
    assert reached_end(there, 60.0) is None
    assert reached_end(there, 60.1) == "timeout"
    there.record.add_epoch(there.record.trials[0], {"epoch": 3.0, "accuracy": 0.1, "seconds": 1.0})
    assert reached_end(there, 60.0) == "epochs"


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


def test_full_disk_leaves_the_trial_as_it_is(tmp_path: Path) -> None:
    there = context(tmp_path, "retries: 0", running(0, 0.1))
    mine = there.record.trials[0]
    with pytest.raises(StudyError, match="trial 0: No space left on device"):
        faults(there).take_failure(mine, Failed(trial=0, kind="disk", reason="No space left on device"))
    assert records.load(there.files).trials[0].state == "running"
