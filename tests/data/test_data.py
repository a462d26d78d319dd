"""Sources, splits, decoding and the store, with real images in temporary folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from imgcls_search import signature
from imgcls_search.config import Component
from imgcls_search.data import (
    DATASETS,
    POLICIES,
    Prepared,
    Source,
    augment,
    decode,
    describe,
    fingerprint,
    load,
    native_shape,
    open_test,
    prepare,
    stored,
)
from imgcls_search.data.torchvision_sets import SPLITS
from imgcls_search.errors import BuildError, DataError
from PIL import Image, ImageOps
from torchvision import datasets, transforms


def source(name: str, /, **args: object) -> Source:
    return describe(Component(path=f"data.{name}", name=name, args=args))


def noise(seed: int, height: int = 12, width: int = 12, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def plant(top: Path, tree: dict[str, int], suffix: str = ".png") -> Path:
    """Write so many images into every folder of a tree."""
    for folder, count in tree.items():
        (top / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise(hash_of(folder) + number).save(top / folder / f"{number:03}{suffix}")
    return top


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16)


@contextmanager
def refused(error: type[Exception], *words: str) -> Iterator[None]:
    """Expect a refusal in one line that holds all the words."""
    with pytest.raises(error) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


# ---------------------------------------------------------------------------------------------- the registry


def test_reading_signatures_imports_no_heavy_library() -> None:
    code = """
import sys
from imgcls_search import signature
from imgcls_search.data import fingerprint
from imgcls_search.data import DATASETS, POLICIES, augment
signature.options(DATASETS); signature.options(POLICIES); signature.read(augment)
print([name for name in ("torch", "torchvision", "sklearn", "PIL") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_argument_is_documented_and_every_data_argument_given() -> None:
    for name, fields in {**signature.options(DATASETS), **signature.options(POLICIES)}.items():
        assert fields.doc.endswith("."), name
        assert all(leaf.arg.doc for leaf in fields.fields.values())
    for fields in signature.options(DATASETS).values():
        assert all(leaf.arg.fixed for leaf in fields.fields.values())
    assert all(leaf.arg.doc for leaf in signature.read(augment).fields.values())


def test_unknown_data_set_is_answered_with_the_known_ones() -> None:
    with refused(BuildError, "data.digit:", "did you mean 'digits'?", "cifar10, folder, table, torchvision"):
        source("digit")


# ---------------------------------------------------------------------------------------------- splits


def test_splits_are_disjoint_complete_and_stratified() -> None:
    digits = source("digits", val=0.15, test=0.2)
    names = [name for split in digits.names.values() for name in split]
    assert len(names) == len(set(names)) == 1797
    counts = {split: np.bincount(labels, minlength=10) for split, labels in digits.labels.items()}
    assert {split: int(count.sum()) for split, count in counts.items()} == {"train": 1222, "val": 216, "test": 359}
    per_class = sum(counts.values())
    assert np.abs(counts["test"] - 0.2 * per_class).max() < 1.5
    assert np.abs(counts["val"] - 0.15 * 0.8 * per_class).max() < 1.5


def test_same_seed_same_splits_other_seed_other_splits() -> None:
    assert source("digits", split_seed=3).names == source("digits", split_seed=3).names
    assert source("digits", split_seed=3).names["test"] != source("digits", split_seed=4).names["test"]
    assert source("digits", split_seed=3).names["val"] != source("digits", split_seed=4).names["val"]


def test_cut_is_the_same_for_years() -> None:
    # Golden values: results on a sealed test split compare only if the split never moves.
    names = source("digits").names
    assert names["test"][:5] == ("digits/8", "digits/17", "digits/20", "digits/23", "digits/29")
    assert {split: hash_of(",".join(names[split])) for split in names} == {
        "train": 14311589,
        "val": 5246157,
        "test": 12634248,
    }


def test_labels_stay_with_their_images() -> None:
    from sklearn.datasets import load_digits

    bunch, digits = load_digits(), source("digits")
    for split, names in digits.names.items():
        for index in range(0, len(names), 50):
            number = int(names[index].removeprefix("digits/"))
            assert digits.labels[split][index] == bunch.target[number]
            pixels = np.asarray(digits.read(split, index)) / 255 * 16
            np.testing.assert_allclose(pixels, bunch.images[number], atol=0.04)


def test_max_train_keeps_val_and_test_and_is_stratified() -> None:
    whole, part = source("digits"), source("digits", max_train=100)
    assert part.names["val"] == whole.names["val"]
    assert part.names["test"] == whole.names["test"]
    assert set(part.names["train"]) < set(whole.names["train"])
    assert len(part.names["train"]) == 100
    assert set(np.bincount(part.labels["train"])) <= {9, 10, 11}
    assert source("digits", max_train=5000).names == whole.names
    assert part.fingerprint == whole.fingerprint


def test_max_train_below_the_number_of_classes_is_refused() -> None:
    with refused(DataError, "max_train is 9", "at least 10"):
        source("digits", max_train=9)


def test_rare_classes_are_in_every_split(tmp_path: Path) -> None:
    photos = source("folder", root=str(plant(tmp_path, {"common": 40, "rare": 3})), val=0.05, test=0.05)
    assert {split: set(labels.tolist()) for split, labels in photos.labels.items()} == {
        "train": {0, 1},
        "val": {0, 1},
        "test": {0, 1},
    }


def test_a_test_share_of_nearly_all_leaves_each_class_something(tmp_path: Path) -> None:
    photos = source("folder", root=str(plant(tmp_path, {"a": 10, "b": 4})), val=0.99, test=0.99)
    assert np.bincount(photos.labels["train"]).tolist() == [1, 1]
    assert np.bincount(photos.labels["val"]).tolist() == [1, 1]
    assert np.bincount(photos.labels["test"]).tolist() == [8, 2]


# ---------------------------------------------------------------------------------------------- folders

LAYOUTS = {
    "one tree": ({"b": 10, "a": 10}, {"train": 12, "val": 4, "test": 4}),
    "train": ({"train/b": 10, "train/a": 10}, {"train": 12, "val": 4, "test": 4}),
    "train and test": ({"train/b": 10, "train/a": 10, "test/a": 3}, {"train": 14, "val": 6, "test": 3}),
    "train and val": ({"train/b": 10, "train/a": 10, "val/a": 3}, {"train": 16, "val": 3, "test": 4}),
    "all three": ({"train/b": 10, "train/a": 10, "val/a": 3, "test/b": 2}, {"train": 20, "val": 3, "test": 2}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_layouts(tmp_path: Path, layout: str) -> None:
    tree, expected = LAYOUTS[layout]
    photos = source("folder", root=str(plant(tmp_path, tree)), val=0.28, test=0.2)
    assert {split: len(names) for split, names in photos.names.items()} == expected
    assert photos.classes == ("a", "b")
    for split, names in photos.names.items():
        for name, label in zip(names, photos.labels[split], strict=True):
            assert Path(name).parent.name == photos.classes[label]


def test_validation_images_that_are_trained_on_too_are_counted_and_named(tmp_path: Path) -> None:
    top = plant(tmp_path / "photos", {"train/a": 6, "train/b": 6, "val/a": 3, "val/b": 3, "test/a": 2})
    clean = prepare(source("folder", root=str(top)), image_size=12, channels=3, cache=tmp_path / "images")
    assert (clean.repeated, clean.repeated_for_example) == (0, ())
    # The same picture under another name, in another file format.
    for number in (1, 2):
        Image.open(top / f"train/a/00{number}.png").save(top / f"val/b/9{number}.bmp")
    for _ in ("decoded anew", "found in the store"):
        found = prepare(source("folder", root=str(top)), image_size=12, channels=3, cache=tmp_path / "images")
        assert found.repeated == 2
        assert found.repeated_for_example == ("val/b/91.bmp = train/a/001.png",)


def test_given_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    photos = source("folder", root=str(plant(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1, "test/b": 1})))
    assert photos.names["val"] == ("val/a/000.png",)
    assert photos.names["test"] == ("test/b/000.png",)


def test_nested_folders_count_and_hidden_and_other_files_do_not(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "a/deep/deeper": 2, "a/.trash": 2, "b": 3, ".cache": 2})
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "readme.md").write_text("neither")
    names = [name for split in source("folder", root=str(tmp_path)).names.values() for name in split]
    assert len(names) == 8
    assert sum("deeper" in name for name in names) == 2


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".gif", ".webp", ".tif", ".TIFF", ".ppm", ".pgm"])
def test_extensions(tmp_path: Path, suffix: str) -> None:
    photos = source("folder", root=str(plant(tmp_path, {"a": 3, "b": 3}, suffix)))
    prepared = prepare(photos, image_size=12, channels=3, cache=tmp_path / ".cache")
    assert load(prepared, "train").pixels.shape == (prepared.counts["train"], 3, 12, 12)


