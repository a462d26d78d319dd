"""What one network shows on the validation and the test images, where there was no time to train it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search.config import Component
from imgcls_search.data import Split, describe
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.export import now
from imgcls_search.orchestrator import study_data
from imgcls_search.study.facts import Opening, SingleScore, SingleTest
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trial import MEASURED, SIZES, Trial

RESAMPLES = 200
"""Of the images, for an interval of any metric."""

Score = Callable[[Any], float]
"""Measures the images of some places."""


def open_test(record: Record, files: StudyFiles, trial: Trial, say: Callable[[str], None]) -> SingleTest:
    """Return what the network of a finished trial makes of the validation and test images; the opening is noted first.

    Raises:
        CheckpointError: its weights are gone or damaged.
        DataError: the images are.
    """
    from imgcls_search.jobs.evaluate import measure_on, read_network
    from imgcls_search.measures import main_measure
    from imgcls_search.worker import pipeline

    component = trial.candidate.config.component("data")
    network, config, known = read_network(files.checkpoint(trial.number))
    config = config.moved(component.args)
    data = pipeline.prepare_data(config, image_cache(files.root))
    data = replace(data, mean=known.mean, std=known.std, thresholds=known.thresholds)
    opening = Opening(by="auto", at=now(), seeds=[trial.seed], portion="train", trial=trial.number)
    changed = study_data.look_for_other_test(
        component, Path(data.folder).parent, record.fact("data"), f"study {files.name!r} began"
    )
    if changed is not None:
        opening["test_changed"] = changed[0]
        say(changed[1])
    metric = record.objectives[0][0]
    named = (metric,) if metric not in SIZES and metric not in MEASURED else ()
    validation = measure_on(network, config, data, "val", named)
    record.append_fact("test_openings", opening)
    tested = measure_on(network, config, data, "test", named)
    metric = metric if named else main_measure(tested.metrics)
    return {
        "trial": trial.number,
        "metric": metric,
        "validation": _score(validation, metric),
        "test": _score(tested, metric),
    }


def _score(found: Any, metric: str) -> SingleScore:
    """Return a metric of an evaluation, with the interval that comes of the choice of its images."""
    low, high = _interval(lambda chosen: _measured(found, metric, chosen), len(found.labels))
    return {"score": found.metrics[metric], "low": low, "high": high, "images": len(found.labels)}


def _interval(score: Score, count: int) -> tuple[float, float]:
    """Return the middle 95 % of a score over images that are drawn again and again."""
    stream = np.random.default_rng(0)
    values = [score(stream.integers(0, count, count)) for _ in range(RESAMPLES)]
    values = [value for value in values if np.isfinite(value)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _measured(found: Any, metric: str, chosen: Any) -> float:
    from imgcls_search.train.metrics import Wanted, score

    # Of probabilities: softmax and sigmoid give them back.
    p = np.clip(found.probabilities[chosen].astype(np.float64), 1e-9, 1 - 1e-9)
    logits = np.log(p) if found.thresholds is None else np.log(p / (1 - p))
    wanted = Wanted(classes=found.classes, named=(metric,), thresholds=found.thresholds)
    measured = score(logits.astype(np.float32), found.labels[chosen], wanted)
    return float(measured.get(metric, float("nan")))


def largest_class(component: Component, cache: Path, metric: str, split: Split) -> tuple[str, dict[str, float]]:
    """Return the class with most training images, and what always naming it scores on a split.

    Labels alone are looked at, no image.

    Raises:
        DataError: the images are gone.
    """
    from imgcls_search.data import label_sets
    from imgcls_search.train.metrics import Wanted, score

    source = describe(component, cache)
    counts = label_sets.count(source.labels["train"], len(source.classes))
    labels = source.labels[split]
    share = np.clip(counts / max(1, len(source.labels["train"])), 1e-6, 1 - 1e-6)
    logits = np.log(share) if not source.has_several_labels else np.log(share / (1 - share))
    cuts = (0.5,) * len(source.classes) if source.has_several_labels else None
    wanted = Wanted(classes=source.classes, named=(metric,), thresholds=cuts)
    measured = score(np.tile(logits.astype(np.float32), (len(labels), 1)), labels, wanted)
    kept = {name: float(measured[name]) for name in dict.fromkeys((metric, "accuracy")) if name in measured}
    return source.classes[int(np.argmax(counts))], kept
