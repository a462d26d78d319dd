"""A search by scores of a class, from the file to every place that shows them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from imgcls_search.measures import NAMED
from PIL import Image
from sklearn.metrics import precision_score, recall_score

from tests.conftest import Answer, is_one_line

SPACE = """\
study: {name: s, trials: 3, objectives: {"recall:3": maximize}, sampler: random, pruner: none, workers: 1, seed: 1}
data: {digits: {max_train: 1000}}
model: {resnet: {depths: [1], width: 8}}
optimizer: {adamw: {lr: {float: [1e-3, 5e-2], log: true}}}
training: {epochs: 2}
limits: {sensitivity@0.95:7: {at_least: 0.3}, ece: {at_most: 0.9}}
"""


def colours(root: Path, *names: str, each: int = 8) -> Path:
    """Make a folder of noise, a class for each name."""
    random = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.slow
def test_scores_of_a_class_are_searched_limited_shown_and_confirmed(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    ran = imgcls("run", "s.yaml")
    assert ran.code == 0, ran.err
    rows = json.loads(imgcls("trials", "s", "--json").out)
    over = [row["trial"] for row in rows if row["over_limits"]]
    found = {row["trial"]: row["limited"]["sensitivity@0.95:7"] for row in rows}
    assert over == [number for number, value in found.items() if value < 0.3]
    # Samplers of Optuna's see the same: above 0 a limit is broken.
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/studies/s.db")
    for trial in study.trials:
        excess = trial.constraints["limits.sensitivity@0.95:7"]
        assert excess == pytest.approx(0.3 - found[trial.number])
        assert trial.intermediate_values[2] == trial.value
    # The last epoch has everything, and each class; the first what is named alone.
    epochs = study.trials[0].user_attrs["epochs"]
    assert NAMED.keys() <= epochs[1].keys()
    assert epochs[0].keys() & {*NAMED, "recall:3", "sensitivity@0.95:7"} == {"ece", "recall:3", "sensitivity@0.95:7"}
    assert all({"precision", "recall", "f1", "support"} <= row.keys() for row in rows[0]["classes"].values())
    assert sum(row["support"] for row in rows[0]["classes"].values()) == 216
    (row, *_) = csv.DictReader(io.StringIO(imgcls("trials", "s", "--csv").out))
    assert float(row["precision:9"]) == rows[0]["classes"]["9"]["precision"]
    within = [row for row in rows if not row["over_limits"]]
    best = max(within, key=lambda row: row["values"]["recall:3"])
    shown = imgcls("best", "s").out
    assert f"trial {best['trial']}: recall:3 {best['values']['recall:3']:.3f}" in shown
    assert "class  precision  recall" in shown
    confirmed = json.loads(imgcls("confirm", "s", "--top", "1", "--seeds", "2", "--json").out)
    assert confirmed["metric"] == "recall:3"
    assert all(0 <= value <= 1 for value in confirmed["test"]["scores"])
    low, high = confirmed["test"]["images_interval"]
    assert low <= confirmed["test"]["mean"] <= high
    assert low < high
    again = json.loads(imgcls("reproduce", "s", "--trial", "0", "--json").out)
    assert (again["verdict"], again["metric"]) == ("identical", "recall:3")
    compared = imgcls("compare", "s:0", "s:1").out
    assert "recall:3" in compared
    assert "sensitivity@0.95:7" in compared
    assert imgcls("report", "s", "-o", "r.html").code == 0
    (measures,) = re.findall(r'<p id="measures">(.*?)</p>', (tmp_path / "r.html").read_text())
    assert all(f"{name} " in measures for name in NAMED)
    assert f"limited: sensitivity@0.95:7 {best['limited']['sensitivity@0.95:7']:.3f}" in measures
    # The bundle says of its own file what scikit-learn says of its predictions.
    assert imgcls("export", "s", "--bundle", "model").code == 0
    score = json.loads((tmp_path / "model" / "metrics.json").read_text())["scores"][0]
    assert NAMED.keys() <= score.keys()
    weights = tmp_path / "studies" / "s" / "checkpoints" / f"trial-{best['trial']:05d}.pt"
    assert imgcls("evaluate", weights, "--predictions", "p.csv").code == 0
    rows_of = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    labels, predicted = ([row[key] for row in rows_of] for key in ("label", "predicted"))
    precisions = precision_score(labels, predicted, average=None, zero_division=0.0)
    recalls = recall_score(labels, predicted, average=None)
    assert [entry["precision"] for entry in score["classes"].values()] == pytest.approx(precisions.tolist())
    assert [entry["recall"] for entry in score["classes"].values()] == pytest.approx(recalls.tolist())
    assert "| class | precision | recall | F1 | images |" in (tmp_path / "model" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ("recall:tumor: {at_least: 0.9}", "limits.recall:tumor: there is no class 'tumor'; classes: blue, red"),
        ("recall:rad: {at_least: 0.9}", "classes: blue, red (did you mean 'red'?)"),
        ("top5_accuracy: {at_least: 0.9}", "limits.top5_accuracy: needs more than 5 classes, got 2"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_class_that_is_not_there_is_one_line_before_anything_is_decoded(
    command: str, limits: str, problem: str, tmp_path: Path, here: Callable[..., Answer]
) -> None:
    colours(tmp_path / "photos", "red", "blue")
    (tmp_path / "s.yaml").write_text(
        f"data: {{folder: {{root: photos}}}}\nmodel: {{lenet5: {{}}}}\n"
        "optimizer: {adamw: {lr: {choice: [0.1, 0.2]}}}\n"
        f"limits:\n  {limits}\n"
    )
    answer = here(command, "s.yaml")
    assert is_one_line(answer), answer.err
    assert answer.err.startswith("error: s.yaml:5:3: ")
    assert problem in answer.err
    assert not list((tmp_path / "studies").glob("*.db"))
    # A folder of arrays is made as soon as the first image is decoded.
    assert not [path for path in (tmp_path / "studies" / ".images").glob("*") if path.is_dir()]


def test_class_without_validation_images_and_a_single_class_are_one_line(
    tmp_path: Path, here: Callable[..., Answer]
) -> None:
    colours(tmp_path / "photos" / "train", "red", "blue")
    colours(tmp_path / "photos" / "val", "red")
    colours(tmp_path / "photos" / "test", "red", "blue")
    for objective, problem in (
        ("recall:blue", "no validation image is of class 'blue'"),
        ("roc_auc", "needs validation images of at least two classes"),
        ("sensitivity@0.9:red", "needs validation images of at least two classes"),
    ):
        (tmp_path / "s.yaml").write_text(
            f'study: {{objectives: {{"{objective}": maximize}}}}\n'
            "data: {folder: {root: photos}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {lr: {choice: [0.1, 0.2]}}}\n"
        )
        answer = here("run", "s.yaml")
        assert is_one_line(answer), answer.err
        assert f"study.objectives.{objective}: {problem}" in answer.err


def test_class_of_other_data_is_looked_for_too(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(
        "data: {digits: {}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {lr: {choice: [0.1, 0.2]}}}\n"
        "limits: {recall:x: {at_least: 0.9}}\n"
    )
    answer = imgcls("run", "s.yaml")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(
        "error: s.yaml:4:10: limits.recall:x: there is no class 'x'; classes: 0, 1"
    )


@pytest.mark.slow
def test_test_split_without_the_class_is_refused_before_its_opening_is_noted(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    for split in ("train", "val"):
        colours(tmp_path / "photos" / split, "red", "blue")
    colours(tmp_path / "photos" / "test", "red")
    (tmp_path / "s.yaml").write_text(
        'study: {name: s, trials: 1, objectives: {"recall:blue": maximize}, pictures: false}\n'
        "data: {folder: {root: photos}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {lr: {choice: [0.1, 0.2]}}}\n"
        "training: {epochs: 1}\n"
    )
    ran = imgcls("run", "s.yaml")
    assert ran.code == 0, ran.err
    answer = imgcls("confirm", "s", "--seeds", "2")
    assert is_one_line(answer), answer.err
    assert answer.err == "error: data.folder: recall:blue: no test image is of class 'blue'\n"
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/studies/s.db")
    assert not study.user_attrs.get("test_openings")
    # Nor was anything trained for it.
    assert not (tmp_path / "studies" / "s" / "confirm").exists()
