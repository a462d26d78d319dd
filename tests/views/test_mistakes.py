"""The mistakes of a trial with many classes or labels: those with the lowest scores, and the number of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.evaluation import Evaluation
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.training.metrics_several import choose_thresholds
from imgcls_search.views import mistakes
from imgcls_search.views.sections import Sketchbook
from imgcls_search.worker import figures


@pytest.mark.parametrize("several", [False, True])
def test_of_many_classes_the_worst_are_listed(several: bool) -> None:
    random, count = np.random.default_rng(0), 1500
    classes = tuple(f"class {number}" for number in range(count))
    logits = random.normal(size=(200, count))
    chosen = random.integers(0, count, 200)
    labels = (random.random((200, count)) < 0.01).astype(np.uint8) if several else chosen
    probabilities = 1 / (1 + np.exp(-logits))
    cuts = choose_thresholds(probabilities, labels.astype(bool)) if several else None
    decided = (probabilities >= cuts).astype(np.uint8) if several else logits.argmax(axis=1)
    found = Evaluation(
        split="val",
        metrics=score(logits, labels, Wanted(classes=classes, is_full=True)),
        names=tuple(f"{number}.png" for number in range(200)),
        labels=labels,
        probabilities=probabilities,
        decided=decided,
        classes=classes,
        thresholds=None if cuts is None else tuple(cuts.tolist()),
    )
    unused: Any = None
    looked = mistakes.EvaluatedTrial(
        evaluation=found, model=unused, artifact=None, config=TrialConfig.from_dict({}), data=unused, pixels=unused
    )
    shown = mistakes.mistakes_of(looked, Sketchbook())
    assert len(shown.scores) == figures.MOST_LABELS
    # A class without images says nothing of the network.
    assert all(row[1]["support"] if several else row[4] for row in shown.scores)
    assert shown.more_scores == count - figures.MOST_LABELS
    assert len(shown.worst) == mistakes.WORST
    assert len(shown.confused) <= mistakes.MOST_PAIRS
    assert sum(len(picture.svg) for picture in shown.pictures) < 1_000_000
