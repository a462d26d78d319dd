"""Several labels of an image: read from tables and folders, counted, cut into splits, recognised."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import describe, describe_whole, iterative, read_headers, summarise
from imgcls_search.data.source import Source
from imgcls_search.errors import BuildError, DataError
from PIL import Image

from tests.pairs import write_rows, write_table

ROWS = [f"{number}.png,{('cat;dog', 'cat', 'dog; car', '', 'car;cat')[number % 5]}" for number in range(50)]


def table(file: Path, **args: Any) -> Source:
    args = {"label": "tags", "separator": ";", **args}
    return describe(Component(path="data.table", name="table", args={"file": str(file), **args}))


def folder(root: Path, **args: Any) -> Source:
    return describe(Component(path="data.folder", name="folder", args={"root": str(root), "labels": "several", **args}))


def labels_of(source: Source) -> dict[str, set[str]]:
    return {
        name: {source.classes[number] for number in np.flatnonzero(row)}
        for split in source.names
        for name, row in zip(source.names[split], source.labels[split], strict=True)
    }


def refusal(file: Path, **args: Any) -> str:
    with pytest.raises((DataError, BuildError)) as caught:
        table(file, **args)
    return str(caught.value)


def test_a_column_with_a_separator_names_all_labels_of_an_image(tmp_path: Path) -> None:
    source = table(write_rows(tmp_path, "image,tags", ROWS))
    assert source.classes == ("car", "cat", "dog")
    found = labels_of(source)
    assert found["0.png"] == {"cat", "dog"}
    assert found["2.png"] == {"car", "dog"}
    assert found["3.png"] == set()


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("true", "False"), ("YES", "no")])
def test_columns_of_yes_and_no_say_the_same_as_one_column(tmp_path: Path, yes: str, no: str) -> None:
    cells = [{part.strip() for part in row.partition(",")[2].split(";")} for row in ROWS]
    rows = [
        f"{number}.png,{','.join(yes if name in own else no for name in ('cat', 'dog', 'car'))}"
        for number, own in enumerate(cells)
    ]
    one = table(write_rows(tmp_path / "one", "image,tags", ROWS))
    many = table(write_rows(tmp_path / "many", "image,cat,dog,car", rows), label=["cat", "dog", "car"], separator=None)
    assert many.classes == ("cat", "dog", "car")
    assert labels_of(many) == labels_of(one)


@pytest.mark.parametrize(
    ("cell", "what"),
    [("maybe", "'maybe' is not allowed"), ("2", "'2' is not allowed"), ("", "the cell is empty")],
)
def test_a_cell_that_is_neither_yes_nor_no_is_named_with_line_and_column(tmp_path: Path, cell: str, what: str) -> None:
    rows = [f"{number}.png,{number % 2},{(number + 1) % 2}" for number in range(20)]
    rows[4] = f"4.png,1,{cell}"
    file = write_rows(tmp_path, "image,cat,dog", rows)
    found = refusal(file, label=["cat", "dog"], separator=None)
    assert found == f"data.table: {file}:6: column 'dog': {what}; allowed: 0 or 1, true or false, yes or no"


def test_labels_that_are_empty_or_named_twice_are_refused_with_line_and_column(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "image,tags", [*ROWS, "x.png,cat;;dog", "y.png,cat;"])
    where = f"data.table: {file}:52: column 'tags'"
    assert refusal(file) == f"{where}: 'cat;;dog' has an empty label beside ';'; as in line 53"
    file = write_rows(tmp_path, "image,tags", [*ROWS, "x.png,cat; cat"])
    assert refusal(file) == f"{where}: 'cat; cat' names 'cat' twice"


def test_what_cannot_be_columns_of_labels_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "image,cat,dog", [f"{number}.png,{number % 2},0" for number in range(20)])
    assert "column 'dog': no row has this label" in refusal(file, label=["cat", "dog"], separator=None)
    assert refusal(file, label=["cat"], separator=None).startswith("data.table.label: ['cat'] is one column")
    assert "'cat' is given twice" in refusal(file, label=["cat", "cat"], separator=None)
    assert "is the column 'image' already" in refusal(file, label=["cat", "image"], separator=None)
    assert "needs one column" in refusal(file, label=["cat", "dog"])
    assert refusal(file, separator="").startswith("data.table.separator: '' is not allowed")
    assert "needed: at least 2 (is '|' the separator?)" in refusal(
        write_rows(tmp_path / "one", "image,tags", ["a.png,cat", "b.png,cat"]), separator="|"
    )


def test_an_image_in_two_rows_is_refused_also_with_other_labels(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "image,tags", [*ROWS, "0.png,car"])
    assert "'0.png' is in line 2 too, there as 'cat;dog', here as 'car'; allowed: one row for each image" in refusal(
        file
    )


def test_a_label_of_too_few_images_is_refused_where_it_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "image,tags", [*ROWS, "x.png,cat;owl"])
    assert f"{file}:52: column 'tags': too few images in class 'owl' (1)" in refusal(file)


def test_a_label_of_the_test_rows_alone_is_refused(tmp_path: Path) -> None:
    rows = [f"{row},train" for row in ROWS] + ["x.png,cat;owl,test"]
    file = write_rows(tmp_path, "image,tags,part", rows)
    assert f"{file}:52: column 'tags': 'owl' is in test but not in train" in refusal(file, split="part")


def test_what_there_is_is_counted_by_label_and_by_the_number_of_labels(tmp_path: Path) -> None:
    source = table(write_rows(tmp_path, "image,tags", ROWS))
    summary = summarise(source, read_headers(source))
    assert summary.images_by_label == {"car": 20, "cat": 30, "dog": 20}
    assert summary.images_by_labels == (10, 10, 30)
    lines = summary.lines()
    assert lines[0].startswith("data labels: 3 labels, images: ")
    assert lines[1] == (
        "images with each label: 'cat' 30, 'car' 20, 'dog' 20; with no label 10, with one 10, with several 30"
    )
    assert len(lines) <= 5


def test_labels_in_one_cell_without_a_separator_are_pointed_out(tmp_path: Path) -> None:
    rows = [f"{number}.png,{('cat;dog', 'dog;car')[number % 2]}" for number in range(20)]
    source = table(write_rows(tmp_path, "image,tags", rows), separator=None)
    assert not source.has_several_labels
    assert any("data.table.separator" in note for note in source.notes)
    assert not table(write_rows(tmp_path, "image,tags", rows)).notes


def test_parquet_has_several_labels_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_rows(tmp_path, "image,tags", ROWS)
    cells = [row.partition(",")[2] for row in ROWS]
    columns = {"image": [f"{number}.png" for number in range(50)], "tags": cells}
    flags = {name: [name in cell for cell in cells] for name in ("cat", "dog", "car")}
    parquet.write_table(pyarrow.table({**columns, **flags}), tmp_path / "labels.parquet")
    one = table(tmp_path / "labels.parquet")
    many = table(tmp_path / "labels.parquet", label=["cat", "dog", "car"], separator=None)
    assert labels_of(one) == labels_of(many) == labels_of(table(tmp_path / "labels.csv"))


def test_a_link_and_a_copy_in_another_class_folder_are_further_labels(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "dog", "car"] * 8):
        path = tmp_path / "photos" / name / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    photos = tmp_path / "photos"
    (photos / "dog" / "a-link.png").symlink_to(photos / "cat" / "00.png")
    os.link(photos / "cat" / "03.png", photos / "dog" / "hard.png")
    shutil.copy(photos / "cat" / "06.png", photos / "car" / "copy.png")
    (photos / "car" / "second.png").symlink_to(photos / "cat" / "00.png")
    source = folder(photos)
    found = labels_of(source)
    assert len(found) == 24
    assert found.pop("car/copy.png") == {"car", "cat"}
    assert found.pop("car/second.png") == {"car", "cat", "dog"}
    assert found.pop("cat/03.png") == {"cat", "dog"}
    assert all(labels == {name.partition("/")[0]} for name, labels in found.items())
    assert "4 files are links to or copies of others: 24 pictures" in source.notes
    # Without the word each file is an image of one class, as ever.
    plain = describe(Component(path="data.folder", name="folder", args={"root": str(photos)}))
    assert not plain.has_several_labels
    assert sum(map(len, plain.names.values())) == 28


def test_a_picture_in_train_and_test_is_refused(tmp_path: Path) -> None:
    for split, shift in (("train", 0), ("test", 100)):
        for number, name in enumerate(["cat", "dog"] * 4):
            path = tmp_path / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number + shift, 0, 0)).save(path)
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "test" / "dog" / "other.png")
    with pytest.raises(DataError, match="are the same picture in test and train; allowed: each picture in one split"):
        folder(tmp_path)


def test_each_label_is_about_as_frequent_in_every_split(tmp_path: Path) -> None:
    write_table(tmp_path / "pairs", 400)
    source = table(tmp_path / "pairs" / "labels.csv")
    total = np.sum([labels.sum(axis=0) for labels in source.labels.values()], axis=0)
    assert {split: len(names) for split, names in source.names.items()} == {"train": 272, "val": 48, "test": 80}
    for split, share in (("test", 80 / 400), ("val", 48 / 400)):
        assert np.abs(source.labels[split].sum(axis=0) / total - share).max() < 0.03
    again = table(tmp_path / "pairs" / "labels.csv", split_seed=1)
    assert set(again.names["test"]) != set(source.names["test"])
    assert table(tmp_path / "pairs" / "labels.csv").names == source.names


def test_iterative_stratification_is_more_even_than_chance_and_leaves_no_label_out() -> None:
    random = np.random.default_rng(0)
    for seed in range(10):
        labels = (random.random((300, 12)) < random.uniform(0.01, 0.4, 12)).astype(np.uint8)
        for number in range(12):
            labels[random.choice(300, 3, replace=False), number] = 1
        pool = np.arange(300)
        drawn, rest = iterative.draw(labels, pool, 60, spare=2, seed=(seed, 0))
        assert len(drawn) == 60
        assert sorted([*drawn, *rest]) == pool.tolist()
        assert (labels[drawn].sum(axis=0) >= 1).all()
        assert (labels[rest].sum(axis=0) >= 2).all()
        far = np.abs(labels[drawn].sum(axis=0) - 0.2 * labels.sum(axis=0)).max()
        chance = [
            np.abs(labels[random.permutation(300)[:60]].sum(axis=0) - 0.2 * labels.sum(axis=0)).max() for _ in range(20)
        ]
        assert far < np.median(chance) / 2
        # Images without a label are cut like the others.
        bare = labels.sum(axis=1) == 0
        assert abs(bare[drawn].sum() - 0.2 * bare.sum()) <= 2


def test_every_one_of_many_labels_is_in_both_parts() -> None:
    images, marks = np.arange(1_500), 700
    labels = np.zeros((len(images), marks), np.uint8)
    for shift in range(15):
        labels[images, (images * (shift + 1) + shift * shift) % marks] = 1
    drawn, rest = iterative.draw(labels, images, 300, spare=2, seed=(0, 0))
    assert (len(drawn), len(rest)) == (300, 1_200)
    assert (labels[drawn].sum(axis=0) >= 1).all()
    assert (labels[rest].sum(axis=0) >= 2).all()


def test_max_train_draws_so_many_images_with_every_label(tmp_path: Path) -> None:
    write_table(tmp_path / "pairs", 200)
    whole, few = (table(tmp_path / "pairs" / "labels.csv", max_train=most) for most in (None, 40))
    assert len(few.names["train"]) == 40
    assert (few.labels["train"].sum(axis=0) > 0).all()
    assert few.names["test"] == whole.names["test"]
    assert set(few.names["train"]) < set(whole.names["train"])


def test_groups_stay_in_one_split_with_every_label_in_each(tmp_path: Path) -> None:
    rows = [f"{row},p{number // 4}" for number, row in enumerate(ROWS)]
    source = table(write_rows(tmp_path, "image,tags,patient", rows), group="patient")
    patient = {row.partition(",")[0]: row.rpartition(",")[2] for row in rows}
    seen = {split: {patient[name] for name in names} for split, names in source.names.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    assert all((labels.sum(axis=0) > 0).all() for labels in source.labels.values())
    # Images without a label are not all kept for the training.
    assert any((labels.sum(axis=1) == 0).any() for split, labels in source.labels.items() if split != "train")


@pytest.mark.parametrize("group", [None, "patient"])
def test_every_fold_has_every_label_about_as_often(group: str | None, tmp_path: Path) -> None:
    rows = [f"{row},p{number // 2}" for number, row in enumerate(ROWS)]
    source = table(write_rows(tmp_path, "image,tags,patient", rows), folds=3, group=group)
    held = list(source.fold_labels())
    assert [len(labels) for labels in held] == list(source.folds)
    assert max(source.folds) - min(source.folds) <= (4 if group else 2)
    counts = np.array([labels.sum(axis=0) for labels in held])
    assert (counts > 0).all()
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= (4 if group else 2)
    # Images without a label are spread too.
    assert all((labels.sum(axis=1) == 0).any() for labels in held)
    if group:
        patient = {row.partition(",")[0]: row.rpartition(",")[2] for row in rows}
        ends = np.cumsum(source.folds)[:-1]
        parts = [*np.split(np.array(source.names["train"]), ends)[:2], np.array(source.names["val"])]
        seen = [{patient[name] for name in part.tolist()} for part in parts]
        assert not any(one & other for place, one in enumerate(seen) for other in seen[:place])


def test_a_changed_label_is_another_fingerprint_and_the_order_of_rows_is_none(tmp_path: Path) -> None:
    one = table(write_rows(tmp_path, "image,tags", ROWS)).prints
    (tmp_path / "labels.csv").write_text("\n".join(["image,tags", *reversed(ROWS)]) + "\n")
    assert table(tmp_path / "labels.csv").prints == one
    (tmp_path / "labels.csv").write_text("\n".join(["image,tags", *ROWS[:-1], "49.png,car"]) + "\n")
    assert table(tmp_path / "labels.csv").prints != one


def test_a_table_is_measured_whole_also_where_a_label_is_missing(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "image,cat,dog", ["a.png,1,0", "b.png,0,0"])
    args = {
        "file": str(file),
        "root": None,
        "image": "image",
        "label": ("cat", "dog"),
        "separator": None,
        "split": None,
    }
    source = describe_whole(Component(path="data.table", name="table", args=args))
    assert source.labels["test"].tolist() == [[1, 0], [0, 0]]


def test_settings_that_earlier_versions_did_not_know_change_no_digest() -> None:
    for name, known, later in (
        ("table", {"file": "a.csv", "label": "label"}, {"separator": None}),
        ("folder", {"root": "photos"}, {"labels": "one"}),
    ):
        before, now = (TrialConfig.from_dict({"data": {name: args}}) for args in (known, {**known, **later}))
        assert before.digest() == now.digest()
        other = TrialConfig.from_dict({"data": {name: {**known, **dict.fromkeys(later, "several")}}})
        assert other.digest() != now.digest()