def test_links_in_circles_end_and_linked_folders_count(tmp_path: Path) -> None:
    plant(tmp_path / "data", {"a": 3, "b": 3})
    plant(tmp_path / "elsewhere", {"more": 2})
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/a/round").symlink_to(tmp_path / "data/b")
    (tmp_path / "data/b/back").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/b/linked").symlink_to(tmp_path / "elsewhere/more")
    names = [name for split in source("folder", root=str(tmp_path / "data")).names.values() for name in split]
    assert Counter(name.split("/")[0] for name in names) == {"a": 8, "b": 8}


BAD_TREES = {
    "missing": ({}, ["does not exist", "one subfolder of images per class"]),
    "nothing in it": ({".": 0}, ["no class folders"]),
    "images but no class folders": ({".": 3}, ["no class folders"]),
    "a class without images": (
        {"a": 5, "b": 0, "c": 5},
        ["no image in class 'b'", ".jpg", "not .heic", "or delete the folder"],
    ),
    "one class": ({"a": 5}, ["only one class, 'a'", "at least 2"]),
    "a class only in test": ({"train/a": 5, "train/b": 5, "test/c": 2}, ["class 'c' is in test but not in train"]),
    "a class in another Unicode form": (
        {"train/a": 5, "train/caf\u00e9": 5, "test/cafe\u0301": 2},
        [r"did you mean 'caf\xe9'? 'cafe\u0301' differs from it in Unicode form only"],
    ),
    "a class only in val": ({"train/a": 5, "train/b": 5, "val/c": 2}, ["class 'c' is in val but not in train"]),
    "no image in test": ({"train/a": 5, "train/b": 5, "test/a": 0}, ["no image in test"]),
    "test without class folders": ({"train/a": 5, "train/b": 5, "test": 2}, ["no class folders in", "test"]),
    "too small for three": ({"a": 5, "b": 2}, ["class 'b' (2)", "at least 3", "train, val, test"]),
    "too small for two": ({"train/a": 5, "train/b": 1, "test/b": 3}, ["class 'b' (1)", "at least 2", "train, val"]),
    "test without train": ({"test/a": 5, "test/b": 5}, ["has test but no train folder"]),
    "val without train": ({"val/a": 5, "val/b": 5}, ["has val but no train folder"]),
    "another name for val": ({"train/a": 5, "train/b": 5, "valid/a": 5}, ["'valid'", "rename it to 'val'"]),
    "other names for all": ({"Training/a": 5, "Testing/a": 5}, ["'Testing'", "rename it to 'test'"]),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_unusable_folder_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    tree, words = BAD_TREES[case]
    plant(tmp_path / "photos", tree)
    with refused(DataError, f"data.folder: {tmp_path / 'photos'}", *words):
        source("folder", root=str(tmp_path / "photos"))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    with refused(DataError, "is not a folder"):
        source("folder", root=str(tmp_path / "photo.png"))


def test_broken_links_and_pipes_are_named_not_waited_for(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a/lost.png").symlink_to(tmp_path / "nowhere.png")
    with refused(DataError, "lost.png"):
        source("folder", root=str(tmp_path))
    (tmp_path / "a/lost.png").unlink()
    os.mkfifo(tmp_path / "a/pipe.png")
    with refused(DataError, "pipe.png"):
        source("folder", root=str(tmp_path))


# ---------------------------------------------------------------------------------------------- fingerprints


def test_fingerprint_ignores_place_and_time_and_splits(tmp_path: Path) -> None:
    before = source("folder", root=str(plant(tmp_path / "here", {"a": 4, "b": 4}))).fingerprint
    (tmp_path / "here").rename(tmp_path / "there")
    os.utime(tmp_path / "there/a/000.png", (1, 1))
    assert source("folder", root=str(tmp_path / "there"), split_seed=7, val=0.4).fingerprint == before


@pytest.mark.parametrize("change", ["edited", "added", "removed", "renamed", "moved", "relabelled", "test edited"])
def test_fingerprint_sees_a_change(tmp_path: Path, change: str) -> None:
    plant(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2})
    photo = tmp_path / "train/a/000.png"
    before = source("folder", root=str(tmp_path)).fingerprint
    match change:
        case "edited":
            noise(99).save(photo)
        case "added":
            noise(99).save(photo.with_name("new.png"))
        case "removed":
            photo.unlink()
        case "renamed":
            photo.rename(photo.with_name("zzz.png"))
        case "moved":
            photo.rename(tmp_path / "train/b/zzz.png")
        case "relabelled":
            (tmp_path / "train/b").rename(tmp_path / "train/c")
        case "test edited":
            noise(99).save(tmp_path / "test/a/000.png")
    assert source("folder", root=str(tmp_path)).fingerprint != before


def test_fingerprint_sees_the_middle_of_a_file_unless_its_record_is_of_the_first_version(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 4, "b": 4})
    large = tmp_path / "a" / "large.bmp"
    Image.fromarray(np.zeros((200, 200, 3), "uint8")).save(large)
    before = source("folder", root=str(tmp_path))
    first = before.first_fingerprint()
    assert before.fingerprint.startswith("2-")
    assert len(first) == 16
    assert before.has_fingerprint(before.fingerprint)
    assert before.has_fingerprint(first)
    content = bytearray(large.read_bytes())
    content[60_000] ^= 1
    large.write_bytes(content)
    after = source("folder", root=str(tmp_path))
    assert not after.has_fingerprint(before.fingerprint)
    assert after.has_fingerprint(first)
    large.unlink()
    assert not source("folder", root=str(tmp_path)).has_fingerprint(first)


