"""Images named in a table: what is read, what is refused and where that is said."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.api.options import component_of_data
from imgcls_search.config import Component
from imgcls_search.data import describe, describe_whole, prepare, read_headers, summarise
from imgcls_search.data.source import Source
from imgcls_search.errors import DataError
from PIL import Image

from tests.conftest import Answer, is_one_line


def photo(path: Path, seed: int, red: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (10, 10, 3), dtype=np.uint8)
    pixels[..., 0] += np.uint8(red)
    Image.fromarray(pixels).save(path)


def plant(top: Path, labels: str = "ab", count: int = 10) -> list[list[str]]:
    """Write images whose names say nothing of their classes, and return rows of path and label."""
    rows = []
    for number, label in enumerate(labels):
        for item in range(count):
            name = f"img/{number + len(labels) * item:03}.png"
            photo(top / name, 100 * number + item, 50 * number)
            rows.append([name, label])
    return rows


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return path


def lines(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def source(path: Path, **args: Any) -> Source:
    known = {"file": str(path), "image": "path", "label": "species"}
    return describe(Component(path="data.table", name="table", args={**known, **args}))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "labels.csv", ["path", "species"], plant(tmp_path))


def refused(path: Path, **args: Any) -> str:
    with pytest.raises(DataError) as raised:
        source(path, **args)
    (line,) = raised.value.lines()
    assert "\n" not in line
    return line


def by_split(found: Source) -> dict[str, set[str]]:
    return {split: set(names) for split, names in found.names.items()}


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="an extra: imgcls-search[tables]")
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table(columns), path)
    return path


# ---------------------------------------------------------------------------------------------- what is read


def test_table_is_read_and_cut_as_a_folder_is(made: Path) -> None:
    found = source(made, test=0.2, val=0.25, split_seed=3, max_train=8)
    assert (found.name, found.classes) == ("labels", ("a", "b"))
    assert {split: len(names) for split, names in found.names.items()} == {"train": 8, "val": 4, "test": 4}
    rows = dict(lines(made))
    for split in ("train", "val", "test"):
        labels = [found.classes[number] for number in found.labels[split]]
        assert labels == [rows[name] for name in found.names[split]]
        assert sorted(set(labels)) == ["a", "b"]
    with found.read("val", 0) as image:
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(made.parent / found.names["val"][0])))
    assert by_split(source(made, test=0.2, split_seed=4)) != by_split(source(made, test=0.2, split_seed=3))


def test_order_of_rows_delimiter_and_kind_of_file_change_nothing(made: Path) -> None:
    header, *rows = lines(made)
    first = source(made)
    others = [
        write(made.with_name("turned.csv"), header, rows[::-1]),
        write(made.with_name("german.csv"), header, rows, ";"),
        write(made.with_name("tabs.csv"), header, rows, "\t"),
        write(made.with_name("t.TSV"), header, rows, "\t"),
        write(made.with_name("more.csv"), ["id", *header], [["7", *row] for row in rows]),
    ]
    bom = made.with_name("bom.csv")
    bom.write_bytes(b"\xef\xbb\xbf" + made.read_bytes().replace(b"\n", b"\r\n") + b"\r\n,\r\n\r\n")
    spaced = made.with_name("spaced.csv")
    spaced.write_text(made.read_text().replace(",", " , "))
    for path in (*others, bom, spaced):
        found = source(path)
        assert (found.names, found.prints) == (first.names, first.prints), path


def test_parquet_is_the_same_table(made: Path) -> None:
    _, *rows = lines(made)
    names, labels = zip(*rows, strict=True)
    path = parquet(made.with_name("labels.parquet"), {"id": [1] * len(rows), "path": names, "species": labels})
    assert source(path).prints == source(made).prints
    numbers = parquet(path, {"path": names, "species": [int(label == "b") for label in labels]})
    assert source(numbers).classes == ("0", "1")
    parquet(path, {"path": names, "species": [None, *labels[1:]]})
    assert f"{path}: row 1, column 'species': the cell is empty" in refused(path)
    parquet(path, {"path": [name.encode() for name in names], "species": labels})
    assert "column 'path' is of type binary; allowed: text" in refused(path)
    parquet(path, {"path": names})
    assert refused(path).endswith("has no column 'species'; its columns: 'path'; choose with data.table.label")
    path.write_bytes(path.read_bytes()[:-20])
    assert "is damaged" in refused(path)


def test_parquet_without_its_extra_is_one_line(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    made.rename(made.with_suffix(".parquet"))
    assert "pip install 'imgcls-search[tables]'" in refused(made.with_suffix(".parquet"))


def test_root_is_the_table_s_folder_or_another_and_absolute_paths_may_stay_inside(made: Path, tmp_path: Path) -> None:
    first = source(made)
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    moved = made.rename(elsewhere / "labels.csv")
    assert "20 of 20 images are missing: 'img/000.png' (line 2), 'img/002.png' (line 3)" in refused(moved)
    assert source(moved, root=str(tmp_path)).prints == first.prints
    (tmp_path / "link").symlink_to(tmp_path)
    absolute = moved.with_name("absolute.csv")
    absolute.write_text(moved.read_text().replace("img/", f"{tmp_path}/link/img/"))
    assert source(absolute, root=str(tmp_path / "link")).prints == first.prints
    assert f"'{tmp_path}/link/img/000.png' is not inside {elsewhere}" in refused(absolute)
    assert "data.table.root: " in refused(moved, root=str(tmp_path / "nowhere"))


def test_backslashes_are_slashes_unless_a_file_is_named_so(made: Path) -> None:
    first = source(made)
    windows = made.with_name("windows.csv")
    windows.write_text(made.read_text().replace("img/", ".\\img\\"))
    assert source(windows).prints == first.prints
    windows.write_text(made.read_text().replace("img/000.png", "img\\odd.png"))
    (made.parent / "img/000.png").rename(made.parent / "img\\odd.png")
    assert "img\\odd.png" in {name for names in source(windows).names.values() for name in names}


@pytest.mark.parametrize(
    "outside", ["../other/1.png", "/etc/passwd", "C:\\photos\\1.png", "img/../../1.png", "\\\\nas\\1.png"]
)
def test_paths_stay_inside_of_the_root(made: Path, outside: str) -> None:
    made.write_text(made.read_text().replace("img/002.png", outside))
    assert f"{made}:3: column 'path': {outside!r} is not inside {made.parent}; " in refused(made)


def test_images_that_no_row_names_are_counted(made: Path) -> None:
    photo(made.parent / "img/extra.png", 1)
    photo(made.parent / "far/away.png", 1)
    (made.parent / "img/.hidden.png").write_text("")
    (entry,) = source(made).left_out
    assert (entry.reason, entry.count, entry.example) == ("image that no row names", 1, "img/extra.png")


# ---------------------------------------------------------------------------------------------- splits


def with_splits(made: Path, splits: Sequence[str]) -> Path:
    header, *plain = lines(made)
    rows = [[*row, split] for row, split in zip(plain, splits, strict=True)]
    return write(made.with_name("split.csv"), [*header, "part"], rows)


def named(path: Path, split: str) -> set[str]:
    return {row["path"] for row in csv.DictReader(path.read_text().splitlines()) if row["part"] == split}


def test_named_splits_are_taken_and_the_others_are_cut_from_empty_cells(made: Path) -> None:
    path = with_splits(made, (["test"] * 2 + ["train"] * 2 + [""] * 6) * 2)
    found = by_split(source(path, split="part", val=0.25))
    assert found["test"] == named(path, "test")
    assert named(path, "train") < found["train"]
    assert len(found["val"]) == 3
    assert found["val"] < named(path, "")
    assert sum(map(len, found.values())) == 20


def test_empty_column_of_splits_is_cut_by_the_shares(made: Path) -> None:
    path = with_splits(made, [""] * 20)
    assert by_split(source(path, split="part", test=0.4)) == by_split(source(made, test=0.4))


def test_empty_cells_are_for_training_where_every_split_is_named(made: Path) -> None:
    path = with_splits(made, ["train", "val", "test", *[""] * 7] * 2)
    found = by_split(source(path, split="part"))
    assert (found["val"], found["test"]) == (named(path, "val"), named(path, "test"))
    assert found["train"] == named(path, "train") | named(path, "")


def test_validation_is_cut_from_training_rows_where_no_cell_is_empty(made: Path) -> None:
    path = with_splits(made, (["test"] * 4 + ["train"] * 6) * 2)
    found = by_split(source(path, split="part", val=0.34))
    assert found["test"] == named(path, "test")
    assert found["val"] | found["train"] == named(path, "train")
    assert len(found["val"]) == 4


@pytest.mark.parametrize("wrong", ["valid", "Test", "dev"])
def test_unknown_split_is_named_with_its_line(made: Path, wrong: str) -> None:
    path = with_splits(made, ["train"] * 3 + [wrong] + ["train"] * 15 + [wrong])
    line = refused(path, split="part")
    assert f"{path}:5: column 'part': {wrong!r} is not a split" in line
    assert "allowed: train, val, test, or an empty cell; as in line 21" in line
    assert ("did you mean" in line) == (wrong != "dev")


def test_label_of_a_held_out_split_must_be_trained_on(made: Path) -> None:
    path = with_splits(made, ["train"] * 10 + ["test"] * 10)
    assert f"{path}:12: column 'species': 'b' is in test but not in train" in refused(path, split="part")
    path = with_splits(made, ["test"] * 20)
    assert "no row says train or is empty" in refused(path, split="part")


def test_column_named_split_is_not_passed_over_in_silence(made: Path) -> None:
    path = with_splits(made, ["train"] * 20)
    path.write_text(path.read_text().replace("part", "split", 1))
    (note,) = source(path).notes
    assert "the column 'split' is not used; --set data.table.split=split uses it" in note
    assert not source(path, split="split").notes


# ---------------------------------------------------------------------------------------------- fingerprints


def test_labels_and_splits_are_part_of_the_fingerprint(made: Path) -> None:
    first = source(made)
    text = made.read_text()
    made.write_text(text.replace("img/000.png,a", "img/000.png,b"))
    assert source(made).fingerprint != first.fingerprint
    path = with_splits(made, (["test"] * 3 + ["train"] * 7) * 2)
    known = source(path, split="part").prints
    moved = with_splits(made, (["test"] * 2 + ["train"] * 8) * 2)
    assert not source(moved, split="part").prints.are_of(known)
    # Rows that change places between training and validation are seen by nothing but their cells.
    held = source(with_splits(made, ["train", "train", "val", *["train"] * 7] * 2), split="part")
    other = source(with_splits(made, ["train", "val", "train", *["train"] * 7] * 2), split="part")
    assert not other.prints.are_of(held.prints)
    assert not other.has_fingerprint(held.fingerprint)
    # A changed image of a test split of its own is none that a search saw; its label belongs to it.
    path = with_splits(made, (["test"] * 3 + ["train"] * 7) * 2)
    photo(made.parent / "img/000.png", 999)
    assert source(path, split="part").prints.differ_in_test(known)
    photo(made.parent / "img/018.png", 999)
    assert not source(path, split="part").prints.are_of(known)


def test_place_of_table_and_images_is_no_part_of_the_fingerprint(made: Path) -> None:
    first = source(made).prints
    (made.parent / "else").mkdir()
    for name in ("img", "labels.csv"):
        (made.parent / name).rename(made.parent / "else" / name)
    assert source(made.parent / "else/labels.csv").prints == first


# ---------------------------------------------------------------------------------------------- bad tables


def test_missing_images_are_counted_and_the_first_named(made: Path) -> None:
    for number in range(12):
        (made.parent / f"img/{number:03}.png").unlink()
    (made.parent / "img/000.png").mkdir()
    line = refused(made)
    assert f"{made}:2: column 'path': 12 of 20 images are missing: 'img/000.png' (line 2), " in line
    assert " and 2 more; paths start from " in line


@pytest.mark.parametrize(
    ("there", "named", "shown"),
    [
        ("IMG_1.JPG", "IMG_1.jpg", "; 'IMG_1.JPG' is there, and differs from 'IMG_1.jpg' in case or Unicode form; "),
        ("cafe\u0301.png", "caf\u00e9.png", r"; 'cafe\u0301.png' is there, and differs from 'caf\xe9.png' in case or "),
    ],
)
def test_a_file_of_another_spelling_is_named(made: Path, there: str, named: str, shown: str) -> None:
    if sys.platform in ("darwin", "win32"):
        pytest.skip("its file systems take both spellings for one")
    (made.parent / "img" / "000.png").rename(made.parent / "img" / there)
    made.write_text(made.read_text().replace("000.png", named), encoding="utf-8")
    assert f"1 of 20 images are missing: 'img/{named}' (line 2){shown}" in refused(made)


def test_a_path_with_a_nul_is_one_line(made: Path) -> None:
    made.write_bytes(made.read_bytes() + b"img\0/a.png,a\n")
    assert "labels.csv:22: " in refused(made)


def test_empty_cells_are_named(made: Path) -> None:
    text = made.read_text()
    made.write_text(text.replace("002.png,a", "002.png, ").replace("004.png,a", "004.png,"))
    assert f"{made}:3: column 'species': the cell is empty; as in line 4" in refused(made)
    made.write_text(text.replace("img/002.png", ""))
    assert f"{made}:3: column 'path': the cell is empty" in refused(made)


def test_label_that_is_seen_once_is_named_with_its_line(made: Path) -> None:
    made.write_text(made.read_text().replace("004.png,a", "004.png,lynx"))
    line = refused(made)
    assert line.startswith(
        f"data.table: {made}:4: column 'species': too few images in class 'lynx' (1); needed: at least 3"
    )


def test_image_in_two_rows_is_refused(made: Path) -> None:
    text = made.read_text()
    made.write_text(text + "img/./000.png,a\nimg/002.png,a\n")
    line = refused(made)
    assert f"{made}:22: column 'path': 'img/000.png' is in line 2 too (2 such rows); allowed: one row" in line
    made.write_text(text + "img/000.png,a\nimg/002.png,b\n")
    assert f"{made}:23: column 'species': 'img/002.png' is in line 3 too, there as 'a', here as 'b'" in refused(made)


BAD_FILES = {
    "nothing": (b"", "is empty; needed: a first line with the names of the columns"),
    "header": (b"path,species\n", "has no rows"),
    "blank": (b"path,species\n\n , \n", "has no rows"),
    "latin": ("path,species\nimg/000.png,b\u00e4r\n".encode("latin-1"), ":2: column 'species': byte 0xe4 is not UTF-8"),
    "key": ("PK,path,species\n1,a.png,b\u00e4r\n".encode("latin-1"), ":2: column 'species': byte 0xe4 is not UTF-8"),
    "utf16": ("path,species\na,b\n".encode("utf-16"), ":1: is UTF-16; allowed: UTF-8"),
    "short": (b"path,species\nimg/000.png\n", ":2: has 1 cells where the first line has 2 columns"),
    "long": (b'path,species\n"img/000.png",a\nb.png,a,b\n', ":3: has 3 cells where the first line has 2 columns"),
    "quote": (b'path,species\nimg/000.png,a\n"img/002.png,a\n', ":3: cannot be read: unexpected end of data"),
    "nul": (b"path,species\nimg/\x00.png,a\n", "missing: 'img/\\x00.png' (line 2)"),
    "column": (b"path,specie\nx.png,a\n", "no column 'species' (did you mean 'specie'?); its columns: 'path', 's"),
    "twice": (b"path,species,path\na,b,c\n", "has 2 columns named 'path'"),
    "huge": (b"path,species\n" + b"x" * 200_000 + b",a\n", ":2: cannot be read: field larger than field limit"),
    "lines": (b'path,species\n"two\nlines.png",a\nimg/000.png,\n', ":4: column 'species': the cell is empty"),
    "gzip": (b"\x1f\x8b\x08\x00", "is a gzip archive; unpack it; allowed: a table ending in .csv"),
    "excel": (b"PK\x03\x04\xff", "is a zip archive or an Excel workbook; save it as CSV"),
    "old excel": (b"\xd0\xcf\x11\xe0\xa1", "is an Excel workbook; save it as CSV"),
    "parquet": (b"PAR1\x15\x04\xff", "is a Parquet file; name it .parquet"),
    "single": (b"path,species\nimg/000.png,a\nimg/002.png,a\n", "only one class, 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_other_columns_in_quotes_are_named(made: Path, delimiter: str) -> None:
    # Some programs put all names into quotes, and no other delimiter fits after those.
    header = delimiter.join(['"path"', '"kind of tree"'])
    made.write_text(f"{header}\nimg/000.png{delimiter}oak\n")
    assert "has no column 'species'; its columns: 'path', 'kind of tree'; choose with" in refused(made)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_table_is_one_line_with_its_place(made: Path, kind: str) -> None:
    content, said = BAD_FILES[kind]
    made.write_bytes(content)
    if kind == "nul" and sys.version_info < (3, 11):
        said = "line contains NUL"
    line = refused(made)
    assert said in line
    assert line.startswith(f"data.table: {made}")


def test_table_that_is_none_is_refused(made: Path) -> None:
    assert "does not exist; allowed: a table ending in .csv, .tsv or .parquet" in refused(made.with_name("none.csv"))
    assert "is not a file" in refused(made.parent)
    assert "is not a known kind of table" in refused(made.rename(made.with_suffix(".xlsx")))


# ---------------------------------------------------------------------------------------------- what folders have too


def test_unreadable_images_are_named_or_skipped(made: Path) -> None:
    (made.parent / "img/002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"img/002\.png.*--skip-unreadable"):
        read_headers(source(made))
    found = source(made, skip_unreadable=True)
    assert len(summarise(found, read_headers(found)).unreadable) == 1
    ready = prepare(found, image_size=8, channels=3, cache=made.parent / "cache")
    assert sum(ready.counts.values()) == 19


def test_whole_table_needs_no_room_for_cuts(made: Path) -> None:
    path = with_splits(made, ["test"] * 2 + ["val"] * 18)
    args = source_args(path, split="part")
    component = Component(path="data.table", name="table", args=args)
    assert len(describe_whole(component).names["test"]) == 20
    assert describe_whole(component, "test").names["test"] == ("img/000.png", "img/002.png")


def source_args(path: Path, **args: Any) -> dict[str, Any]:
    known = {"file": str(path), "root": None, "image": "path", "label": "species", "split": None}
    return {**known, "skip_unreadable": False, **args}


SPACE = """
study: {trials: 1, pruner: none, pictures: false}
data: {table: {file: labels.csv, image: path, label: species, split: part, val: 0.3}}
image: {size: 8}
model: {lenet5: {width: 0.5}}
optimizer: {adamw: {lr: 0.01}}
training: {epochs: 1, batch_size: 20}
"""


@pytest.fixture
def study(made: Path) -> Path:
    """Return the table of a space, with a test split of its own."""
    with_splits(made, (["test"] * 3 + [""] * 7) * 2).rename(made)
    made.with_name("base.yaml").write_text(SPACE.replace("lr: 0.01", "lr: {choice: [0.01, 0.02]}"))
    return made


@pytest.mark.slow
def test_table_goes_the_way_of_a_study(study: Path, imgcls: Callable[..., Answer]) -> None:
    top = study.parent
    checked = imgcls("check", "base.yaml", "--samples", "2")
    assert checked.code == 0, checked.err
    assert "data labels: 2 classes, images: train 10, val 4, test 6" in checked.out
    ran = imgcls("run", "base.yaml", "--workers", "1")
    assert ran.code == 0, ran.err
    assert "study base-labels" in ran.out + ran.err
    # The table moves and its images stay where they are, as the absolute root says.
    (top / "new").mkdir()
    study.rename(top / "new/labels.csv")
    lost = imgcls("reproduce", "base-labels", "--trial", "0")
    assert is_one_line(lost), lost
    assert "labels.csv: does not exist" in lost.err
    assert "--data table:FILE" in lost.err
    moved = imgcls("reproduce", "base-labels", "--trial", "0", "--data", f"table:new/labels.csv:{top}")
    assert "identical" in moved.out, moved.err
    confirmed = imgcls("confirm", "base-labels", "--top", "1", "--seeds", "2", "--data", f"table:new/labels.csv:{top}")
    assert confirmed.code == 0, confirmed.err
    # The place is remembered.
    exported = imgcls("export", "base-labels", "--bundle", "model")
    assert exported.code == 0, exported.err
    assert "file: labels.csv" in (top / "model/config.yaml").read_text()
    assert "`table: labels.csv`" in (top / "model/MODEL_CARD.md").read_text()
    assert imgcls("predict", "model", "img/000.png").code == 0
    text = (top / "new/labels.csv").read_text()
    (top / "new/labels.csv").write_text(text.replace("img/008.png,a", "img/008.png,b"))
    other = imgcls("run", "base.yaml", "--data", f"table:new/labels.csv:{top}", "--set", "study.trials=2")
    assert is_one_line(other) or other.err.count("error: ") == 1, other
    assert "was started with other images" in other.err
    assert re.search(
        r"(then|as many as now,) [0-9,]+ train, [0-9,]+ val, [0-9,]+ test images of 2 classes", other.err
    ), other.err
    assert imgcls("run", "base.yaml", "--data", "digits", "--skip-unreadable").code == 2


@pytest.mark.slow
def test_weights_are_measured_on_another_table(study: Path, imgcls: Callable[..., Answer]) -> None:
    top = study.parent
    (top / "one.yaml").write_text(SPACE)
    trained = imgcls("train", "one.yaml", "--seeds", "1")
    assert trained.code == 0, trained.err
    write(top / "more.csv", ["path", "species", "part"], [["img/000.png", "a", "test"], ["img/001.png", "b", ""]])
    for split, count in (("test", 1), ("all", 2)):
        found = imgcls(
            *("evaluate", "trained/one/seed-1.pt", "--data", "table:more.csv", "--split", split),
            *("--predictions", "out.csv"),
        )
        assert found.code == 0, found.err
        assert len((top / "out.csv").read_text().splitlines()) == count + 1
    cut = imgcls("evaluate", "trained/one/seed-1.pt", "--data", "table:more.csv", "--split", "val")
    assert cut.code == 2
    assert "--split test measures the rows that say test" in cut.err
    assert "--split all measures all images" in cut.err


def test_study_is_named_after_its_table(made: Path, here: Callable[..., Answer]) -> None:
    made.with_name("base.yaml").write_text(SPACE.replace("split: part, ", "").replace("0.01", "{choice: [0.1, 0.2]}"))
    assert "study base-labels" in here("check", "base.yaml", "--samples", "1").out
    made.with_name("digits.yaml").write_text(
        "{model: lenet5, optimizer: {adamw: {lr: {choice: [0.1, 0.2]}}}, data: digits}"
    )
    columns = [f"--set=data.table.{role}={name}" for role, name in (("image", "path"), ("label", "species"))]
    found = here("check", "digits.yaml", "--data", "table:labels.csv", *columns, "--samples", "1")
    assert "study digits-labels" in found.out, found.err
    lacking = here("check", "digits.yaml", "--data", "table:labels.csv").err
    assert "has no column 'image', 'label'" in lacking
    assert lacking.endswith("choose with data.table.image, data.table.label\n")
    bad = here("run", "base.yaml", "--data", "table:none.csv")
    assert is_one_line(bad)
    assert "does not exist; allowed: a table" in bad.err
    assert is_one_line(here("check", "base.yaml", "--data", "table:"))


@pytest.mark.parametrize(
    ("text", "file", "root"),
    [
        ("labels.csv", "labels.csv", None),
        ("labels.csv:photos", "labels.csv", "photos"),
        ("2024:01/labels.csv", "2024:01/labels.csv", None),
        ("C:/2024/Labels.TSV:D:/photos", "C:/2024/Labels.TSV", "D:/photos"),
        ("labels.csv.d/a:b/labels.parquet:x:y", "labels.csv.d/a:b/labels.parquet", "x:y"),
        ("labels.txt:photos", "labels.txt", "photos"),
    ],
)
def test_colons_before_the_ending_of_a_table_belong_to_its_path(text: str, file: str, root: str | None) -> None:
    args = component_of_data(f"table:{text}").args
    assert (args["file"], args["root"]) == (file, root)
