"""The state of a study as plain values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import NoResultError, StudyError
from imgcls_search.space import parse
from imgcls_search.study import best
from imgcls_search.study.facts import KnownBackbone
from imgcls_search.study.foreign_trials import ForeignTrial
from imgcls_search.study.memory import record_in_memory
from imgcls_search.study.record import Record
from imgcls_search.study.summary import describe, pretraining_lines, state_in_words, summarise
from imgcls_search.trial import Rejection

from scripts.bench import simulation

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")
AS_TWO = [("study.objectives", "{accuracy: maximize, params: minimize}")]
TWO = parse(
    simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test", overrides=AS_TWO
)


def record_of(count: int, objectives: Any = SPACE.objectives) -> Record:
    made = record_in_memory("s", objectives)
    made.trials = simulation.make_trials(SPACE, count)
    for trial in made.trials:
        trial.values = (0.1 * (1 + trial.number), *(1.0 + trial.number for _ in objectives[1:]))
    return made


def test_counts_of_a_study_are_by_state_and_reason() -> None:
    made = record_of(6)
    states = ("complete", "running", "paused", "pruned", "fail", "fail")
    for trial, state in zip(made.trials, states, strict=True):
        trial.state = state  # type: ignore[assignment]
        trial.epochs = trial.epochs[:2]
    rejected = [Rejection(params={}, distributions={}, reason=reason) for reason in ("a", "b", "b")]
    made.trials[0].rejected_before, made.trials[1].rejected_before = tuple(rejected[:2]), tuple(rejected[2:])
    made.trials[4].reason, made.trials[5].reason, made.trials[3].troubles = "broken", "gone", ["died", "died"]
    made.foreign_trials[6] = ForeignTrial(number=6, id=9, state="waiting", params={"x": 1})
    found = summarise(made)
    assert found["trials"] == {
        "total": 6,
        "complete": 1,
        "running": 0,
        "interrupted": 1,
        "paused": 1,
        "pruned": 1,
        "fail": 2,
    }
    assert list(found["rejected"].items()) == [("b", 2), ("a", 1)]
    assert found["troubles"] == {"died": 2}
    assert found["failures"] == [{"trial": 4, "reason": "broken"}, {"trial": 5, "reason": "gone"}]
    assert found["epochs"] == 12
    assert found["training_seconds"] == pytest.approx(12 * 1.2345)
    assert [each["trial"] for each in found["best"]] == [0]
    assert found["others"] == [{"trial": 6, "state": "waiting", "params": {"x": 1}}]
    assert (found["outlook"], found["usage"], found["worked_on_by"]) == (None, None, None)
    assert found["objectives"] == {"accuracy": "maximize"}


def test_trial_is_described_by_its_last_epoch_and_as_deployed() -> None:
    made = record_of(1)
    (trial,) = made.trials
    trial.epochs[-1] |= {"recall:cat": 0.5, "support:cat": 3.0}
    trial.scores = {10: {"accuracy": 0.7, "size_kb": 3.0}, 2: {"accuracy": 0.1}}
    trial.constraints, trial.origin = {"limits.size_kb": 1.0, "limits.latency_ms": 0.0}, {"study": "a", "trial": 3}
    trial.strategy = {"sampler": {"tpe": {}}, "pruner": {"asha": {}}}
    found = describe(trial, made)
    assert found["values"] == {"accuracy": 0.1}
    assert found["metrics"]["accuracy"] == trial.epochs[-1]["accuracy"]
    assert "recall:cat" not in found["metrics"]
    assert found["classes"]["cat"]["recall"] == 0.5
    assert found["deployed"] == {"accuracy": 0.7, "size_kb": 3.0}
    assert (found["over_limits"], found["origin"]) == (["limits.size_kb"], "a:3")
    assert (found["sampler"], found["pruner"], found["epochs"]) == ("tpe", "asha", 10)
    blank = describe(replace(trial, epochs=[], values=None, strategy={}, origin={}, scores={}), made)
    assert (blank["values"], blank["metrics"], blank["sampler"], blank["origin"]) == ({}, {}, None, None)


MAKING: KnownBackbone = {"model": "vit", "pretrain": "simclr", "epochs": 20, "epoch": 3, "state": "making"}


def test_pretrainings_are_told_one_by_one_while_they_are_made() -> None:
    known: dict[str, KnownBackbone] = {
        "a": {**MAKING, "fold": 1},
        "b": {**MAKING, "state": "made"},
        "c": {**MAKING, "state": "failed", "reason": "loss is nan"},
        "d": {**MAKING, "state": "failed", "reason": "loss is nan"},
    }
    assert pretraining_lines(known, "running") == [
        "pretraining vit (simclr, fold 2): epoch 3/20",
        "pretrained networks: 1 made, 2 failed: loss is nan",
    ]
    assert pretraining_lines({"a": MAKING}, "stopped") == ["pretraining vit (simclr): interrupted at epoch 3/20"]
    assert pretraining_lines({}, "running") == []
    made = record_of(1)
    made.facts["backbones"] = {"a": MAKING}
    assert state_in_words(summarise(made)).endswith("; pretraining vit (simclr): interrupted at epoch 3/20")


def test_ties_go_to_the_smaller_model_and_then_to_the_earlier_trial() -> None:
    made = record_of(5)
    for trial, value, params in zip(made.trials, (0.5, 0.5, 0.5, 0.9, 0.7), (2, 1, 1, 9, 9), strict=True):
        trial.values, trial.sizes = (value,), {"params": float(params)}
    made.trials[3].constraints = {"limits.size_kb": 0.1}
    assert [trial.number for trial in best.ranked(made)] == [4, 1, 2, 0]
    assert [trial.number for trial in best.front(made)] == [4]
    assert best.over_limits(made.trials[3]) == ("limits.size_kb",)
    made.trials[3].constraints = {"limits.size_kb": 0.0}
    assert best.the_best(made).number == 3
    low = replace(made.trials[0], number=9, state="running", values=None)
    for value, count, expected in ((0.6, 3, True), (0.6, 2, False), (0.5, 6, True), (0.5, 5, False)):
        assert best.is_among(low, [value], made, count) == expected


def test_front_that_leaves_a_choice_is_listed() -> None:
    made = record_of(7, TWO.objectives)
    with pytest.raises(StudyError, match=r"has 7 trials on its front, .*: 6 \(.*\), 5 .* and 2 more; choose one"):
        best.the_best(made)
    assert " more" not in best.listed(made.trials[:5], made)


def test_study_without_a_best_trial_says_what_there_is() -> None:
    made = record_of(3)
    made.trials[0].constraints = {"limits.size_kb": 1.0, "limits.latency_ms": 0.0}
    made.trials[1].state = made.trials[2].state = "running"
    with pytest.raises(NoResultError, match=r"no finished trial within limits\.size_kb; 1 complete, 2 interrupted"):
        best.front(made)
    with pytest.raises(NoResultError, match="no finished trial; it has no trial at all"):
        best.front(record_of(0))