def test_fingerprint_of_the_first_version_is_what_it_was(tmp_path: Path) -> None:
    # Told by the program that made such fingerprints.
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(bytes([number, ord(name)]) * 20_000 * number + b"end")
    found = source("folder", root=str(tmp_path))
    assert found.has_fingerprint("8f64da74fa0f1348")
    assert not found.has_fingerprint("0123456789abcdef")
    digits = source("digits")
    assert digits.has_fingerprint("8ea59edcd269805f")


def test_files_of_the_same_size_and_time_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, cache = plant(tmp_path / "photos", {"a": 4, "b": 4}), tmp_path / "cache"
    for path in photos.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    read: list[Path] = []
    whole = fingerprint._whole
    monkeypatch.setattr(fingerprint, "_whole", lambda path: (read.append(path), whole(path))[1])
    component = Component(path="data.folder", name="folder", args={"root": str(photos)})
    first = describe(component, cache).fingerprint
    assert len(read) == 8
    assert describe(component, cache).fingerprint == first
    assert len(read) == 8
    changed = next(photos.rglob("*.*"))
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert describe(component, cache).fingerprint != first
    assert read[8:] == [changed]
    # It has changed within the last seconds, and might again within one tick.
    assert describe(component, cache).fingerprint
    assert read[9:] == [changed]
    (cache / "checked-hashes.sqlite").write_bytes(b"no database" * 500)
    assert describe(component).fingerprint == describe(component, cache).fingerprint


@pytest.mark.parametrize(
    "damage", ["zeroblob(40)", "substr(digest, 1, 32)", "'x'", "7", "NULL", "x'00' || digest", "another"]
)
def test_damaged_row_of_the_cache_of_hashes_is_no_other_image(damage: str, tmp_path: Path) -> None:
    photos, cache = plant(tmp_path / "photos", {"a": 4, "b": 4}), tmp_path / "cache"
    for path in photos.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    component = Component(path="data.folder", name="folder", args={"root": str(photos)})
    first = describe(component, cache).fingerprint
    value = "(SELECT digest FROM files ORDER BY path DESC LIMIT 1)" if damage == "another" else damage
    with closing(sqlite3.connect(cache / "checked-hashes.sqlite")) as memory, memory:
        where = "WHERE path = (SELECT path FROM files ORDER BY path LIMIT 1)"
        assert memory.execute(f"UPDATE files SET digest = {value} {where}").rowcount == 1  # noqa: S608
    assert describe(component, cache).fingerprint == first


def test_fingerprint_sees_both_ends_of_a_large_file(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3})
    photo = tmp_path / "a/000.png"
    noise(1, 200, 200).save(photo)
    content = photo.read_bytes()
    assert len(content) > 40_000
    prints = set()
    for place in (0, -1):
        changed = bytearray(content)
        changed[place] ^= 1
        photo.write_bytes(changed)
        prints.add(source("folder", root=str(tmp_path)).fingerprint)
    photo.write_bytes(content)
    assert len(prints | {source("folder", root=str(tmp_path)).fingerprint}) == 3


