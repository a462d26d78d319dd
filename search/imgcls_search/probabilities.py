"""Probabilities from logits, in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def softmax(logits: Array) -> Array:
    """Return probabilities [N, classes] from logits [N, classes]."""
    import numpy as np

    # SciPy's softmax gives the same, but is slow to import.
    numbers = logits.astype(np.float64)
    powers = np.exp(numbers - numbers.max(axis=1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: Array) -> Array:
    """Return probabilities [N, labels] from logits [N, labels]."""
    import numpy as np
    from scipy.special import expit

    probabilities: Array = expit(logits.astype(np.float64))
    return probabilities


def probabilities_of(logits: Array, *, several: bool) -> Array:
    """Return probabilities [N, classes] from logits, of classes or of `several` labels."""
    return sigmoid(logits) if several else softmax(logits)
