"""The part of a report about images that a trial's kept weights misclassify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from imgcls_search import costs
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.folds import places
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.jobs.evaluate import out_of_fold, read_both
from imgcls_search.jobs.evaluation import Evaluation, measure_on
from imgcls_search.measures import by_class, lowest_f1
from imgcls_search.rounding import pairs
from imgcls_search.study.files import StudyFiles
from imgcls_search.terminal import shown
from imgcls_search.trial import Trial
from imgcls_search.views.sections import Picture, Sketchbook
from imgcls_search.worker import figures
from imgcls_search.worker.pictures import confusions, label_mistakes, mistakes

WORST = 24
"""Number of images to show."""

MOST_PAIRS = 8
"""Most pairs of classes to describe in words."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedTrial:
    """The kept weights of a trial and their predictions on the images that it was scored on."""

    evaluation: Evaluation
    model: nn.Module
    """The trained network; `artifact` is the deployed one if it differs."""

    artifact: Artifact | None
    config: TrialConfig
    data: Prepared
    pixels: Any
    """Pixels of the images of the evaluation, uint8 [C, H, W] by index."""


def look(trial: Trial, files: StudyFiles) -> EvaluatedTrial:
    """Score the kept weights of a trial on the validation split, or take the stored predictions of its folds.

    Raises:
        CheckpointError, DeployError: the weights are missing or damaged.
        DataError: the images are missing or damaged.
    """
    from imgcls_search.data import load as load_images

    weights = files.checkpoint(trial.number)
    model, artifact, config, data = read_both(weights)
    found = out_of_fold(weights) if data.folds else measure_on(artifact or model, config, data, "val")
    pixels: Any = load_images(data, "val").pixels
    if data.folds:
        order = np.concatenate(places(data.folds, data.counts["train"]))
        pixels = Chosen([load_images(data, "train").pixels, pixels], order)
    return EvaluatedTrial(evaluation=found, model=model, artifact=artifact, config=config, data=data, pixels=pixels)


@dataclass(frozen=True, kw_only=True)
class WrongImage:
    """A misclassified image, or a wrong label of an image."""

    place: int
    """Its index among the images of the evaluation."""

    target: int
    """The wrongly predicted class, or the wrong label."""

    name: str
    label: str
    """Its class; with several labels, the one that is wrong."""

    predicted: str = ""
    """The predicted class; empty with several labels."""

    has: bool = False
    """Whether the image has the label, with several labels."""

    confidence: float


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Mistakes of a trial's kept weights on the validation images."""

    of_labels: bool
    """Whether images have several labels."""

    pictures: list[Picture]
    confused: list[str]
    """The most frequent confusions in words, most frequent first."""

    scores: Sequence[tuple[Any, ...]]
    """Rows of a table, one per class: name, precision, recall, F1 and images; or name and scores by name."""

    more_scores: int
    """Number of classes or labels left out of the table."""

    measures: str
    decision: str
    """How classes are chosen, if not by the largest probability."""

    wrong: int
    images: int
    worst: list[WrongImage]
    """Most confident first."""


