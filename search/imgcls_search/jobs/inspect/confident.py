"""Confident learning (Northcutt, Jiang and Chuang 2021): find labels that out-of-fold predictions contradict."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def thresholds(probabilities: Floats, labels: Numbers) -> Floats:
    """Return each class's mean probability over its own images (equation 2); 1 for a class without images."""
    classes = range(probabilities.shape[1])
    return np.array([probabilities[labels == k, k].mean() if (labels == k).any() else 1.0 for k in classes])


def confident_classes(probabilities: Floats, labels: Numbers) -> Numbers:
    """Return the class that each image confidently belongs to (equation 1); -1 if there is none.

    It is the most probable of the classes whose probability is at least the threshold.
    """
    is_confident = probabilities >= thresholds(probabilities, labels)
    best = np.where(is_confident, probabilities, -1.0).argmax(axis=1)
    return np.where(is_confident.any(axis=1), best, -1)


def confident_joint(probabilities: Floats, labels: Numbers) -> Numbers:
    """Count the images of each given label [row] that confidently belong to each class [column] (equation 1)."""
    classes = probabilities.shape[1]
    found = confident_classes(probabilities, labels)
    counted = found >= 0
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (labels[counted], found[counted]), 1)
    return joint


def joint_distribution(joint: Numbers, counts: Numbers) -> Floats:
    """Return the share of all images with each pair of given and true label (equation 3).

    `counts` are the images of each given label; rows of the confident joint are scaled to them.
    """
    sums = joint.sum(axis=1)
    # If no image of a label confidently belongs to a class, the label counts as right.
    rows = np.where(sums[:, None] > 0, joint / np.maximum(sums, 1)[:, None], np.eye(len(joint)))
    scaled = rows * counts[:, None]
    return np.asarray(scaled / max(float(scaled.sum()), 1.0))


def suspects(probabilities: Floats, labels: Numbers) -> tuple[Numbers, Numbers]:
    """Return the images whose labels are likely wrong, most suspicious first, and the likely class of each.

    For each given label i and true label j, take as many images as the joint distribution expects: those of label i
    with the largest p(j) - p(i) (prune by noise rate, section 3.2). Leave out images whose given label is the most
    probable one. Order the rest by p(given) / p(likely).
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
