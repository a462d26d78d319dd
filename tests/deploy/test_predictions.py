"""Predictions of a folder: the table is what predict says of each image, and nothing is left out without a word."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.deploy import predictions
from PIL import Image

from tests.conftest import Answer, is_one_line, linux_only
from tests.views.test_service import LABELS, write_bundle

COLOURS = {"a": (200, 20, 10), "b": (5, 20, 220), "=c": (10, 220, 10)}


@pytest.fixture
def said(here: Callable[..., Answer], tmp_path: Path) -> Callable[..., Answer]:
    """Run predict on a folder of three images, one that is none and a note."""
    write_bundle(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 12), colour).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "torn.png").write_bytes(b"no image")
    (tmp_path / "photos" / "note.txt").write_text("by hand")
    return lambda *arguments: here("predict", "model", *arguments)


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _value(cell: str) -> Any:
    if cell in ("true", "false", ""):
        return {"true": True, "false": False, "": None}[cell]
    try:
        return float(cell)
    except ValueError:
        return cell


@pytest.mark.parametrize("ending", predictions.ENDINGS)
def test_table_holds_what_is_printed(ending: str, said: Callable[..., Answer], tmp_path: Path) -> None:
    known = json.loads(said("photos", "--json", "--top", "3").out)
    answer = said("photos", "-o", f"out{ending}", "--min-confidence", "0.5")
    assert answer.code == 0
    assert (
        answer.out == f"wrote out{ending}: 3 images: red 1, blue 1, green 1; 1 skipped\n" or "1 skipped" in answer.out
    )
    table = rows(tmp_path / f"out{ending}")
    assert list(table[0]) == ["image", "predicted", *(f"p({name})" for name in LABELS), "unsure", "unlike", "skipped"]
    by_image = {Path(row["image"]).name: row for row in table}
    assert set(by_image) == {"a.png", "b.png", "=c.png", "torn.png"}
    for entry in known["predictions"]:
        row = by_image[Path(entry["image"]).name]
        assert row["predicted"] == entry["classes"][0]["label"]
        for each in entry["classes"]:
            assert row[f"p({each['label']})"] == pytest.approx(each["probability"], abs=1e-6)
        assert row["unsure"] is (entry["classes"][0]["probability"] < 0.5)
        assert row["skipped"] is None
    assert by_image["torn.png"]["skipped"] == "not an image"
    assert by_image["torn.png"]["predicted"] is None
    assert "skipped: photos/torn.png: not an image" in answer.err
    assert "not counted" in answer.err


def test_file_names_are_no_formulas(
    said: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "photos")
    (tmp_path / "photos" / "model").symlink_to(tmp_path / "model")
    said("=c.png", "-o", "../out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("'=c.png,green,")


def test_several_labels_stand_in_one_cell(here: Callable[..., Answer], tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", thresholds=(0.6, 0.6, 0.6))
    Image.new("RGB", (20, 12), (200, 0, 220)).save(tmp_path / "both.png")
    Image.new("RGB", (20, 12), (0, 0, 0)).save(tmp_path / "none.png")
    answer = here("predict", "model", "both.png", "none.png", "-o", "out.csv")
    assert answer.out == "wrote out.csv: 2 images: blue 1, red 1\n"
    table = rows(tmp_path / "out.csv")
    assert set(table[0]["predicted"].split(";")) == {"red", "blue"}
    assert table[1]["predicted"] is None


def test_a_folder_has_a_header_and_a_summary_beside_its_lines(said: Callable[..., Answer]) -> None:
    answer = said("photos")
    assert len(answer.out.splitlines()) == 3
    lines = answer.err.splitlines()
    assert lines[0] == "model: 3 classes, colour images of 8x8 pixels"
    assert lines[-1].startswith("3 images: ")
    assert lines[-1].endswith("; 1 skipped")
    # What it is unsure of is no class.
    assert said("photos", "--min-confidence", "1").err.splitlines()[-1] == "3 images; 3 unsure; 1 skipped"
    assert said("photos/a.png").err == ""


@pytest.mark.parametrize(
    ("output", "more", "problem"),
    [
        ("out.xlsx", (), "-o out.xlsx: not a table by its name; allowed: names that end in .csv or .parquet"),
        ("nowhere/out.csv", (), "nowhere/out.csv: "),
        ("photos", (), "-o photos: not a table by its name"),
        ("out.csv", ("--json",), "-o out.csv: writes a table; leave out --json, which prints"),
    ],
)
def test_table_that_cannot_be_is_one_line(
    output: str, more: tuple[str, ...], problem: str, said: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = said("photos", "-o", output, *more)
    assert answer.code == 2
    assert problem in answer.err
    assert is_one_line(answer)
    assert not (tmp_path / output).is_file()


def test_parquet_without_its_package_is_one_line(said: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "find_spec", lambda name: None)
    answer = said("photos", "-o", "out.parquet")
    assert (answer.code, is_one_line(answer)) == (2, True)
    assert "pip install 'imgcls-search[tables]'" in answer.err


def test_a_failure_in_the_middle_leaves_the_former_table(
    said: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.csv").write_text("former\n")
    monkeypatch.setattr(predictions.Summary, "add", lambda summary, found: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        said("photos", "-o", "out.csv")
    assert (tmp_path / "out.csv").read_text() == "former\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.csv", "photos"]


@linux_only
@pytest.mark.parametrize("place", ["pipe", "folder", "device"])
def test_what_is_no_file_is_skipped_and_not_waited_for(place: str, said: Callable[..., Answer], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    given = {"pipe": "photos/pipe.png", "folder": "photos", "device": "/dev/zero"}[place]
    answer = said(given)
    assert answer.code == (0 if place == "folder" else 1)
    assert "is a pipe, socket or device; an image file is needed" in answer.err
    assert answer.out.count("\n") == (3 if place == "folder" else 0)


def test_nothing_readable_is_written_and_said(said: Callable[..., Answer], tmp_path: Path) -> None:
    answer = said("photos/torn.png", "-o", "out.csv")
    assert answer.code == 1
    assert [row["skipped"] for row in rows(tmp_path / "out.csv")] == ["not an image"]
