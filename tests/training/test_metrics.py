"""What a model is measured by, against scikit-learn and against sums by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.special
from imgcls_search.errors import DivergedError
from imgcls_search.measures import NAMED, bounds, by_class, class_of
from imgcls_search.probabilities import softmax
from imgcls_search.training import ranking
from imgcls_search.training.metrics import Wanted, score
from sklearn import metrics as reference

CLASSES = ("a", "b", "c")
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.1, 0.7, 0.2], [0.25, 0.15, 0.6], [0.4, 0.25, 0.35]]
)
LABELS = np.array([0, 0, 1, 1, 2, 2])
"""Predicted are a, b, b, b, c, a: four of six are right."""


def measured(labels: np.ndarray = LABELS, **wanted: object) -> dict[str, float]:
    return score(np.log(PROBABILITIES), labels, Wanted(classes=CLASSES, **wanted))  # type: ignore[arg-type]


def test_full_measures_are_those_of_sums_by_hand() -> None:
    found = measured(is_full=True)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    # a: 0.8, 0.3 against 0.2, 0.1, 0.25, 0.4; b: 0.5, 0.7 against 0.1, 0.6, 0.15, 0.25; c: 0.6, 0.35 against 0.1, ...
    assert found["roc_auc"] == pytest.approx((7 / 8 + 7 / 8 + 8 / 8) / 3)
    assert found["average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + (1 + 2 / 3) / 2 + 1) / 3)
    # Predicted a 2, b 3, c 1 times; each class is there twice; Gorodkin 2004.
    assert found["mcc"] == pytest.approx((4 * 6 - 12) / np.sqrt((36 - 14) * (36 - 12)))
    # Squared distances seen: a as b 1, c as a 4; by chance the sum of (i - j)^2 * labels_i * predicted_j / 6.
    chance = sum((i - j) ** 2 * 2 * n for i in range(3) for j, n in enumerate((2, 3, 1))) / 6
    assert found["kappa"] == pytest.approx(1 - 5 / chance)
    # No two confidences, 0.8, 0.6, 0.5, 0.7, 0.6, 0.4, are in one of 15 bins but the equal ones: (0.6 - 0 and 0.6 - 1).
    gaps = [1 - 0.8, abs(1 - 0.6 - 0.6), 1 - 0.5, 1 - 0.7, 0.4]
    assert found["ece"] == pytest.approx(sum(gaps) / 6)
    assert (found["precision:a"], found["recall:a"], found["f1:a"], found["support:a"]) == (0.5, 0.5, 0.5, 2)
    assert found["precision:b"] == pytest.approx(2 / 3)
    assert found["recall:b"] == 1.0


@pytest.mark.parametrize("rounding", [0, 9])
def test_measures_are_those_of_scikit_learn_on_random_numbers(rounding: int) -> None:
    random = np.random.default_rng(0)
    # Rounded, so that there are ties.
    logits, labels = random.normal(size=(200, 7)).round(rounding), random.integers(0, 7, 200)
    found = score(logits, labels, Wanted(classes=tuple("abcdefg"), is_full=True))
    chances, predicted = softmax(logits), logits.argmax(1)
    hot = np.eye(7)[labels]
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "loss": reference.log_loss(labels, chances),
        "top5_accuracy": reference.top_k_accuracy_score(labels, logits, k=5),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "roc_auc": reference.roc_auc_score(labels, chances, multi_class="ovr", average="macro"),
        "average_precision": reference.average_precision_score(hot, chances, average="macro"),
        "mcc": reference.matthews_corrcoef(labels, predicted),
        "kappa": reference.cohen_kappa_score(labels, predicted, weights="quadratic"),
    }
    columns = reference.precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    for name, values in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        expected |= {f"{name}:{of}": value for of, value in zip("abcdefg", values, strict=True)}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found.keys() >= NAMED.keys()


def test_measures_are_defined_where_some_classes_have_no_image() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0])
    found = measured(labels, is_full=True)
    # Predicted are a, b, b, b, c, a: the classes that have an image are averaged.
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    # Of a two images are right, of b two; each is predicted once too often or too seldom.
    assert found["macro_f1"] == pytest.approx(
        reference.f1_score(labels, [0, 1, 1, 1, 2, 0], labels=[0, 1], average="macro")
    )
    two = [reference.roc_auc_score(labels == k, PROBABILITIES[:, k]) for k in (0, 1)]
    assert found["roc_auc"] == pytest.approx(np.mean(two))
    two = [reference.average_precision_score(labels == k, PROBABILITIES[:, k]) for k in (0, 1)]
    assert found["average_precision"] == pytest.approx(np.mean(two))
    assert found["support:c"] == 0
    assert not {"recall:c", "precision:c", "f1:c"} & found.keys()
    assert all(np.isfinite(value) for value in found.values())


def test_one_class_alone_leaves_out_what_needs_two() -> None:
    found = score(np.array([[2.0, 0.0], [3.0, 0.0]]), np.array([0, 0]), Wanted(classes=("a", "b"), is_full=True))
    assert not {"roc_auc", "kappa"} & found.keys()
    assert (found["recall:a"], found["average_precision"], found["mcc"]) == (1.0, 1.0, 0.0)
    assert all(np.isfinite(value) for value in found.values())


def test_sensitivity_is_the_largest_recall_that_keeps_the_specificity() -> None:
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(300, 3)).round(1), random.integers(0, 3, 300)
    names = tuple(f"sensitivity@{least}:b" for least in ("0.5", "0.9", "0.95", "1", "1.0"))
    found = score(logits, labels, Wanted(classes=CLASSES, named=names))
    chances = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 1]
    is_class = labels == 1
    for name in names:
        least = float(name[12:-2])
        recalls = [0.0]
        for threshold in np.unique(chances):
            taken = chances >= threshold
            if (~taken[~is_class]).mean() >= least - 1e-9:
                recalls.append(taken[is_class].mean())
        assert found[name] == pytest.approx(max(recalls)), name


def test_only_what_is_named_is_measured_in_every_epoch() -> None:
    usual = measured().keys()
    assert usual == {"accuracy", "macro_f1", "loss"}
    named = ("accuracy", "mcc", "recall:b", "sensitivity@0.95:c", "latency_ms")
    assert measured(named=named).keys() - usual == {"mcc", "recall:b", "sensitivity@0.95:c"}


def test_names_of_measures_of_a_class_may_hold_anything_after_the_first_colon() -> None:
    assert class_of("recall:a:b.c\nd") == "a:b.c\nd"
    assert class_of("sensitivity@.9:x") == "x"
    for name in ("recall", "recall:", "sensitivity@0:x", "sensitivity@1.5:x", "sensitivity:x", "support:x"):
        assert class_of(name) is None, name
    assert bounds("recall:x") == bounds("ece") == (0.0, 1.0)
    assert by_class({"mcc": 1, "recall:a:b": 2, "support:a:b": 3}) == ({"mcc": 1}, {"a:b": {"recall": 2, "support": 3}})


def test_probabilities_are_those_of_scipy() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0], [3.5, 3.5, 3.5], [-800.0, -801.0, -802.5]], dtype=np.float32)
    assert (softmax(logits) == scipy.special.softmax(logits.astype(np.float64), axis=1)).all()


def test_class_without_a_chance_costs_much_and_not_endlessly() -> None:
    logits, labels = np.array([[1000.0, 0.0], [2.0, 1.0]]), np.array([1, 0])
    assert score(logits, labels)["loss"] == pytest.approx(reference.log_loss(labels, softmax(logits)))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_answer_is_no_score(value: float, several: bool) -> None:
    logits, labels = np.array([[value, 0.0], [2.0, 1.0]]), np.array([[0, 1], [1, 0]])
    with pytest.raises(DivergedError, match="NaN or infinite logits"):
        score(logits, labels if several else labels.argmax(axis=1))


def test_many_images_of_many_classes_need_little_memory() -> None:
    random = np.random.default_rng(0)
    probabilities = random.random((4_000, 3_000))
    are_of = np.arange(3_000) == random.permutation(4_000)[:, None] % 3_000
    tracemalloc.start()
    found = ranking.average_precisions(probabilities, are_of)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Each number of 64 bits needs 96 MB, and the measure has several of each.
    assert peak < 400e6
    assert found[:5].tolist() == ranking.average_precisions(probabilities[:, :5], are_of[:, :5]).tolist()
