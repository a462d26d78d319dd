"""The part of a report about the reliability of a network's probabilities, and its scores on corrupted images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from imgcls_search.data import Images, load
from imgcls_search.jobs.evaluation import Evaluation, corruption_table
from imgcls_search.jobs.report_effort import CORRUPTED_MACS, CORRUPTED_VERSIONS, LEAST_CORRUPTED, MOST_CORRUPTED
from imgcls_search.models.cost import images_within
from imgcls_search.rounding import share
from imgcls_search.training import calibration, refusing
from imgcls_search.views.mistakes import EvaluatedTrial
from imgcls_search.views.sections import Section, Sketchbook
from imgcls_search.worker import figures, measuring


def sureness(looked: EvaluatedTrial, book: Sketchbook) -> Section:
    """Describe a network's confidence and how often it is right, with text, pictures and a table."""
    found = looked.evaluation
    made = calibration.calibrate(_logits(found), found.labels)
    caption = "Accuracy against confidence, in 15 bins of equally many images"
    pictures = [book.picture(reliability(found, made), caption)]
    table: list[tuple[str, ...]] = []
    if found.labels.ndim == 1:
        confidence, right = _decisions(found, made)
        caption = "Share of wrong answers if only the images with the highest confidence are answered"
        pictures.append(book.picture(risk_coverage(confidence, right), caption))
        table = [("lowest confidence", "share answered", "right of these")]
        for row in refusing.table(confidence, right):
            hits = share(row.right / row.answered, row.answered) if row.answered else "none answered"
            table.append((f"{row.threshold:g}", f"{row.share:.1%}", hits))
    return Section(title="How sure it is", text=_in_words(made, len(looked.data.folds)), pictures=pictures, table=table)


def reliability(found: Evaluation, made: calibration.Calibration) -> Figure:
    """Draw accuracy against confidence, before and after calibration."""
    curves = {"as trained": calibration.bins(*calibration.confidences(found.probabilities, found.labels))}
    if made.is_kept:
        after = calibration.probabilities(made.applied(_logits(found)), found.labels)
        curves["calibrated"] = calibration.bins(*calibration.confidences(after, found.labels))
    return figures.reliability(curves)


def risk_coverage(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> Figure:
    """Draw the share of wrong answers against the share of answered images, most confident first."""
    return figures.risk_coverage(*refusing.risk_coverage(confidence, right))


def worse_pictures(looked: EvaluatedTrial, book: Sketchbook) -> Section | None:
    """Score a network on corrupted versions of some validation images; None if images have several labels."""
    if looked.data.has_several_labels:
        return None
    macs = measuring.count(looked.config.component("model"), looked.data.shape).macs
    affordable = images_within(CORRUPTED_MACS, CORRUPTED_VERSIONS * macs, least=LEAST_CORRUPTED)
    images = _some(load(looked.data, "val"), min(MOST_CORRUPTED, affordable))
    table = corruption_table(looked.artifact or looked.model, looked.config, looked.data, [images])
    count = len(images.labels)
    severities = sorted({severity for _, severity in table})
    rows = [
        (name.replace("_", " "), *(share(table[name, severity], count) for severity in severities))
        for name in dict.fromkeys(name for name, _ in table)
    ]
    return Section(
        title="On corrupted images",
        text=f"Accuracy on {count} validation images with corruptions after Hendrycks and Dietterich (2019); the mean, "
        f"corruption_accuracy, is {share(sum(table.values()) / len(table), count)}.",
        table=[("corruption", *(f"severity {severity}" for severity in severities)), *rows],
    )


def _some(images: Images, most: int) -> Images:
    """Return at most this number of images, spread evenly over all."""
    count = len(images.labels)
    if count <= most:
        return images
    chosen = np.linspace(0, count - 1, most).round().astype(np.int64)
    return Images(
        pixels=np.asarray(images.pixels[chosen]),
        labels=np.asarray(images.labels)[chosen],
        names=tuple(images.names[place] for place in chosen.tolist()),
    )


def _decisions(found: Evaluation, made: calibration.Calibration) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the calibrated probability of the chosen class, and whether it is right."""
    probabilities = calibration.probabilities(made.applied(_logits(found)), found.labels)
    confidence = np.take_along_axis(probabilities, found.decided[:, None], axis=1)[:, 0]
    return confidence, found.decided == found.labels


def _logits(found: Evaluation) -> np.ndarray[Any, Any]:
    """Return logits that result in these probabilities."""
    shares = np.clip(found.probabilities, 1e-300, None)
    logits: np.ndarray[Any, Any] = np.log(shares)
    return logits if found.labels.ndim == 1 else logits - np.log(np.clip(1 - found.probabilities, 1e-16, None))


def _in_words(made: calibration.Calibration, folds: int) -> str:
    def figures_of(quality: calibration.Quality) -> str:
        bins = f"({calibration.BINS} bins of equally many images)"
        return f"expected calibration error {quality.error:.4f} {bins}, log loss {quality.loss:.4f}"

    if not made.is_kept or made.before is None or made.after is None:
        shown = f" ({figures_of(made.before)})" if made.before is not None else ""
        return f"A bundle of this network is not calibrated: {made.reason}{shown}."
    temperatures: Mapping[bool, str] = {
        True: f"a temperature of {made.temperatures[0]:.3g}",
        False: "one temperature a label",
    }
    by, after = temperatures[len(made.temperatures) == 1], f"{figures_of(made.after)} on held-out validation images"
    if folds:
        # A bundle has one network, calibrated on the images that this network was not trained on.
        calibrated = (
            f"With {by}, over all folds: {after}. A bundle has the network of the last of {folds} folds, calibrated on "
            "the images of that fold if they are enough."
        )
    else:
        calibrated = f"A bundle has {by}, which makes that {after}."
    return f"As trained: {figures_of(made.before)}. {calibrated}"
