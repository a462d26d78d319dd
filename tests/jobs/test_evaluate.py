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
import yaml
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.errors import DataError
from imgcls_search.jobs.evaluate import _class_numbers
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


def test_images_that_were_trained_on_are_said_to_score_too_high(weights: Path, here: Callable[..., Answer]) -> None:
    paint(Path("other"), "red", 3)
    shutil.copytree("photos", "moved")
    said = "scores on all images are too high: the model trained on some of them"
    for data, is_said in (((), True), (("--data", "folder:moved"), True), (("--data", "folder:other"), False)):
        answer = here("evaluate", weights, "--split", "all", *data)
        assert answer.code == 0, answer
        assert (said in answer.out) == is_said
    shutil.move("photos", "away")
    answer = here("evaluate", weights)
    assert is_one_line(answer), answer
    assert answer.err.endswith("if they have moved, say where: --data folder:FOLDER\n")


def test_splits_of_other_images_are_cut_where_there_are_enough(weights: Path, here: Callable[..., Answer]) -> None:
    folder = weights.parents[2]
    for name in ("green", "red"):
        paint(folder / "other", name, 10)
    for split in ("val", "test"):
        answer = here("evaluate", weights, "--data", "folder:other", "--split", split, "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["metrics"]["accuracy"] == 1.0
        assert f"these are not the images of the training, and {split} is cut from them anew" in answer.err


def test_images_that_were_added_since_the_training_are_noted(weights: Path, here: Callable[..., Answer]) -> None:
    note = "these are not the images of the training, and val is cut from them anew"
    assert note not in here("evaluate", weights).out
    paint(weights.parents[2] / "more", "red", 3)
    for file in (weights.parents[2] / "more" / "red").iterdir():
        file.rename(weights.parents[2] / "photos" / "red" / f"new-{file.name}")
    assert note in here("evaluate", weights).out


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


def test_a_class_in_another_unicode_form_is_shown_as_different() -> None:
    with pytest.raises(DataError) as raised:
        _class_numbers(["rose\u0301"], ["blue", "ros\u00e9"], "w.pt")
    assert r"(did you mean 'ros\xe9'? 'rose\u0301' differs from it in Unicode form only)" in str(raised.value)


def test_predictions_that_cannot_be_written_open_no_test_split(weights: Path, here: Callable[..., Answer]) -> None:
    for place in ("nowhere/test.csv", "photos"):
        answer = here("evaluate", weights, "--split", "test", "--predictions", place)
        assert is_one_line(answer), answer
        assert f"{place}: cannot be written" in answer.err
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


def test_a_folder_with_val_or_test_alone_is_measured(weights: Path, here: Callable[..., Answer]) -> None:
    folder = weights.parents[2]
    for split, counts in {"val": {"red": 1}, "test": {"blue": 2, "red": 1}}.items():
        for name, count in counts.items():
            paint(folder / "both" / split, name, count)
            paint(folder / split / split, name, count)
    (folder / "test" / "test" / "green").mkdir()

    def measured(place: str, split: str) -> dict[str, int]:
        answer = here("evaluate", weights, "--data", f"folder:{place}", "--split", split, "--json")
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
        assert found["metrics"]["accuracy"] == 1.0
        return {name: count for name, count in found["classes"].items() if count}

    assert measured("val", "val") == measured("val", "all") == measured("both", "val") == {"red": 1}
    assert measured("test", "test") == measured("test", "all") == measured("both", "test") == {"blue": 2, "red": 1}
    assert measured("both", "all") == {"blue": 2, "red": 2}
    # What is there is named, if the requested split is not.
    answer = here("evaluate", weights, "--data", "folder:test")
    assert is_one_line(answer), answer
    assert "--split test measures test/" in answer.err
    answer = here("evaluate", weights, "--data", "folder:val", "--split", "test")
    assert is_one_line(answer), answer
    assert "--split val measures val/" in answer.err
    # A training needs `train/` all the same.
    (folder / "other.yaml").write_text(CONFIG.format(photos=folder / "both"))
    answer = here("train", "other.yaml")
    assert is_one_line(answer), answer
    assert "no train folder" in answer.err


def test_a_split_that_a_folder_comes_with_needs_no_room_for_cuts(weights: Path, here: Callable[..., Answer]) -> None:
    folder = weights.parents[2]
    for split in ("train", "val"):
        for name in ("green", "red"):
            paint(folder / "few" / split, name, 1)
    answer = here("evaluate", weights, "--data", "folder:few", "--predictions", "few.csv")
    assert answer.code == 0, answer.err
    rows = csv.DictReader(io.StringIO((folder / "few.csv").read_text()))
    assert [row["image"] for row in rows] == ["val/green/0.png", "val/red/0.png"]


def test_moved_images_are_cut_as_in_the_training(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    for name in COLOURS:
        paint(tmp_path / "photos", name, 20)
    cuts = {"val": 0.4, "test": 0.3, "split_seed": 7, "max_train": 9}
    config = yaml.safe_load(CONFIG.format(photos=tmp_path / "photos"))
    config["data"]["folder"] |= cuts
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(config))
    assert imgcls("train", "cut.yaml").code == 0
    weights = tmp_path / "trained" / "cut" / "seed-1.pt"
    trained = describe(Component(path="data.folder", name="folder", args=config["data"]["folder"])).names
    assert len(trained["train"]) == 9

    def measured(*options: str) -> tuple[str, list[str]]:
        answer = here("evaluate", weights, "--predictions", "seen.csv", *options)
        assert answer.code == 0, answer.err
        rows = csv.DictReader(io.StringIO((tmp_path / "seen.csv").read_text()))
        # Before it stands what there is to read, with the name of the folder.
        return answer.out.splitlines()[-1], [row["image"] for row in rows]

    before = {split: measured("--split", split) for split in ("val", "test")}
    (tmp_path / "photos").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "studies")
    for split in ("val", "test"):
        assert measured("--data", "folder:moved", "--split", split) == before[split]
        assert before[split][1] == list(trained[split])
        assert not {*before[split][1]} & {*trained["train"]}
    assert len(measured("--data", "folder:moved", "--split", "all")[1]) == 60
