"""Records whose values no search writes: each is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.space import parse
from imgcls_search.study import shape
from imgcls_search.study.foreign_trials import ForeignTrial
from imgcls_search.study.memory import record_in_memory
from imgcls_search.study.record import Record
from imgcls_search.trial import Rejection, Trial
from optuna.distributions import FloatDistribution, IntDistribution

from scripts.bench import simulation

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")


def record() -> Record:
    made = record_in_memory("s", SPACE.objectives)
    made.trials = simulation.make_trials(SPACE, 3)
    return made


def test_what_a_search_writes_passes() -> None:
    good = record()
    first = good.trials[0]
    first.scores = {10: {"accuracy": 0.5, "size_kb": float("nan")}}
    first.constraints, first.troubles, first.reason = {"limits.size_kb": -1.0}, ["died"], "why"
    first.pictures, first.origin, first.request = {"key": "a.png"}, {"study": "a", "trial": 3}, "id"
    first.candidate = replace(first.candidate, sampler_state={"nsga2:generation": 0, "cma:optimizer:0": "ff"})
    first.rejected_before = (Rejection(params={}, distributions={}, reason="too large"),)
    good.foreign_trials[3] = ForeignTrial(number=3, id=9, state="waiting", params={})
    shape.refuse_misshapen(good)
    # A trial ends with NaN where its training diverged, and pauses without values.
    first.values = (float("nan"),)
    good.trials[1].state, good.trials[1].values, good.trials[1].judged = "paused", None, 3
    shape.refuse_misshapen(good)


def with_candidate(trial: Trial, **changes: Any) -> None:
    trial.candidate = replace(trial.candidate, **changes)


def with_parameter(trial: Trial, name: str, value: Any) -> None:
    with_candidate(trial, params={**trial.candidate.params, name: value})


def with_config(trial: Trial, **changes: Any) -> None:
    tree = {**trial.candidate.config.to_dict(), **changes}
    with_candidate(trial, config=TrialConfig.from_dict({name: part for name, part in tree.items() if part is not None}))


def with_rejection(trial: Trial, **changes: Any) -> None:
    given: dict[str, Any] = {"params": {}, "distributions": {}, "reason": "too large", **changes}
    trial.rejected_before = (Rejection(**given),)


LR = "optimizer.adamw.lr"
FAULTS: dict[str, tuple[Callable[[Trial], Any], str]] = {
    "a negative seed": (lambda trial: setattr(trial, "seed", -1), "trial 1: its plan is -1"),
    "half a death": (lambda trial: setattr(trial, "deaths", 0.5), "trial 1: its plan is 0.5"),
    "judged after its milestone": (lambda trial: setattr(trial, "until", 9), "its plan is not as it was written"),
    "no micro-batch": (lambda trial: setattr(trial, "micro_batches", 0), "its plan is not as it was written"),
    "half a micro-batch": (lambda trial: setattr(trial, "micro_batches", 1.5), "its plan is not as it was written"),
    "a value of another kind": (lambda trial: setattr(trial, "values", ("x",)), r"values\[0\] is 'x'"),
    "complete without values": (lambda trial: setattr(trial, "values", None), "it is complete without its values"),
    "two values": (lambda trial: setattr(trial, "values", (0.5, 0.5)), "it is complete without its values"),
    "an epoch of text": (lambda trial: trial.epochs[2].update(accuracy="x"), "epoch 3.accuracy is 'x'"),
    "an epoch without its time": (lambda trial: trial.epochs[2].pop("seconds"), "epoch 3.seconds is missing"),
    "an epoch too many": (lambda trial: trial.epochs.insert(2, trial.epochs[2]), "epoch 4 is missing"),
    "a score before the first epoch": (
        lambda trial: setattr(trial, "scores", {-1: {}}),
        "epoch of a score is -1",
    ),
    "a score of text": (lambda trial: setattr(trial, "scores", {1: {"accuracy": "x"}}), "score.accuracy is 'x'"),
    "an endless size": (lambda trial: setattr(trial, "sizes", {"params": float("inf")}), "sizes.params is inf"),
    "a constraint of text": (lambda trial: setattr(trial, "constraints", {"a": "x"}), "constraints.a is 'x'"),
    "a list for a state": (lambda trial: with_candidate(trial, sampler_state=[1]), r"sampler_state is \[1\]"),
    "half a generation": (
        lambda trial: with_candidate(trial, sampler_state={"nsga2:generation": 0.5}),
        "nsga2:generation is 0.5",
    ),
    "a parameter without a range": (
        lambda trial: with_parameter(trial, "more", 1),
        "its parameters are not those with a range",
    ),
    "a parameter out of its range": (lambda trial: with_parameter(trial, LR, 0.1), f"its parameter {LR} is 0.1"),
    "a parameter below its range": (lambda trial: with_parameter(trial, LR, 9e-5), f"its parameter {LR} is 9e-05"),
    "a choice that is none": (
        lambda trial: with_parameter(trial, "training.batch_size", 33),
        "its parameter training.batch_size is 33",
    ),
    "a parameter that is a list": (lambda trial: with_parameter(trial, LR, [1]), rf"its parameter {LR} is \[1\]"),
    "a rejection for no reason": (lambda trial: with_rejection(trial, reason=None), "reason of a rejection is None"),
    "a rejection without a range": (
        lambda trial: with_rejection(trial, params={"x": 1}),
        "its parameters are not those with a range",
    ),
    "a number for a reason": (lambda trial: setattr(trial, "reason", 3), r"reason\[0\] is 3"),
    "a number for a trouble": (lambda trial: trial.troubles.append(3), r"reason\[0\] is 3"),
    "a number for a picture": (lambda trial: setattr(trial, "pictures", {"key": 3}), "pictures.key is 3"),
    "a text for a sampler": (lambda trial: setattr(trial, "strategy", {"sampler": "tpe"}), "strategy.sampler is 'tpe'"),
    "a number for a request": (lambda trial: setattr(trial, "request", 3), "request is 3"),
    "an origin before the first trial": (lambda trial: setattr(trial, "origin", {"trial": -1}), "origin.trial is -1"),
    "no model": (lambda trial: with_config(trial, model=None), "its config has not one model"),
    "two models": (lambda trial: with_config(trial, model={"vit": {}, "lenet5": {}}), "its config has not one model"),
    "no epoch": (lambda trial: with_config(trial, training={"epochs": 0}), "its config trains for no epoch"),
    "a folder without a place": (
        lambda trial: with_config(trial, unlabeled={"folder": {}}),
        "config.unlabeled.folder.root is missing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_trial_that_no_search_writes_is_named(fault: str) -> None:
    change, said = FAULTS[fault]
    made = record()
    change(made.trials[1])
    with pytest.raises((TypeError, ValueError, KeyError), match=said):
        shape.refuse_misshapen(made)


def test_trials_are_numbered_without_gaps() -> None:
    gap, twice, strange = record(), record(), record()
    del gap.trials[1]
    twice.trials[1].number = 0
    strange.foreign_trials[3] = ForeignTrial(number=3, id=9, state="waiting", params=[])  # type: ignore[arg-type]
    for made, said in (
        (gap, "its 2 trials are not numbered from 0 to 1"),
        (twice, "its 3 trials"),
        (strange, "params"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            shape.refuse_misshapen(made)


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ((), r"objectives of the study are \[\]"),
        ((("accuracy", "maximize"), ("accuracy", "minimize")), "objectives of the study are"),
        (((3, "maximize"),), "objectives of the study are"),
        ((("accuracy", "up"),), "UP"),
    ],
)
def test_objectives_are_named_once_each_with_a_direction(objectives: Any, said: str) -> None:
    made = record()
    made.objectives = objectives
    with pytest.raises((TypeError, ValueError, KeyError), match=said):
        shape.refuse_misshapen(made)


@pytest.mark.parametrize(
    ("low", "high", "value", "is_in"),
    [
        (0.0, 1.0, 1.0, True),
        (0.0, 1.0, 1 + 1e-9, True),
        (0.0, 1.0, -1e-9, True),
        (0.0, 1.0, 1.0001, False),
        (-1000.0, 1.0, -1000.000001, True),
        (0.0, 1.0, float("nan"), False),
        (0.0, 1.0, True, False),
        (0.0, 1.0, "1", False),
    ],
)
def test_rounding_may_put_a_number_a_little_outside_its_range(low: float, high: float, value: Any, is_in: bool) -> None:
    assert shape._is_in(FloatDistribution(low, high), value) == is_in


def test_numbers_of_facts_are_of_their_kind() -> None:
    assert shape._is_in(IntDistribution(1, 9), 9)
    assert [value for value in (1e150, -1e150, 1.1e150, True, None) if shape._is_finite(value)] == [1e150, -1e150]
    assert [value for value in (0, 2**63 - 1, 2**63, -1, 1.0, True) if shape._is_whole(value)] == [0, 2**63 - 1]
    assert shape._is_interval([0, 1.5])
    assert not any(map(shape._is_interval, ([0], [0, 1, 2], [0, None], (0, 1))))
    assert shape._is_setting(["a", None])
    assert not any(map(shape._is_setting, (["a"], [1, 2], ["a", []], ("a", 1))))
    levels: Any = []
    for _ in range(shape.MOST_NESTED - 1):
        levels = [levels]
    shape._refuse_nested(levels, "it")
    with pytest.raises(ValueError, match="it has more than 100 levels of values in each other"):
        shape._refuse_nested([levels], "it")
