"""What messages say of a folder before anything slow: what there is, what is odd, and what was not counted."""

from __future__ import annotations

import json
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.config import Component
from imgcls_search.data import choose_shape, describe, prepare, read_headers, summarise
from imgcls_search.data.opening import ENDINGS, EXTENSIONS, open_image
from imgcls_search.errors import DataError
from PIL import Image, features

from tests.conftest import Answer, is_one_line


def plant(folder: Path, classes: dict[str, int], side: int = 12) -> None:
    rng = np.random.default_rng(len(str(folder)))
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 150, (side, side, 3), dtype=np.uint8)
            pixels[..., number % 3] += 90
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def component(root: Path, **arguments: object) -> Component:
    return Component(path="data.folder", name="folder", args={"root": str(root), **arguments})


def spoil(folder: Path) -> None:
    """Put beside the images what folders of people hold."""
    plant(folder, {"cat": 9, "dog": 14})
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints"):
        (folder / name).mkdir()
        shutil.copy(folder / "cat" / "0.png", folder / name / "copy.png")
    (folder / "cat" / "._0.png").write_bytes(b"resource fork")
    (folder / "cat" / "Thumbs.db").write_bytes(b"thumbs")
    (folder / "dog" / "notes.txt").write_text("two ears")
    (folder / "dog" / "clip.mp4").write_bytes(b"moving")
    (folder / "README").write_text("photos")


def test_summary_counts_what_is_there_and_what_is_left_out(tmp_path: Path) -> None:
    spoil(tmp_path)
    source = describe(component(tmp_path))
    found = summarise(source, read_headers(source))
    assert source.classes == ("cat", "dog")
    assert sum(found.images.values()) == 23
    assert found.smallest_class == ("cat", 9)
    assert found.largest_class == ("dog", 14)
    counts = {entry.reason: entry.count for entry in found.left_out}
    assert counts["hidden or system folder"] == 5
    assert counts["hidden or system file"] == 2
    assert counts["file ending in .txt"] == counts["file ending in .mp4"] == 1
    lines = found.lines()
    assert 3 <= len(lines) <= 5
    assert "2 classes" in lines[0]
    assert "not counted: 5 x hidden or system folder" in "\n".join(lines)


