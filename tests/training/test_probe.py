"""A linear layer and nearest neighbours on features, held to scikit-learn and to plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from imgcls_search.training import probe
from imgcls_search.training.probe import fit_linear, predict_by_neighbours
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    # Some of these pixels are 0 in every image.
    return pixels.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("wanted", [range(10), (3, 8), (0, 4, 7)])
def test_layer_gives_the_probabilities_of_scikit_learn(wanted: range, digits: tuple[np.ndarray, np.ndarray]) -> None:
    chosen = np.isin(digits[1], list(wanted))
    pixels, labels = digits[0][chosen], digits[1][chosen]
    head = fit_linear(pixels[:-100], labels[:-100], 10, seed=0)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=head.strength, max_iter=5000, tol=1e-7))
    reference.fit(pixels[:-100].astype(np.float64), labels[:-100])
    logits = head.logits(pixels[-100:])
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    ours /= ours.sum(axis=1, keepdims=True)
    theirs = reference.predict_proba(pixels[-100:])
    assert np.abs(ours[:, sorted(wanted)] - theirs).max() < 0.02
    assert (ours.argmax(axis=1) == reference.predict(pixels[-100:])).mean() >= 0.98
    # A class without an image is never the answer.
    assert set(ours.argmax(axis=1)) <= set(wanted)


def test_weights_of_classes_are_those_of_scikit_learn(digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = digits
    weights = np.linspace(0.2, 5, 10)
    head = fit_linear(pixels[:-100], labels[:-100], 10, seed=0, class_weights=weights.tolist())
    scale = StandardScaler().fit(pixels[:-100].astype(np.float64))
    reference = LogisticRegression(C=head.strength, max_iter=5000, tol=1e-7, class_weight=dict(enumerate(weights)))
    reference.fit(scale.transform(pixels[:-100]), labels[:-100])
    logits = head.logits(pixels[-100:])
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    ours /= ours.sum(axis=1, keepdims=True)
    assert np.abs(ours - reference.predict_proba(scale.transform(pixels[-100:]))).max() < 0.02


def test_penalty_is_stronger_where_labels_are_noise(digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = digits
    noise = np.random.default_rng(0).permutation(labels)
    assert fit_linear(pixels[:300], noise[:300], 10, 0).strength == probe.STRENGTHS[0]
    assert fit_linear(pixels[:300], labels[:300], 10, 0).strength > probe.STRENGTHS[0]


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (5, 1)])
def test_few_images_are_enough(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.eye(len(counts), 4, dtype=np.float32)[labels]
    head = fit_linear(features, labels, 3, seed=0)
    assert (head.logits(features).argmax(axis=1) == labels).all()
    assert (predict_by_neighbours(features, labels, features) == labels).all()


def test_neighbours_are_the_nearest_by_cosine(digits: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, labels = digits
    known, asked = pixels[:200], pixels[200:260]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (known.astype(float), asked.astype(float))]
    distances = 1 - unit[1] @ unit[0].T
    expected = []
    for row in distances:
        nearest = np.argsort(row)[: probe.NEIGHBOURS]
        votes = np.bincount(labels[nearest], weights=1 / row[nearest], minlength=10)
        expected.append(int(votes.argmax()))
    assert (predict_by_neighbours(known, labels[:200], asked) == expected).mean() > 0.98
