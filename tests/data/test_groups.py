"""Images that belong together stay on one side of every split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import Component
from imgcls_search.data import describe, groups, read_headers, summarise
from imgcls_search.data.source import Source
from imgcls_search.errors import BuildError, DataError
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from tests.conftest import Answer, is_one_line

SIDE = 8


def plant(top: Path, number: int = 12, count: int = 6, *, first: int = 0, mark: float = 60) -> Path:
    """Write images of two classes that differ in nothing; each patient, who has one class, has a mark."""
    rng = np.random.default_rng(first)
    for patient in range(first, first + number):
        name = "ab"[patient % 2]
        marked = 127 + mark * rng.choice([-1, 1], (SIDE, SIDE, 3))
        (top / name).mkdir(parents=True, exist_ok=True)
        for item in range(count):
            pixels = np.clip(rng.normal(marked, 30), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(top / name / f"p{patient:03}-{item}.png")
    return top


PATTERN = r"/(p\d+)-"


def folder(top: Path, **args: Any) -> Source:
    return describe(Component(path="data.folder", name="folder", args={"root": str(top), "group": PATTERN, **args}))


def table_of(top: Path, **columns: Callable[[Path], str]) -> Path:
    """Write a table of the images below a folder, with columns of more than path, label and patient."""
    paths = sorted(top.glob("*/*.png"))
    rows = [
        [
            path.relative_to(top).as_posix(),
            path.parent.name,
            path.name.split("-")[0],
            *(of(path) for of in columns.values()),
        ]
        for path in paths
    ]
    with (top / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "patient", *columns], *rows])
    return top / "labels.csv"


def table(path: Path, **args: Any) -> Source:
    known = {"file": str(path), "group": "patient"}
    return describe(Component(path="data.table", name="table", args={**known, **args}))


def patients(found: Source) -> dict[str, set[str]]:
    return {split: {Path(name).name.split("-")[0] for name in names} for split, names in found.names.items()}


def refused(describe_it: Callable[[], Source]) -> str:
    with pytest.raises((DataError, BuildError)) as raised:
        describe_it()
    (line,) = raised.value.lines()
    return line


def test_every_group_is_on_one_side_of_every_split(tmp_path: Path) -> None:
    top = plant(tmp_path / "scans", 20)
    for found in (folder(top, split_seed=1), table(table_of(top), split_seed=1)):
        parts = patients(found)
        assert sum(map(len, parts.values())) == 20
        assert found.groups == {split: len(names) for split, names in parts.items()}
        assert {len(names) for names in parts.values()} == {14, 2, 4}
        for split in parts:
            assert len(set(found.labels[split].tolist())) == 2
    assert patients(folder(top, split_seed=1)) == patients(table(table_of(top), split_seed=1))
    assert patients(folder(top, split_seed=2)) != patients(folder(top, split_seed=1))
    ungrouped = patients(folder(top, split_seed=1, group=None))
    assert ungrouped["train"] & ungrouped["test"]


def test_test_split_does_not_move_with_val_or_max_train(tmp_path: Path) -> None:
    top = plant(tmp_path / "scans", 20)
    first, other = folder(top), folder(top, val=0.3, max_train=11)
    assert first.names["test"] == other.names["test"]
    assert len(other.names["train"]) == 11
    assert not patients(other)["train"] & patients(other)["val"]


def unevenness(labels: np.ndarray, items: np.ndarray, share: float) -> float:
    totals = np.bincount(labels)
    return float(((np.bincount(labels[items], minlength=len(totals)) / totals - share) ** 2).sum())


@pytest.mark.parametrize("seed", range(4))
def test_cut_is_at_least_as_even_as_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(20, 60))
    owner = np.repeat(np.arange(number), rng.integers(1, 30, number))
    main = rng.integers(0, 4, number)
    labels = np.where(rng.random(len(owner)) < 0.7, main[owner], rng.integers(0, 4, len(owner)))
    known = groups.Groups.of([f"{name:03}" for name in owner])
    pool = np.arange(len(owner))
    held, rest = groups.cut(known, labels, pool, share=0.2, spare=2, seed=(seed, 0), place="here")
    assert not set(owner[held]) & set(owner[rest])
    assert sorted([*held, *rest]) == pool.tolist()
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, owner)
    assert unevenness(labels, held, 0.2) <= min(unevenness(labels, test, 0.2) for _, test in folds)


def test_group_of_several_classes_and_few_groups_are_cut_with_every_class_on_both_sides() -> None:
    # Only one choice has both classes in what is cut and in two groups of the rest.
    owner = np.repeat(np.arange(4), [9, 5, 5, 5])
    labels = np.array([0] * 9 + [0, 1, 1, 1, 1] * 3)
    labels[:4] = 1
    known = groups.Groups.of([str(name) for name in owner])
    held, rest = groups.cut(known, labels, np.arange(24), share=0.2, spare=2, seed=(0, 0), place="here")
    assert set(labels[held]) == set(labels[rest]) == {0, 1}


def test_too_few_groups_are_told_by_class(tmp_path: Path) -> None:
    top = plant(tmp_path / "scans", 5)
    line = refused(lambda: folder(top))
    assert "too few groups in class 'b' (2); needed: at least 3, since all of a group is in one split" in line


def test_groups_that_leave_no_cut_are_one_line() -> None:
    # Each class is in three groups, but whichever two are held out, one class is missing on one side.
    owner = np.repeat(np.arange(3), 4)
    labels = np.array([0, 0, 1, 1] * 3)
    known = groups.Groups.of([str(name) for name in owner])
    with pytest.raises(DataError, match="here: no cut was found"):
        groups.cut(known, labels, np.arange(12), share=0.2, spare=3, seed=(0, 0), place="here")


def test_group_across_given_splits_is_one_line(tmp_path: Path) -> None:
    top = plant(tmp_path / "scans", 12)
    path = table_of(top, part=lambda path: "test" if path.name in ("p000-0.png", "p001-0.png") else "train")
    line = refused(lambda: table(path, split="part"))
    assert "group 'p000' is in train (a/p000-1.png) and in test (a/p000-0.png), and 1 more groups" in line
    assert "allowed: all of a group in one split" in line
    plant(tmp_path / "both/train", 12)
    plant(tmp_path / "both/test", 2)
    assert "group 'p000' is in train (train/a/p000-0.png) and in test" in refused(lambda: folder(tmp_path / "both"))
    plant(tmp_path / "apart/train", 12)
    plant(tmp_path / "apart/test", 2, first=12)
    assert folder(tmp_path / "apart").groups == {"train": 10, "val": 2, "test": 2}


def test_empty_cells_of_split_go_where_their_group_says(tmp_path: Path) -> None:
    top = plant(tmp_path / "scans", 16)
    named = {"p000": "test", "p001": "test", "p002": "train"}
    path = table_of(top, part=lambda path: named.get(path.name.split("-")[0], "") if "-0" in path.name else "")
    found = table(path, split="part")
    parts = patients(found)
    assert parts["test"] == {"p000", "p001"}
    assert "p002" in parts["train"]
    assert sum(map(len, parts.values())) == 16


def test_groups_of_a_table_are_part_of_its_fingerprint(tmp_path: Path) -> None:
    path = table_of(plant(tmp_path / "scans", 12))
    first = table(path)
    assert first.fingerprint != table(path, group=None).fingerprint
    path.write_text(path.read_text().replace("p000-0.png,a,p000", "p000-0.png,a,p002"))
    assert table(path).fingerprint != first.fingerprint
    path.write_text(path.read_text().replace("p000-1.png,a,p000", "p000-1.png,a,"))
    assert f"{path}:3: column 'patient': the cell is empty" in refused(lambda: table(path))
    assert "no column 'patients' (did you mean 'patient'?)" in refused(lambda: table(path, group="patients"))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "data.folder.group: '(' is not a regular expression"),
        (r"p\d+", r"has no group; put parentheses around the part that names one"),
        (r"/(q\d+)", "finds nothing in 'a/p000-0.png' (and in 23 more); allowed: one in every path"),
        (r"p000-(9)?", "finds nothing in 'a/p000-0.png'"),
        (r"^/(.*)", "finds nothing in 'a/p000-0.png'"),
    ],
)
def test_bad_expression_is_one_line(tmp_path: Path, pattern: str, said: str) -> None:
    top = plant(tmp_path / "scans", 4)
    assert said in refused(lambda: folder(top, group=pattern))


def test_check_and_run_say_how_many_groups_there_are_and_which_one_is_too_large(
    tmp_path: Path, here: Callable[..., Answer]
) -> None:
    top = plant(tmp_path / "scans", 12, 2)
    plant(top, 1, 30, first=40)
    found = folder(top)
    assert found.notes == ("group 'p040' holds 30 of the 42 images of class 'a'",)
    lines = summarise(found, read_headers(found)).lines()
    assert len(lines) <= 5
    assert lines[0].endswith("; groups: train 5, val 3, test 5")
    (tmp_path / "s.yaml").write_text(
        f"data: {{folder: {{root: scans, group: '{PATTERN}'}}}}\n"
        "model: lenet5\noptimizer: {adamw: {lr: {choice: [0.1, 0.2]}}}\n"
    )
    said = here("check", "s.yaml", "--samples", "1")
    assert "groups: train 5, val 3, test 5" in said.out
    assert "note: group 'p040' holds 30 of the 42 images of class 'a'" in said.out
    told = json.loads(here("check", "s.yaml", "--samples", "1", "--json").out)
    assert {"train": 5, "val": 3, "test": 5} in [
        value.get("groups") for value in told.values() if isinstance(value, dict)
    ]
    assert is_one_line(here("run", "s.yaml", "--set", "data.folder.group=p"))


CONFIG = """
data: {table: {file: scans/labels.csv, %s split_seed: 1}}
image: {size: 8}
model: {lenet5: {}}
optimizer: {adamw: {lr: 0.003}}
training: {epochs: 12, batch_size: 20}
"""


def test_ungrouped_split_lies_about_new_patients_and_a_grouped_one_does_not(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    table_of(plant(tmp_path / "scans", 60))
    table_of(plant(tmp_path / "new", 60, first=100))
    said, real = {}, {}
    for name, group in (("ungrouped", ""), ("grouped", "group: patient,")):
        (tmp_path / f"{name}.yaml").write_text(CONFIG % group)
        answer = imgcls("train", f"{name}.yaml", "--seeds", "1")
        assert answer.code == 0, answer.err
        metrics = json.loads((tmp_path / f"trained/{name}/metrics.json").read_text())
        said[name] = metrics["test"]["1"]["accuracy"]
        new = ("--data", "table:new/labels.csv", "--split", "all")
        answer = imgcls("evaluate", f"trained/{name}/seed-1.pt", *new, "--json")
        assert answer.code == 0, answer.err
        real[name] = json.loads(answer.out)["metrics"]["accuracy"]
    # The classes differ in nothing but their patients: on new ones no network can be better than chance.
    assert max(real.values()) < 0.7
    assert said["ungrouped"] > 0.9
    assert abs(said["grouped"] - real["grouped"]) < 0.25