# ---------------------------------------------------------------------------------------------- decoding


def test_decode_keeps_pixels_of_the_right_size() -> None:
    image = noise(0, 16, 16)
    np.testing.assert_array_equal(decode(image, 16, 3), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 47), (16, 90)])
def test_decode_resizes_and_crops_like_torchvision(shape: tuple[int, int]) -> None:
    height, width = shape
    image = noise(0, height // 8, width // 8).resize((width * 3, height * 3), Image.Resampling.BICUBIC)
    reference = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(24)])(image)
    # torchvision rounds the longer side and the crop to whole pixels, we do not: half a pixel apart at most.
    apart = decode(image, 24, 3).astype(int) - np.asarray(reference).transpose(2, 0, 1)
    shifted = np.abs(np.diff(decode(image, 24, 3).astype(int), axis=1 if height > width else 2))
    assert np.abs(apart).mean() <= 0.6 * shifted.mean() + 0.5


def test_decode_of_a_square_equals_torchvision() -> None:
    image = noise(0, 50, 50)
    reference = np.asarray(transforms.Resize(24)(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(image, 24, 3), reference)


def test_decode_of_a_line_and_of_a_dot() -> None:
    assert decode(noise(0, 1, 3000), 8, 3).shape == (3, 8, 8)
    assert decode(noise(0, 1, 2), 8, 1).shape == (1, 8, 8)


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Image.Image:
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        opened.load()
    return Image.open(tmp_path / name)


def test_gray_becomes_colour_and_colour_gray() -> None:
    gray, colour = noise(0, 8, 8, 1), noise(0, 8, 8)
    np.testing.assert_array_equal(decode(gray, 8, 3), np.repeat(np.asarray(gray)[None], 3, axis=0))
    np.testing.assert_array_equal(decode(colour, 8, 1)[0], np.asarray(colour.convert("L")))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 4, 8))
    for name, image in {"rgba.png": clear, "p.png": clear.quantize(16), "rgba.gif": clear}.items():
        with saved(tmp_path, image, name) as opened:
            pixels = decode(opened, 8, 3)
        assert pixels[:, :, 0].tolist() == [[255] * 8] * 3, name
        assert pixels[:, 0, 7].tolist() == [255, 0, 0], name
    assert decode(clear.convert("LA"), 8, 1)[0, 0].tolist() == [255] * 4 + [76] * 4


def test_transparent_level_of_sixteen_bit_gray_becomes_white(tmp_path: Path) -> None:
    wide = np.array([[300, 257], [32768, 65535]], dtype=np.uint16)
    with saved(tmp_path, Image.fromarray(wide), "deep.png", transparency=300) as opened:
        assert decode(opened, 2, 1).tolist() == [[[255, 1], [128, 255]]]


def test_lab_becomes_gray_as_its_rgb_does(tmp_path: Path) -> None:
    with saved(tmp_path, Image.new("LAB", (4, 4), (120, 20, 230)), "lab.tif") as opened:
        colour = decode(opened, 4, 3)
    with Image.open(tmp_path / "lab.tif") as opened:
        gray = decode(opened, 4, 1)
    np.testing.assert_array_equal(gray[0], np.asarray(Image.fromarray(colour.transpose(1, 2, 0)).convert("L")))


def test_palette_is_looked_up_before_resizing(tmp_path: Path) -> None:
    # Between entries 0 and 2 there is a gray, between their numbers a green.
    image = Image.new("P", (8, 8))
    image.putdata([0, 2] * 32)
    image.putpalette([0, 0, 0, 10, 200, 30, 255, 255, 255])
    with saved(tmp_path, image, "p.png") as opened:
        middle = decode(opened, 4, 3)[:, 1, 1].tolist()
    assert len(set(middle)) == 1
    assert 60 < middle[0] < 195


def test_palette_with_transparency_bytes_gives_no_warning(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    with saved(tmp_path, image, "p.png", transparency=bytes([0, 255])) as opened:
        assert decode(opened, 8, 3)[:, 0, 0].tolist() == [10, 200, 30]


def test_cmyk(tmp_path: Path) -> None:
    with saved(tmp_path, Image.new("RGB", (8, 8), (200, 40, 90)).convert("CMYK"), "cmyk.jpg", quality=100) as opened:
        assert opened.mode == "CMYK"
        assert np.abs(decode(opened, 8, 3)[:, 0, 0].astype(int) - [200, 40, 90]).max() < 4


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    wide = np.array([[0, 257], [32768, 65535]], dtype=np.uint16)
    with saved(tmp_path, Image.fromarray(wide), name) as opened:
        assert decode(opened, 2, 1).tolist() == [[[0, 1], [128, 255]]]


def test_black_and_white(tmp_path: Path) -> None:
    with saved(tmp_path, Image.new("1", (4, 4), 1), "bw.png") as opened:
        assert decode(opened, 4, 1).min() == 255


def test_floats_are_refused() -> None:
    with refused(DataError, "floats", "8- or 16-bit"):
        decode(Image.new("F", (4, 4)), 4, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    image = noise(0, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with saved(tmp_path, image, "turned.png", exif=exif) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened)).transpose(2, 0, 1)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(decode(opened, 8, 3), upright)
    assert (orientation == 1) == np.array_equal(upright, np.asarray(image).transpose(2, 0, 1))


def test_animation_counts_by_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "film.gif") as opened:
        assert opened.n_frames == 2
        assert decode(opened, 8, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_large_jpegs_are_decoded_at_a_fraction_and_look_the_same(tmp_path: Path) -> None:
    image = noise(0, 8, 8).resize((800, 600), Image.Resampling.BICUBIC)
    image.save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as opened:
        small = decode(opened, 32, 3)
        assert opened.width < 800
    with Image.open(tmp_path / "large.jpg") as opened:
        opened.load()
        whole = decode(opened, 32, 3)
    assert np.abs(small.astype(int) - whole).mean() < 1


# ---------------------------------------------------------------------------------------------- native shape


def test_native_shape() -> None:
    assert native_shape(source("digits")) == (8, 1)


def test_native_shape_of_mixed_modes_is_colour(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3})
    assert native_shape(source("folder", root=str(tmp_path))) == (12, 3)
    for file in tmp_path.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert native_shape(source("folder", root=str(tmp_path))) == (12, 1)
    for file in (tmp_path / "a").iterdir():
        noise(0).save(file)
    assert native_shape(source("folder", root=str(tmp_path))) == (12, 3)


