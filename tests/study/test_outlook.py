"""What more trials are likely to gain, and the rule that stops by it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import UserError
from imgcls_search.jobs.replay import Steps, replay
from imgcls_search.orchestrator.begin import run
from imgcls_search.space import parse
from imgcls_search.study.memory import record_in_memory
from imgcls_search.study.outlook import LEAST_TRIALS, expected_best, outlook
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

from tests.jobs.test_replay import Saturating, space
from tests.strategy.test_strategy import trial


def complete(number: int, value: float) -> Trial:
    return replace(trial(number, value, state="complete"), values=(value,))


def record(*values: float, direction: str = "maximize") -> Record:
    made = record_in_memory("x", (("accuracy", direction),))
    made.trials.extend(complete(number, value) for number, value in enumerate(values))
    return made


def gain(made: Record) -> float:
    found = outlook(made)
    assert found is not None
    return found.gain


def test_expected_best_is_the_mean_over_all_choices() -> None:
    values = [0.3, 0.9, 0.5, 0.5, 0.1]
    for count in range(1, 6):
        assert expected_best(values, count) == pytest.approx(mean(max(each) for each in combinations(values, count)))


def test_what_is_foretold_is_what_independent_trials_gain_or_more_and_shrinks() -> None:
    foretold, gained = {}, {}
    for count in (10, 40):
        draws = np.random.default_rng(count).beta(5, 2, (300, 2 * count))
        foretold[count] = mean(gain(record(*map(float, row[:count]))) for row in draws)
        gained[count] = float((draws.max(axis=1) - draws[:, :count].max(axis=1)).mean())
        assert gained[count] <= foretold[count] <= 3 * gained[count]
    assert foretold[40] < 0.5 * foretold[10]


def test_order_counts_where_later_trials_are_better_and_directions_are_alike() -> None:
    rising = [0.05 * n for n in range(12)]
    assert gain(record(*rising)) == pytest.approx(0.05 * 6)
    assert gain(record(*reversed(rising))) < 0.05 * 2
    assert gain(record(*(-value for value in rising), direction="minimize")) == pytest.approx(0.05 * 6)


def test_pruned_trials_count_and_too_few_or_several_objectives_tell_nothing() -> None:
    alike = [0.5] * (LEAST_TRIALS - 1)
    assert outlook(record(*alike)) is None
    made = record(*alike)
    made.trials.append(trial(len(alike), 0.9, state="pruned"))
    # It showed more than the best, which nobody knows it would have kept.
    assert gain(made) == 0
    several = record_in_memory("x", (("accuracy", "maximize"), ("params", "minimize")))
    several.trials.extend(complete(number, 0.5) for number in range(20))
    assert outlook(several) is None
    # Nothing but complete trials that diverged.
    assert outlook(record(*[-math.inf] * LEAST_TRIALS)) is None


def test_search_stops_when_as_much_again_gains_too_little() -> None:
    full, _ = replay(space("trials: 60, sampler: random, pruner: none"), Saturating())
    stopped, _ = replay(space("trials: 60, sampler: random, pruner: none, min_gain: 0.05"), Saturating())
    count = len(stopped.record.trials)
    assert (full.ending, stopped.ending) == ("finished", "gain")
    assert LEAST_TRIALS <= count < 40
    assert gain(stopped.record) < 0.05
    before = record_in_memory("x", (("accuracy", "maximize"),))
    before.trials.extend(stopped.record.trials[: count - 1])
    assert (found := outlook(before)) is None or found.gain >= 0.05


def test_a_rule_for_one_value_is_refused_for_several_objectives(tmp_path: Path) -> None:
    text = "study: {min_gain: 0.01, objectives: {accuracy: maximize, params: minimize}}\nmodel: {lenet5: {}}\n"
    with pytest.raises(UserError, match="min_gain: needs one objective, got 2"):
        run(parse(text, catalog(), source="x.yaml"), tmp_path, Steps())
