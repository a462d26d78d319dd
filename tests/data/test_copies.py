"""Copies among images: what counts as one, and that the fast search misses none."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import imagehash
import numpy as np
import pytest
from imgcls_search.data import copies
from imgcls_search.data.copies import NEAR_BITS, UnionFind, look, near_sets, sets_of
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image


def photographs(count: int = 24, side: int = 120) -> list[Image.Image]:
    """Return parts of the two photographs that come with scikit-learn, none of which overlap."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        whole = Image.fromarray(load_sample_image(name))
        found += [
            whole.crop((x, y, x + side, y + side))
            for y in range(0, whole.height - side, side)
            for x in range(0, whole.width - side, side)
        ]
    found = [image for image in found if np.asarray(image.convert("L")).std() > 10]
    return found[:: max(1, len(found) // count)][:count]


def near(images: list[Image.Image]) -> list[list[int]]:
    """Return the sets of near-copies, flat images left out as an inspection does."""
    looks = [look(image.convert("RGB")) for image in images]
    items = np.array([number for number, each in enumerate(looks) if not each.is_flat])
    hashes = np.array([looks[item].hash for item in items], dtype=np.uint64)
    shades = np.stack([looks[item].shades for item in items]) if len(items) else np.zeros((0, 256), np.uint8)
    return near_sets(hashes, shades, items, count=len(images))[0]


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=40)
    return Image.open(file).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG": as_jpeg,
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "double size": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_photograph_that_was_saved_again_is_a_near_copy_and_another_one_is_not(change: str) -> None:
    originals = photographs()
    found = near([*originals, *map(CHANGES[change], originals)])
    pairs = [[number, number + len(originals)] for number in range(len(originals))]
    assert sum(pair in found for pair in pairs) >= 0.85 * len(pairs)
    assert [each for each in found if each not in pairs] == []


def test_hash_is_the_library_s() -> None:
    for image in photographs(4):
        assert f"{look(image).hash:016x}" == str(imagehash.phash(image))


def test_flat_images_are_no_copies_of_each_other() -> None:
    rng = np.random.default_rng(0)
    flat = [Image.fromarray((value + rng.integers(0, 3, (32, 32, 3))).astype("uint8")) for value in (0, 90, 90, 250)]
    assert all(look(image).is_flat for image in flat)
    assert near([*flat, Image.new("RGB", (9, 9), "white"), Image.new("RGB", (50, 9), "white")]) == []
    assert not any(look(image).is_flat for image in photographs())


def test_search_finds_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 1500, dtype=np.uint64)
    # Neighbours at every distance around the bound.
    for number in range(0, 1400, 2):
        bits = rng.choice(64, number // 100, replace=False).astype(np.uint64)
        hashes[number + 1] = (
            hashes[number] ^ np.bitwise_or.reduce(np.uint64(1) << bits) if len(bits) else hashes[number]
        )
    hashes[1400:] = hashes[1400]
    shades = np.tile(np.arange(256, dtype=np.uint8), (1500, 1))
    expected = UnionFind(1500)
    for one in range(1500):
        distance = [int(word).bit_count() for word in (hashes[one] ^ hashes[one + 1 :]).tolist()]
        near_ones = [one + 1 + place for place, bits_apart in enumerate(distance) if bits_apart <= NEAR_BITS]
        expected.join_all([one] * len(near_ones), near_ones)
    found, is_cut = near_sets(hashes, shades, np.arange(1500), count=1500)
    assert found == expected.sets()
    assert len(found) >= 350
    assert not is_cut


def test_thumbnails_must_look_the_same_too() -> None:
    rng = np.random.default_rng(2)
    hashes = np.zeros(3, dtype=np.uint64)
    shades = rng.integers(0, 256, (3, 256)).astype(np.uint8)
    shades[2] = np.clip(shades[0].astype(int) // 2 + 40, 0, 255)
    assert near_sets(hashes, shades, np.arange(3), count=3)[0] == [[0, 2]]


def test_very_many_that_look_alike_are_compared_in_bounded_time_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copies, "WINDOW", 8)
    hashes = np.zeros(20_000, dtype=np.uint64)
    shades = np.tile(np.arange(256, dtype=np.uint8), (20_000, 1))
    started = time.process_time()
    found, is_cut = near_sets(hashes, shades, np.arange(20_000), count=20_000)
    # All pairs would be 200 million.
    assert time.process_time() - started < 60
    assert [len(each) for each in found] == [20_000]
    assert is_cut


def test_equal_keys_make_sets() -> None:
    assert sets_of([b"a", None, b"b", b"a", None, b"c", b"b", b"a"]) == [[0, 3, 7], [2, 6]]
    assert near_sets(np.zeros(0, np.uint64), np.zeros((0, 256), np.uint8), np.zeros(0, np.int64), count=5)[0] == []