def test_a_share_of_a_split_that_the_images_come_with_is_a_note(tmp_path: Path) -> None:
    plant(tmp_path / "train", {"cat": 12, "dog": 12})
    plant(tmp_path / "test", {"cat": 3, "dog": 3})
    said = "data.folder.test: 0.4 has no effect: the images come with a test split"
    assert said in describe(component(tmp_path, test=0.4, val=0.3)).notes
    assert describe(component(tmp_path, test=0.2, val=0.3)).notes == ()
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]
    rows = [f"{name},{name.split('/')[1]},{'val' if name.endswith('/1.png') else ''}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows]))
    args = {"file": str(tmp_path / "labels.csv"), "split": "split", "val": 0.3, "test": 0.3}
    notes = describe(Component(path="data.table", name="table", args=args)).notes
    assert notes == ("data.table.val: 0.3 has no effect: the images come with a val split",)


@pytest.mark.parametrize("command", ["check", "run", "plan", "train", "augment-preview", "evaluate", "export"])
def test_every_command_that_reads_images_says_what_it_reads(
    command: str, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    spoil(tmp_path / "photos")
    (tmp_path / "space.yaml").write_text(
        "study: {trials: 1, pruner: none, pictures: false}\ndata: {folder: {root: photos}}\nmodel: {lenet5: {}}\n"
        "optimizer: {adamw: {lr: {float: [0.001, 0.01]}}}\ntraining: {epochs: 1, batch_size: 8}\nimage: {size: 12}\n"
    )
    more: dict[str, tuple[str, ...]] = {
        "check": ("check", "space.yaml", "--samples", "2"),
        "run": ("run", "space.yaml", "--workers", "1"),
        "plan": ("plan", "space.yaml", "--epochs", "1"),
        "train": ("train", "space.yaml", "--set", "optimizer.adamw.lr=0.01"),
        "augment-preview": ("augment-preview", "space.yaml", "-o", "sheet.png"),
        "evaluate": ("evaluate", "trained/space/seed-1.pt", "--data", "folder:photos", "--split", "all"),
        "export": ("export", "trained/space/seed-1.pt", "--bundle", "model"),
    }
    if command in ("evaluate", "export"):
        assert imgcls(*more["train"]).code == 0
    answer = imgcls(*more[command])
    assert answer.code == 0, answer.err
    said = answer.out + answer.err
    assert "2 classes, images: train" in said
    assert "not counted: 5 x hidden or system folder" in said
    assert said.index("2 classes") < said.find("decoding") % (len(said) + 1)


def test_check_json_has_the_data(tmp_path: Path, here: Callable[..., Answer]) -> None:
    spoil(tmp_path / "photos")
    (tmp_path / "s.yaml").write_text("data: {folder: {root: photos}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {}}\n")
    found = json.loads(here("check", "s.yaml", "--samples", "0", "--json").out)["data"]
    assert found["classes"] == 2
    assert sum(found["images"].values()) == 23
    assert {entry["reason"] for entry in found["left_out"]} >= {"hidden or system folder", "file ending in .txt"}
    elsewhere = here("check", "s.yaml", "--samples", "0", "--json", "--data", "digits")
    assert json.loads(elsewhere.out)["data"] is None


def test_broken_links_are_an_error_that_names_them(tmp_path: Path, here: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", {"cat": 6, "dog": 6})
    (tmp_path / "photos" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "s.yaml").write_text("data: {folder: {root: photos}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {}}\n")
    answer = here("check", "s.yaml", "--samples", "0")
    assert is_one_line(answer), answer
    assert "cat/gone.png" in answer.err
    assert "broken link" in answer.err


def test_folders_beside_train_and_second_trees_are_named(tmp_path: Path) -> None:
    plant(tmp_path / "a" / "train", {"cat": 6, "dog": 6})
    plant(tmp_path / "a" / "extra", {"cat": 3})
    source = describe(component(tmp_path / "a"))
    assert any("extra" in entry.example for entry in source.left_out)
    plant(tmp_path / "b" / "raw", {"cat": 6, "dog": 6})
    plant(tmp_path / "b" / "augmented", {"cat": 6, "dog": 6})
    source = describe(component(tmp_path / "b"))
    assert source.classes == ("augmented", "raw")
    assert any("cat" in note and "dog" in note for note in source.notes)


def test_similar_class_names_are_shown_so_that_they_differ(tmp_path: Path) -> None:
    composed, apart = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    plant(tmp_path, {composed: 6, apart: 6, "Cat": 6, "cat": 6})
    notes = " ".join(describe(component(tmp_path)).notes)
    assert "'Cat'" in notes
    assert "'cat'" in notes
    assert "\\u0301" in notes


def test_pictures_in_two_classes_and_blank_images_are_counted(tmp_path: Path) -> None:
    plant(tmp_path / "photos", {"cat": 12, "dog": 12})
    shutil.copy(tmp_path / "photos/cat/0.png", tmp_path / "photos/dog/twin.png")
    rng = np.random.default_rng(1)
    # 8-bit values in a 16-bit file come out black; 32-bit values beyond 16 bits come out white.
    dark = rng.integers(0, 255, (12, 12)).astype("uint16")
    Image.fromarray(dark).save(tmp_path / "photos/cat/dark.png")
    Image.fromarray((rng.integers(0, 255, (12, 12)) * 1_000_000 + 70_000).astype("int32")).save(
        tmp_path / "photos/cat/bright.tif"
    )
    clear = np.dstack([rng.integers(0, 255, (12, 12, 3)), np.zeros((12, 12))]).astype("uint8")
    Image.fromarray(clear).save(tmp_path / "photos/dog/clear.png")
    # All in one split, so that each of them is looked at.
    source = describe(component(tmp_path / "photos", val=0.1, test=0.1))
    every = {name for split in ("train", "val") for name in source.names[split]}  # type: ignore[index]
    made = prepare(source, image_size=12, channels=3, cache=tmp_path / "cache")
    blank = {"cat/dark.png", "cat/bright.tif", "dog/clear.png"} & every
    assert made.blank == len(blank)
    assert made.twins == ({"cat/0.png", "dog/twin.png"} <= every)
    said = " ".join(made.findings())
    assert ("almost blank" in said) == bool(blank)


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0"
"""Its orientation is a text."""


def write_png(path: Path, pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> None:
    """Write a PNG file with further chunks before its pixels."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(chunk(kind, text) for kind, text in chunks)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def test_metadata_that_cannot_be_read_refuse_no_image(tmp_path: Path) -> None:
    plant(tmp_path / "photos", {"cat": 8, "dog": 8})
    pixels = np.random.default_rng(2).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    text = b"note\0\0" + zlib.compress(b"x" * 200_000_000)
    write_png(tmp_path / "photos/cat/text.png", pixels, (b"zTXt", text))
    write_png(tmp_path / "photos/cat/icc.png", pixels, (b"iCCP", b"profile\0\0" + zlib.compress(b"y" * 200_000_000)))
    write_png(tmp_path / "photos/cat/exif.png", pixels, (b"eXIf", EXIF))
    Image.fromarray(pixels).save(tmp_path / "photos/dog/orientation.jpg", exif=b"Exif\0\0" + EXIF)
    source = describe(component(tmp_path / "photos", val=0.1, test=0.1))
    made = prepare(source, image_size=12, channels=3, cache=tmp_path / "cache")
    assert made.counts["train"] + made.counts["val"] + made.counts["test"] == 20
    with open_image(tmp_path / "photos/cat/text.png") as image:
        assert (np.asarray(image.convert("RGB")) == pixels).all()


@pytest.mark.slow
def test_unreadable_images_are_left_out_and_listed_when_asked_for(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    plant(tmp_path / "photos", {"cat": 20, "dog": 20})
    for index in (3, 4, 5, 6, 7):
        file = tmp_path / "photos" / "cat" / f"{index}.png"
        file.write_bytes(file.read_bytes()[:60])
    (tmp_path / "s.yaml").write_text(
        "study: {trials: 1, pruner: none, pictures: false}\ndata: {folder: {root: photos}}\nmodel: {lenet5: {}}\n"
        "optimizer: {adamw: {lr: {float: [0.001, 0.01]}}}\ntraining: {epochs: 1, batch_size: 8}\nimage: {size: 12}\n"
    )
    refused = imgcls("run", "s.yaml", "--workers", "1")
    assert is_one_line(refused), refused
    assert "cat/3.png" in refused.err or "cat/4.png" in refused.err
    answer = imgcls("run", "s.yaml", "--workers", "1", "--skip-unreadable")
    assert answer.code == 0, answer.err
    assert all(f"cat/{index}.png" in answer.out for index in (3, 4, 5, 6, 7))
    # The study remembers what it was run with.
    again = imgcls("run", "s.yaml", "--workers", "1")
    assert again.code == 2
    assert "skip_unreadable" in again.err
    more = imgcls("run", "s.yaml", "--workers", "1", "--skip-unreadable", "--set", "study.trials=2")
    assert more.code == 0, more.err
    bundle = imgcls("export", "s-photos", "--bundle", "model")
    assert bundle.code == 0, bundle.err
    elsewhere = imgcls("check", "s.yaml", "--data", "digits", "--skip-unreadable", "--samples", "0")
    assert is_one_line(elsewhere), elsewhere


@pytest.mark.slow
def test_every_command_that_reads_a_folder_can_leave_out_what_it_cannot_read(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    plant(tmp_path / "photos", {"cat": 12, "dog": 12})
    for index in range(4):
        (tmp_path / "photos" / "cat" / f"{index}.png").write_bytes(b"no image")
    (tmp_path / "c.yaml").write_text(
        "data: {folder: {root: photos}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {lr: 0.01}}\n"
        "training: {epochs: 1, batch_size: 8}\nimage: {size: 12}\n"
    )
    (tmp_path / "s.yaml").write_text((tmp_path / "c.yaml").read_text().replace("0.01", "{float: [0.001, 0.01]}"))
    weights = "trained/c/seed-1.pt"
    for line in (
        ("train", "c.yaml", "--skip-unreadable"),
        ("evaluate", weights, "--data", "folder:photos", "--split", "all", "--skip-unreadable"),
        ("augment-preview", "s.yaml", "-o", "sheet.png", "--skip-unreadable"),
        ("plan", "s.yaml", "--epochs", "1", "--skip-unreadable"),
    ):
        answer = imgcls(*line)
        assert answer.code == 0, (line, answer.err)
        if line[0] != "evaluate":
            refused = imgcls(*line[:-1], *(("--out", "other") if line[0] == "train" else ()))
            assert is_one_line(refused), (line, refused)
            assert "cat/" in refused.err
    metrics = json.loads((tmp_path / "trained" / "c" / "metrics.json").read_text())
    assert sum(metrics["images"].values()) <= 24


def test_one_odd_size_breaks_nothing(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    plant(tmp_path / "photos", {"cat": 9, "dog": 9}, side=16)
    Image.fromarray(np.full((40, 90, 3), 7, "uint8")).save(tmp_path / "photos" / "cat" / "wide.png")
    (tmp_path / "s.yaml").write_text(
        "study: {trials: 1, pruner: none, pictures: false}\ndata: {folder: {root: photos}}\nmodel: {lenet5: {}}\n"
        "optimizer: {adamw: {lr: {float: [0.001, 0.01]}}}\ntraining: {epochs: 1, batch_size: 8}\n"
    )
    answer = imgcls("run", "s.yaml", "--workers", "1")
    assert answer.code == 0, answer.err
    assert "image.size is not given: 16, from the median" in answer.out
    assert imgcls("augment-preview", "s.yaml", "-o", "sheet.png").code == 0
    sized = imgcls("run", "s.yaml", "--workers", "1", "--set", "image.size=8", "--name", "sized")
    assert sized.code == 0, sized.err


def test_side_is_chosen_from_the_median(tmp_path: Path) -> None:
    plant(tmp_path / "a", {"cat": 4, "dog": 4}, side=400)
    headers = read_headers(describe(component(tmp_path / "a")))
    assert choose_shape(headers) == (400, 3, False)
    Image.fromarray(np.zeros((300, 500, 3), "uint8")).save(tmp_path / "a" / "cat" / "other.png")
    headers = read_headers(describe(component(tmp_path / "a", val=0.1, test=0.1)))
    side, channels, is_chosen = choose_shape(headers)
    assert (channels, side <= 224 or not is_chosen) == (3, True)


def test_every_ending_that_pillow_decodes_counts(tmp_path: Path) -> None:
    Image.init()
    known = {ending for ending, name in Image.EXTENSION.items() if name in ENDINGS and name in Image.OPEN}
    assert known <= set(EXTENSIONS)
    # Of fewer than 16 pixels, older versions of Pillow write an icon without a picture.
    pixels = Image.fromarray(np.random.default_rng(3).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    written = 0
    for ending in (
        ".jpg",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".ppm",
        ".tga",
        ".jp2",
        ".ico",
        ".pcx",
        ".jfif",
        ".avif",
    ):
        if ending == ".avif" and not features.check("avif"):
            continue
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels.save(tmp_path / name / f"one{ending}")
        written += 2
    source = describe(component(tmp_path))
    assert sum(len(names) for names in source.names.values()) == written
    assert sum(prepare(source, image_size=12, channels=3, cache=tmp_path / "cache").counts.values()) == written


def test_class_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 5, "dog": 5})
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError):
        prepare(describe(component(tmp_path, skip_unreadable=True)), image_size=8, channels=3, cache=tmp_path / "cache")
