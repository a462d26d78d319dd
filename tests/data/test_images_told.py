"""What is read from a folder of images, and what messages say of it."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import (
    Summary,
    choose_shape,
    decode,
    describe,
    load,
    open_test,
    prepare,
    read_headers,
    summarise,
)
from imgcls_search.data.decode import blank
from imgcls_search.data.opening import ENDINGS, EXTENSIONS, open_image
from imgcls_search.data.source import Source
from imgcls_search.data.store import Prepared
from imgcls_search.data.tally import Tally, image_files
from imgcls_search.errors import DataError
from imgcls_search.worker import pipeline
from PIL import Image, PngImagePlugin

from tests.conftest import Answer, is_one_line

OTHER_PROGRAMS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "PDF"}
"""Formats that Pillow decodes with another program, on Windows only, or not at all."""


def photo(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(top: Path, classes: str = "ab", count: int = 6, suffix: str = ".png") -> Path:
    for number, name in enumerate(classes):
        (top / name).mkdir(parents=True, exist_ok=True)
        for item in range(count):
            photo(100 * number + item).save(top / name / f"{item}{suffix}")
    return top


def source(top: Path, **args: object) -> Source:
    return describe(Component(path="data.folder", name="folder", args={"root": str(top), **args}))


def told(top: Path, **args: object) -> Summary:
    found = source(top, **args)
    return summarise(found, read_headers(found))


def ready(found: Source, top: Path) -> Prepared:
    return prepare(found, image_size=12, channels=3, cache=top / "cache")


# ---------------------------------------------------------------------------------------------- what counts


def test_every_raster_ending_that_pillow_decodes_counts() -> None:
    Image.init()
    opened = {e for e, name in Image.registered_extensions().items() if name in {*Image.OPEN, "MPO"} - OTHER_PROGRAMS}
    # Not every build of Pillow has all codecs; each one here is known.
    assert opened <= set(EXTENSIONS)
    unknown = [name for name in ENDINGS if name not in Image.OPEN and name not in ("MPO", "AVIF", "WEBP", "JPEG2000")]
    assert not unknown


@pytest.mark.parametrize("suffix", [".jfif", ".jp2", ".tga", ".ico", ".pbm", ".qoi", ".dds", ".sgi", ".pcx", ".apng"])
def test_images_of_rarer_endings_are_read(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for item in range(4):
            image = photo(item, 16, 16)
            (image.convert("1") if suffix == ".pbm" else image).save(tmp_path / "data" / name / f"{item}{suffix}")
    assert sum(ready(source(tmp_path / "data"), tmp_path).counts.values()) == 8


def test_postscript_under_an_image_s_name_starts_no_program(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(OSError, match="cannot identify"):
        open_image(tmp_path / "x.png")


SYSTEM = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints", "#recycle", ".git"]


@pytest.mark.parametrize("folder", SYSTEM)
def test_hidden_and_system_folders_are_no_classes_and_are_counted(tmp_path: Path, folder: str) -> None:
    fill(tmp_path)
    for place in (tmp_path / folder, tmp_path / "a" / folder):
        place.mkdir()
        photo(1).save(place / "0.png")
    found = told(tmp_path)
    assert (found.classes, sum(found.images.values())) == (2, 12)
    assert [(entry.reason, entry.count) for entry in found.left_out] == [("hidden or system folder", 2)]


def test_what_is_not_counted_is_told_by_reason(tmp_path: Path) -> None:
    fill(tmp_path / "train", count=8)
    (tmp_path / "train/a/notes.txt").write_text("")
    (tmp_path / "train/b/list.TXT").write_text("")
    (tmp_path / "train/b/README").write_text("")
    (tmp_path / "train/b/Thumbs.db").write_text("")
    photo(1).save(tmp_path / "train/loose.png")
    photo(1).save(tmp_path / "above.png")
    (tmp_path / "raw").mkdir()
    found = {entry.reason: (entry.count, entry.example) for entry in told(tmp_path).left_out}
    assert found == {
        "file ending in .txt": (2, "train/a/notes.txt"),
        "file without an ending": (1, "train/b/README"),
        "hidden or system file": (1, "train/b/Thumbs.db"),
        "image outside of the class folders": (2, "above.png"),
        "folder beside train/": (1, "raw"),
    }


@pytest.mark.parametrize("link", ["a/lost.png", "a/lost", "lost", "a/deep/lost.jpg"])
def test_broken_links_are_an_error_that_names_them(tmp_path: Path, link: str) -> None:
    fill(tmp_path)
    (tmp_path / "a/deep").mkdir()
    (tmp_path / link).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="1 broken link") as caught:
        source(tmp_path)
    assert repr(link) in str(caught.value)


@pytest.mark.parametrize("loop", ["a/loop.png", "loop"])
def test_a_link_to_itself_is_a_broken_link(tmp_path: Path, loop: str) -> None:
    fill(tmp_path)
    (tmp_path / loop).symlink_to(tmp_path / loop)
    with pytest.raises(DataError, match="1 broken link"):
        source(tmp_path)


def test_second_trees_are_told(tmp_path: Path) -> None:
    for tree in ("raw", "augmented"):
        for name in ("cat", "dog"):
            fill(tmp_path / "two" / tree / name, "x", 4)
    (note,) = told(tmp_path / "two").notes
    assert "'augmented', 'raw'" in note
    assert "'cat', 'dog'" in note
    fill(tmp_path / "beside", "ab")
    fill(tmp_path / "beside" / "more", "ab")
    (note,) = told(tmp_path / "beside").notes
    assert "class 'more' holds folders named like other classes" in note
    fill(tmp_path / "inside", "ab")
    for split in ("train", "test"):
        (tmp_path / "inside/a" / split).mkdir()
    (note,) = told(tmp_path / "inside").notes
    assert "class 'a' holds folders named like splits" in note
    fill(tmp_path / "inside_another", "ab")
    fill(tmp_path / "inside_another" / "a", "b")
    (note,) = told(tmp_path / "inside_another").notes
    assert "class 'a' holds a folder named like another class ('b'), read as images of 'a'" in note
    fill(tmp_path / "plain" / "a", "xy")
    fill(tmp_path / "plain" / "b", "xz")
    assert told(tmp_path / "plain").notes == ()


@pytest.mark.parametrize("inside", ["", "train"])
def test_the_only_folder_in_a_folder_is_named_if_it_holds_the_classes(tmp_path: Path, inside: str) -> None:
    top = tmp_path / "unpacked/photos"
    fill(top / inside)
    if inside:
        fill(top / "test")
    with pytest.raises(DataError) as caught:
        source(tmp_path / "unpacked")
    assert str(caught.value).endswith(f"if those are the classes or splits, give {top}")
    fill(tmp_path / "one/a", "x")
    with pytest.raises(DataError, match="only one class, 'a'; a classifier needs"):
        source(tmp_path / "one")


@pytest.mark.parametrize(
    ("names", "way", "shown"),
    [
        (("caf\u00e9", "cafe\u0301"), "Unicode form only", r"'caf\xe9'"),
        (("Cat", "cat"), "case, spaces or Unicode form only", "'Cat', 'cat'"),
        (("cat", "cat "), "case, spaces or Unicode form only", "'cat', 'cat '"),
        (("stra\u00dfe", "STRASSE"), "case, spaces or Unicode form only", r"'stra\xdfe'"),
    ],
)
def test_class_names_that_look_equal_are_told_apart(
    tmp_path: Path, names: tuple[str, str], way: str, shown: str
) -> None:
    for name in names:
        fill(tmp_path / name, "x")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system takes the names for one")
    (note,) = told(tmp_path).notes
    assert way in note
    assert shown in note


# ---------------------------------------------------------------------------------------------- the five lines


def test_at_most_five_lines_say_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 8)
    fill(tmp_path, "b", 12)
    photo(1, 120, 20).save(tmp_path / "a/0.png")
    for number in range(9):
        (tmp_path / f"a/x.kind{number}").write_text("")
    (tmp_path / "A").mkdir()
    photo(2).save(tmp_path / "A/0.png")
    photo(3).save(tmp_path / "A/1.png")
    photo(4).save(tmp_path / "A/2.png")
    found = told(tmp_path)
    lines = found.lines()
    assert len(lines) == 5
    assert "3 classes" in lines[0]
    assert "smallest class 'A' (3 images), largest 'b' (12)" in lines[1]
    assert "median 12x12" in lines[2]
    assert "a/0.png (120x20)" in lines[2] or (found.sizes is not None and found.sizes.outliers == 0)
    assert "5 more for other reasons" in lines[3]
    assert "'A', 'a'" in lines[4]
    assert json.loads(json.dumps(found.to_dict()))["classes"] == 3


def test_one_odd_size_breaks_neither_channels_nor_size(tmp_path: Path) -> None:
    fill(tmp_path)
    photo(9, 40, 30).save(tmp_path / "a/0.png")
    headers = read_headers(source(tmp_path, split_seed=1))
    assert choose_shape(headers)[:2] == (12, 3)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert choose_shape(read_headers(source(tmp_path)))[1] == 1


@pytest.mark.parametrize(("side", "chosen"), [(84, 84), (3000, 224), (2, 4)])
def test_the_size_is_chosen_from_the_median(tmp_path: Path, side: int, chosen: int) -> None:
    for number, path in enumerate(fill(tmp_path).rglob("*.png")):
        Image.new("L", (side + 10 + number % 2, side)).save(path)
    assert choose_shape(read_headers(source(tmp_path))) == (chosen, 1, True)


# ---------------------------------------------------------------------------------------------- found in the pixels


def test_the_same_picture_in_two_classes_is_counted(tmp_path: Path) -> None:
    fill(tmp_path / "data/train")
    fill(tmp_path / "data/test")
    clean = ready(source(tmp_path / "data"), tmp_path)
    assert (clean.twins, clean.findings()) == (0, [])
    Image.open(tmp_path / "data/train/a/1.png").save(tmp_path / "data/train/b/copy.bmp")
    for _ in ("decoded", "found in the store"):
        found = ready(source(tmp_path / "data"), tmp_path)
        assert found.twins == 1
        (line,) = [line for line in found.findings() if "another class" in line]
        assert "train/b/copy.bmp" in line
        assert "train/a/1.png" in line


def deep(top: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, top, (12, 12)).astype(np.uint16))


def clipped() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(70_000, 2**31 - 1, (12, 12)).astype(np.int32))


def clear() -> Image.Image:
    image = photo(0).convert("RGBA")
    image.putalpha(0)
    return image


@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        (lambda: deep(256), "x.png", "16- or 32-bit"),
        (lambda: deep(4096), "x.tif", "16- or 32-bit"),
        (clipped, "x.tif", "16- or 32-bit"),
        (clear, "x.png", "transparent"),
        (lambda: Image.new("RGB", (12, 12), "red"), "x.jpg", "one colour"),
    ],
)
def test_almost_blank_images_are_counted(tmp_path: Path, make: Callable[[], Image.Image], name: str, why: str) -> None:
    fill(tmp_path / "data/train")
    fill(tmp_path / "data/test")
    make().save(tmp_path / "data/train/a" / name)
    (line,) = ready(source(tmp_path / "data", split_seed=2), tmp_path).findings()
    assert line.startswith("1 image is almost blank")
    assert name in line
    assert why in line


def test_of_many_images_that_are_left_out_ten_are_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for number in range(12):
            (fill(tmp_path / "data" / split) / "a" / f"broken-{number}.png").write_bytes(b"nothing")
    said: list[str] = []
    tree = {
        "data": {"folder": {"root": str(tmp_path / "data"), "skip_unreadable": True}},
        "image": {"size": 12, "channels": 3},
    }
    pipeline.prepare_data(TrialConfig.from_dict(tree), tmp_path / "cache", say=said.append, looks_at_test=True)
    (test,) = [line for line in said if line.startswith("test images that cannot be read will be left out: 12: ")]
    (others,) = [line for line in said if line.startswith("left out 24 images that cannot be read: ")]
    assert test.count("broken-") == others.count("broken-") == 10
    assert (test[-11:], others[-12:]) == (" and 2 more", " and 14 more")


def test_pictures_with_something_in_them_are_not_blank() -> None:
    line = np.zeros((3, 64, 64), dtype=np.uint8)
    line[:, 30, :] = 255
    assert blank(line, "RGB") is None
    assert blank(decode(deep(65536), 12, 1), "I;16") is None
    assert blank(decode(photo(0), 12, 3), "RGB") is None


# ---------------------------------------------------------------------------------------------- metadata


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(kind: bytes, data: bytes, *, after_pixels: bool = False) -> bytes:
    plain = io.BytesIO()
    photo(0).save(plain, "png")
    content = plain.getvalue()
    at = len(content) - 12 if after_pixels else 33
    return content[:at] + png_chunk(kind, data) + content[at:]


def jpeg_with(exif: bytes) -> bytes:
    plain = io.BytesIO()
    photo(0).save(plain, "jpeg", quality=95)
    return (
        plain.getvalue()[:2]
        + b"\xff\xe1"
        + struct.pack(">H", len(exif) + 8)
        + b"Exif\0\0"
        + exif
        + plain.getvalue()[2:]
    )


def ifd(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return a TIFF directory of (tag, type, count, value of four bytes)."""
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + b"\0\0\0\0"


