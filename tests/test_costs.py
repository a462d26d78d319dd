"""Costs of decisions against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_search import costs
from imgcls_search.measures import bounds
from imgcls_search.probabilities import softmax
from imgcls_search.training.metrics import Wanted, score

CLASSES = ("cat", "dog", "owl")
STATED = {"cat": {"dog": 5.0, "owl": 0.5}, "owl": {"cat": 0.0, "owl": 0.0}}


def cost_of(true: str, predicted: str) -> float:
    return 0.0 if true == predicted else STATED.get(true, {}).get(predicted, 1.0)


def probabilities(count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], count)


def test_decision_is_the_class_of_least_expected_cost() -> None:
    matrix = costs.matrix(STATED, CLASSES)
    assert matrix.tolist() == [[cost_of(true, predicted) for predicted in CLASSES] for true in CLASSES]
    likeliest = 0
    for row, order, prices in zip(
        probabilities(),
        costs.ranked(probabilities(), matrix),
        costs.expected(probabilities(), matrix),
        strict=True,
    ):
        by_hand = [sum(p * cost_of(true, name) for p, true in zip(row, CLASSES, strict=True)) for name in CLASSES]
        assert prices == pytest.approx(by_hand)
        assert order.tolist() == sorted(range(3), key=lambda k: by_hand[k])
        likeliest += order[0] == row.argmax()
    assert 0 < likeliest < 200
    assert costs.decided(probabilities(), matrix).tolist() == costs.ranked(probabilities(), matrix)[:, 0].tolist()


def test_equal_costs_and_no_costs_decide_on_the_likeliest() -> None:
    equal = costs.matrix({"cat": {"dog": 1.0}}, CLASSES)
    found = probabilities()
    assert (costs.decided(found, equal) == found.argmax(axis=1)).all()
    assert (costs.decided(found, None) == found.argmax(axis=1)).all()
    # Where all cost the same the likelier comes first, then the first.
    free = costs.matrix({true: dict.fromkeys(set(CLASSES) - {true}, 0.0) for true in CLASSES}, CLASSES)
    assert costs.ranked(np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]), free).tolist() == [[1, 2, 0], [0, 2, 1]]


def test_measured_costs_are_those_of_the_decisions() -> None:
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(300, 3)), random.integers(0, 3, 300)
    shares = softmax(logits)
    matrix = costs.matrix(STATED, CLASSES)
    decisions = [min(range(3), key=lambda k: row @ matrix[:, k]) for row in shares]
    wanted = Wanted(classes=CLASSES, named=("cost",), costs=STATED)
    found = score(logits, labels, wanted)
    assert found["cost"] == pytest.approx(
        np.mean([cost_of(CLASSES[k], CLASSES[d]) for k, d in zip(labels, decisions, strict=True)])
    )
    assert "decision_accuracy" not in found
    whole = score(logits, labels, Wanted(classes=CLASSES, costs=STATED, is_full=True))
    assert whole["decision_accuracy"] == pytest.approx(np.mean(np.array(decisions) == labels))
    # Accuracy is that of the likeliest class, with costs and without.
    plain = score(logits, labels, Wanted(classes=CLASSES, is_full=True))
    assert whole["accuracy"] == plain["accuracy"] == pytest.approx(np.mean(shares.argmax(1) == labels))
    assert whole["decision_accuracy"] != whole["accuracy"]
    assert not {"cost", "decision_accuracy"} & plain.keys()
    assert bounds("cost") == (0.0, float("inf"))
    assert bounds("decision_accuracy") == (0.0, 1.0)


@pytest.mark.parametrize(
    ("stated", "place", "problem"),
    [
        ({"cta": {"dog": 1.0}}, "cta", "there is no class 'cta'; classes: cat, dog, owl (did you mean 'cat'?)"),
        ({"cat": {"dgo": 1.0}}, "cat.dgo", "there is no class 'dgo'; classes: cat, dog, owl (did you mean 'dog'?)"),
        ({"cat": {"cat": 2.0}}, "cat.cat", "cat.cat: 2 is not allowed: the right class costs nothing; allowed: 0"),
    ],
)
def test_costs_that_no_class_can_have_are_named(stated: costs.Costs, place: str, problem: str) -> None:
    assert costs.problem(stated, CLASSES) == (place, problem)
    assert costs.problem(STATED, CLASSES) is None
    assert costs.problem({"cta": {"dog": 1.0}}) is None
