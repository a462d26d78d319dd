"""A search with folds and what the other commands make of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from imgcls_search.automatic import finding, testing
from imgcls_search.orchestrator.study_data import load_with_images
from imgcls_search.study.files import StudyFiles

from tests.conftest import PATIENCE, Answer, begin_command, is_one_line, linux_only
from tests.orchestrator.test_run import open_study, table, wait_for_epochs
from tests.warm import Warm

SPACE = """
study: {name: tiny-digits, trials: 4, pruner: {asha: {min_epochs: 1, eta: 2}}, pictures: false}
data: {digits: {max_train: 90, folds: 3}}
model: {lenet5: {}}
optimizer: {adamw: {lr: {float: [1e-3, 1e-2], log: true}}}
training: {epochs: 2, batch_size: 30}
"""
RUN_TO_END = ("--set", "study.pruner=none", "--set", "study.trials=2", "--workers", "1")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder in which the space was searched to its end."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "s.yaml").write_text(SPACE)
    process = begin_command(("run", "s.yaml", "--workers", "1"), folder, os.environ, warm)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "3 folds of 30, each scored by a network that was trained on the others" in err + out
    assert "by cross-validation in 3 folds" in out
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(searched: Path, tmp_path: Path) -> str:
    shutil.copytree(searched / "studies", tmp_path / "studies")
    shutil.copy(searched / "s.yaml", tmp_path)
    return "tiny-digits"


def complete(folder: Path) -> optuna.trial.FrozenTrial:
    trials = open_study(folder / "studies").trials
    return next(trial for trial in trials if trial.state.name == "COMPLETE")


def test_score_is_the_mean_of_the_folds_and_bad_trials_rest_before_their_end(searched: Path) -> None:
    trial = complete(searched)
    epochs = trial.user_attrs["epochs"]
    ends = [epochs[place]["fold_accuracy"] for place in (1, 3, 5)]
    assert trial.values == [pytest.approx(mean(ends))]
    assert epochs[-1]["accuracy_std"] == pytest.approx(stdev(ends))
    assert trial.intermediate_values[6] == trial.values[0]
    lengths = [len(each.user_attrs["epochs"]) for each in open_study(searched / "studies").trials]
    # Rungs: in the first fold, at its end, at the end of the second.
    assert set(lengths) <= {1, 2, 4, 6}
    assert min(lengths) < 6


def test_best_and_status_tell_of_folds(study: str, here: Callable[..., Answer]) -> None:
    answer = here("best", study)
    assert "  folds: accuracy 0." in answer.out
    assert "scores are by cross-validation in 3 folds" in answer.out
    assert json.loads(here("status", study, "--json").out)["val_images"] == 90


def test_out_of_fold_predictions_of_the_best_trial(study: str, here: Callable[..., Answer], tmp_path: Path) -> None:
    number = complete(tmp_path).number
    weights = f"studies/tiny-digits/checkpoints/trial-{number:05d}.pt"
    answer = here("evaluate", weights, "--split", "folds", "--predictions", "oof.csv", "--json")
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((tmp_path / "oof.csv").read_text().splitlines()))
    assert len({row["image"] for row in rows}) == 90
    right = mean(row["label"] == row["predicted"] for row in rows)
    assert right == pytest.approx(complete(tmp_path).values[0])
    assert is_one_line(here("evaluate", weights, "--split", "folds", "--data", "digits"))


def test_auto_takes_the_interval_of_a_score_from_the_images_of_all_folds(study: str, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path / "studies", study)
    record = load_with_images(files)
    trial = record.by_number[complete(tmp_path).number]
    test = testing.open_test(record, files, trial, print)
    assert test["validation"]["images"] == record.val_images == 90
    assert test["validation"]["score"] == pytest.approx(trial.first_value)
    made: Any = SimpleNamespace(record=record, trial=trial, confirmed=None, account={"test": test})
    found = finding._validation(made)
    assert (found["how"], found["images"]) == ("images", 90)
    assert found["low"] < found["score"] < found["high"]
    # Earlier versions stored the interval of the last fold.
    test["validation"] = {**test["validation"], "images": 30, "low": 0.0, "high": 0.0}
    found = finding._validation(made)
    assert (found["how"], found["images"]) == ("searched", 90)
    assert found["low"] < found["score"] < found["high"]


def test_train_fits_once_on_all_images_and_exports(
    study: str, imgcls: Callable[..., Answer], here: Callable[..., Answer], tmp_path: Path
) -> None:
    assert here("export", study, "-o", "best.yaml").code == 0
    answer = imgcls("train", "best.yaml")
    assert answer.code == 0, answer.err
    assert "trains one network on all images outside the test split, for as many epochs as each fold had (2)" in (
        answer.out + answer.err
    )
    report = json.loads((tmp_path / "trained/best/metrics.json").read_text())
    assert report["trained_on"] == "train+val"
    answer = here("evaluate", "trained/best/seed-1.pt")
    assert "trained/best/seed-1.pt: scores on val are too high: the model trained on these images" in answer.out
    assert "too high" not in here("evaluate", "trained/best/seed-1.pt", "--split", "test").out
    answer = here("evaluate", "trained/best/seed-1.pt", "--split", "folds")
    assert is_one_line(answer)
    assert "needed: a finished trial with folds" in answer.err


def test_trial_is_reproduced_identically(study: str, imgcls: Callable[..., Answer], tmp_path: Path) -> None:
    answer = imgcls("reproduce", study, "--trial", str(complete(tmp_path).number))
    assert answer.out.startswith("identical"), answer.out + answer.err


@pytest.mark.slow
def test_confirmation_cross_validates_seeds_and_tests_networks_of_all_images(
    study: str, imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = imgcls("confirm", study, "--top", "1", "--seeds", "2", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    number, fresh = found["chosen"], found["seeds"]["fresh"]
    (opening,) = json.loads(imgcls("status", study, "--json").out)["test_openings"]
    assert opening["portion"] == "train+val"
    folder = tmp_path / "studies/tiny-digits/confirm"
    for seed, score in zip(fresh, found["test"]["scores"], strict=True):
        weights = folder / f"trial-{number:05d}-seed-{seed}-all.pt"
        measured = json.loads(imgcls("evaluate", weights, "--split", "test", "--json").out)
        assert measured["metrics"]["accuracy"] == pytest.approx(score)
        folds = imgcls("evaluate", folder / f"trial-{number:05d}-seed-{seed}.pt", "--split", "folds")
        assert folds.out.startswith("folds split, 90 images")


@pytest.mark.slow
def test_report_and_bundle_tell_of_folds(study: str, imgcls: Callable[..., Answer], tmp_path: Path) -> None:
    assert imgcls("report", study, "-o", "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "search score, cross-validation in 3 folds" in page
    answer = imgcls("export", study, "--bundle", "model")
    assert answer.code == 0, answer.err
    assert "it is the network of the last of 3 folds; to train one on all images: " in answer.out
    notes = json.loads((tmp_path / "model/metrics.json").read_text())["notes"]
    assert any("the network of the last of 3 folds" in note for note in notes)


def test_other_folds_are_another_study(study: str, imgcls: Callable[..., Answer]) -> None:
    for folds in ("4", "null"):
        answer = imgcls("run", "s.yaml", "--set", f"data.digits.folds={folds}")
        assert answer.code == 2
        assert f"data.digits.folds: was 3, is now {folds}" in answer.err


def test_study_of_before_goes_on_without_folds(imgcls: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPACE.replace(", folds: 3", ""))
    assert imgcls("run", "s.yaml", "--set", "study.trials=1").code == 0
    database = sqlite3.connect(tmp_path / "studies/tiny-digits.db")
    for rows in ("study_user_attributes", "trial_user_attributes"):
        for written in ('"folds": null, ', ', "folds": null'):
            database.execute(f"update {rows} set value_json = replace(value_json, ?, '')", (written,))  # noqa: S608
        (left,) = database.execute(f"select count(*) from {rows} where value_json like '%\"folds\"%'")  # noqa: S608
        assert left == (0,)
    database.commit()
    database.close()
    answer = imgcls("run", "s.yaml", "--set", "study.trials=2")
    assert answer.code == 0, answer.err
    assert len(open_study(tmp_path / "studies").trials) == 2


@linux_only
@pytest.mark.slow
def test_killed_in_the_middle_of_folds_equals_undisturbed(
    tmp_path: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE.replace("epochs: 2", "epochs: 8").replace("max_train: 90", "max_train: 900"))
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    assert imgcls("run", "s.yaml", *RUN_TO_END, "--studies", undisturbed).code == 0
    for epochs in (3, 13, 30):
        process = start("run", "s.yaml", *RUN_TO_END, "--studies", disturbed)
        wait_for_epochs(process, epochs, disturbed)
        process.kill()
        process.communicate()
    assert imgcls("run", "s.yaml", *RUN_TO_END, "--studies", disturbed).code == 0
    assert table(disturbed) == table(undisturbed)