def mistakes_of(looked: EvaluatedTrial, book: Sketchbook) -> Mistakes:
    """Return the mistakes of a trial's kept weights."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    found = looked.evaluation
    if found.thresholds is not None:
        return _label_mistakes(looked, book)
    predicted = found.decided
    classes = list(map(shown, found.classes))
    labels = np.arange(len(classes))
    confidence = np.take_along_axis(found.probabilities, predicted[:, None], axis=1)[:, 0]
    wrong = mistakes(found.probabilities, predicted, found.labels)
    scores = precision_recall_fscore_support(found.labels, predicted, labels=labels, zero_division=0.0)
    matrix = confusion_matrix(found.labels, predicted, labels=labels)
    has_costs = costs.of(looked.config.tree) is not None
    rows = dict(zip(found.classes, zip(classes, *scores, strict=True), strict=True))
    # A class without images has no F1 to be low.
    listed = lowest_f1({name: {"f1": row[3]} if row[4] else {} for name, row in rows.items()}, figures.MOST_LABELS)
    return Mistakes(
        of_labels=False,
        pictures=[
            book.picture(figure, caption)
            for figure, caption in zip(confusions(matrix, classes), _captions(len(classes)), strict=False)
        ],
        confused=confused_pairs(matrix, classes),
        scores=[rows[name] for name in listed],
        more_scores=len(rows) - len(listed),
        measures=pairs(by_class(found.metrics)[0], len(found.labels)),
        decision="by predict.costs: the class of least expected cost" if has_costs else "",
        wrong=len(wrong),
        images=len(found.labels),
        worst=[
            WrongImage(
                place=index,
                target=int(predicted[index]),
                name=shown(found.names[index]),
                label=classes[found.labels[index]],
                predicted=classes[predicted[index]],
                confidence=confidence[index],
            )
            for index in wrong[:WORST].tolist()
        ],
    )


def _captions(count: int) -> tuple[str, ...]:
    if count <= figures.MOST_NAMED:
        return ("Validation images by true and predicted class",)
    kept = figures.MOST_NAMED - 1
    return (
        f"Validation images by true and predicted class: the {kept} classes with the most errors",
        f"The same of all {count} classes, in their order; a darker point is a larger share of a class",
    )


def confused_pairs(matrix: Any, classes: Sequence[str]) -> list[str]:
    """Return the most frequent confusions in words, most frequent first: 'glass taken for tin: 14 of 75'."""
    errors = matrix - np.diag(np.diag(matrix))
    totals = matrix.sum(axis=1)
    true, said = np.nonzero(errors)
    order = sorted(
        zip(true.tolist(), said.tolist(), strict=True),
        key=lambda pair: (-int(errors[pair]), -errors[pair] / totals[pair[0]], pair),
    )
    return [f"{classes[t]} taken for {classes[s]}: {errors[t, s]} of {totals[t]}" for t, s in order[:MOST_PAIRS]]


def _confused_labels(found: Evaluation, classes: Sequence[str]) -> list[str]:
    """Return in words which labels are missed or predicted wrongly, most frequent first."""
    missed = ((found.labels == 1) & (found.decided == 0)).sum(axis=0)
    given = ((found.labels == 0) & (found.decided == 1)).sum(axis=0)
    totals = found.labels.sum(axis=0)
    order = sorted(range(len(classes)), key=lambda number: (-int(missed[number] + given[number]), number))
    return [
        f"{classes[number]} missed in {missed[number]} of {totals[number]}, and seen in {given[number]} without it"
        for number in order[:MOST_PAIRS]
        if missed[number] + given[number]
    ]


def _label_mistakes(looked: EvaluatedTrial, book: Sketchbook) -> Mistakes:
    """Return the mistakes in labels of images with several, at the thresholds chosen on these images."""
    found = looked.evaluation
    classes = list(map(shown, found.classes))
    single = by_class(found.metrics)[1]
    said = found.decided
    scores = {shown(name): scores for name, scores in single.items() if "f1" in scores}
    listed = lowest_f1(single, figures.MOST_LABELS)
    return Mistakes(
        of_labels=True,
        pictures=[book.picture(figures.label_scores(scores), "Recall, precision and average precision of each label")],
        confused=_confused_labels(found, classes),
        scores=[(shown(name), single[name]) for name in listed],
        more_scores=len(single) - len(listed),
        measures=pairs(by_class(found.metrics)[0], len(found.labels)),
        decision="",
        wrong=int((said != found.labels).any(axis=1).sum()),
        images=len(found.labels),
        worst=[
            WrongImage(
                place=image,
                target=label,
                name=shown(found.names[image]),
                label=classes[label],
                has=bool(found.labels[image, label]),
                confidence=found.probabilities[image, label],
            )
            for image, label in label_mistakes(found.probabilities, said, found.labels, WORST)
        ],
    )