def test_native_shape_is_the_median_side_where_sizes_differ_or_are_not_square(tmp_path: Path) -> None:
    plant(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1})
    noise(0, 20, 20).save(tmp_path / "test/a/000.png")
    assert native_shape(source("folder", root=str(tmp_path))) == (12, 3)
    noise(0, 20, 30).save(tmp_path / "train/a/000.png")
    # One odd image among those of 12 pixels changes nothing.
    assert native_shape(source("folder", root=str(tmp_path))) == (12, 3)
    for file in (tmp_path / "train").rglob("*.png"):
        noise(0, 20, 30).save(file)
    assert native_shape(source("folder", root=str(tmp_path))) == (20, 3)


def test_native_shape_names_a_file_that_is_no_image(tmp_path: Path) -> None:
    plant(tmp_path, {"a": 3, "b": 3, "c": 3})
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(b"not an image")
    with refused(DataError, "cannot read 2 of 6", "b/000.png", "not an image"):
        native_shape(source("folder", root=str(tmp_path)))


# ---------------------------------------------------------------------------------------------- the store


@pytest.fixture(scope="module")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Prepared]:
    digits = source("digits")
    return digits, prepare(digits, image_size=8, channels=1, cache=tmp_path_factory.mktemp("cache"))


def test_prepared_describes_the_data(digits_store: tuple[Source, Prepared]) -> None:
    digits, prepared = digits_store
    images = load(prepared, "train")
    assert prepared.counts == {"train": 1222, "val": 216, "test": 359}
    assert prepared.class_counts == tuple(np.bincount(images.labels).tolist())
    np.testing.assert_allclose(prepared.mean, images.pixels.mean(axis=(0, 2, 3)) / 255)
    np.testing.assert_allclose(prepared.std, images.pixels.std(axis=(0, 2, 3)) / 255)
    assert prepared.fingerprint == digits.fingerprint
    assert Prepared.from_dict(prepared.to_dict()) == prepared


@pytest.mark.parametrize("split", ["train", "val"])
def test_loaded_images_are_the_source_s(digits_store: tuple[Source, Prepared], split: str) -> None:
    digits, prepared = digits_store
    images = load(prepared, split)  # type: ignore[arg-type]
    assert isinstance(images.pixels, np.memmap)
    assert not images.pixels.flags.writeable
    assert (images.pixels.dtype, images.labels.dtype) == (np.uint8, np.int64)
    assert images.names == digits.names[split]  # type: ignore[index]
    np.testing.assert_array_equal(images.labels, digits.labels[split])  # type: ignore[index]
    for index in (0, 100, len(images.names) - 1):
        np.testing.assert_array_equal(images.pixels[index, 0], digits.read(split, index))  # type: ignore[arg-type]


def test_statistics_of_colours(tmp_path: Path) -> None:
    photos = source("folder", root=str(plant(tmp_path / "data", {"a": 4, "b": 4})))
    prepared = prepare(photos, image_size=12, channels=3, cache=tmp_path / "cache")
    pixels = load(prepared, "train").pixels / 255
    np.testing.assert_allclose(prepared.mean, pixels.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(prepared.std, pixels.std(axis=(0, 2, 3)))


def test_images_of_one_colour_have_a_std_to_divide_by(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 7).save(tmp_path / f"{name}.png")
    prepared = prepare(source("folder", root=str(tmp_path)), image_size=4, channels=1, cache=tmp_path / ".cache")
    assert prepared.std == pytest.approx((1 / 255,))


def files(prepared: Prepared) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in Path(prepared.folder).iterdir()}


def test_second_prepare_decodes_nothing(tmp_path: Path) -> None:
    digits, calls = source("digits", max_train=50), []
    first = prepare(digits, image_size=8, channels=1, cache=tmp_path, progress=lambda *call: calls.append(call))
    written = files(first)
    assert calls[-1] == (266, 266)
    assert calls == sorted(calls)
    again = prepare(source("digits", max_train=50), image_size=8, channels=1, cache=tmp_path)
    assert (again, files(again)) == (first, written)


def test_other_splits_sizes_and_channels_have_stores_of_their_own(tmp_path: Path) -> None:
    folders = {
        prepare(source("digits", **args), image_size=size, channels=channels, cache=tmp_path).folder
        for args, size, channels in [
            ({"max_train": 20}, 8, 1),
            ({"max_train": 20}, 4, 1),
            ({"max_train": 20}, 8, 3),
            ({"max_train": 21}, 8, 1),
            ({"max_train": 20, "split_seed": 1}, 8, 1),
        ]
    }
    assert len(folders) == 5