LARGE = PngImagePlugin.MAX_TEXT_CHUNK + 1
METADATA = {
    "large text.png": png_with(b"zTXt", b"key\0\0" + zlib.compress(b"x" * LARGE)),
    "large text after pixels.png": png_with(b"zTXt", b"key\0\0" + zlib.compress(b"x" * LARGE), after_pixels=True),
    "large international text.png": png_with(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(b"x" * LARGE)),
    "large ICC.png": png_with(b"iCCP", b"icc\0\0" + zlib.compress(b"x" * LARGE)),
    "broken physical size.png": png_with(b"pHYs", b"\0"),
    "broken chromaticity.png": png_with(b"cHRM", b"\0\0"),
    "orientation as text.jpg": jpeg_with(ifd((0x112, 2, 4, b"abcd"))),
    "orientation beyond.jpg": jpeg_with(ifd((0x112, 3, 1, b"\x63\0\0\0"))),
    "turned with an ill-typed tag.jpg": jpeg_with(ifd((0x10F, 4, 1, b"\1\0\0\0"), (0x112, 3, 1, b"\6\0\0\0"))),
    "no TIFF.jpg": jpeg_with(b"not a TIFF directory"),
    "offset beyond.jpg": jpeg_with(ifd((0x10F, 2, 4000, b"\xff\xff\xff\x7f"), (0x112, 3, 1, b"\1\0\0\0"))),
}


