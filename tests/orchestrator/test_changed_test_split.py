"""A test split of a folder's own may change: a search never saw it, and its opening says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from imgcls_search.config import Component
from imgcls_search.data import Source, describe, load, look_at_test, open_test, prepare
from imgcls_search.errors import DataError

from tests.conftest import Answer, is_one_line
from tests.data.test_data import noise, plant

SPLITS = {"train/cat": 12, "train/dog": 12, "test/cat": 5, "test/dog": 5}
STUDY = "base-photos"
SPACE = """
study: {trials: 1, pruner: none, pictures: false}
data: {folder: {root: photos}}
image: {size: 8}
model: {lenet5: {width: {choice: [0.5, 1]}}}
optimizer: {adamw: {lr: 0.01}}
training: {epochs: 2, batch_size: 20}
"""


def source(root: Path) -> Source:
    return describe(Component(path="data.folder", name="folder", args={"root": str(root)}))


def change(folder: Path, kind: str) -> None:
    """Change a folder of images."""
    file = folder / "cat" / "001.png"
    if kind == "deleted":
        file.unlink()
    elif kind == "added":
        noise(7).save(file.with_name("new.png"))
    elif kind == "edited":
        noise(7).save(file)
    else:
        file.rename(file.with_name("renamed.png"))


@pytest.mark.parametrize("kind", ["deleted", "added", "edited", "renamed"])
def test_only_a_test_split_of_its_own_may_change(kind: str, tmp_path: Path) -> None:
    plant(tmp_path / "given", SPLITS)
    plant(tmp_path / "cut", {"cat": 12, "dog": 12})
    before = source(tmp_path / "given").prints
    assert before.seen != before.whole
    change(tmp_path / "given" / "test", kind)
    after = source(tmp_path / "given").prints
    assert after.are_of(before)
    assert after.differ_in_test(before)
    change(tmp_path / "given" / "train", kind)
    assert not source(tmp_path / "given").prints.are_of(before)
    assert not source(tmp_path / "given").prints.differ_in_test(before)
    # A change of the files moves the cut.
    before = source(tmp_path / "cut").prints
    assert before.seen == before.whole
    change(tmp_path / "cut", kind)
    assert not source(tmp_path / "cut").prints.are_of(before)


def test_a_test_split_that_comes_or_goes_moves_the_cut(tmp_path: Path) -> None:
    plant(tmp_path, {"train/cat": 12, "train/dog": 12})
    without = source(tmp_path).prints
    plant(tmp_path, {"test/cat": 2, "test/dog": 2})
    with_one = source(tmp_path).prints
    assert not with_one.are_of(without)
    assert not without.are_of(with_one)


def test_images_are_not_decoded_again_for_another_test_split(tmp_path: Path) -> None:
    plant(tmp_path / "photos", SPLITS)
    shape: dict[str, Any] = {"image_size": 8, "channels": 3, "cache": tmp_path / "cache"}
    found = source(tmp_path / "photos")
    prepared = prepare(found, **shape)
    look_at_test(found, prepared)
    assert len(open_test(found, prepared).labels) == 10
    change(tmp_path / "photos" / "test", "edited")
    (tmp_path / "photos" / "test" / "dog" / "004.png").write_bytes(b"no image")
    decoded: list[int] = []
    again = source(tmp_path / "photos")
    assert prepare(again, progress=lambda done, total: decoded.append(done), **shape).folder == prepared.folder
    assert not decoded
    # What was readable is looked at again; the old pixels are not taken for the new ones.
    with pytest.raises(DataError, match=r"test/dog/004.png.*fix or remove them$"):
        look_at_test(again, prepared)
    (tmp_path / "photos" / "test" / "dog" / "004.png").unlink()
    test = open_test(source(tmp_path / "photos"), prepared)
    assert len(test.labels) == 9
    assert test.names[1] == "test/cat/001.png"
    edited = open_test(found, prepared).pixels[1]
    assert (test.pixels[1] != edited).any()
    change(tmp_path / "photos" / "train", "edited")
    with pytest.raises(DataError, match="images or splits have changed since"):
        open_test(source(tmp_path / "photos"), prepared)
    assert len(load(prepared, "train").labels) == 20


def openings(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = known(folder).user_attrs["test_openings"]
    return found


def known(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/studies/{STUDY}.db", study_name=STUDY)


@pytest.mark.slow
def test_another_test_split_blocks_nothing_and_is_said_where_it_is_opened(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    plant(tmp_path / "photos", SPLITS)
    (tmp_path / "base.yaml").write_text(SPACE)
    run = ("run", "base.yaml", "--workers", "1")
    assert imgcls(*run).code == 0
    assert imgcls("export", STUDY, "-o", "best.yaml").code == 0
    assert imgcls("train", "best.yaml", "--out", "before").code == 0
    assert "test_changed" not in openings(tmp_path)[-1]
    change(tmp_path / "photos" / "test", "deleted")
    line = "the test split has changed since {}: then 10 images, now 9; it is scored as it is now"
    # Finished, and with more to do.
    for more in ((), ("--set", "study.trials=2")):
        again = imgcls(*run, *more)
        assert again.code == 0, again.err
        assert "has changed" not in again.err
    confirmed = imgcls("confirm", STUDY, "--top", "1", "--seeds", "2")
    assert confirmed.code == 0, confirmed.err
    assert confirmed.err.splitlines().count(line.format("study 'base-photos' began")) == 1
    assert openings(tmp_path)[-1]["test_changed"] == {"then": 10, "now": 9}
    trained = imgcls("train", "best.yaml", "--out", "after")
    assert trained.err.splitlines().count(line.format("study 'base-photos' began")) == 1
    (noted,) = json.loads((tmp_path / "after" / "metrics.json").read_text())["test_openings"]
    assert noted["test_changed"] == openings(tmp_path)[-1]["test_changed"] == {"then": 10, "now": 9}
    for split in ("test", "all"):
        measured = here("evaluate", "before/seed-1.pt", "--split", split)
        assert measured.code == 0, measured.err
        assert line.format("the weights were trained") in measured.out.splitlines()
        noted = json.loads((tmp_path / "before" / "test-openings.jsonl").read_text().splitlines()[-1])
        assert noted["test_changed"] == {"then": 10, "now": 9}
    for answer in (here("evaluate", "before/seed-1.pt"), here("evaluate", "after/seed-1.pt", "--split", "test")):
        assert answer.code == 0
        assert "has changed" not in answer.out
    assert "differs" not in imgcls("reproduce", STUDY, "--trial", "0").out
    bundled = imgcls("export", STUDY, "--bundle", "model")
    assert bundled.code == 0
    assert not [
        note
        for note in json.loads((tmp_path / "model" / "metrics.json").read_text())["notes"]
        if "have changed" in note
    ]
    # A study of an earlier version knows all images together.
    facts = known(tmp_path).user_attrs["data"]
    known(tmp_path).set_user_attr("data", {name: value for name, value in facts.items() if name != "seen_fingerprint"})
    refused = imgcls(*run, "--set", "study.trials=2")
    assert is_one_line(refused), refused
    assert "other images" in refused.err


def test_training_that_met_a_damaged_test_file_is_finished_without_it(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    plant(tmp_path / "photos", SPLITS)
    (tmp_path / "base.yaml").write_text(SPACE.replace("{choice: [0.5, 1]}", "0.5"))
    assert imgcls("train", "base.yaml", "--out", "out").code == 0
    # As it is where the file was damaged while the training was under way.
    (tmp_path / "out" / "metrics.json").unlink()
    damaged = tmp_path / "photos" / "test" / "dog" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    refused = imgcls("train", "base.yaml", "--out", "out")
    assert refused.code == 2
    assert "1 of 10 test images cannot be read: test/dog/003.png" in refused.err.splitlines()[-1]
    damaged.unlink()
    log = (tmp_path / "out" / "seed-1.log").read_text()
    again = imgcls("train", "base.yaml", "--out", "out")
    assert again.code == 0, again.err
    assert "the test split has changed since seed 1 was trained: then 10 images, now 9" in again.err
    # It was trained to its end before.
    assert (tmp_path / "out" / "seed-1.log").read_text() == log
