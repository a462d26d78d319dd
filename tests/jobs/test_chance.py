"""How much of a score comes of the choice of its images, against SciPy's bootstrap and Wilson's interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from imgcls_search.confidence import share_interval
from imgcls_search.jobs.chance import interval_of_mean
from imgcls_search.jobs.evaluation import Evaluation
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score

CLASSES = ("a", "b", "c")
IMAGES = 400


def training(seed: int) -> Evaluation:
    """Return what a network of middling quality says; all networks look at the same images."""
    labels = np.random.default_rng(0).choice(3, IMAGES, p=[0.6, 0.3, 0.1])
    logits = np.random.default_rng(seed).normal(size=(IMAGES, 3)) + 1.5 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Evaluation(
        split="test",
        metrics={"accuracy": float((probabilities.argmax(1) == labels).mean())},
        names=tuple(map(str, range(IMAGES))),
        labels=labels,
        probabilities=probabilities,
        decided=probabilities.argmax(1),
        classes=CLASSES,
    )


def of_scipy(trainings: list[Evaluation], score: Any) -> tuple[float, float]:
    def mean(chosen: Any) -> float:
        return float(np.mean([score(one.labels[chosen], one.decided[chosen]) for one in trainings]))

    drawn = bootstrap((np.arange(IMAGES),), mean, vectorized=False, n_resamples=1000, method="percentile", rng=1)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def macro_f1(labels: Any, decided: Any) -> float:
    return float(f1_score(labels, decided, average="macro"))


@pytest.mark.parametrize(("metric", "score"), [("macro_f1", macro_f1), ("accuracy", accuracy_score)])
def test_interval_of_several_trainings_is_the_bootstrap_of_their_mean(metric: str, score: Any) -> None:
    trainings = [training(1), training(2), training(3)]
    assert interval_of_mean(trainings, metric) == pytest.approx(of_scipy(trainings, score), abs=0.015)


def test_interval_of_one_training_is_near_wilson_s() -> None:
    one = training(1)
    assert interval_of_mean([one], "accuracy") == pytest.approx(
        share_interval(one.metrics["accuracy"], IMAGES), abs=0.015
    )
