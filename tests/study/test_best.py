"""Which trials are best: orders and fronts are those of the plain definition, however many trials there are."""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study import best
from imgcls_search.study.memory import record_in_memory

from scripts.bench import simulation

OBJECTIVES = [("study.objectives", "{accuracy: maximize, params: minimize, loss: minimize}")]


def plainly(scores: np.ndarray) -> list[int]:
    """Compare each with each."""
    return [int(((scores >= own).all(axis=1) & (scores > own).any(axis=1)).sum()) for own in scores]


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_trials_that_dominate_are_counted_as_by_the_definition(columns: int) -> None:
    random = np.random.default_rng(columns)
    points = random.random((best.BLOCK + 60, columns))
    ties = random.integers(0, 4, (best.BLOCK + 60, columns)).astype(float)
    endless = np.where(ties == 0, -np.inf, ties)
    for scores in (points, ties, endless, points[:1], np.repeat(points[:3], 5, axis=0)):
        assert best.num_dominating(scores).tolist() == plainly(scores)


def test_ranking_and_front_of_several_objectives() -> None:
    space = parse(
        simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS),
        catalog(),
        source="test",
        overrides=OBJECTIVES,
    )
    record = record_in_memory("s", space.objectives)
    record.trials = simulation.make_trials(space, 6)
    values = [(0.9, 5, 1), (0.8, 5, 1), (0.8, 4, 1), (0.7, 6, 2), (0.9, 5, 1), (0.5, 9, 0.5)]
    for trial, (accuracy, params, loss) in zip(record.trials, values, strict=True):
        trial.values = (accuracy, float(params), float(loss))
    # 1 is beaten by 0, 2 and 4, and 3 by these and 1; equals beat each other in nothing.
    assert [trial.number for trial in best.ranked(record)] == [0, 4, 2, 5, 1, 3]
    assert [trial.number for trial in best.front(record)] == [0, 4, 2, 5]
