"""How unlike the training's pictures a picture is, by the energy of its logits (Liu et al. 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SCORE = "energy"
"""The name of the score."""

FALSE_ALARMS = 0.05
"""Share of the validation images that the threshold calls unlike."""

FEWEST_IMAGES = 20
"""On fewer, that share is less than one image."""


def energy(logits: npt.NDArray[Any], *, several: bool) -> npt.NDArray[np.float64]:
    """Return the energy [N] of a network's own logits [N, classes], before any temperature; more is more unlike.

    Of `several` labels of an image it is the sum over labels (Wang et al. 2021).
    """
    values = logits.astype(np.float64)
    if several:
        joint: npt.NDArray[np.float64] = -np.logaddexp(0, values).sum(axis=1)
        return joint
    highest = values.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = -(highest[:, 0] + np.log(np.exp(values - highest).sum(axis=1)))
    return found


def threshold(scores: npt.NDArray[np.float64]) -> float | None:
    """Return the score above which at most `FALSE_ALARMS` of validation images are; None where they are too few."""
    if len(scores) < FEWEST_IMAGES:
        return None
    return float(np.quantile(scores, 1 - FALSE_ALARMS, method="higher"))
