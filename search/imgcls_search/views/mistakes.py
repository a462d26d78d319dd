"""The part of a report about images that the kept weights of a trial take for something else."""

from __future__ import annotations

from typing import Any

import numpy as np

from imgcls_search import costs
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.folds import places
from imgcls_search.jobs.evaluate import Evaluation, measure_on, out_of_fold, read_network
from imgcls_search.measures import by_class
from imgcls_search.rounding import pairs
from imgcls_search.study.files import StudyFiles
from imgcls_search.terminal import shown
from imgcls_search.trial import Trial
from imgcls_search.views.sureness import corruptions_of, sureness_of
from imgcls_search.worker import figures
from imgcls_search.worker.pictures import label_mistakes, mistakes

WORST = 24
"""Images that are shown."""


def mistakes_of(trial: Trial, files: StudyFiles) -> dict[str, Any]:
    """Return what the kept weights of a trial say of the validation split."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    from imgcls_search.data import load as load_images

    network, config, data = read_network(files.checkpoint(trial.number))
    found = out_of_fold(files.checkpoint(trial.number)) if data.folds else measure_on(network, config, data, "val")
    pixels: Any = load_images(data, "val").pixels
    if data.folds:
        order = np.concatenate(places(data.folds, data.counts["train"]))
        pixels = Chosen([load_images(data, "train").pixels, pixels], order)
    if found.thresholds is not None:
        return _label_mistakes(found, pixels)
    predicted = found.decided
    classes = list(map(shown, data.classes))
    labels = np.arange(len(classes))
    confidence = np.take_along_axis(found.probabilities, predicted[:, None], axis=1)[:, 0]
    wrong = mistakes(found.probabilities, predicted, found.labels)
    scores = precision_recall_fscore_support(found.labels, predicted, labels=labels, zero_division=0.0)
    return {
        "of_labels": False,
        "sureness": sureness_of(found),
        "corruptions": corruptions_of(network, config, data),
        "svg": figures.to_svg(
            figures.confusion(confusion_matrix(found.labels, predicted, labels=labels), classes), "confusion"
        ),
        "scores": list(zip(classes, *scores, strict=True)),
        "measures": pairs(by_class(found.metrics)[0], len(found.labels)),
        "decision": "by predict.costs: the class of least expected cost" if costs.of(config.tree) is not None else "",
        "wrong": len(wrong),
        "images": len(found.labels),
        "worst": [
            {
                "uri": figures.thumbnail(np.asarray(pixels[np.array([index])])[0]),
                "name": shown(found.names[index]),
                "label": classes[found.labels[index]],
                "predicted": classes[predicted[index]],
                "confidence": confidence[index],
            }
            for index in wrong[:WORST].tolist()
        ],
    }


def _label_mistakes(found: Evaluation, pixels: Any) -> dict[str, Any]:
    """Return what weights say of several labels of each validation image, at the thresholds chosen on these images."""
    classes = list(map(shown, found.classes))
    single = by_class(found.metrics)[1]
    said = found.decided
    rows = [(shown(name), single[name]) for name in found.classes]
    scores = {shown(name): scores for name, scores in single.items() if "f1" in scores}
    return {
        "of_labels": True,
        "sureness": sureness_of(found),
        "corruptions": None,
        "svg": figures.to_svg(figures.label_scores(scores), "confusion"),
        "scores": rows,
        "measures": pairs(by_class(found.metrics)[0], len(found.labels)),
        "wrong": int((said != found.labels).any(axis=1).sum()),
        "images": len(found.labels),
        "worst": [
            {
                "uri": figures.thumbnail(np.asarray(pixels[np.array([image])])[0]),
                "name": shown(found.names[image]),
                "label": classes[label],
                "has": bool(found.labels[image, label]),
                "confidence": found.probabilities[image, label],
            }
            for image, label in label_mistakes(found.probabilities, said, found.labels)[:WORST]
        ],
    }