@pytest.mark.parametrize("name", METADATA)
def test_unreadable_metadata_refuse_no_whole_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(METADATA[name])
    reference = tmp_path / f"plain{Path(name).suffix}"
    if name.endswith(".png"):
        photo(0).save(reference)
    else:
        photo(0).save(reference, quality=95)
    with Image.open(reference) as plain:
        expected = decode(plain, 12, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(tmp_path / name) as image:
            found = decode(image, 12, 3)
    turned = np.rot90(expected, -1, (1, 2)) if name.startswith("turned") else expected
    np.testing.assert_array_equal(found, turned)


def test_damaged_pixels_are_still_refused(tmp_path: Path) -> None:
    content = METADATA["large text.png"]
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"\w"), open_image(tmp_path / "cut.png") as image:
        decode(image, 12, 3)


# ---------------------------------------------------------------------------------------------- --skip-unreadable


def spoil(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    top = fill(tmp_path / "data/train", count=8).parent
    fill(top / "test")
    for name in ("train/a/1.png", "test/b/2.png"):
        spoil(top / name)
    with pytest.raises(DataError, match="--skip-unreadable"):
        ready(source(top), tmp_path)
    whole = source(top)
    photos = source(top, skip_unreadable=True)
    assert photos.names == whole.names
    for _ in ("decoded", "found in the store"):
        found = ready(photos, tmp_path)
        (listed,) = found.unreadable
        assert listed.startswith("train/a/1.png (")
        assert found.counts["train"] + found.counts["val"] == 15
        train, val = load(found, "train"), load(found, "val")
        assert "train/a/1.png" not in (*train.names, *val.names)
        assert len(train.pixels) == found.counts["train"] == sum(found.class_counts)
        sealed = open_test(photos, found)
        assert len(sealed.names) == 11
        assert "test/b/2.png" not in sealed.names
        for images in (train, val, sealed):
            for name, label, pixels in zip(images.names, images.labels, images.pixels, strict=True):
                assert photos.classes[label] == name.split("/")[1]
                np.testing.assert_array_equal(pixels, np.asarray(Image.open(top / name)).transpose(2, 0, 1))


def test_streamed_images_leave_out_the_same(tmp_path: Path) -> None:
    top = fill(tmp_path / "data/train", count=8).parent
    fill(top / "test")
    spoil(top / "train/a/1.png")
    component = Component(path="data.folder", name="folder", args={"root": str(top), "skip_unreadable": True})
    shape = {"image_size": 12, "channels": 3, "cache": tmp_path / "cache", "origin": component}
    kept = prepare(describe(component), **shape)
    streamed = prepare(describe(component), **{**shape, "cache": tmp_path / "other"}, most_bytes=0)
    assert streamed.streamed_from is not None
    assert streamed.counts == kept.counts
    one, other = load(kept, "train"), load(streamed, "train")
    assert one.names == other.names
    np.testing.assert_array_equal(one.pixels, other.pixels[np.arange(len(other.names))])


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    top = fill(tmp_path / "data")
    for path in (top / "b").iterdir():
        spoil(path)
    with pytest.raises(DataError, match="class 'b'"):
        ready(source(top, skip_unreadable=True), tmp_path)


# ---------------------------------------------------------------------------------------------- the commands

SPACE = """
study: {trials: 1, objectives: {accuracy: maximize}, pruner: none}
model: {lenet5: {}}
training: {epochs: 1, batch_size: 8, device: cpu}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
"""


@pytest.fixture
def shop(tmp_path: Path, here: Callable[..., Answer]) -> Callable[..., Answer]:
    (tmp_path / "space.yaml").write_text(SPACE)
    fill(tmp_path / "photos", "ab", 8)
    photo(5, 40, 30).save("photos/a/0.png")
    (tmp_path / "photos/a/notes.txt").write_text("")
    return here


def test_check_tells_and_has_the_same_in_json(shop: Callable[..., Answer]) -> None:
    answer = shop("check", "space.yaml", "--data", "folder:photos", "--samples", 0)
    assert answer.code == 0, answer
    assert "data photos: 2 classes" in answer.out
    assert "1 x file ending in .txt (a/notes.txt)" in answer.out
    assert "image.size is not given: 12" in answer.out
    found = json.loads(shop("check", "space.yaml", "--data", "folder:photos", "--samples", 0, "--json").out)["data"]
    assert (found["classes"], sum(found["images"].values()), found["chosen_size"]) == (2, 16, 12)
    assert found["left_out"] == [{"reason": "file ending in .txt", "count": 1, "example": "a/notes.txt"}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("folder:photos/a/0.png", "a/0.png: is not a folder; allowed: a folder with one subfolder"),
        ("table:photos", "photos: is not a file; allowed: a table ending in"),
        ("folder:floats", "cannot read 6 of 6 images"),
        ("photos", "data.photos: unknown key; allowed: digits, cifar10, folder"),
    ],
)
def test_check_refuses_images_that_cannot_be_used(shop: Callable[..., Answer], data: str, said: str) -> None:
    for name in "ab":
        Path("floats", name).mkdir(parents=True)
        for item in range(4):
            photo(item).convert("F").save(Path("floats", name, f"{item}.tif"))
    answer = shop("check", "space.yaml", "--data", data, "--set", "image.size=12", "--samples", 2)
    assert is_one_line(answer), answer
    assert said in answer.err
    assert ("a folder is written folder:photos" in answer.err) == (data == "photos")


