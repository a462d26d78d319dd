"""`inspect` as a user meets it: the words for data, what it writes and where, and mistakes in one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.data.inventory import inventory
from imgcls_search.errors import DataError
from PIL import Image

from tests.conftest import Answer, is_one_line
from tests.jobs.test_inspect import photo, plant, spoiled

ESCAPE = "\x1b[31mred\x1b]0;title\x07"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_shown_and_nothing_is_written_into_it(tmp_path: Path, here: Callable[..., Answer]) -> None:
    spoiled(tmp_path / "photos")
    before = files(tmp_path / "photos")
    done = here("inspect", "photos", "--no-labels", "--write", "clean.csv")
    assert done.code == 0, done.err
    assert re.search(r"^ash +29 +17 +6 +6 *$", done.out, re.MULTILINE)
    assert "cannot be read: 1\n  train/oak/broken.png: not an image\n" in done.out
    assert re.search(r"^equal files +4 +8 +1 +2 +2 +1 *$", done.out, re.MULTILINE)
    assert "labels are not judged: left out by --no-labels" in done.out
    assert "left out: 3 x exact copy of an image that stays (train/ash/again.png)" in done.out
    assert "use it with: --data table:clean.csv --set data.table.split=split" in done.out
    assert files(tmp_path / "photos") == before
    assert files(tmp_path) - {f"photos/{name}" for name in before} == {"clean.csv", "inspect-photos.html"}


def test_the_words_to_use_a_table_with_can_be_pasted(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "my photos", 6)
    (tmp_path / "clean").mkdir()
    done = here("inspect", "my photos", "--no-labels", "--no-page", "--write", "clean/my table.csv")
    assert done.code == 0, done.err
    (shown,) = re.findall(r"^use it with: (.+)$", done.out, re.MULTILINE)
    option, data, *_ = shlex.split(shown)
    assert (option, data) == ("--data", "table:clean/my table.csv:my photos")
    assert here("inspect", data, "--no-labels", "--no-page").code == 0


@pytest.mark.parametrize(
    "words", [("photos",), ("./photos",), ("folder:photos",), ("table:labels.csv",), ("labels.csv",), ("digits",)]
)
def test_data_is_named_as_in_other_commands_or_by_its_path(
    words: tuple[str, ...], tmp_path: Path, here: Callable[..., Answer]
) -> None:
    plant(tmp_path / "photos", 6)
    names = sorted(files(tmp_path / "photos"))
    lines = [f"photos/{name},{name.split('/')[0]}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *lines]))
    done = here("inspect", *words, "--no-labels", "--json", "--no-page")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["images"] == (1797 if words == ("digits",) else 12)
    assert found["page"] is None
    assert not list(tmp_path.glob("*.html"))


def test_columns_and_groups_are_named(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 6)
    rows = [f"{name};{name[:3]};p{number % 6}" for number, name in enumerate(sorted(files(tmp_path / "photos")))]
    (tmp_path / "photos" / "labels.csv").write_text("\ufeff" + "\r\n".join(["path;kind;patient", *rows]), "utf-8")
    named = ("inspect", "photos/labels.csv", "--set", "data.table.image=path", "--set", "data.table.label=kind")
    done = here(*named, "--no-labels", "--group", "patient", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["groups"] == 6
    done = here("inspect", "photos", "--group", "/0([0-9])", "--no-labels", "--no-page")
    assert done.code == 0, done.err
    assert "groups: 6\n" in done.out


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "needs DATA"),
    "no folder": (("nowhere",), "does not exist"),
    "no table": (("none.csv",), "does not exist"),
    "no data set": (("torchvision:None",), "is not allowed"),
    "empty folder": (("empty",), "no class folders"),
    "file": (("photos/ash/00.png",), "is not a folder"),
    "page among the images": (("photos", "-o", "photos/page.html"), "is in a folder of the images"),
    "page below them": (("photos", "-o", "photos/ash/page.html"), "is in a folder of the images"),
    "no page": (("photos", "-o", "page.png"), "ends in .html"),
    "page nowhere": (("photos", "-o", "none/page.html"), "cannot be written"),
    "table nowhere": (("photos", "--write", "none/clean.csv"), "cannot be written"),
    "table there": (("photos", "--write", "there.csv"), "--force replaces it"),
    "table itself": (("few.csv", "--write", "./few.csv", "--force"), "is the table of the images itself"),
    "table of digits": (("digits", "--write", "clean.csv"), "needs images that are files"),
    "group of digits": (("digits", "--group", "a"), "needs a folder or a table"),
    "skip of digits": (("digits", "--skip-unreadable"), "needs a folder or a table"),
    "group": (("photos", "--group", "("), "is not a regular expression"),
    "group finds nothing": (("photos", "--group", "(zebra)"), "finds nothing"),
    "setting": (("photos", "--set", "model.vit.depth=3"), "allowed: paths that begin with data.folder."),
    "unknown setting": (("photos", "--set", "data.folder.grupe=3"), "unknown key"),
    "no study": (("photos", "--study", "s"), "no study"),
    "missing file": (("missing.csv",), "images are missing"),
    "empty label": (("nolabel.csv",), "the cell is empty"),
    "twice": (("twice.csv",), "allowed: one row for each image"),
    "not UTF-8": (("latin.csv",), "UTF-8"),
    "windows path": (("windows.csv",), "is not inside "),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_are_one_line_and_nothing_is_written(kind: str, tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 6)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine")
    tables = {
        "missing": b"image,label\nphotos/ash/00.png,ash\nphotos/ash/none.png,oak\n",
        "nolabel": b"image,label\nphotos/ash/00.png,\nphotos/oak/00.png,oak\n",
        "twice": b"image,label\nphotos/ash/00.png,ash\nphotos/ash/00.png,ash\nphotos/oak/00.png,oak\n",
        "latin": b"image,label\nphotos/ash/00.png,Esche gr\xfcn\n",
        "few": b"image,label\nphotos/ash/00.png,ash\nphotos/oak/00.png,oak\n",
        "windows": b"image,label\nC:\\photos\\ash\\00.png,ash\n",
    }
    for name, content in tables.items():
        (tmp_path / f"{name}.csv").write_bytes(content)
    before = files(tmp_path)
    words, says = BAD[kind]
    done = here("inspect", *words)
    assert is_one_line(done), done.err
    assert says in done.err
    assert files(tmp_path) == before
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_odd_data_is_told_and_not_refused(tmp_path: Path, here: Callable[..., Answer]) -> None:
    for name, sizes in {"one": [(20, 20)] * 3, "three": [(5, 5), (30, 40), (5, 900)]}.items():
        for number, size in enumerate(sizes):
            label = "a" if name == "one" or number < 2 else "b"
            photo(tmp_path / name / label / f"{number}.png", number, size=size)
    one = here("inspect", "one", "--no-page")
    assert one.code == 0, one.err
    assert "only one class" in one.err
    assert "labels are not judged: fewer than two classes" in one.out
    three = here("inspect", "three", "--write", "clean.csv")
    assert three.code == 0, three.err
    assert "too few images in class 'a' (2), 'b' (1)" in three.err
    assert "smallest 5x5 (a/0.png), median 5x40, largest 5x900 (b/2.png)" in three.out
    assert "imbalance: the largest class has 2 times the images of the smallest" in three.out
    for number, label in enumerate("aaabbb"):
        photo(tmp_path / "alike" / label / f"{number}.png", number)
    alike = here("inspect", "alike", "--no-page", "--no-labels")
    assert "3 images of each class\nsizes: all 24x20\n" in alike.out
    rows = ["three/a/0.png,a,,,,", "three/a/1.png,a,,,,", "three/b/2.png,b,,,,"]
    header = "image,label,given_label,likely_label,confidence,near_copies"
    assert (tmp_path / "clean.csv").read_text().splitlines() == [header, *rows]


def test_names_cannot_speak_to_the_terminal_or_the_page(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 6)
    photo(tmp_path / "photos" / "ash" / f"{ESCAPE}.png", 90)
    shutil.copy(tmp_path / "photos" / "ash" / f"{ESCAPE}.png", tmp_path / "photos" / "oak" / "<script>alert(1)&.png")
    (tmp_path / "photos" / "oak" / f"{ESCAPE}.jpg").write_bytes(b"none")
    shown = here("inspect", "photos", "--no-labels")
    assert shown.code == 0, shown.err
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b[31mred" in shown.out
    page = (tmp_path / "inspect-photos.html").read_text()
    assert "\x1b" not in page
    assert "\x07" not in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    as_json = here("inspect", "photos", "--no-labels", "--json", "--no-page")
    assert "\x1b" not in as_json.out
    assert any(ESCAPE in image["name"] for each in json.loads(as_json.out)["copies"] for image in each["images"])


def test_page_does_not_go_into_the_working_folder_where_that_is_one_of_the_images(
    tmp_path: Path,
) -> None:
    plant(tmp_path / "photos", 6)
    before = files(tmp_path)
    command = [sys.executable, "-m", "imgcls_search", "inspect", ".", "--no-labels"]
    done_inside = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "photos")
    assert done_inside.returncode == 0, done_inside.stderr
    assert "no page: the working folder is one of the images" in done_inside.stdout
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_cannot_be_read_is_one_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 6)
    (tmp_path / "photos" / "ash").chmod(0)
    try:
        assert is_one_line(here("inspect", "photos"))
    finally:
        (tmp_path / "photos" / "ash").chmod(0o755)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 6)
    (tmp_path / "full.html").symlink_to("/dev/full")
    done = here("inspect", "photos", "--no-labels", "-o", "full.html")
    assert is_one_line(done), done.err
    assert "cannot be written" in done.err or "No space" in done.err


def test_large_images_are_looked_at_one_at_a_time(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 6)
    wide = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(np.roll(wide, number * 7)).resize((12_000, 1_000)).save(
            tmp_path / "photos/ash" / f"w{number}.png"
        )
    done = here("inspect", "photos", "--no-labels", "--no-page")
    assert done.code == 0, done.err
    assert "largest 12000x1000" in done.out


def test_everything_at_once_is_done_and_replaces_the_table_when_forced(
    tmp_path: Path, here: Callable[..., Answer]
) -> None:
    plant(tmp_path / "photos", 10)
    (tmp_path / "clean.csv").write_text("old")
    judging = ("inspect", "photos", "--labels", "--judge-test", "--quick-epochs", "1", "--seed", "3", "--studies", "e")
    table = ("--write", "clean.csv", "--suspects", "relabel", "--confidence", "0.7")
    reading = ("inspect", "--force", "--skip-unreadable", "-o", "page.html")
    done = here(*judging, *table, *reading[1:])
    assert done.code == 0, done.err
    assert "labels of 20 images, judged by a quick model (a small network and trees) in 5 folds:" in done.out
    assert (tmp_path / "clean.csv").read_text().startswith("image,label,split,given_label,")
    assert (tmp_path / "page.html").is_file()
    assert not (tmp_path / "inspect-photos.html").exists()


def test_labels_are_judged_by_a_pretrained_network(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", 12)
    (tmp_path / "space.yaml").write_text(
        "data: {folder: {root: photos}}\nimage: {size: 32, channels: 3}\nmodel: {resnet: {width: 8}}\n"
        "training: {epochs: 2, batch_size: 8}\n"
    )
    trained = imgcls("train", "space.yaml")
    assert trained.code == 0, trained.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.pt").write_bytes((tmp_path / "trained/space/seed-1.pt").read_bytes())
    model = f"{{resnet: {{width: 8, weights: {tmp_path / 'mine/own.pt'}}}}}"
    done = imgcls("inspect", "photos", "--model", model, "--no-page")
    assert done.code == 0, done.err
    assert "judged by a linear layer on features of resnet in 5 folds" in done.out
    found = imgcls("inspect", "photos", "--weights-dir", "mine", "--json")
    assert found.code == 0, found.err
    for words, said in (
        (("inspect", "photos", "--model", "{resnet: {}}"), "model.resnet.weights: null; allowed: imagenet, or a file"),
        (("inspect", "photos", "--model", "{resnet: {weights: none.pt}}"), "no such file"),
        (("inspect", "photos", "--weights-dir", "nowhere"), "--weights-dir nowhere: no such folder"),
    ):
        refused = imgcls(*words)
        assert refused.code == 2, (words, refused.err)
        assert said in refused.err, (words, refused.err)
        assert sum(line.startswith("error: ") for line in refused.err.splitlines()) == 1


def test_study_on_a_server_that_is_not_there_is_one_line(here: Callable[..., Answer]) -> None:
    lost = here("inspect", "--study", "s", "--storage", "postgresql://nobody@127.0.0.1:1/none", "--no-page")
    assert is_one_line(lost), lost.err


def test_several_labels_of_an_image_are_refused() -> None:
    source = describe(Component(path="data.digits", name="digits", args={}))
    several = replace(
        source, labels={split: np.eye(10, dtype=np.int64)[source.labels[split]] for split in source.labels}
    )
    with pytest.raises(DataError, match="several labels each"):
        inventory(several, None)
