"""The part of a report about how far a network's probabilities can be trusted, and how it does on worse pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from imgcls_search.config import TrialConfig
from imgcls_search.data import Images, Prepared, load
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.jobs.evaluate import Evaluation, corruption_table
from imgcls_search.rounding import share
from imgcls_search.train import calibration, refusing
from imgcls_search.worker import figures

MOST_CORRUPTED = 200
"""Images that the report corrupts: each is looked at 15 times."""


def sureness_of(found: Evaluation) -> dict[str, Any]:
    """Return how sure a network is and how right that is, as words, a table and two pictures."""
    made = calibration.calibrate(_logits(found), found.labels)
    picture = figures.to_svg(reliability(found, made), "reliability")
    pictures = [(picture, "How right it is against how sure it is, in 15 bins of equally many images")]
    rows: list[tuple[str, str, str]] = []
    if found.labels.ndim == 1:
        confidence, right = _decisions(found, made)
        picture = figures.to_svg(risk_coverage(confidence, right), "coverage")
        pictures.append((picture, "What share of its answers is wrong where it answers only what it is surest of"))
        rows = [
            (
                f"{row.threshold:g}",
                f"{row.share:.1%}",
                share(row.right / row.answered, row.answered) if row.answered else "none answered",
            )
            for row in refusing.table(confidence, right)
        ]
    return {"pictures": pictures, "words": _in_words(made), "rows": rows}


def reliability(found: Evaluation, made: calibration.Calibration) -> Figure:
    """Draw how right a network is against how sure it is, before and after its temperature."""
    curves = {"as trained": calibration.bins(*calibration.confidences(found.probabilities, found.labels))}
    if made.is_kept:
        after = calibration.probabilities(made.applied(_logits(found)), found.labels)
        curves["calibrated"] = calibration.bins(*calibration.confidences(after, found.labels))
    return figures.reliability(curves)


def risk_coverage(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> Figure:
    """Draw what share of answers is wrong against what share of images is answered, the surest first."""
    return figures.risk_coverage(*refusing.risk_coverage(confidence, right))


def corruptions_of(network: nn.Module | Artifact, config: TrialConfig, data: Prepared) -> dict[str, Any] | None:
    """Return the accuracy on worse versions of some validation images; None where images have several labels."""
    if data.has_several_labels:
        return None
    images = _some(load(data, "val"))
    table = corruption_table(network, config, data, [images])
    count = len(images.labels)
    names = dict.fromkeys(name for name, _ in table)
    severities = sorted({severity for _, severity in table})
    return {
        "images": count,
        "mean": share(sum(table.values()) / len(table), count),
        "severities": severities,
        "rows": [
            (name.replace("_", " "), [share(table[name, severity], count) for severity in severities]) for name in names
        ],
    }


def _some(images: Images) -> Images:
    """Return at most so many images, spread evenly over all."""
    count = len(images.labels)
    if count <= MOST_CORRUPTED:
        return images
    chosen = np.linspace(0, count - 1, MOST_CORRUPTED).round().astype(np.int64)
    return Images(
        pixels=np.asarray(images.pixels[chosen]),
        labels=np.asarray(images.labels)[chosen],
        names=tuple(images.names[place] for place in chosen.tolist()),
    )


def _decisions(found: Evaluation, made: calibration.Calibration) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return how likely the class is that is decided on, by calibrated probabilities, and whether it is right."""
    probabilities = calibration.probabilities(made.applied(_logits(found)), found.labels)
    confidence = np.take_along_axis(probabilities, found.decided[:, None], axis=1)[:, 0]
    return confidence, found.decided == found.labels


def _logits(found: Evaluation) -> np.ndarray[Any, Any]:
    """Return logits that give the probabilities."""
    shares = np.clip(found.probabilities, 1e-300, None)
    logits: np.ndarray[Any, Any] = np.log(shares)
    return logits if found.labels.ndim == 1 else logits - np.log(np.clip(1 - found.probabilities, 1e-16, None))


def _in_words(made: calibration.Calibration) -> str:
    def figures_of(quality: calibration.Quality) -> str:
        return f"expected calibration error {quality.error:.4f}, log loss {quality.loss:.4f}"

    if not made.is_kept or made.before is None or made.after is None:
        shown = f" ({figures_of(made.before)})" if made.before is not None else ""
        return f"A bundle of this network is not calibrated: {made.reason}{shown}."
    temperatures: Mapping[bool, str] = {
        True: f"a temperature of {made.temperatures[0]:.3g}",
        False: "one temperature a label",
    }
    return (
        f"As trained: {figures_of(made.before)}. A bundle has {temperatures[len(made.temperatures) == 1]}, which makes "
        f"that {figures_of(made.after)} on held-out validation images."
    )
