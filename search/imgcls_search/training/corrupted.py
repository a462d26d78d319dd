"""The accuracy of a network on corrupted images: `corruption_accuracy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from imgcls_search.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imgcls_search.measures import CORRUPTION

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Image numbers [B] in the split, pixels, uint8 [B, C, H, W], and class numbers [B]."""

Logits = Callable[[Tensor], np.ndarray[Any, Any]]
"""Returns logits [B, classes] of pixels, uint8 [B, C, H, W]."""

Table = Mapping[tuple[str, int], float]
"""Top-1 accuracy by corruption and severity."""


def is_wanted(named: Iterable[str]) -> bool:
    """Tell whether the metric is named."""
    return CORRUPTION in named


def accuracies(batches: Batches, logits: Logits) -> Table:
    """Return the accuracy of a network for each corruption and severity."""
    cases = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    right, count = dict.fromkeys(cases, 0), 0
    for numbers, pixels, labels in batches:
        truth = labels.cpu().numpy()
        count += len(truth)
        for name, severity in cases:
            found = logits(corrupt(pixels, name, severity, numbers))
            right[name, severity] += int((found.argmax(axis=1) == truth).sum())
    return {case: hits / count for case, hits in right.items()}


def mean(table: Table) -> dict[str, float]:
    """Return the metric: the mean over all corruptions and severities."""
    return {CORRUPTION: fmean(table.values())}
