"""Which trial a search that runs calls the leading one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.views.search_screen import _leader, _value_alone

from tests.orchestrator.test_endings import SPACE, running


@pytest.mark.parametrize(
    ("limits", "over", "expected"),
    [
        ("{}", {}, 1),
        # At its last epoch trial 1 is beyond the limit of a score, and trial 2 as good as it must be.
        ("{ece: {at_most: 0.2}}", {}, 2),
        ("{ece: {at_most: 0.05}}", {}, None),
        # A complete trial is judged by what it was recorded with.
        ("{latency_ms: 3}", {"limits.latency_ms": 1.0}, 1),
    ],
)
def test_a_trial_over_a_limit_does_not_lead(
    limits: str, over: dict[str, float], expected: int | None, tmp_path: Path
) -> None:
    space = parse(f"{SPACE}study: {{name: s}}\nlimits: {limits}\n", catalog(), source="x.yaml")
    files = StudyFiles(tmp_path, "s")
    files.make()
    record = records.create(files, space.objectives, {"space": records.to_json(space.document)})
    for number, (accuracies, ece) in enumerate(
        [((0.9, 0.95, 0.97, 0.99), 0.5), ((0.6, 0.9), 0.3), ((0.6, 0.8), 0.1), ((0.99,), 0.1)]
    ):
        trial = running(number, *accuracies)
        for epoch in trial.epochs:
            epoch["ece"] = ece
        record.add(trial)
    done = record.trials[0]
    if over or limits != "{}":
        record.complete(done, [0.99], over or {"limits.ece": 0.3})
    else:
        done.epochs = done.epochs[:1]
    search: Any = SimpleNamespace(record=record, space=space, sign=1)
    leader = _leader(search)
    assert (leader.number if leader else None) == expected


def test_a_value_is_shown_without_its_metric_even_if_that_has_spaces() -> None:
    metric = "recall:big cat"
    search: Any = SimpleNamespace(record=SimpleNamespace(val_images=100))
    trial: Any = SimpleNamespace(metric=metric, last_shown=1, value_at={1: 0.5}.__getitem__)
    assert _value_alone(trial, search) == "0.50"