@pytest.mark.parametrize(
    "damage",
    [
        *("truncated", "flipped", "missing", "no meta", "meta is no JSON", "left half-done"),
        *("meta has another mean", "meta has other files", "meta is of an earlier version", "meta is a folder"),
    ],
)
def test_damaged_store_is_rebuilt(tmp_path: Path, damage: str) -> None:
    digits = source("digits", max_train=20)
    prepared = prepare(digits, image_size=8, channels=1, cache=tmp_path)
    sound = load(prepared, "train").pixels.copy()
    file, meta = Path(prepared.folder) / "train.images.npy", Path(prepared.folder) / "meta.json"
    content = bytearray(file.read_bytes())
    match damage:
        case "truncated":
            file.write_bytes(content[:-100])
        case "flipped":
            content[-1] ^= 255
            file.write_bytes(content)
        case "missing":
            file.unlink()
        case "no meta":
            meta.unlink()
        case "meta is no JSON":
            meta.write_text("{")
        case "left half-done":
            Path(prepared.folder).rename(f"{prepared.folder}.partial")
        case "meta has another mean":
            meta.write_text(meta.read_text().replace(repr(prepared.mean[0]), "0.5", 1))
        case "meta has other files":
            meta.write_text(json.dumps({**json.loads(meta.read_text()), "files": {}}))
        case "meta is of an earlier version":
            known = json.loads(meta.read_text())
            meta.write_text(json.dumps({name: known[name] for name in ("files", "facts")}))
            before = meta.stat().st_mtime_ns
        case "meta is a folder":
            meta.unlink()
            meta.mkdir()
    assert prepare(digits, image_size=8, channels=1, cache=tmp_path) == prepared
    np.testing.assert_array_equal(load(prepared, "train").pixels, sound)
    if damage == "meta is of an earlier version":
        assert meta.stat().st_mtime_ns == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("channels", True), ("unreadable", {"a": 1}), ("image_size", 10**400), ("class_counts", "12")],
        *[("blank_for_example", "a.png"), ("folds", {}), ("mean", {"0.5": 1})],
    ],
)
def test_values_that_no_program_writes_describe_no_images(tmp_path: Path, name: str, value: object) -> None:
    known = prepare(source("digits", max_train=20), image_size=8, channels=1, cache=tmp_path).to_dict()
    assert Prepared.from_dict(known).to_dict() == known
    with pytest.raises((ValueError, TypeError)):
        Prepared.from_dict({**known, name: value})


def test_load_says_when_the_store_is_damaged(tmp_path: Path) -> None:
    prepared = prepare(source("digits", max_train=20), image_size=8, channels=1, cache=tmp_path)
    archive = io.BytesIO()
    np.savez(archive, a=np.arange(3))
    kept = len(load(prepared, "val").names)
    for name in ("images.npy", "labels.npy", "names.json"):
        file = Path(prepared.folder) / f"val.{name}"
        content = file.read_bytes()
        others = [b"", b"PK\x03\x04", archive.getvalue(), b"7", b"null", b'"x"', b"[" * 5000, b"[[1]]", b"\xff\xfe"]
        # NumPy parses the header of an array as Python code.
        headers = [content.replace(brace, b" ", 1) for brace in (b"(", b")", b"{") if name.endswith(".npy")]
        for other in (content[:-1], content[:50], content[1:], *headers, *others):
            file.write_bytes(other)
            with refused(DataError, "val images", "run again"):
                load(prepared, "val")
        file.unlink()
        file.mkdir()
        with refused(DataError, "val images", "run again"):
            load(prepared, "val")
        file.rmdir()
        file.write_bytes(content)
        assert len(load(prepared, "val").names) == kept
    assert len(load(prepared, "train").names) == 20


def test_two_processes_decode_once(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from imgcls_search.config import Component
from imgcls_search.data import describe, prepare
source = describe(Component(path="data.digits", name="digits", args={}))
print(prepare(source, image_size=8, channels=1, cache=Path(sys.argv[1]), progress=lambda *_: print("decoding")).folder)
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate()[0].splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sorted("decoding" in output for output in outputs) == [False, True]


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "wrong extension's content is fine"])
def test_corrupt_images_are_all_named_and_nothing_is_kept(tmp_path: Path, damage: str) -> None:
    plant(tmp_path / "data", {"a": 5, "b": 5}, ".jpg")
    for file in (tmp_path / "data/a/000.jpg", tmp_path / "data/b/003.jpg"):
        match damage:
            case "empty":
                file.write_bytes(b"")
            case "text":
                file.write_text("<html>404</html>")
            case "truncated":
                file.write_bytes(file.read_bytes()[:-100])
            case _:
                noise(0).save(file, format="PNG")
    photos = source("folder", root=str(tmp_path / "data"))
    request = {"image_size": 12, "channels": 3, "cache": tmp_path / "cache"}
    if damage.endswith("fine"):
        prepare(photos, **request)  # type: ignore[arg-type]
        return
    damaged = {"a/000.jpg", "b/003.jpg"} - set(photos.names["test"])
    with refused(DataError, f"data.folder: {tmp_path / 'data'}", f"{len(damaged)} of 8 images", *damaged):
        prepare(photos, **request)  # type: ignore[arg-type]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_of_many_corrupt_images_ten_are_named(tmp_path: Path) -> None:
    plant(tmp_path / "data", {"train/a": 9, "train/b": 9, "test/a": 1}, ".gif")
    for file in (tmp_path / "data/train").rglob("*.gif"):
        file.write_bytes(b"GIF89a")
    photos = source("folder", root=str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"18 of 18 images.* and 8 more$") as caught:
        prepare(photos, image_size=8, channels=1, cache=tmp_path / "cache")
    assert str(caught.value).count(".gif (") == 10


