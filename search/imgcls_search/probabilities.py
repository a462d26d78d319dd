"""Probabilities from logits, in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def softmax(logits: Array) -> Array:
    """Return probabilities [N, classes] from logits [N, classes]."""
    import numpy as np

    # SciPy's softmax gives the same, but is slow to import. In place: there may be many images and classes.
    probabilities: Array = logits.astype(np.float64)
    probabilities -= probabilities.max(axis=1, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: Array) -> Array:
    """Return probabilities [N, labels] from logits [N, labels]."""
    import numpy as np

    # `predict` runs where SciPy is not installed. The exponent is never positive, so nothing overflows.
    powers = np.exp(-np.abs(logits.astype(np.float64)))
    probabilities: Array = np.where(logits >= 0, 1.0, powers) / (1.0 + powers)
    return probabilities


def probabilities_of(logits: Array, *, several: bool) -> Array:
    """Return probabilities [N, classes] from logits, of classes or of `several` labels."""
    return sigmoid(logits) if several else softmax(logits)
