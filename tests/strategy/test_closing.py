"""The end of a budget: who is trained to the end with what is left."""

from __future__ import annotations

import math

import pytest
from imgcls_search.strategy.closing import RemainingBudget, is_kept_for_running, to_finish_now
from imgcls_search.trial import Trial

from tests.strategy.test_strategy import trial

EPOCHS = 8


def timed(number: int, seconds: float, *accuracies: float, state: str = "paused") -> Trial:
    made = trial(number, *accuracies, state=state)
    for epoch in made.epochs:
        epoch["seconds"] = seconds
    return made


# Epochs of 1, 2 and 9 seconds: a new training most likely takes 8 x 2 of them.
TRIALS = (timed(0, 1.0, 0.3, 0.5), timed(1, 2.0, 0.3, 0.4), timed(2, 9.0, 0.3, 0.9))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # Enough for a new training.
        (16.0, None),
        # Not any more, though the fastest would need 8 and all together an average of 32; trial 2 would need 54.
        (15.9, 0),
        (12.0, 0),
        (6.0, 0),
        # Nothing that rests can end in so little.
        (5.9, None),
    ],
)
def test_time_left_is_judged_by_a_usual_epoch(seconds: float, expected: int | None) -> None:
    found = to_finish_now(TRIALS, EPOCHS, 1, RemainingBudget(epochs=math.inf, seconds=seconds))
    assert (None if found is None else found.number) == expected


@pytest.mark.parametrize(("epochs", "expected"), [(8, None), (7, 2), (6, 2), (5, None)])
def test_epochs_left_go_to_the_best_that_rests(epochs: int, expected: int | None) -> None:
    found = to_finish_now(TRIALS, EPOCHS, 1, RemainingBudget(epochs=epochs, seconds=math.inf))
    assert (None if found is None else found.number) == expected


def test_the_highest_rung_goes_before_a_better_value_below_and_smaller_is_better_where_it_is() -> None:
    higher = timed(3, 1.0, 0.1, 0.2, 0.3, 0.2)
    remaining = RemainingBudget(epochs=7, seconds=math.inf)
    assert to_finish_now([*TRIALS, higher], EPOCHS, 1, remaining) is higher
    assert to_finish_now(TRIALS, EPOCHS, -1, remaining) is TRIALS[1]


def test_of_equal_trials_the_first_is_finished() -> None:
    equal = [timed(number, 1.0, 0.5) for number in (4, 2, 3)]
    assert to_finish_now(equal, EPOCHS, 1, RemainingBudget(epochs=7, seconds=math.inf)) is equal[1]


def test_trials_that_ended_are_no_candidates_and_before_the_first_epoch_nothing_is_known() -> None:
    remaining = RemainingBudget(epochs=7, seconds=math.inf)
    ended = [timed(0, 1.0, 0.5, state="pruned"), timed(1, 1.0, 0.5, state="running")]
    assert to_finish_now(ended, EPOCHS, 1, remaining) is None
    assert to_finish_now([trial(0, state="running")], EPOCHS, 1, remaining) is None


def test_epochs_left_are_kept_for_a_trial_under_way() -> None:
    resting, running = timed(0, 1.0, 0.5), timed(1, 1.0, 0.5, 0.6, state="running")
    few, enough = (RemainingBudget(epochs=left, seconds=math.inf) for left in (EPOCHS - 1, EPOCHS))
    assert is_kept_for_running([resting, running], EPOCHS, few)
    assert not is_kept_for_running([resting, running], EPOCHS, enough)
    assert not is_kept_for_running([resting], EPOCHS, few)
