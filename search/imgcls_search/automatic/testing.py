"""Score one network on the validation and test images when there is no time to retrain it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search.config import Component
from imgcls_search.data import Split, describe
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.export import now
from imgcls_search.orchestrator import study_data
from imgcls_search.study.facts import Opening
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import SingleScore, SingleTest
from imgcls_search.trial import MEASURED, SIZES, Trial


def open_test(record: Record, files: StudyFiles, trial: Trial, say: Callable[[str], None]) -> SingleTest:
    """Score a finished trial's network on the validation and test images; record the test opening first.

    With folds, the validation images are those of all folds, each scored by the network that was not trained on it.

    Raises:
        CheckpointError: its weights are missing or damaged.
        DataError: the images are missing or damaged.
    """
    from imgcls_search.jobs.evaluate import out_of_fold, read_network
    from imgcls_search.jobs.evaluation import measure_on
    from imgcls_search.measures import main_measure
    from imgcls_search.worker import pipeline

    component = trial.candidate.config.component("data")
    network, config, known = read_network(files.checkpoint(trial.number))
    config = config.moved(component.args)
    data = pipeline.prepare_data(config, image_cache(files.root))
    data = replace(data, mean=known.mean, std=known.std, thresholds=known.thresholds)
    opening = Opening(by="auto", at=now(), seeds=[trial.seed], portion="train", trial=trial.number)
    metric = record.objectives[0][0]
    named = (metric,) if metric not in SIZES and metric not in MEASURED else ()
    validation = out_of_fold(files.checkpoint(trial.number), named) if data.folds else None
    # Of corrupted images, no predictions are stored.
    if validation is None or not set(named) <= validation.metrics.keys():
        validation = measure_on(network, config, data, "val", named)
    study_data.note_opening(record, opening, component, Path(data.folder).parent, say)
    tested = measure_on(network, config, data, "test", named)
    metric = metric if named else main_measure(tested.metrics)
    return {
        "trial": trial.number,
        "metric": metric,
        "validation": _score(validation, metric),
        "test": _score(tested, metric),
    }


def _score(found: Any, metric: str) -> SingleScore:
    """Return a metric of an evaluation with its interval from sampling the images."""
    from imgcls_search.jobs.chance import interval_of

    low, high = interval_of(found, metric)
    return {"score": found.metrics[metric], "low": low, "high": high, "images": len(found.labels)}


@dataclass(frozen=True, kw_only=True)
class LargestClass:
    """The scores of always predicting the class with the most images."""

    name: str
    scores: dict[str, float]
    """Scores by metric."""

    images: int
    """Number of images that were scored."""


def largest_class(component: Component, cache: Path, metric: str, split: Split) -> LargestClass:
    """Return the class with the most training images, and the scores of always predicting it on a split.

    Reads only labels, no images; with folds, counts the images of all folds.

    Raises:
        DataError: the images are missing.
    """
    from imgcls_search.data import label_sets
    from imgcls_search.jobs.chance import constant_scores

    source = describe(component, cache)
    validation = np.concatenate(source.fold_labels())
    scored = validation if split == "val" else source.labels[split]
    known = validation if source.folds else source.labels["train"]
    counts = label_sets.count(known, len(source.classes))
    scores = constant_scores(counts, len(known), scored, source.classes, metric)
    return LargestClass(name=source.classes[int(np.argmax(counts))], scores=scores, images=len(scored))
