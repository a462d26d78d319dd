"""The report's part about how sure a network is: words, a table and two pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from imgcls_search.jobs.evaluation import Evaluation
from imgcls_search.probabilities import sigmoid, softmax
from imgcls_search.training.calibration import bins, confidences
from imgcls_search.views.sections import Section, Sketchbook
from imgcls_search.views.sureness import risk_coverage, sureness


def evaluation(*, several: bool, count: int = 600) -> Evaluation:
    """A network that is twice as sure as it should be."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (count, 4))
    if several:
        labels = (sigmoid(honest) > rng.random(honest.shape)).astype(np.uint8)
        shares = sigmoid(2 * honest)
        decided = (shares >= 0.5).astype(np.uint8)
    else:
        labels = (softmax(honest).cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
        shares = softmax(2 * honest)
        decided = shares.argmax(axis=1)
    return Evaluation(
        split="val",
        metrics={},
        names=tuple(map(str, range(count))),
        labels=labels,
        probabilities=shares,
        decided=decided,
        classes=("a", "b", "c", "d"),
        thresholds=(0.5,) * 4 if several else None,
    )


def shown(case: Evaluation, folds: tuple[int, ...] = ()) -> Section:
    """The section of the report; it looks at the evaluation and the folds alone."""
    looked: Any = SimpleNamespace(evaluation=case, data=SimpleNamespace(folds=folds))
    return sureness(looked, Sketchbook())


@pytest.mark.parametrize("several", [False, True])
def test_the_report_says_how_sure_a_network_is(several: bool) -> None:
    found = shown(evaluation(several=several))
    assert "A bundle has " + ("one temperature a label" if several else "a temperature of ") in found.text
    assert len(found.pictures) == (1 if several else 2)
    assert all("<svg" in picture.svg and picture.caption for picture in found.pictures)
    assert len(found.table) == (0 if several else 9)
    if not several:
        assert tuple(found.table[1][:2]) == ("0", "100.0%")
        answered = [float(row[1].rstrip("%")) for row in found.table[1:]]
        assert answered == sorted(answered, reverse=True)


def test_the_report_of_folds_promises_no_temperature_to_a_bundle() -> None:
    # An export calibrates the network of the last fold on the images of that fold.
    text = shown(evaluation(several=False), folds=(200, 200, 200)).text
    assert "A bundle has a temperature" not in text
    assert "A bundle has the network of the last of 3 folds" in text


def test_one_image_is_drawn_too() -> None:
    found = shown(evaluation(several=False, count=1))
    assert "1 validation images are too few" in found.text
    assert len(found.pictures) == 2


def test_the_picture_shows_what_is_left() -> None:
    case = evaluation(several=False)
    confidence, right = confidences(case.probabilities, case.labels)
    (line,) = risk_coverage(confidence, right).axes[0].get_lines()
    assert line.get_xdata()[-1] == 1
    assert line.get_ydata()[-1] == pytest.approx(1 - right.mean())
    assert sum(count for count, _, _ in bins(confidence, right)) == 600
