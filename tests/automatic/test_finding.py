"""What `auto` says of trainings that the time ended."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from imgcls_search.automatic.finding import unfinished
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study.record import Record

from tests.strategy.test_strategy import trial


@pytest.mark.parametrize(
    ("direction", "scores", "expected"),
    [("maximize", (0.7, 0.8, 0.9), 1), ("maximize", (0.85, 0.8, 0.9), None), ("minimize", (0.7, 0.6, 0.5), 1)],
)
def test_training_that_the_time_ended_is_named_if_it_was_better_and_no_paused_one_is(
    direction: str, scores: tuple[float, ...], expected: int | None
) -> None:
    states = ("complete", "running", "paused")
    trials: list[Any] = [
        trial(number, score, score, state=state)
        for number, (score, state) in enumerate(zip(scores, states, strict=True))
    ]
    trials[0].values = (scores[0],)
    config = parse("data: digits\nmodel: lenet5\ntraining: {epochs: 5}\n", catalog(), source="space").first()
    for each in trials:
        each.candidate = replace(each.candidate, config=config)
    record = cast(Record, SimpleNamespace(trials=trials, objectives=(("accuracy", direction),)))
    found = unfinished(record, trials[0])
    assert (None if found is None else found["trial"]) == expected
    if found is not None:
        assert found["score"] == scores[found["trial"]]
        assert (found["epoch"], found["epochs"]) == (2, 5)
