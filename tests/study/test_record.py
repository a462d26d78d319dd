"""The record of a study, as its database has it and as the run decides by it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trial import SIZES, Candidate, Trial
from optuna.trial import TrialState

from tests.strategy.test_strategy import trial

SPACE = "model: {lenet5: {width: {choice: [0.5, 1]}}}\ntraining: {epochs: 4}\n"
ONE = parse(SPACE, catalog(), source="x.yaml")
TWO = parse(SPACE + "study: {objectives: {accuracy: maximize, params: minimize}}\n", catalog(), source="x.yaml")
CONFIG = ONE.first()


def study(folder: Path, space: Any = ONE) -> Record:
    files = StudyFiles(folder, "s")
    files.make()
    return records.create(files, space.objectives, {"space": records.to_json(space.document)})


def running(number: int, *accuracies: float, **more: Any) -> Trial:
    made = trial(number, *accuracies, state="running")
    made.until = made.judged
    candidate = Candidate(params={}, distributions={}, config=CONFIG)
    return replace(made, candidate=candidate, sizes=dict.fromkeys(SIZES, 1.0), **more)


def epoch(number: int, accuracy: float) -> dict[str, float]:
    return {"epoch": float(number), "accuracy": accuracy, "seconds": 1.0006}


def test_pruned_trial_keeps_its_last_value_unless_that_is_no_number(tmp_path: Path) -> None:
    record = study(tmp_path)
    for number, last in enumerate((0.2, math.nan)):
        mine = running(number)
        record.add(mine)
        for place, accuracy in enumerate((0.1, last), start=1):
            record.add_epoch(mine, epoch(place, accuracy))
        record.prune(mine, "too low")
    empty = running(2)
    record.add(empty)
    record.prune(empty, "too low")
    first, diverged, third = record.study.trials
    assert [each.state for each in (first, diverged, third)] == [TrialState.PRUNED] * 3
    assert [each.values for each in (first, diverged, third)] == [[0.2], None, None]
    assert first.intermediate_values == {1: 0.1, 2: 0.2}
    assert (first.user_attrs["reason"], first.user_attrs["seconds"]) == ("too low", 2.001)
    assert [each.state for each in record.trials] == ["pruned"] * 3


def test_with_several_objectives_no_epoch_is_drawn(tmp_path: Path) -> None:
    record = study(tmp_path, TWO)
    mine, cut = running(0), running(1)
    for each in (mine, cut):
        record.add(each)
        record.add_epoch(each, epoch(1, 0.5))
    record.prune(cut, "beaten")
    record.complete(mine, [0.5, 1.0], {"limits.size_kb": 2.0})
    first, second = record.study.trials
    assert (first.intermediate_values, first.values) == ({}, [0.5, 1.0])
    assert first.constraints == {"limits.size_kb": 2.0}
    assert (second.state, second.values) == (TrialState.PRUNED, None)
    assert record.study.metric_names == ["accuracy", "params"]
    assert (mine.values, mine.is_feasible) == ((0.5, 1.0), False)


def test_score_of_a_compressed_network_is_drawn_once_and_the_rest_is_added(tmp_path: Path) -> None:
    record = study(tmp_path)
    pruned = parse(SPACE + "prune: {unstructured: {}}\n", catalog(), source="x.yaml").first()
    mine = running(0)
    mine.candidate = Candidate(params={}, distributions={}, config=pruned)
    record.add(mine)
    record.add_epoch(mine, epoch(1, 0.9))
    record.add_score(mine, 1, {"accuracy": 0.7}, {"note": "compressed"})
    record.add_score(mine, 1, {"size_kb": 3.0, "accuracy": 0.7})
    (frozen,) = record.study.trials
    # The value before the compression compares with nothing.
    assert frozen.intermediate_values == {1: 0.7}
    assert frozen.user_attrs["note"] == "compressed"
    again = records.load(StudyFiles(tmp_path, "s")).trials[0]
    assert again.scores == mine.scores == {1: {"accuracy": 0.7, "size_kb": 3.0}}


def test_score_of_a_network_that_is_only_exported_is_not_drawn(tmp_path: Path) -> None:
    record = study(tmp_path)
    mine = running(0)
    record.add(mine)
    record.add_epoch(mine, epoch(1, 0.9))
    record.add_score(mine, 1, {"accuracy": 0.7, "size_kb": 3.0})
    assert record.study.trials[0].intermediate_values == {1: 0.9}


def test_plan_of_an_ended_trial_stays(tmp_path: Path) -> None:
    record = study(tmp_path)
    mine = running(0)
    record.add(mine)
    record.add_epoch(mine, epoch(1, 0.5))
    record.set_plan(mine, until=4, paused=False)
    assert (mine.judged, mine.until, mine.state) == (1, 4, "running")
    record.set_plan(mine, until=1, paused=True)
    assert (mine.until, mine.state) == (1, "paused")
    record.study.tell(0, state=TrialState.FAIL)
    record.set_plan(mine, until=4, paused=False)
    assert (mine.state, mine.reason) == ("fail", "ended from outside")
    record.set_plan(mine, until=3, paused=True)
    assert (mine.state, mine.until) == ("fail", 4)


def test_trials_of_others_are_counted_and_told(tmp_path: Path) -> None:
    record = study(tmp_path)
    assert record.note_about_foreign_trials() is None
    record.add(running(0))
    for _ in range(6):
        record.study.tell(record.study.ask(), 0.5)
    record.study.enqueue_trial({"model.lenet5.width": 1})
    record.look_again()
    assert (record.next_number, record.num_drawn) == (8, 1)
    assert record.note_about_foreign_trials() == (
        "study s: left out 7 trials that imgcls-search did not make: 1 (complete), 2 (complete), 3 (complete), "
        "4 (complete), 5 (complete) and 2 more; run tries those that wait"
    )
    foreign = record.foreign_trials[7]
    assert (foreign.state, foreign.params) == ("waiting", {"model.lenet5.width": 1})
    assert record.claim(foreign, running(7))
    assert record.foreign_trials.keys() == set(range(1, 7))
    # A request is tried in addition to those that the search draws.
    record.add(running(8, request="id"))
    assert (record.next_number, record.num_drawn, record.num_requested) == (9, 2, 1)
    again = records.load(StudyFiles(tmp_path, "s"))
    assert [each.number for each in again.trials] == [each.number for each in record.trials] == [0, 7, 8]
    assert (again.placed, again.num_requested) == ({7: 1}, 1)
    # Others have taken its number meanwhile, and one that waits.
    assert record.study.ask().number == 9
    record.study.enqueue_trial({"model.lenet5.width": 1})
    mine = running(9)
    record.add(mine)
    assert mine.number == 11
    assert record.study.ask().number == 10
    assert not record.claim(record.foreign_trials[10], running(10))
    assert record.foreign_trials[10].state == "no longer waiting"


@pytest.mark.parametrize(("known", "shown"), [(6, "and 1 more"), (5, "5 (complete)")])
def test_at_most_five_trials_of_others_are_named(known: int, shown: str, tmp_path: Path) -> None:
    record = study(tmp_path)
    record.add(running(0))
    for _ in range(known):
        record.study.tell(record.study.ask(), 0.5)
    record.look_again()
    assert str(record.note_about_foreign_trials()).endswith(shown)
