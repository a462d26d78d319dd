"""Classes and metrics that a space names, checked against labels before any training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from imgcls_search.errors import UserError
from imgcls_search.orchestrator import named_classes, named_metrics
from imgcls_search.space import Space, parse

from tests.orchestrator.test_endings import CATALOG

CLASSES = ("cat", "dog", "emu")
BASE = "data: {folder: {root: photos}}\nmodel: {lenet5: {}}\ntraining: {epochs: 1}\n"


def space(text: str) -> Space:
    return parse(BASE + text, CATALOG, source="s.yaml")


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("", []),
        ("loss: {cross_entropy: {class_weights: {cat: 2, dog: 1, emu: 1}}}", []),
        (
            "loss: {cross_entropy: {class_weights: {cat: 2}}}",
            ["loss.cross_entropy.class_weights: classes without a weight get weight 1: dog, emu"],
        ),
        (
            "loss: {cross_entropy: {class_weights: {choice: [{cat: 2, dog: 3}, balanced]}}}",
            ["loss.cross_entropy.class_weights: classes without a weight get weight 1: emu"],
        ),
        ("loss: {cross_entropy: {class_weights: balanced}}", []),
        ("predict: {costs: {cat: {dog: 5}}}", []),
    ],
)
def test_weights_and_costs_of_known_classes_are_accepted(text: str, notes: list[str]) -> None:
    named = space(text)
    assert named_classes.refuse_unknown(named.document, CLASSES, named.locate) == notes
    assert named_classes.are_in(named.document) == (":" in text and "balanced}" not in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "loss: {cross_entropy: {class_weights: {cat: 2, dgo: 1}}}",
            r"s\.yaml:4:\d+: loss\.cross_entropy\.class_weights: there is no class 'dgo'; classes: cat, dog, emu",
        ),
        ("loss: {cross_entropy: {class_weights: {choice: [{ct: 2}, balanced]}}}", "there is no class 'ct'"),
        ("predict: {costs: {cat: {dgo: 5}}}", r"s\.yaml:4:\d+: predict\.costs: there is no class 'dgo'"),
    ],
)
def test_unknown_classes_are_refused_with_their_place(text: str, said: str) -> None:
    named = space(text)
    with pytest.raises(UserError, match=said):
        named_classes.refuse_unknown(named.document, CLASSES, named.locate)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("predict: {costs: {cat: {cat: 1}}}", "the right class costs nothing"),
        ("study: {objectives: {cost: minimize}}", r"study\.objectives\.cost: needs predict\.costs"),
        ("limits: {cost: {at_most: 1}}", r"limits\.cost: needs predict\.costs"),
        ("predict: {costs: {cat: {dog: 5}}}\nstudy: {objectives: {cost: minimize}}", None),
        ("study: {objectives: {accuracy: maximize}}", None),
    ],
)
def test_measures_of_costs_need_costs(text: str, said: str | None) -> None:
    if said is None:
        named_classes.refuse_costs(space(text))
    else:
        with pytest.raises(UserError, match=said):
            named_classes.refuse_costs(space(text))


SIX = tuple("abcdef")


@pytest.mark.parametrize(
    ("metric", "classes", "seen", "problem"),
    [
        ("accuracy", CLASSES, {0}, None),
        ("recall:dog", CLASSES, {0, 1}, None),
        # Recall and precision of a class have a value where all images are of that class.
        ("recall:dog", CLASSES, {1}, None),
        ("recall:dog", CLASSES, {0, 2}, "no test image is of class 'dog'"),
        ("recall:dgo", CLASSES, {0, 1}, "there is no class 'dgo'; classes: cat, dog, emu (did you mean 'dog'?)"),
        ("sensitivity@0.9:dog", CLASSES, {1}, "needs test images of at least two classes"),
        ("sensitivity@0.9:dog", CLASSES, {1, 2}, None),
        ("roc_auc", CLASSES, {1}, "needs test images of at least two classes"),
        ("roc_auc", CLASSES, {1, 2}, None),
        ("kappa", CLASSES, {1}, "needs test images of at least two classes"),
        ("top5_accuracy", SIX, {1}, None),
        ("top5_accuracy", SIX[:5], {0, 1}, "needs more than 5 classes, got 5"),
    ],
)
def test_metric_without_a_value_on_a_split_is_told(
    metric: str, classes: tuple[str, ...], seen: set[int], problem: str | None
) -> None:
    assert named_metrics.undefined(metric, classes, seen, "test") == problem


ONE_EACH, SEVERAL = np.array([0, 1, 1]), np.array([[1, 0, 1], [1, 1, 0]], dtype=bool)


@pytest.mark.parametrize(
    ("text", "labels", "said"),
    [
        ('study: {objectives: {"recall:emu": maximize}}', ONE_EACH, r"study\.objectives\.recall:emu: no validation"),
        ("limits: {recall:emu: {at_least: 0.5}}", ONE_EACH, r"s\.yaml:4:10: limits\.recall:emu: no validation image"),
        ("limits: {recall:dog: {at_least: 0.5}}", ONE_EACH, None),
        (
            "data: {folder: {root: photos, folds: 3}}\nlimits: {recall:emu: {at_least: 0.5}}",
            ONE_EACH,
            "in one of 3 folds: no validation image is of class 'emu'",
        ),
        # With several labels each, all images may be of a class, and no image may be of any.
        ("limits: {sensitivity@0.9:cat: {at_least: 0.5}}", SEVERAL, "each validation image is of class 'cat'"),
        ("limits: {sensitivity@0.9:dog: {at_least: 0.5}}", SEVERAL, None),
        ("limits: {sensitivity@0.9:dog: {at_least: 0.5}}", ONE_EACH, None),
        ("", np.zeros((2, 3), dtype=bool), r"data\.folder: no validation image has a label to score with"),
    ],
)
def test_metrics_that_labels_leave_without_a_value_are_refused(text: str, labels: Any, said: str | None) -> None:
    several = labels.ndim == 2
    seen = set(np.nonzero(labels)[1].tolist()) if several else set(labels.tolist())
    base = BASE.replace("{folder: {root: photos}}", "{digits: {}}") if "data:" in text else BASE
    written = parse((base if "data:" not in text else base.partition("\n")[2]) + text, CATALOG, source="s.yaml")
    if said is None:
        named_metrics.refuse_undefined(written, CLASSES, seen, labels)
    else:
        with pytest.raises(UserError, match=said):
            named_metrics.refuse_undefined(written, CLASSES, seen, labels)
