"""Confident learning (Northcutt, Jiang and Chuang 2021): labels that out-of-fold predictions speak against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def thresholds(probabilities: Floats, labels: Numbers) -> Floats:
    """Return of each class the mean probability that its own images get (equation 2); 1 for a class without any."""
    classes = range(probabilities.shape[1])
    return np.array([probabilities[labels == k, k].mean() if (labels == k).any() else 1.0 for k in classes])


def confident_classes(probabilities: Floats, labels: Numbers) -> Numbers:
    """Return of each image the class that it is confidently of (equation 1); -1 where it is of none.

    Those are the classes with a probability of at least the threshold; of several it is the most probable.
    """
    is_confident = probabilities >= thresholds(probabilities, labels)
    best = np.where(is_confident, probabilities, -1.0).argmax(axis=1)
    return np.where(is_confident.any(axis=1), best, -1)


def confident_joint(probabilities: Floats, labels: Numbers) -> Numbers:
    """Return how many images of each given label [row] are confidently of each class [column] (equation 1)."""
    classes = probabilities.shape[1]
    found = confident_classes(probabilities, labels)
    counted = found >= 0
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (labels[counted], found[counted]), 1)
    return joint


def joint_distribution(joint: Numbers, counts: Numbers) -> Floats:
    """Return the share of all images that has each given label and each true one (equation 3).

    `counts` are the images of each given label; rows of the confident joint are scaled to them.
    """
    sums = joint.sum(axis=1)
    # A label that no image is confidently anything of is taken as right.
    rows = np.where(sums[:, None] > 0, joint / np.maximum(sums, 1)[:, None], np.eye(len(joint)))
    scaled = rows * counts[:, None]
    return np.asarray(scaled / max(float(scaled.sum()), 1.0))


def suspects(probabilities: Floats, labels: Numbers) -> tuple[Numbers, Numbers]:
    """Return the images whose labels are likely wrong, the likeliest first, and the class that each likely is of.

    As many as the joint distribution expects of each given label i and true one j are taken: those of label i for
    which p(j) - p(i) is largest (prune by noise rate, section 3.2). Images whose given label is the most probable one
    are none. They are ordered by p(given) / p(likely).
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    expected = np.rint(joint_distribution(confident_joint(probabilities, labels), counts) * len(labels)).astype(int)
    is_taken = np.zeros(len(labels), dtype=bool)
    for given, true in np.argwhere(expected > 0).tolist():
        if given != true:
            numbers = np.flatnonzero(labels == given)
            margin = probabilities[numbers, true] - probabilities[numbers, given]
            is_taken[numbers[np.argsort(-margin, kind="stable")[: expected[given, true]]]] = True
    likely = probabilities.argmax(axis=1)
    numbers = np.flatnonzero(is_taken & (likely != labels))
    ratio = probabilities[numbers, labels[numbers]] / probabilities[numbers, likely[numbers]]
    order = np.argsort(ratio, kind="stable")
    return numbers[order], likely[numbers[order]]
