"""Pictures of the best trials, as Optuna's artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from imgcls_search.worker import drawing, figures, pictures
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from PIL import Image

from tests.conftest import TINY, Answer

DRAWN = TINY.replace("pictures: false", "keep: 1, retries: 0")
NAMES = {"learning-curves.png", "confusion-matrix.png", "confident-mistakes.png"}


def pictures_by_trial(folder: Path) -> dict[int, dict[str, str]]:
    """Return the ids of each trial's artifacts by their names, as Optuna reads them."""
    study = optuna.load_study(storage=f"sqlite:///{folder}/studies/drawn-digits.db", study_name="drawn-digits")
    return {
        trial.number: {
            meta.filename: meta.artifact_id
            for meta in get_all_artifact_meta(study_or_trial=trial, storage=study._storage)
        }
        for trial in study.trials
    }


@pytest.mark.slow
def test_trials_that_end_among_the_best_are_drawn(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "drawn.yaml").write_text(DRAWN)
    answer = imgcls("run", "drawn.yaml", "--workers", "1")
    assert answer.code == 0, answer.err
    rows = json.loads(imgcls("trials", "drawn-digits", "--json").out)
    best = -1.0
    store = FileSystemArtifactStore(tmp_path / "studies" / "drawn-digits" / "artifacts")
    for row, found in zip(rows, pictures_by_trial(tmp_path).values(), strict=True):
        # With `keep: 1` those that were better than all before them.
        is_drawn = row["state"] == "complete" and row["values"]["accuracy"] > best
        assert set(found) == (NAMES if is_drawn else set())
        best = max(best, row["values"]["accuracy"]) if row["state"] == "complete" else best
        for artifact in found.values():
            with store.open_reader(artifact) as file:
                assert min(Image.open(file).size) > 100
    assert list((tmp_path / "studies" / "drawn-digits" / "artifacts").glob("*.tmp")) == []


@pytest.mark.slow
def test_trial_that_comes_to_its_end_as_the_search_stops_is_complete(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    (tmp_path / "drawn.yaml").write_text(DRAWN)
    answer = imgcls("run", "drawn.yaml", "--workers", "1", "--set", "study.pruner=none", "--set", "study.max_epochs=5")
    assert answer.code == 0, answer.err
    (row,) = json.loads(imgcls("trials", "drawn-digits", "--json").out)
    assert (row["state"], row["epochs"]) == ("complete", 5)


@pytest.mark.slow
def test_trial_that_cannot_be_drawn_is_complete_all_the_same(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "drawn.yaml").write_text(DRAWN)
    (tmp_path / "studies" / "drawn-digits").mkdir(parents=True)
    (tmp_path / "studies" / "drawn-digits" / "artifacts").write_text("in the way")
    answer = imgcls("run", "drawn.yaml", "--workers", "1", "--set", "study.trials=1")
    assert answer.code == 0, answer.err
    assert "trial 0: its pictures could not be drawn: FileExistsError" in answer.out
    (row,) = json.loads(imgcls("trials", "drawn-digits", "--json").out)
    assert row["state"] == "complete"
    assert pictures_by_trial(tmp_path) == {0: {}}


def test_most_confident_mistakes_come_first() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [5.0, 0.0]])
    labels, pixels = np.array([1, 0, 0, 0]), np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    shown = pictures.worst(logits, labels, pixels, ["cat", "dog"])
    assert [(int(image[0, 0, 0]), text) for image, text in shown] == [
        (0, "cat 95%,\nis dog"),
        (2, "dog 88%,\nis cat"),
        (1, "dog 73%,\nis cat"),
    ]


def test_a_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[object] = []
    draw = figures.Figure.draw
    monkeypatch.setattr(figures.Figure, "draw", lambda self, renderer: (drawn.append(self), draw(self, renderer))[1])
    for write in (
        drawing.to_png,
        lambda each: drawing.to_svg(each, "f"),
        lambda each: drawing.save(each, tmp_path / "f.pdf"),
    ):
        figure = figures.scatter({"cat": ([1.0, 2.0], [0.5, 0.6])}, "x", "y", log=False)
        write(figure)
        assert drawn.count(figure) == 1
        # All of it is inside, as its layout was made.
        box = figure.axes[0].get_tightbbox()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_confusion_of_many_classes_keeps_those_with_errors() -> None:
    matrix = np.diag(np.full(200, 10))
    matrix[7, 150] = 3
    matrix[199, 7] = 1
    kept = pictures.most_confused(matrix, 3)
    assert kept.tolist() == [7, 150, 199]
    folded = pictures.folded(matrix, kept)
    assert folded.sum() == matrix.sum()
    assert folded.tolist() == [[10, 3, 0, 0], [0, 10, 0, 0], [1, 0, 10, 0], [0, 0, 0, 1970]]


def test_of_many_labels_those_with_the_lowest_f1_are_drawn_and_counted() -> None:
    scores = {
        f"label {number}": {
            "precision": 0.5,
            "recall": 0.5,
            "f1": number % 1500 / 1500,
            "average_precision": 0.5,
            "support": 1500.0 - number,
        }
        for number in range(1500)
    }
    figure = figures.label_scores(scores)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"label {number}" for number in range(39, -1, -1)]
    assert axes.get_xlabel() == "40 of 1,500 labels: those with the lowest F1"
    assert figure.get_figheight() < 13
    few = figures.label_scores(dict(list(scores.items())[:3]))
    assert few.axes[0].get_xlabel() == ""
    assert drawing.to_png(figure)


def test_long_class_names_are_cut_above_an_image() -> None:
    logits, pixels = np.array([[3.0, 0.0]]), np.zeros((1, 1, 1, 1), np.uint8)
    ((_, text),) = pictures.worst(logits, np.array([1]), pixels, ["c" * 200, "d" * 200])
    assert text == f"{'c' * 21}… 95%,\nis {'d' * 21}…"


def test_of_many_wrong_labels_only_the_most_confident_are_listed() -> None:
    labels = np.zeros((300, 1500), np.uint8)
    probabilities = np.full((300, 1500), 0.6)
    probabilities[7, 1200] = 0.9
    assert pictures.label_mistakes(probabilities, 1 - labels, labels, 2) == [(7, 1200), (0, 0)]


def test_of_many_options_not_every_one_is_named() -> None:
    words = [f"network {number:03d}" for number in range(300)]
    figure = figures.slices({"model.timm.name": figures.Slice(words, [0.5] * 300, False)}, "accuracy", across=1)
    named = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(named) <= figures.MOST_WORDS
    assert named[:2] == ["network 000", "network 013"]
