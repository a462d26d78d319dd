"""What a model is measured by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

METRICS: Mapping[str, str] = {
    "accuracy": "share of images whose most likely class is right (top-1), 0 to 1",
    "top5_accuracy": "share of images whose class is among the five most likely, 0 to 1; needs more than five classes",
    "macro_f1": "F1 score of each class, averaged with equal weights, 0 to 1",
    "loss": "cross-entropy, nats; without label smoothing, class weights or focusing, so that trials compare",
}
"""Metrics of one evaluation, each with one sentence."""


def score(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return every metric that has meaning, from logits [N, classes] and class numbers [N].

    `macro_f1` averages over the classes that have an image.
    """
    from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

    classes = np.arange(logits.shape[1])
    predicted = logits.argmax(axis=1)
    scores = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0),
        "loss": log_loss(labels, softmax(logits), labels=classes),
    }
    if len(classes) > 5:
        scores["top5_accuracy"] = top_k_accuracy_score(labels, logits, k=5, labels=classes)
    return {name: float(value) for name, value in scores.items()}


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return probabilities [N, classes], in double precision, from logits [N, classes]."""
    from scipy.special import softmax as along

    probabilities: np.ndarray[Any, Any] = along(logits.astype(np.float64), axis=1)
    return probabilities
