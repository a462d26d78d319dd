"""Stopping with several objectives, by hand and on curves of searches that run to their ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.replay import replay, table_catalog
from imgcls_search.orchestrator.begin import Outcome
from imgcls_search.space import Space, parse
from imgcls_search.strategy.dominance import LEAST_CURVES, Dominance, _most, why_all_train_on
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.view import View
from imgcls_search.study import best
from imgcls_search.trial import SIZES, Trial

from tests.strategy.test_strategy import trial

ACCURACY, PARAMS = ("accuracy", "maximize"), ("params", "minimize")


def pruner(*objectives: tuple[str, str]) -> Dominance:
    return Dominance(rungs=PRUNERS["halving"](epochs=6, sign=1), objectives=objectives or (ACCURACY, PARAMS))


def ended(number: int, params: float, at_rung: float, at_end: float) -> Trial:
    made = trial(number, 0.1, at_rung, 0.1, 0.1, 0.1, at_end, state="complete")
    return replace(made, sizes={"params": params}, values=(at_end, params))


def at_rung(params: float, accuracy: float) -> Trial:
    return replace(trial(99, 0.1, accuracy, state="running"), sizes={"params": params})


HALVED = [ended(number, 100, 0.5 + 0.004 * number, 0.75 + 0.002 * number) for number in range(LEAST_CURVES)]
"""Complete trials whose error halves from the rung to the end, the best at 0.768."""


def test_only_what_stays_beaten_at_its_own_cost_is_stopped() -> None:
    # An error of 0.48 may come to 0.22, one of 0.5 to 0.24: more than half, as their differences are uneven.
    assert pruner().judge(at_rung(100, 0.52), HALVED) == "continue"
    assert pruner().judge(at_rung(100, 0.50), HALVED) == "prune"
    assert pruner().judge(at_rung(101, 0.50), HALVED) == "prune"
    assert pruner().judge(at_rung(99, 0.1), HALVED) == "continue"


def test_a_loss_has_its_ideal_at_zero() -> None:
    loss = pruner(("loss", "minimize"), PARAMS)

    def with_loss(made: Trial) -> Trial:
        """Return a trial with its error as its loss."""
        epochs = [{**epoch, "loss": 1 - epoch["accuracy"]} for epoch in made.epochs]
        return replace(made, epochs=epochs, values=made.values and (1 - made.values[0], made.values[1]))

    halved = [with_loss(each) for each in HALVED]
    assert loss.judge(with_loss(at_rung(100, 0.52)), halved) == "continue"
    assert loss.judge(with_loss(at_rung(100, 0.50)), halved) == "prune"
    # A loss may be larger than 1, and no number may be hoped for where it is below its ideal.
    assert loss.judge(with_loss(at_rung(101, -0.5)), halved) == "prune"
    assert loss.judge(with_loss(at_rung(101, 1.5)), halved) == "continue"


def test_the_most_that_a_change_may_be_is_the_bound_for_one_more() -> None:
    changes = np.random.default_rng(0).normal(-1, 0.2, 12)
    # 99 % on one side, by Student's t with 11 degrees of freedom.
    bound = changes.mean() - 2.718 * changes.std(ddof=1) * math.sqrt(13 / 12)
    assert _most(changes) == pytest.approx(bound, abs=1e-3)
    # One that has changed by more has happened, and may happen again.
    assert _most([*[-0.1] * 30, -1.0]) == -1.0


def test_few_or_uneven_curves_stop_nothing_and_a_trial_over_its_limits_beats_nothing() -> None:
    hopeless = at_rung(101, 0.2)
    assert pruner().judge(hopeless, HALVED) == "prune"
    assert pruner().judge(hopeless, HALVED[1:]) == "continue"
    # One that left a tenth of its error: the same may happen again.
    assert pruner().judge(at_rung(101, 0.50), [*HALVED, ended(50, 999, 0.5, 0.95)]) == "continue"
    over = [replace(each, constraints={"limits.latency_ms": 1.0}) for each in HALVED]
    assert pruner().judge(hopeless, over) == "continue"
    assert pruner().judge(hopeless, [*over, HALVED[0]]) == "prune"


def test_what_has_no_known_ideal_is_never_given_up() -> None:
    percent = [
        replace(each, epochs=[{**epoch, "accuracy": 100 * epoch["accuracy"]} for epoch in each.epochs])
        for each in HALVED
    ]
    assert pruner().judge(at_rung(101, 20.0), percent) == "continue"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["accuracy"], None),
        (["accuracy", "params", "macs"], None),
        (["accuracy", "params", "latency_ms"], "latency_ms: known only at the end of a trial"),
        (["params"], "params: not learned from epoch to epoch"),
        (["params", "size_kb"], "params, size_kb: not learned from epoch to epoch"),
    ],
)
def test_objectives_that_leave_nothing_to_stop_by_are_told(metrics: list[str], said: str | None) -> None:
    assert why_all_train_on([(metric, "maximize") for metric in metrics]) == said


class Learning:
    """Wide networks end higher; a rate too small learns late, one too large ends low."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        rate, width = config.section("config")["rate"], config.section("config")["width"]
        end = 0.95 - 2 / (width + 4) - 0.5 * max(0.0, rate - 0.5)
        return {"accuracy": end * (1 - (1 - rate) ** epoch)}


def searched(pruner: str, seed: int, trials: int = 80) -> Outcome:
    objectives = "{accuracy: maximize, params: minimize}"
    study = f"{{name: x, sampler: random, pruner: {pruner}, seed: {seed}, trials: {trials}, objectives: {objectives}}}"
    text = "config: {rate: {float: [0.4, 1.0]}, width: {int: [2, 64], log: true}}\ntraining: {epochs: 27}\n"
    space: Space = parse(f"study: {study}\n{text}", table_catalog(), source="x.yaml")
    configs = [draw_random(View(space, [], [], seed), number, 0).config for number in range(trials)]
    sizes = {c: {**dict.fromkeys(SIZES, 1.0), "params": c.section("config")["width"] ** 2} for c in configs}
    return replay(space, Learning(), sizes=sizes)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_search_keeps_its_whole_front_and_saves_three_tenths_of_the_epochs(seed: int) -> None:
    full, stopped = searched("none", seed).record, searched("halving", seed).record
    assert [t.candidate.config for t in full.trials] == [t.candidate.config for t in stopped.trials]
    assert [t.number for t in best.front(full)] == [t.number for t in best.front(stopped)]
    assert len(best.front(full)) > 5
    spent, all_epochs = (sum(t.epoch for t in record.trials) for record in (stopped, full))
    assert spent < 0.7 * all_epochs
    reasons = {t.reason for t in stopped.trials if t.state == "pruned"}
    assert "even an optimistic continuation is beaten at its cost at epoch 6" in reasons