def huge_png(width: int, height: int) -> bytes:
    """Return the head of a PNG file that claims a size and has no pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_by_name(tmp_path: Path) -> None:
    plant(tmp_path / "data", {"train/a": 3, "train/b": 3, "test/a": 1})
    (tmp_path / "data/train/a/001.png").write_bytes(huge_png(20_000, 10_001))
    limit = Image.MAX_IMAGE_PIXELS
    photos = source("folder", root=str(tmp_path / "data"))
    with refused(DataError, "1 of 6", "train/a/001.png", "20000x10001", "200 megapixels"):
        prepare(photos, image_size=8, channels=1, cache=tmp_path / "cache")
    with refused(DataError, "train/a/001.png", "200 megapixels"):
        native_shape(photos)
    (tmp_path / "data/train/a/001.png").write_bytes(huge_png(10_000, 10_000))
    # Large, and allowed: its header is read, and it is one odd size among others.
    assert native_shape(photos) == (12, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_impossible_shapes_are_refused(tmp_path: Path) -> None:
    with refused(BuildError, "image.channels: 4", "allowed: 1, 3"):
        prepare(source("digits"), image_size=8, channels=4, cache=tmp_path)
    with refused(BuildError, "image.size: 0"):
        prepare(source("digits"), image_size=0, channels=1, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with refused(DataError, "decoded images cannot be kept there"):
        prepare(source("digits"), image_size=8, channels=1, cache=tmp_path / "cache")


def test_a_store_larger_than_the_disk_is_refused_before_decoding(tmp_path: Path) -> None:
    with refused(DataError, "decoded images need", "GB, but only"):
        prepare(source("digits"), image_size=200_000, channels=3, cache=tmp_path)


# ---------------------------------------------------------------------------------------------- the sealed split


def test_test_split_is_opened_on_request(digits_store: tuple[Source, Prepared]) -> None:
    digits, prepared = digits_store
    assert not list(Path(prepared.folder).glob("test*"))
    images = open_test(digits, prepared)
    assert images.names == digits.names["test"]
    assert images.pixels.shape == (359, 1, 8, 8)
    np.testing.assert_array_equal(images.labels, digits.labels["test"])
    np.testing.assert_array_equal(images.pixels[7, 0], digits.read("test", 7))
    with refused(DataError, "missing or damaged"):
        load(prepared, "test")  # type: ignore[arg-type]


def test_test_images_are_decoded_by_open_test_alone(tmp_path: Path) -> None:
    plant(tmp_path / "data", {"train/a": 4, "train/b": 4, "test/a": 2})
    (tmp_path / "data/test/a/001.png").write_bytes(b"damaged")
    photos = source("folder", root=str(tmp_path / "data"))
    assert native_shape(photos) == (12, 3)
    prepared = prepare(photos, image_size=12, channels=3, cache=tmp_path / "cache")
    with refused(DataError, "1 of 2 images", "test/a/001.png (not an image)"):
        open_test(photos, prepared)


def test_open_test_refuses_other_data_and_other_splits(digits_store: tuple[Source, Prepared]) -> None:
    _, prepared = digits_store
    for other in (source("digits", split_seed=1), source("digits", test=0.3)):
        with refused(DataError, "data.digits", "have changed since"):
            open_test(other, prepared)


# ---------------------------------------------------------------------------------------------- torchvision's sets


def test_every_set_by_name_is_one_of_torchvision_s() -> None:
    (allowed,) = [signature.read(DATASETS["torchvision"]).fields["name"]]
    assert isinstance(allowed, signature.Leaf)
    assert set(allowed.literals) == set(SPLITS)
    assert all(issubclass(getattr(datasets, name), datasets.VisionDataset) for name in SPLITS)


def test_unknown_set_is_answered_with_the_known_ones() -> None:
    with refused(BuildError, "data.torchvision.name: 'FashonMNIST'", "did you mean 'FashionMNIST'?", "CIFAR100"):
        source("torchvision", name="FashonMNIST")


def test_missing_cifar10_says_what_to_do(tmp_path: Path) -> None:
    with refused(DataError, f"no complete copy in {tmp_path}", "download: true", "cifar-10-batches-py"):
        source("cifar10", root=str(tmp_path))


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_missing_set_says_what_to_do(tmp_path: Path, name: str) -> None:
    with refused(DataError, f"data.torchvision: {name}: no complete copy in {tmp_path}", "download: true"):
        source("torchvision", name=name, root=str(tmp_path))


@pytest.mark.parametrize(("name", "args"), [("cifar10", {}), ("torchvision", {"name": "MNIST"})])
def test_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, args: dict[str, str]
) -> None:
    # Nothing listens on port 9, so that the download fails with a network and without one.
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # urllib keeps the proxies that its first request saw: neither this test nor the next may meet the other's.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with refused(DataError, f"cannot be fetched into {tmp_path}", "refused", "connect to a network"):
        source(name, root=str(tmp_path), download=True, **args)


class Exploit:
    """Unpickling one writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_tampered_cifar10_is_not_unpickled(tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (batches / name).write_bytes(pickle.dumps(Exploit(tmp_path / "owned")))
    with refused(DataError, "no complete copy"):
        source("cifar10", root=str(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_cifar10_is_read_as_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The format is real, only small; so torchvision gets the checksums of these files instead of the true ones.
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)

    def write(name: str, content: object) -> str:
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324 - the checksum that torchvision uses

    def batch(part: slice) -> dict[str, object]:
        return {"data": pixels[part].reshape(-1, 3072), "labels": [item % 10 for item in range(60)][part]}

    names = [f"class {number}" for number in range(10)]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", write("data_batch_1", batch(slice(50)))]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", write("test_batch", batch(slice(50, 60)))]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)

    cifar = source("cifar10", root=str(tmp_path), val=0.2)
    assert {split: len(found) for split, found in cifar.names.items()} == {"train": 40, "val": 10, "test": 10}
    assert cifar.names["test"] == tuple(f"test/{number}" for number in range(10))
    assert cifar.classes == tuple(names)
    assert cifar.name == "cifar10"
    assert native_shape(cifar) == (32, 3)
    images = load(prepare(cifar, image_size=32, channels=3, cache=tmp_path / "cache"), "val")
    for name, image, label in zip(images.names, images.pixels, images.labels, strict=True):
        number = int(name.removeprefix("train/"))
        assert label == number % 10
        np.testing.assert_array_equal(image, pixels[number])


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(head + array.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())


