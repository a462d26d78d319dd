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
