"""Several labels of an image from a table to a bundle: searched, evaluated, delivered, reported, compressed."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.deploy import bundle
from imgcls_search.deploy.predict import Prediction, classify
from imgcls_search.errors import DeployError
from imgcls_search.worker.cross_validation import out_of_fold
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from tests.conftest import Answer, is_one_line
from tests.pairs import SPACE, write_table

Run = Callable[..., Answer]
CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture
def searched(tmp_path: Path, imgcls: Run) -> dict[str, set[str]]:
    """Search two trials on pairs of digits, some without any, and return the labels of each image."""
    labels = write_table(tmp_path / "pairs", 200, empty=6)
    (tmp_path / "s.yaml").write_text(SPACE)
    ran = imgcls("run", "s.yaml")
    assert ran.code == 0, ran.err
    assert "with no label 6, with one " in ran.out
    return {f"{number:03}.png": set(own) for number, own in enumerate(labels)}


def flags(labels: set[str]) -> list[int]:
    return [int(name in labels) for name in CLASSES]


def best(imgcls: Run, study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(imgcls("best", study, "--json").out)
    return found["best"][0] if "best" in found else found


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_search_of_several_labels_goes_from_table_to_bundle(
    searched: dict[str, set[str]], tmp_path: Path, imgcls: Run
) -> None:
    trials = json.loads(imgcls("trials", "pairs", "--json").out)
    assert all(set(trial["values"]) == {"average_precision"} for trial in trials)
    winner = max(trials, key=lambda trial: trial["values"]["average_precision"])
    assert {"macro_f1", "micro_f1", "subset_accuracy", "loss", "roc_auc"} <= winner["metrics"].keys()
    assert not {"accuracy", "kappa", "mcc"} & winner["metrics"].keys()
    cuts = {name: winner["classes"][name]["threshold"] for name in CLASSES}
    shown = imgcls("best", "pairs").out
    assert re.search(r"label +precision +recall +F1 +average precision +threshold +images", shown)

    # The bundle decides by those thresholds, image by image as evaluate does.
    delivered = imgcls("export", "pairs", "--bundle", "model")
    assert delivered.code == 0, delivered.err
    assert "the same labels on " in delivered.out
    about = json.loads((tmp_path / "model" / "bundle.json").read_bytes())
    assert about["format"] == 4
    assert about["output"]["probabilities"] == "sigmoid"
    assert about["output"]["thresholds"] == list(cuts.values())
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_bytes())
    assert metrics["scores"][0]["average_precision"] == pytest.approx(winner["values"]["average_precision"], abs=1e-5)
    right = round(metrics["scores"][0]["subset_accuracy"] * metrics["scores"][0]["images"])
    low, high = metrics["scores"][0]["subset_accuracy_interval_95"]
    assert low <= right / metrics["scores"][0]["images"] <= high
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "| `3` | " in card
    assert f" {cuts['3']:.3f} |" in card
    assert "their sigmoids are probabilities" in card
    assert "largest F1 of each label on the validation images" in card
    assert "softmax" not in card

    predicted = json.loads(imgcls("predict", "model", "pairs", "--json", "--top", "2").out)["predictions"]
    said = {Path(entry["image"]).name: set(entry["labels"]) for entry in predicted}
    for entry in predicted:
        shares = {found["label"]: found["probability"] for found in entry["classes"]}
        assert set(entry["labels"]) == {name for name, share in shares.items() if share >= cuts[name]}
        assert len(shares) >= 2
    weights = tmp_path / "studies" / "pairs" / "checkpoints" / f"trial-{winner['trial']:05d}.pt"
    measured = imgcls("evaluate", weights, "--split", "all", "--predictions", "all.csv", "--json")
    assert measured.code == 0, measured.err
    rows = rows_of((tmp_path / "all.csv").read_text())
    assert {row["image"]: set(filter(None, row["label"].split(";"))) for row in rows} == searched
    assert {row["image"]: set(filter(None, row["predicted"].split(";"))) for row in rows} == said
    found = json.loads(measured.out)
    assert found["thresholds"] == pytest.approx(cuts)
    truth = np.array([flags(searched[row["image"]]) for row in rows])
    shares = np.array([[float(row[f"p({name})"]) for name in CLASSES] for row in rows])
    taken = np.array([flags(said[row["image"]]) for row in rows])
    assert found["metrics"]["average_precision"] == pytest.approx(average_precision_score(truth, shares), abs=1e-4)
    assert found["metrics"]["micro_f1"] == pytest.approx(f1_score(truth, taken, average="micro"))
    assert found["classes"] == {name: int(truth[:, number].sum()) for number, name in enumerate(CLASSES)}

    # The validation split, with the figures that the search had.
    again = json.loads(imgcls("evaluate", weights, "--json").out)
    assert again["metrics"]["macro_f1"] == pytest.approx(winner["metrics"]["macro_f1"])
    text = imgcls("predict", "model", "pairs/000.png", "pairs/050.png").out
    assert "pairs/000.png: " in text

    page = imgcls("report", "pairs", "-o", "report.html")
    assert page.code == 0, page.err
    html = (tmp_path / "report.html").read_text()
    assert '<table id="labels"><tr><th>label<th>threshold' in html
    assert f"{cuts['3']:.3f}" in html
    assert "by true and predicted class" not in html
    assert "interval of its subset_accuracy is" in html
    with sqlite3.connect(tmp_path / "studies" / "pairs.db") as database:
        attributes = str(database.execute("SELECT value_json FROM trial_system_attributes").fetchall())
    # The log of a trial has one short line per epoch: scores of each label are in the study.
    log = (tmp_path / "studies/pairs/logs/trial-00000.log").read_text()
    assert "epoch 1: {'epoch': 1, 'train_loss': " in log
    assert "average_precision:" not in log
    assert "label-scores.png" in attributes
    assert "confusion-matrix.png" not in attributes


def test_thresholds_of_folds_are_chosen_on_all_out_of_fold_predictions(tmp_path: Path, imgcls: Run) -> None:
    write_table(tmp_path / "pairs", 120, empty=6)
    (tmp_path / "s.yaml").write_text(SPACE.replace('separator: ";"', 'separator: ";", folds: 3'))
    ran = imgcls("run", "s.yaml", "--set", "study.trials=1")
    assert ran.code == 0, ran.err
    winner = best(imgcls, "pairs")
    weights = tmp_path / "studies/pairs/checkpoints/trial-00000.pt"
    kept = out_of_fold(weights)
    assert kept.probabilities.shape == kept.labels.shape == (96, 10)
    cuts = {name: winner["classes"][name]["threshold"] for name in CLASSES}
    for number, name in enumerate(CLASSES):
        shares, truth = kept.probabilities[:, number], kept.labels[:, number]
        reachable = max(f1_score(truth, shares >= cut) for cut in shares)
        assert f1_score(truth, shares >= cuts[name]) == pytest.approx(reachable)
    # The network of the last fold is delivered with them, and so is one that is trained on all images.
    assert imgcls("export", "pairs", "--bundle", "model").code == 0
    about = json.loads((tmp_path / "model/bundle.json").read_bytes())
    assert about["output"]["thresholds"] == pytest.approx(list(cuts.values()))
    measured = imgcls("evaluate", weights, "--split", "folds", "--predictions", "oof.csv", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["thresholds"] == pytest.approx(cuts)
    assert len(rows_of((tmp_path / "oof.csv").read_text())) == 96
    assert imgcls("export", "pairs", "-o", "best.yaml").code == 0
    trained = imgcls("train", "best.yaml")
    assert trained.code == 0, trained.err
    assert "thresholds of the labels are those of study 'pairs', trial 0" in trained.out + trained.err
    delivered = imgcls("export", "trained/best/seed-1.pt", "--bundle", "whole")
    assert delivered.code == 0, delivered.err
    about = json.loads((tmp_path / "whole/bundle.json").read_bytes())
    assert about["output"]["thresholds"] == pytest.approx(list(cuts.values()))
    assert imgcls("report", "pairs", "-o", "report.html").code == 0
    assert f"{cuts['3']:.3f}" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_winner_of_several_labels_is_confirmed_reproduced_exported_and_trained(
    searched: dict[str, set[str]], tmp_path: Path, imgcls: Run
) -> None:
    confirmed = imgcls("confirm", "pairs", "--top", "1", "--seeds", "2", "--json")
    assert confirmed.code == 0, confirmed.err
    assert json.loads(confirmed.out)["metric"] == "average_precision"
    number = str(json.loads(confirmed.out)["chosen"])
    assert imgcls("reproduce", "pairs", "--trial", number).out.startswith("identical")
    assert imgcls("report", "pairs", "-o", "report.html", "--ablation").code in (0, 2)
    assert imgcls("export", "pairs", "-o", "best.yaml").code == 0
    # The same thresholds decide on the test split as were chosen on the validation split.
    trained = imgcls("train", "best.yaml", "--out", "one", "--json")
    assert trained.code == 0, trained.err
    report = json.loads(trained.out)
    cuts = {name: report["validation"]["1"][f"threshold:{name}"] for name in CLASSES}
    assert {name: report["test"]["1"][f"threshold:{name}"] for name in CLASSES} == cuts
    tested = json.loads(imgcls("evaluate", "one/seed-1.pt", "--split", "test", "--json").out)
    assert tested["metrics"]["micro_f1"] == pytest.approx(report["test"]["1"]["micro_f1"])
    assert tested["thresholds"] == cuts
    # No image is left to choose them on: those of the search's trial are taken, and that is said.
    winner = json.loads(imgcls("trials", "pairs", "--json").out)
    searched_cuts = {name: next(t for t in winner if str(t["trial"]) == number)["classes"][name] for name in CLASSES}
    whole = imgcls("train", "best.yaml", "--on", "train+val", "--out", "two")
    assert "no validation image is left to choose them on" in whole.out + whole.err
    assert imgcls("export", "two/seed-1.pt", "--bundle", "model").code == 0
    about = json.loads((tmp_path / "model" / "bundle.json").read_bytes())
    assert about["output"]["thresholds"] == [searched_cuts[name]["threshold"] for name in CLASSES]
    # Without the study they are one half.
    lonely = (tmp_path / "best.yaml").read_text().replace("origin:", "was from:")
    (tmp_path / "lonely.yaml").write_text(lonely)
    whole = imgcls("train", "lonely.yaml", "--on", "train+val", "--out", "three")
    assert "thresholds of the labels are 0.5 each" in whole.out + whole.err
    assert imgcls("export", "three/seed-1.pt", "--bundle", "half").code == 0
    assert "a probability of at least 0.5" in (tmp_path / "half" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_several_labels_are_distilled_pruned_and_quantized(
    searched: dict[str, set[str]], tmp_path: Path, imgcls: Run
) -> None:
    assert imgcls("export", "pairs", "-o", "best.yaml").code == 0
    assert imgcls("train", "best.yaml", "--out", "teacher").code == 0
    sections = """