def test_mnist_is_read_as_it_lies(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
    labels = np.arange(50, dtype=np.uint8) % 10
    raw = tmp_path / "MNIST/raw"
    for name, part in {"train": slice(40), "t10k": slice(40, 50)}.items():
        write_idx(raw / f"{name}-images-idx3-ubyte", pixels[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels[part])
    mnist = source("torchvision", name="MNIST", root=str(tmp_path), val=0.25)
    assert {split: len(found) for split, found in mnist.names.items()} == {"train": 30, "val": 10, "test": 10}
    assert mnist.classes[3] == "3 - three"
    assert native_shape(mnist) == (28, 1)
    np.testing.assert_array_equal(mnist.read("test", 4), pixels[44])
    assert mnist.labels["test"].tolist() == labels[40:].tolist()


def test_gtsrb_is_read_from_its_files(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    plant(base / "GTSRB/Training", {"00000": 4, "00001": 4}, ".ppm")
    plant(base / "GTSRB/Final_Test/Images", {".": 3}, ".ppm")
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n000.ppm;1\n001.ppm;0\n002.ppm;1\n")
    signs = source("torchvision", name="GTSRB", root=str(tmp_path), val=0.25)
    assert {split: len(found) for split, found in signs.names.items()} == {"train": 6, "val": 2, "test": 3}
    assert signs.labels["test"].tolist() == [1, 0, 1]
    assert signs.names["test"][1] == "gtsrb/GTSRB/Final_Test/Images/001.ppm"
    assert native_shape(signs) == (12, 3)


def test_dtd_brings_its_own_val(tmp_path: Path) -> None:
    base = tmp_path / "dtd/dtd"
    plant(base / "images", {"banded": 4, "woven": 4}, ".jpg")
    (base / "labels").mkdir()
    for split, numbers in {"train1": (0, 1), "val1": (2,), "test1": (3,)}.items():
        lines = [f"{name}/{number:03}.jpg" for name in ("banded", "woven") for number in numbers]
        (base / "labels" / f"{split}.txt").write_text("\n".join(lines))
    textures = source("torchvision", name="DTD", root=str(tmp_path))
    assert textures.classes == ("banded", "woven")
    assert textures.names["val"] == ("dtd/dtd/images/banded/002.jpg", "dtd/dtd/images/woven/002.jpg")
    assert textures.labels["train"].tolist() == [0, 0, 1, 1]
    assert textures.labels["test"].tolist() == [0, 1]


def test_images_over_the_bound_are_decoded_where_they_are_indexed(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    component = Component(path="data.folder", name="folder", args={"root": str(photos)})
    kept = prepare(describe(component), image_size=12, channels=3, cache=tmp_path / "kept")
    streamed = prepare(
        describe(component), image_size=12, channels=3, cache=tmp_path / "none", most_bytes=100, origin=component
    )
    assert streamed.streamed_from == {"name": "folder", "args": {"root": str(photos)}}
    assert (streamed.mean, streamed.std, streamed.counts) == (kept.mean, kept.std, kept.counts)
    assert sum(stored(tmp_path / "none").values()) < kept.num_bytes
    streamed = Prepared.from_dict(json.loads(json.dumps(streamed.to_dict())))
    for split in ("train", "val"):
        theirs, ours = load(kept, split), load(streamed, split)
        assert np.array_equal(ours.labels, theirs.labels)
        index = np.arange(len(theirs.labels))[::-1]
        assert np.array_equal(ours.pixels[index], theirs.pixels[index])
    both = load(streamed, "train").pixels.joined(load(streamed, "val").pixels)
    assert len(both) == kept.counts["train"] + kept.counts["val"]
    # Another prepare with room keeps the pixels; the seal works in both ways.
    again = prepare(describe(component), image_size=12, channels=3, cache=tmp_path / "none", origin=component)
    assert again.streamed_from is None
    sealed = open_test(describe(component), streamed).pixels
    assert np.array_equal(sealed[np.arange(len(sealed))], open_test(describe(component), kept).pixels)


def test_streamed_image_that_breaks_later_is_named(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    component = Component(path="data.folder", name="folder", args={"root": str(photos)})
    streamed = prepare(
        describe(component), image_size=12, channels=3, cache=tmp_path / "none", most_bytes=100, origin=component
    )
    pixels = load(streamed, "train").pixels
    victim = photos / load(streamed, "train").names[0]
    victim.write_bytes(b"gone")
    with pytest.raises(DataError, match=f"cannot read {re.escape(load(streamed, 'train').names[0])}"):
        pixels[np.arange(1)]


def test_broken_image_is_found_before_any_training_when_streaming(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    next(photos.rglob("*.png")).write_bytes(b"no image")
    component = Component(path="data.folder", name="folder", args={"root": str(photos)})
    with pytest.raises(DataError, match=r"1 of .* images cannot be read"):
        prepare(
            describe(component), image_size=12, channels=3, cache=tmp_path / "none", most_bytes=100, origin=component
        )


def write_photos(top: Path) -> Path:
    """Make a small tree of one class per folder, of images that differ."""
    random = np.random.default_rng(0)
    for number in range(24):
        path = top / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (14, 16, 3), dtype=np.uint8)).save(path)
    return top


def test_a_folder_that_another_process_deletes_is_not_counted(tmp_path: Path) -> None:
    for name in ("kept", "going"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.images.npy").write_bytes(b"1234")
    # It was there when its folder was listed.
    (tmp_path / "going" / "val.images.npy").symlink_to("deleted")
    assert stored(tmp_path) == {tmp_path / "kept": 4}
