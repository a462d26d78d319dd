"""Heads that are fitted in one epoch, among trials that train: complete at once, and compared with no early epoch."""

from __future__ import annotations

from dataclasses import replace

from imgcls_search.catalog import catalog
from imgcls_search.orchestrator.stages import Stage, Stages
from imgcls_search.signature import build
from imgcls_search.space import parse
from imgcls_search.strategy.curves import _rung, _sort_key
from imgcls_search.strategy.propose import REPEATED_FIT, Proposer
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.trial import Candidate, Trial

from tests.strategy.test_strategy import following, trial, waited

EPOCHS = 9
TEXT = """
study: {name: x, sampler: random, seed: 3}
data: {digits: {}}
model: {resnet: {weights: a.pt}}
head: {own: {}, logistic: {}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 9}
"""
SPACE = parse(TEXT, catalog(), source="x")


def fitted(number: int, accuracy: float = 0.9, state: str = "complete") -> Trial:
    config = parse(
        TEXT, catalog(), source="x", overrides=[("head", "logistic"), ("optimizer.adamw.lr", "1e-3")]
    ).first()
    found = trial(number, accuracy, state=state)
    found.candidate = Candidate(params={"head": "logistic"}, distributions={}, config=config)
    found.values = (accuracy,)
    return found


def test_a_fit_is_complete_after_its_epoch_and_measured_there() -> None:
    assert fitted(0).last_epoch(EPOCHS) == 1
    whole = Stages(epochs=EPOCHS, is_measured=True, is_timed=True, deserves_pictures=lambda _: False)
    open_one = fitted(0, state="running")
    open_one.until = 1
    assert whole.of(open_one) is Stage.SCORE
    open_one.scores[1] = {"accuracy": 0.9, "size_kb": 1.0}
    assert whole.of(open_one) is Stage.TIME
    open_one.scores[1]["latency_ms"] = 1.0
    assert whole.of(open_one) is Stage.DECIDE


def test_no_rung_compares_trainings_with_a_fit() -> None:
    fits = [fitted(number) for number in range(6)]
    early = trial(10, 0.5, state="running", judged=0)
    for name in ("halving", "hyperband"):
        pruner = PRUNERS[name](epochs=EPOCHS, sign=1, min_epochs=1)
        assert pruner.judge(early, [*fits, early]) == "continue"
    median = PRUNERS["median"](epochs=EPOCHS, sign=1)
    assert median.judge(early, [*fits, early]) == "continue"
    # Of three that rest at the first rung the best is promoted, as if there were no fits; nine would promote three.
    resting = [trial(20 + place, value, state="paused", judged=1) for place, value in enumerate((0.3, 0.5, 0.4))]
    for pruner in (PRUNERS["asha"](epochs=EPOCHS, sign=1, min_epochs=1), PRUNERS["brackets"](epochs=EPOCHS, sign=1)):
        promoted = pruner.promote([*fits, *resting])
        assert promoted is not None
        assert promoted.number == 21
        again = [*fits, *(replace(each, state="running") if each is promoted else each for each in resting)]
        assert PRUNERS["asha"](epochs=EPOCHS, sign=1, min_epochs=1).promote(again) is None


def test_the_sampler_of_curves_takes_a_fit_for_a_whole_training() -> None:
    assert _rung(fitted(0), EPOCHS) == EPOCHS
    assert _sort_key(fitted(0, 0.8), 1, EPOCHS) == (-EPOCHS, -0.8, 0)
    assert _rung(fitted(0, state="running"), EPOCHS) == 0
    sampler = build(SAMPLERS, replace(SPACE.sampler, name="curves", args={}), space=SPACE)
    proposer = Proposer(SPACE, sampler, 1, waited(lambda _: {"params": 1.0}))
    trials: list[Trial] = []
    for number in range(14):
        found = following(proposer, trials)
        assert found is not None
        is_fit = found.candidate.config.is_fitted
        shown = trial(number, *([0.8] if is_fit else [0.1 * epoch for epoch in range(1, 10)]), state="complete")
        shown.candidate, shown.values = found.candidate, (0.8,)
        trials.append(shown)
    assert sum(each.candidate.is_fitted for each in trials) == 1


def test_an_equal_fit_is_no_new_trial() -> None:
    proposer = Proposer(SPACE, build(SAMPLERS, SPACE.sampler, space=SPACE), 1, waited(lambda _: {"params": 1.0}))
    trials: list[Trial] = []
    for number in range(12):
        found = following(proposer, trials)
        assert found is not None
        trials.append(replace(trial(number, 0.5), candidate=found.candidate, rejected_before=found.rejections))
    assert sum(each.candidate.is_fitted for each in trials) == 1
    assert not [each for one in trials for each in one.rejected_before]


def test_a_finite_space_ends_where_only_equal_fits_are_left() -> None:
    choices = [("optimizer.adamw.lr", "{choice: [0.001, 0.002, 0.003]}")]
    space = parse(TEXT, catalog(), source="x", overrides=choices)
    proposer = Proposer(space, build(SAMPLERS, space.sampler, space=space), 1, waited(lambda _: {"params": 1.0}))
    trials: list[Trial] = []
    while (found := following(proposer, trials)) is not None:
        trials.append(replace(trial(len(trials), 0.5), candidate=found.candidate, rejected_before=found.rejections))
    assert len(trials) == 4
    reasons = {each.reason for one in trials for each in one.rejected_before}
    assert reasons <= {REPEATED_FIT}