def test_check_notes_images_that_do_not_exist(shop: Callable[..., Answer]) -> None:
    answer = shop("check", "space.yaml", "--data", "folder:nowhere", "--set", "image.size=12", "--samples", 2)
    assert answer.code == 0, answer
    assert f"note: data.folder: {Path('nowhere').resolve()}: does not exist" in answer.out


def test_a_study_remembers_that_unreadable_images_are_left_out(shop: Callable[..., Answer]) -> None:
    spoil(Path("photos/b/3.png"))
    answer = shop("run", "space.yaml", "--data", "folder:photos")
    assert answer.code == 2
    assert "b/3.png" in answer.err
    assert "--skip-unreadable" in answer.err
    answer = shop("run", "space.yaml", "--data", "folder:photos", "--skip-unreadable")
    assert answer.code == 0, answer
    assert "data photos: 2 classes" in answer.out
    assert "b/3.png" in answer.out
    assert "image.size is not given: 12" in answer.out
    assert shop("export", "space-photos", "-o", "best.yaml").code == 0
    assert "skip_unreadable: true" in Path("best.yaml").read_text()
    answer = shop("reproduce", "space-photos", "--trial", 0)
    assert answer.code == 0, answer
    assert "data photos: 2 classes" in answer.err
    answer = shop("run", "space.yaml", "--data", "folder:photos")
    assert answer.code == 2
    assert "skip_unreadable" in answer.err