distill: {file: {path: teacher/seed-1.pt}}
prune: {structured: {amount: 0.3, finetune_epochs: 1}}
quantize: {int8: {}}
"""
    (tmp_path / "small.yaml").write_text(SPACE.replace("name: pairs", "name: small") + sections)
    ran = imgcls("run", "small.yaml")
    assert ran.code == 0, ran.err
    trial = max(json.loads(imgcls("trials", "small", "--json").out), key=lambda t: t["values"]["average_precision"])
    assert imgcls("export", "small", "--bundle", "model").code == 0
    about = json.loads((tmp_path / "model" / "bundle.json").read_bytes())
    # Those of the network as it is deployed, not as it was before it was compressed.
    assert about["output"]["thresholds"] == [trial["classes"][name]["threshold"] for name in CLASSES]
    # A teacher of one class each is none for several labels.
    (tmp_path / "one.yaml").write_text(
        "data: {digits: {max_train: 100}}\nmodel: {lenet5: {}}\ntraining: {epochs: 1}\n"
        "image: {size: [8, 16], channels: 1}\n"
    )
    assert imgcls("train", "one.yaml", "--out", "other").code == 0
    (tmp_path / "wrong.yaml").write_text(
        SPACE.replace("name: pairs", "name: wrong") + "distill: {file: {path: other/seed-1.pt}}\n"
    )
    refused = imgcls("run", "wrong.yaml")
    assert is_one_line(refused)
    assert "this teacher learned from images with one class each; these images have several labels each" in refused.err


def test_losses_and_measures_of_the_other_kind_of_labels_are_refused_in_one_line(tmp_path: Path, here: Run) -> None:
    write_table(tmp_path / "pairs", 60)
    (tmp_path / "s.yaml").write_text(SPACE)
    for change, what in {
        "loss={cross_entropy: {}}": "loss.cross_entropy: not for an image that may have several labels; allowed: bin",
        "loss={focal: {}}": "loss.focal: not for an image that may have several labels",
        "study.objectives={accuracy: maximize}": "study.objectives.accuracy: not for an image that may have several",
        "study.objectives={mcc: maximize}": "study.objectives.mcc: not for an image that may have several labels",
        "limits={kappa: {at_least: 0.1}}": "limits.kappa: not for an image that may have several labels",
        "limits={'recall:cat': {at_least: 0.1}}": "limits.recall:cat: there is no class 'cat'",
        "loss={binary_cross_entropy: {class_weights: balanced}}": "class_weights: unknown key; allowed: label_sm",
    }.items():
        refused = here("run", "s.yaml", "--set", change)
        assert is_one_line(refused), refused.err
        assert what in refused.err
    for change, what in {
        "loss={sigmoid_focal: {}}": "loss.sigmoid_focal: not for an image of one class; allowed: cross_entropy, focal",
        "study.objectives={subset_accuracy: maximize}": "subset_accuracy: not for an image of one class",
        "limits={micro_f1: {at_least: 0.1}}": "limits.micro_f1: not for an image of one class",
    }.items():
        refused = here("run", "s.yaml", "--data", "digits", "--set", change)
        assert is_one_line(refused), refused.err
        assert what in refused.err
    assert not list(tmp_path.glob("studies/*.db"))


def test_the_objective_and_the_loss_follow_from_the_labels(tmp_path: Path, here: Run) -> None:
    write_table(tmp_path / "pairs", 60)
    (tmp_path / "s.yaml").write_text(SPACE)
    assert "objectives: maximize average_precision" in here("check", "s.yaml").out
    assert "objectives: maximize accuracy" in here("check", "s.yaml", "--data", "digits").out


def test_weights_of_one_kind_of_labels_do_not_measure_the_other(
    searched: dict[str, set[str]], tmp_path: Path, imgcls: Run
) -> None:
    weights = next((tmp_path / "studies" / "pairs" / "checkpoints").glob("*.pt"))
    refused = imgcls("evaluate", weights, "--data", "digits", "--split", "all")
    assert is_one_line(refused)
    assert "was trained on images with several labels each; these images have one class each" in refused.err
    # Rows without any label of a class are images like others there.
    (tmp_path / "few").mkdir()
    (tmp_path / "pairs" / "few.csv").write_text("image,tags\n010.png,3\n011.png,\n")
    found = imgcls("evaluate", weights, "--data", "table:pairs/few.csv", "--split", "all", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["classes"] == {name: int(name == "3") for name in CLASSES}


def test_a_bundle_gives_sigmoids_and_is_refused_without_a_threshold_for_each_label(
    searched: dict[str, set[str]], tmp_path: Path, imgcls: Run
) -> None:
    assert imgcls("export", "pairs", "--bundle", "model").code == 0
    path = tmp_path / "model" / "bundle.json"
    about = json.loads(path.read_bytes())
    served = bundle.read(path.parent)
    assert served.thresholds == tuple(about["output"]["thresholds"])
    images = [tmp_path / "pairs" / f"{number:03}.png" for number in range(5)]
    pixels = np.stack([np.asarray(Image.open(path))[None] for path in images])
    wanted = torch.from_numpy(served.artifact.logits(pixels)).double().sigmoid().numpy()
    for row, found in zip(wanted, classify(served, images, top=10), strict=True):
        assert isinstance(found, Prediction)
        shares = dict(found.ranked)
        assert [shares[name] for name in served.labels] == pytest.approx(row.tolist(), abs=1e-12)
    wrong: list[Any] = [None, [0.5], [*[0.5] * 9, 2], [*[0.5] * 9, "x"], [*[0.5] * 9, float("nan")], "x"]
    for thresholds in wrong:
        path.write_text(json.dumps({**about, "output": {**about["output"], "thresholds": thresholds}}))
        with pytest.raises(DeployError, match="threshold"):
            bundle.read(path.parent)
    # Read as one of one class, it would answer with other probabilities.
    for number in (1, 2, 3):
        path.write_text(json.dumps({**about, "format": number}))
        with pytest.raises(DeployError, match="not a bundle of format"):
            bundle.read(path.parent)
