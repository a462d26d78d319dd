"""What a trial needs next at its milestone, from what is recorded of it."""

from __future__ import annotations

import itertools

import pytest
from imgcls_search.orchestrator.stages import TRANSITIONS, WORK, Stage, Stages
from imgcls_search.trial import Trial

from tests.strategy.test_strategy import trial

EPOCHS = 4


def stages(*, measured: bool = False, timed: bool = False, pictures: bool = False) -> Stages:
    return Stages(epochs=EPOCHS, is_measured=measured, is_timed=timed, deserves_pictures=lambda _: pictures)


def trained(epochs: int, until: int) -> Trial:
    found = trial(0, *[0.1 * epoch for epoch in range(1, epochs + 1)], state="running")
    found.until = until
    return found


def test_a_plain_trial_trains_and_is_decided_about() -> None:
    plain = stages()
    assert plain.of(trained(1, 2)) is Stage.TRAIN
    assert plain.of(trained(2, 2)) is Stage.DECIDE
    assert plain.of(trained(EPOCHS, EPOCHS)) is Stage.DECIDE


def test_a_measured_trial_is_scored_timed_and_drawn_at_its_end_only() -> None:
    whole = stages(measured=True, timed=True, pictures=True)
    assert whole.of(trained(2, 2)) is Stage.DECIDE
    last = trained(EPOCHS, EPOCHS)
    seen = [whole.move(last)]
    last.scores[EPOCHS] = {"accuracy": 0.4, "size_kb": 9.0}
    seen.append(whole.move(last))
    last.scores[EPOCHS]["latency_ms"] = 0.2
    seen.append(whole.move(last))
    last.pictures = {}
    seen.append(whole.move(last))
    assert seen == [Stage.SCORE, Stage.TIME, Stage.DRAW, Stage.DECIDE]
    assert whole.now(last) is Stage.DECIDE


def test_what_a_study_does_not_ask_for_is_skipped() -> None:
    last = trained(EPOCHS, EPOCHS)
    assert stages(pictures=True).of(last) is Stage.DRAW
    assert stages(measured=True).of(last) is Stage.SCORE
    last.scores[EPOCHS] = {"size_kb": 9.0}
    assert stages(measured=True).of(last) is Stage.DECIDE


def test_a_promoted_trial_trains_again() -> None:
    plain, paused = stages(), trained(2, 2)
    assert plain.move(paused) is Stage.DECIDE
    paused.until = EPOCHS
    assert plain.move(paused) is Stage.TRAIN


def test_a_step_that_the_table_does_not_have_is_a_bug() -> None:
    whole, last = stages(measured=True, timed=True), trained(EPOCHS, EPOCHS)
    last.scores[EPOCHS] = {"size_kb": 9.0}
    assert whole.move(last) is Stage.TIME
    last.scores.clear()
    with pytest.raises(AssertionError, match="trial 0"):
        whole.move(last)


def test_the_table_names_every_stage_and_its_work() -> None:
    assert set(TRANSITIONS) == set(Stage)
    assert set(WORK) == set(Stage) - {Stage.DECIDE}
    reached = set(itertools.chain.from_iterable(TRANSITIONS.values()))
    assert reached == set(Stage)
