"""Score an ensemble, the best trial and a student of the ensemble on the test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from imgcls_search import costs
from imgcls_search.data import Prepared
from imgcls_search.jobs.chance import interval_of_difference
from imgcls_search.jobs.ensemble.library import Library
from imgcls_search.jobs.ensemble.making import Made
from imgcls_search.jobs.evaluate import read_network
from imgcls_search.jobs.evaluation import Evaluation, measure_on
from imgcls_search.jobs.export import now
from imgcls_search.orchestrator import study_data
from imgcls_search.progress import Say
from imgcls_search.study.facts import Opening


class _TestFacts(TypedDict):
    images: int
    winner: float
    ensemble: float
    ensemble_minus_winner_95: list[float]
    """Interval of the difference from sampling the images, which are the same for both."""


class TestSummary(_TestFacts, total=False):
    """Scores on the test split."""

    student: float
    student_minus_winner_95: list[float]


def test(made: Made, student: Path | None, say: Say) -> TestSummary:
    """Score an ensemble, the best trial and optionally a student on the test split; record the opening first.

    Raises:
        StudyError: another process works on the study.
        DataError: the test images are missing or damaged.
    """
    library = made.library
    with library.files.taken(task="ensemble"):
        study_data.note_opening(
            library.record,
            Opening(by="ensemble", at=now(), seeds=[library.winner.seed], portion="train", trial=library.winner.number),
            library.winner_config.component("data"),
            Path(library.found.folder).parent,
            say,
        )
        winner = _measured(library, library.files.checkpoint(library.winner.number))
        ensemble = _measured(library, made.weights)
        taught = _measured(library, student) if student is not None else None
    metric, stated = library.metric, costs.of(library.winner_config.tree)
    found: TestSummary = {
        "images": len(ensemble.labels),
        "winner": winner.metrics[metric],
        "ensemble": ensemble.metrics[metric],
        "ensemble_minus_winner_95": list(interval_of_difference(ensemble, winner, metric, stated)),
    }
    if taught is not None:
        found["student"] = taught.metrics[metric]
        found["student_minus_winner_95"] = list(interval_of_difference(taught, winner, metric, stated))
    return found


def _measured(library: Library, weights: Path) -> Evaluation:
    network, config, known = read_network(weights)
    seen: Prepared = replace(library.found, mean=known.mean, std=known.std, thresholds=known.thresholds)
    config = config.moved(library.winner_config.component("data").args)
    return measure_on(network, config, seen, "test", (library.metric,))
