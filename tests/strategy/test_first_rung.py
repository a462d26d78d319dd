"""When the default pruner looks first: at the second epoch, or at the first where its order can be relied on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.replay import replay, table_catalog
from imgcls_search.space import Space, parse
from imgcls_search.strategy.early_rungs import EarlyPromoting, _agreement, is_witness
from imgcls_search.strategy.pruners import PRUNERS, make_pruner
from imgcls_search.strategy.rungs import Promoting
from imgcls_search.strategy.view import View
from imgcls_search.trial import Trial
from scipy.stats import spearmanr

from tests.strategy.test_strategy import trial


def asha(epochs: int = 20, sign: int = 1) -> EarlyPromoting:
    found = PRUNERS["asha"](epochs=epochs, sign=sign)
    assert isinstance(found, EarlyPromoting)
    return found


def witnesses(first: list[float], second: list[float]) -> list[Trial]:
    return [trial(n, *both, state="paused") for n, both in enumerate(zip(first, second, strict=True))]


AGREEING = witnesses([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
MISLEADING = witnesses([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.6, 0.5, 0.4, 0.3, 0.2])


def test_first_epoch_is_a_rung_as_soon_as_six_trials_agree() -> None:
    assert asha().milestone(trial(6, state="running"), AGREEING) == 1
    assert asha().milestone(trial(6, state="running"), AGREEING[:5]) == 2
    assert asha().milestone(trial(6, state="running"), MISLEADING) == 2
    # Whichever way is up.
    assert asha(sign=-1).milestone(trial(6, state="running"), AGREEING) == 1
    # A trial that is paused there continues by the same rungs.
    assert asha().milestone(trial(6, 0.5, state="paused"), AGREEING) == 3
    assert asha().milestone(trial(6, 0.5, state="paused"), MISLEADING) == 2


def test_some_later_trials_pass_over_the_first_epoch_and_revise_the_answer() -> None:
    numbers = [number for number in range(40) if is_witness(trial(number))]
    assert numbers == [0, 1, 2, 3, 4, 5, 11, 23, 35]
    assert asha().milestone(trial(11, state="running"), AGREEING) == 2
    # Those that the first rung let pass are no witnesses: it has chosen them.
    chosen = [trial(number, 0.9 - 0.01 * number, 0.1 + 0.01 * number, 0.5, state="paused") for number in range(6, 11)]
    assert asha().milestone(trial(12, state="running"), [*AGREEING, *chosen]) == 1
    against = [trial(number, *values, state="paused") for number, values in ((11, (0.9, 0.1)), (23, (0.05, 0.8)))]
    assert asha().milestone(trial(24, state="running"), [*AGREEING, *against]) == 2


def test_what_says_nothing_is_no_agreement() -> None:
    equal = witnesses([0.1] * 6, [0.1] * 6)
    assert asha().milestone(trial(6, state="running"), equal) == 2
    # What has diverged at both epochs stands last at both.
    diverged = witnesses([0.1, 0.2, 0.3, 0.4, math.nan, math.nan], [0.2, 0.3, 0.4, 0.5, math.nan, math.nan])
    assert asha().milestone(trial(6, state="running"), diverged) == 1
    # A trial under way counts by what it was judged on.
    running = [*AGREEING[:5], trial(5, 0.6, 0.7, state="running", judged=0)]
    assert asha().milestone(trial(6, state="running"), running) == 2


def test_where_the_first_epochs_say_little_the_first_two_rungs_are_compared() -> None:
    pruner = asha()
    # All six go on, one after the other, whatever they have shown.
    trials = [trial(n, 0.1 * n, 0.9 - 0.1 * n, state="paused") for n in range(6)]
    for number in range(6):
        assert pruner.promote(trials) is trials[number]
        assert pruner.milestone(trials[number], trials) == 6
        later = (0.5, 0.5, 0.5, 0.95 - 0.1 * number)
        trials[number] = trial(number, 0.1 * number, 0.9 - 0.1 * number, *later, state="paused")
    # The order at the sixth epoch is that at the second.
    assert pruner.milestone(trial(6, state="running"), trials) == 2
    opposite = [trial(n, 0.1 * n, 0.9 - 0.1 * n, 0.5, 0.5, 0.5, 0.1 * n, state="paused") for n in range(6)]
    assert pruner.milestone(trial(6, state="running"), opposite) == 6
    assert pruner.milestone(trial(11, state="running"), opposite) == 6
    # What is paused earlier continues to there, the best of those that were there, and the others as ever.
    assert pruner.milestone(trial(7, 0.1, 0.9, state="paused"), opposite) == 6
    assert pruner.promote(opposite) is opposite[5]


def ordered(order: Sequence[int], *epochs: int) -> list[Trial]:
    """Return witnesses that are in order at the first epoch, and in another at the second and then at these epochs."""
    found = []
    for number, place in enumerate(order):
        values = [0.1 * number, 0.1 * place, *[0.5] * (max(epochs, default=2) - 2)]
        for epoch in epochs:
            values[epoch - 1] = 0.1 * number
        found.append(trial(number, *values, state="paused"))
    return found


@pytest.mark.parametrize(
    ("order", "correlation", "rungs"),
    [
        ((0, 1, 2, 3, 5, 4), 0.94, (1, 3, 9)),
        ((2, 1, 0, 3, 5, 4), 0.71, (2, 6)),
        # Too weak: the second rung decides, once it is reached.
        ((3, 1, 2, 0, 4, 5), 0.49, (2, 6)),
        ((5, 4, 3, 2, 1, 0), -1.0, (2, 6)),
    ],
)
def test_first_rung_follows_from_how_well_two_epochs_agree(
    order: tuple[int, ...], correlation: float, rungs: tuple[int, ...]
) -> None:
    trials = ordered(order)
    first, second = ([each.value_at(epoch) for each in trials] for epoch in (1, 2))
    assert _agreement(first, second) == pytest.approx(spearmanr(first, second)[0])
    assert _agreement(first, second) == pytest.approx(correlation, abs=0.01)
    assert asha().now(trials) == rungs
    # In doubt, witnesses go on to the second rung.
    assert (asha().promote(trials) is trials[0]) == (correlation < 0.6)


@pytest.mark.parametrize(
    ("order", "rungs"),
    [
        # At the sixth epoch the order is that of the first, with which the second agrees by 0.49, 0.03, -1 and 0.54.
        ((3, 1, 2, 0, 4, 5), (6,)),
        ((4, 1, 2, 3, 0, 5), (6,)),
        ((5, 4, 3, 2, 1, 0), (6,)),
        ((2, 1, 0, 5, 4, 3), (2, 6)),
    ],
)
def test_second_rung_comes_first_where_the_first_two_disagree(order: tuple[int, ...], rungs: tuple[int, ...]) -> None:
    assert asha().now(ordered(order, 6)) == rungs


def test_trial_between_two_rungs_counts_at_the_lower_one() -> None:
    # By the first epoch trial 5 is best, by the second trial 0 has caught up; at the first rung the first one counts.
    trials = witnesses([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5, 0.65, 0.6])
    assert asha().promote(trials) is trials[5]
    # With the usual rungs it is the second one.
    assert asha().promote(trials[:3]) is trials[2]
    assert asha().promote(MISLEADING) is MISLEADING[0]
    # Where the answer is revised, what rests at the first epoch still does.
    resting = [trial(number, 0.9 + 0.01 * number, state="paused") for number in range(6, 9)]
    pruner = asha()
    assert pruner.promote([*AGREEING, *resting]) is resting[2]
    assert pruner.promote([*MISLEADING, *resting]) is MISLEADING[0]
    ended = [trial(t.number, *(e["accuracy"] for e in t.epochs), state="complete") for t in MISLEADING]
    assert pruner.promote([*ended, *resting]) is resting[2]


@pytest.mark.parametrize(
    ("epochs", "rungs", "early"),
    [
        (8, (2, 6), (1, 3)),
        (12, (2, 6), (1, 3, 9)),
        (20, (2, 6), (1, 3, 9)),
        (30, (2, 6, 18), (1, 3, 9)),
        (3, (2,), (1,)),
    ],
)
def test_rungs_of_short_trainings(epochs: int, rungs: tuple[int, ...], early: tuple[int, ...]) -> None:
    assert (asha(epochs).rungs, asha(epochs).early) == (rungs, early)


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(2, ()), (36, (2, 6, 18)), (52, (2, 6, 18)), (100, (4, 12, 36)), (200, (7, 21, 63, 189))]
)
def test_long_trainings_and_those_who_name_an_epoch_keep_their_rungs(epochs: int, rungs: tuple[int, ...]) -> None:
    found = PRUNERS["asha"](epochs=epochs, sign=1)
    assert type(found) is Promoting
    assert found.rungs == rungs
    named = PRUNERS["asha"](epochs=20, sign=1, min_epochs=2)
    assert type(named) is Promoting
    assert named.rungs == (2, 6, 18)


def test_rungs_of_folds_are_at_their_ends_whichever_they_are() -> None:
    config = TrialConfig.from_dict({"data": {"digits": {"folds": 5}}, "training": {"epochs": 4}})
    component = TrialConfig.from_dict({"pruner": {"asha": {"min_epochs": None, "eta": 3}}}).component("pruner")
    found = make_pruner(component, config, 1)
    assert isinstance(found, EarlyPromoting)
    assert (found.epochs, found.rungs, found.early) == (20, (2, 8), (1, 3, 8))


class Rising:
    """Curves that never cross; with `misleads` the first epoch says the opposite of all others."""

    def __init__(self, misleads: bool) -> None:
        self.misleads = misleads

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        rate = config.section("config")["rate"]
        return {"accuracy": 1 - rate if self.misleads and epoch == 1 else rate * (1 - 0.5**epoch)}


def space(study: str) -> Space:
    text = f"study: {{name: x, sampler: random, {study}}}\nconfig: {{rate: {{float: [0.1, 0.9]}}}}\n"
    return parse(text + "training: {epochs: 20}\n", table_catalog(), source="x.yaml")


@pytest.mark.parametrize("workers", [1, 4])
def test_search_rests_at_the_first_epoch_only_where_it_orders_as_the_second(workers: int) -> None:
    ends = {}
    for misleads in (False, True):
        outcome, _ = replay(space("trials: 40"), Rising(misleads), workers=workers)
        trials = outcome.record.trials
        assert all(each.epoch != 1 for each in trials if is_witness(each))
        ends[misleads] = {each.epoch for each in trials}
        assert max(trials, key=lambda each: each.candidate.params["config.rate"]).state == "complete"
    assert 1 in ends[False]
    assert ends[True] == {2, 6, 20}


def test_answers_follow_from_the_record_alone() -> None:
    random = np.random.default_rng(0)
    trials: list[Trial] = []
    pruner, seen = asha(), set()
    for _ in range(400):
        chosen = pruner.promote(trials)
        # As after a restart.
        assert chosen is asha().promote(trials)
        if chosen is None:
            chosen = trial(len(trials), state="running")
        until = pruner.milestone(chosen, trials)
        assert until == asha().milestone(chosen, trials)
        if chosen.epoch == 0:
            trials.append(chosen)
        seen.add((chosen.epoch, until))
        quality = (chosen.number * 0.618) % 1
        for epoch in range(chosen.epoch + 1, until + 1):
            noise = 0.3 if epoch == 1 else 0.1
            value = quality + noise * random.standard_normal()
            chosen.epochs.append({"epoch": float(epoch), "accuracy": value, "seconds": 1.0})
        chosen.judged, chosen.state = until, "complete" if until == 20 else "paused"
    # The answer was revised at least once, and searches go on from all rungs of both.
    assert {(0, 1), (0, 2), (1, 3)} <= seen
    assert any(trial.state == "complete" for trial in trials)


def test_diverged_trials_are_seen_by_all_strategies() -> None:
    class Diverging(Rising):
        def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
            shown = super().at(config, epoch)
            return {"accuracy": math.nan} if config.section("config")["other"] > 0.5 and epoch > 2 else shown

    for sampler, pruner in (("tpe", "median"), ("tpe", "none"), ("auto", "asha"), ("gp", "none"), ("curves", "median")):
        changed = parse(
            f"study: {{name: x, sampler: {sampler}, pruner: {pruner}, trials: 16}}\n"
            "config: {rate: {float: [0.1, 0.9]}, other: {float: [0.0, 1.0]}}\ntraining: {epochs: 6}\n",
            table_catalog(),
            source="x.yaml",
        )
        outcome, steps = replay(changed, Diverging(misleads=False))
        assert len(outcome.record.trials) == 16
        assert 0.3 < steps.bests[-1][1] < 0.9


def test_median_is_that_of_trials_that_have_a_value() -> None:
    median = PRUNERS["median"](epochs=9, sign=1, n_startup_trials=2)
    done = [trial(0, math.nan, state="complete"), trial(1, 0.5, state="complete"), trial(2, 0.7, state="complete")]
    assert median.judge(trial(3, 0.55, state="running", judged=0), done) == "prune"
    assert median.judge(trial(3, 0.65, state="running", judged=0), done) == "continue"
    # As Optuna does with a trial that has shown no number.
    assert median.judge(trial(3, math.nan, state="running", judged=0), done) == "prune"


def test_optuna_sees_a_complete_trial_without_a_number_as_one_that_ranks_last() -> None:
    ended = trial(0, 0.1, math.nan, state="complete")
    ended.values = (math.nan,)
    ended.candidate = replace(ended.candidate, params={})
    shown = View(space("trials: 3"), [ended], [], seed=0)
    import optuna

    (frozen,) = shown.study(optuna.samplers.RandomSampler()).get_trials()
    assert frozen.state == optuna.trial.TrialState.PRUNED
    assert frozen.intermediate_values == {}
