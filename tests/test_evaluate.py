"""Saved weights on other images: folders with some of the trained classes, few images, and other data sets."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Answer, is_one_line

CONFIG = """
data: {{folder: {{root: {photos}}}}}
image: {{size: 8, channels: 3}}
model: {{lenet5: {{width: 0.5}}}}
optimizer: {{adamw: {{lr: 0.01}}}}
training: {{epochs: 6, batch_size: 20}}
"""
COLOURS = {"blue": (0, 0, 220), "green": (0, 220, 0), "red": (220, 0, 0)}


def paint(folder: Path, name: str, count: int) -> None:
    (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    for index in range(count):
        pixels = np.clip(rng.normal(COLOURS.get(name, (90, 90, 90)), 20, (10, 10, 3)), 0, 255)
        Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{index}.png")


@pytest.fixture
def weights(tmp_path: Path, imgcls: Callable[..., Answer]) -> Path:
    for name in COLOURS:
        paint(tmp_path / "photos", name, 20)
    (tmp_path / "colours.yaml").write_text(CONFIG.format(photos=tmp_path / "photos"))
    answer = imgcls("train", "colours.yaml")
    assert answer.code == 0, answer.err
    return tmp_path / "trained" / "colours" / "seed-1.pt"


def test_other_images_are_measured_by_the_names_of_their_classes(weights: Path, here: Callable[..., Answer]) -> None:
    folder = weights.parents[2]
    # 'red' would be class 0 of this folder, and is class 2 of the weights.
    for place, classes in {"one": {"red": 1}, "two": {"green": 1, "red": 3}, "all": dict.fromkeys(COLOURS, 2)}.items():
        for name, count in classes.items():
            paint(folder / place, name, count)
        answer = here("evaluate", weights, "--data", f"folder:{place}", "--split", "all", "--json")
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
        assert found["images"] == sum(classes.values())
        assert {name: count for name, count in found["classes"].items() if count} == classes
        assert found["metrics"]["accuracy"] == 1.0
        assert found["metrics"]["macro_f1"] == 1.0
    shown = here("evaluate", weights, "--data", "folder:two", "--split", "all", "--predictions", "two.csv")
    assert "4 images of 2 of the 3 trained classes" in shown.out
    rows = list(csv.DictReader(io.StringIO((folder / "two.csv").read_text())))
    assert {(row["label"], row["predicted"]) for row in rows} == {("green", "green"), ("red", "red")}
    assert [row["image"] for row in rows] == ["green/0.png", "red/0.png", "red/1.png", "red/2.png"]


def test_splits_of_other_images_are_cut_where_there_are_enough(weights: Path, here: Callable[..., Answer]) -> None:
    folder = weights.parents[2]
    for name in ("green", "red"):
        paint(folder / "other", name, 10)
    for split in ("val", "test"):
        answer = here("evaluate", weights, "--data", "folder:other", "--split", split, "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["metrics"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("folder:strange", "not trained on class 'pink'; allowed: 'blue', 'green', 'red'"),
        ("folder:nowhere", "does not exist"),
        ("digits", "not trained on class '0'"),
        ("digts", "did you mean 'digits'"),
        ("folder:", "takes a name"),
    ],
)
def test_images_that_do_not_fit_are_one_line(weights: Path, here: Callable[..., Answer], data: str, said: str) -> None:
    paint(weights.parents[2] / "strange", "pink", 2)
    answer = here("evaluate", weights, "--data", data, "--split", "all")
    assert is_one_line(answer), answer
    assert said in answer.err
    # Nothing was opened.
    assert not (weights.parent / "test-openings.jsonl").exists()


def test_a_folder_of_one_class_with_too_few_images_to_cut_says_so(weights: Path, here: Callable[..., Answer]) -> None:
    paint(weights.parents[2] / "one", "red", 1)
    answer = here("evaluate", weights, "--data", "folder:one")
    assert is_one_line(answer), answer
    assert "--split all" in answer.err


def test_digits_are_measured_with_weights_of_digits(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "digits.yaml").write_text(
        "data: {digits: {max_train: 200}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {}}\n"
        "training: {epochs: 1, batch_size: 50}\n"
    )
    assert imgcls("train", "digits.yaml").code == 0
    weights = tmp_path / "trained" / "digits" / "seed-1.pt"
    answer = imgcls("evaluate", weights, "--data", "digits", "--split", "all", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["images"] > 200
    shutil.rmtree(tmp_path / "studies")
    assert imgcls("evaluate", weights).code == 0


def test_data_of_torchvision_is_named_before_its_folder(weights: Path, here: Callable[..., Answer]) -> None:
    answer = here("evaluate", weights, "--data", "torchvision:FashionMNIST:sets")
    assert is_one_line(answer)
    assert "data.torchvision: FashionMNIST" in answer.err
    assert "/sets" in answer.err
    assert "no complete copy in" in here("evaluate", weights, "--data", "torchvision:FashionMNIST").err
    assert "'fashion'" in here("evaluate", weights, "--data", "torchvision:fashion").err