def test_augment_preview_takes_images_of_two_sizes_and_tells(shop: Callable[..., Answer]) -> None:
    spoil(Path("photos/b/3.png"))
    answer = shop("augment-preview", "space.yaml", "--data", "folder:photos", "-o", "sheet.png", "--skip-unreadable")
    assert answer.code == 0, answer
    assert Path("sheet.png").exists()
    assert "data photos: 2 classes" in answer.out
    assert "image.size is not given: 12" in answer.out


@pytest.mark.parametrize("sheet", ["photos/a/sheet.png", "photos/sheet.png"])
def test_augment_preview_writes_no_picture_among_the_images(shop: Callable[..., Answer], sheet: str) -> None:
    answer = shop("augment-preview", "space.yaml", "--data", "folder:photos", "-o", sheet)
    assert is_one_line(answer), answer
    assert f"-o {sheet}: is in the folder of the images" in answer.err
    assert not Path(sheet).exists()


def test_folders_and_files_are_predicted_by_the_same_endings(tmp_path: Path) -> None:
    top = fill(tmp_path / "x", "a")
    photo(1).save(top / "a/odd.jfif", "jpeg")
    (top / "a/notes.txt").write_text("")
    tally = Tally(top)
    assert {path.suffix for path in image_files(top, tally)} == {".png", ".jfif"}
    assert tally.counts == {"file ending in .txt": 1}


def test_what_there_is_is_told_before_any_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imgcls_search.data import fingerprint
    from imgcls_search.worker.pipeline import prepare_data

    happened: list[str] = []
    whole = fingerprint._whole
    monkeypatch.setattr(fingerprint, "_whole", lambda path: (happened.append("read"), whole(path))[1])
    config = {"data": {"folder": {"root": str(fill(tmp_path / "photos"))}}, "image": {"size": 8, "channels": 3}}
    prepare_data(TrialConfig.from_dict(config), tmp_path / "cache", say=happened.append)
    before = happened[: happened.index("read")]
    assert before[0].startswith("data photos: 2 classes")
    assert before[2].startswith("sizes: ")
    # Once each, and remembered.
    assert happened.count("read") == 12
