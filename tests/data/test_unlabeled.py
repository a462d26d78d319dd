"""Images to pretrain on: from where they come, and that no image that scores are from is one of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, describe, load, prepare
from imgcls_search.data.held_out import SAME
from imgcls_search.data.unlabeled import look_for_unlabeled, open_unlabeled
from imgcls_search.errors import DataError, UserError
from PIL import Image

SIZE = 8


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def labelled(top: Path, count: int = 12) -> Path:
    for number in range(2 * count):
        photo(top / ("cat" if number % 2 else "dog") / f"{number:02}.png", number)
    return top


def config(data: dict[str, Any], unlabeled: dict[str, Any] | None = None, **pretrain: Any) -> TrialConfig:
    tree: dict[str, Any] = {"data": data, "image": {"size": SIZE, "channels": 3, "cache_gb": 1.0}}
    if unlabeled is not None:
        tree["unlabeled"] = unlabeled
    if pretrain:
        tree["pretrain"] = {"simclr": pretrain}
    return TrialConfig.from_dict(tree)


def prepared(wanted: TrialConfig, cache: Path) -> Prepared:
    component = wanted.component("data")
    section = wanted.section("image")
    most = section["cache_gb"] * 1e9
    return prepare(
        describe(component), image_size=SIZE, channels=3, cache=cache, most_bytes=most, origin=component,
        margin=section.get("margin", 1.0),
    )  # fmt: skip


def opened(wanted: TrialConfig, cache: Path, fold: int | None = None, **how: Any) -> Any:
    return open_unlabeled(wanted, prepared(wanted, cache), cache, fold, **how)


def all_of(pixels: Any) -> Any:
    return pixels[np.arange(len(pixels))]


def test_without_a_folder_the_training_images_are_taken_as_they_are(tmp_path: Path) -> None:
    wanted = config({"folder": {"root": str(labelled(tmp_path / "photos"))}}, {"train": {}})
    found = opened(wanted, tmp_path / "cache")
    train = load(prepared(wanted, tmp_path / "cache"), "train")
    assert found.names == train.names
    assert (all_of(found.pixels) == train.pixels).all()
    assert found.left_out == {}
    # A configuration of an earlier version says nothing of it.
    assert opened(config(wanted.to_dict()["data"]), tmp_path / "cache").prints == found.prints


@pytest.mark.parametrize("folds", [None, 3])
def test_what_max_train_leaves_out_is_pretrained_on_and_nothing_of_val_and_test(
    folds: int | None, tmp_path: Path
) -> None:
    root = str(labelled(tmp_path / "photos"))
    few = {"folder": {"root": root, "max_train": 6, "folds": folds}}
    source = describe(config(few).component("data"))
    every = {str(path.relative_to(root)) for path in Path(root).rglob("*.png")}
    for fold in [None, 0, 2] if folds else [None]:
        found = opened(config(few, {"train": {}}), tmp_path / "cache", fold)
        sealed = set(source.names["test"])
        scored = {name for name, number in source.fold_of().items() if number == fold}
        held = sealed | (scored if folds else set(source.names["val"]))
        assert set(found.names) == every - held
        assert len(found.pixels) == len(found.names)
        for number in (0, len(found) - 1):
            original = np.asarray(Image.open(Path(root) / found.names[number]).convert("RGB"))
            assert abs(found.pixels[np.array([number])].mean() - original.mean()) < 12


def test_each_fold_has_images_and_prints_of_its_own(tmp_path: Path) -> None:
    wanted = config({"folder": {"root": str(labelled(tmp_path / "photos")), "folds": 3}})
    found = [opened(wanted, tmp_path / "cache", fold) for fold in (0, 1, 2, None)]
    assert len({each.prints for each in found}) == 4
    assert sum(len(each) for each in found[:3]) == 2 * len(found[3])


@pytest.mark.parametrize("folds", [None, 3])
@pytest.mark.parametrize("copied", ["file", "pixels"])
def test_copies_of_validation_and_test_images_in_a_folder_take_no_part(
    folds: int | None, copied: str, tmp_path: Path
) -> None:
    root = labelled(tmp_path / "photos")
    data = {"folder": {"root": str(root), "folds": folds}}
    source = describe(config(data).component("data"))
    pool = tmp_path / "pool"
    for number in range(10):
        photo(pool / "deep" / "er" / f"{number}.png", 1000 + number)
    photo(pool / "flat.png", 2000)
    fold = 1 if folds else None
    scored = [name for name, number in source.fold_of().items() if number == fold] or list(source.names["val"])
    others = [name for name in source.names["train"] if name not in scored]
    for split, names in {"scored": scored, "test": source.names["test"], "train": others}.items():
        for number, name in enumerate(names[:2]):
            target = pool / f"copy-{split}-{number}"
            if copied == "file":
                shutil.copy(root / name, target.with_suffix(".png"))
            else:
                Image.open(root / name).save(target.with_suffix(".bmp"))
    found = opened(config(data, {"folder": {"root": str(pool)}}), tmp_path / "cache", fold)
    kept = {name for name in found.names if name.startswith("copy")}
    assert {name.split(".")[0] for name in kept} == {"copy-train-0", "copy-train-1"}
    assert len(found) == len(found.pixels) == 13
    kind = "images of the fold that is scored" if folds else "validation images"
    assert found.left_out == {kind: 2, "test images": 2}
    (line,) = found.lines()
    assert "pretrains on 13 images" in line
    assert "left out 2: test images" in line


def test_a_folder_is_decoded_once_and_is_the_same_elsewhere(tmp_path: Path) -> None:
    data = {"folder": {"root": str(labelled(tmp_path / "photos"))}}
    pool = labelled(tmp_path / "pool", 6)
    first = opened(config(data, {"folder": {"root": str(pool)}}), tmp_path / "cache")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    shutil.copytree(pool, tmp_path / "moved")
    again = opened(config(data, {"folder": {"root": str(tmp_path / "moved")}}), tmp_path / "cache")
    assert again.prints == first.prints
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == kept
    photo(tmp_path / "moved" / "new.png", 77)
    # A process looks at a folder once for each job; another job sees the new image.
    assert (
        opened(config(data, {"folder": {"root": str(tmp_path / "moved")}}), tmp_path / "cache").prints != first.prints
    )


def test_a_damaged_note_of_copies_is_made_again(tmp_path: Path) -> None:
    data = {"folder": {"root": str(labelled(tmp_path / "photos"))}}
    wanted = config(data, {"folder": {"root": data["folder"]["root"]}})
    first = opened(wanted, tmp_path / "cache")
    (mark,) = (tmp_path / "cache").glob(f"*{SAME}")
    whole = mark.read_bytes()
    another = whole.replace(b'"same": {', b'"same": {"0": ["x"], ', 1)
    for text in (b"{", b"", b"\xff", b"null", b"{}", b'{"same": {}}', b"[" * 5000, another):
        mark.write_bytes(text)
        assert opened(wanted, tmp_path / "cache").names == first.names
        assert mark.read_bytes() == whole
    assert set(first.names).isdisjoint(describe(wanted.component("data")).names["test"])


def test_max_draws_the_same_images_each_time(tmp_path: Path) -> None:
    data = {"folder": {"root": str(labelled(tmp_path / "photos"))}}
    pool = tmp_path / "pool"
    for number in range(20):
        photo(pool / f"{number}.png", 1000 + number)
    wanted = config(data, {"folder": {"root": str(pool), "max": 7}})
    names = [opened(wanted, tmp_path / f"cache-{number}").names for number in range(2)]
    assert names[0] == names[1]
    assert len(names[0]) == 7
    assert look_for_unlabeled(wanted) == 7


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_margins_are_there_to_be_cut_from(cache_gb: float, tmp_path: Path) -> None:
    root = str(labelled(tmp_path / "photos"))
    for unlabeled in ({"train": {}}, {"folder": {"root": root}}):
        tree = config({"folder": {"root": root}}, unlabeled).to_dict()
        tree["image"] |= {"margin": 1.5, "cache_gb": cache_gb}
        wanted = TrialConfig.from_dict(tree)
        middle, whole = (opened(wanted, tmp_path / "cache", whole=is_whole) for is_whole in (False, True))
        assert middle.pixels.shape[1:] == (3, 8, 8)
        assert whole.pixels.shape[1:] == (3, 12, 12)
        assert middle.names == whole.names
        assert (all_of(whole.pixels)[..., 2:10, 2:10] == all_of(middle.pixels)).all()


def test_images_in_memory_are_compared_by_their_pixels(tmp_path: Path) -> None:
    data = {"digits": {"max_train": 100}}
    tree = {"data": data, "image": {"size": 8, "channels": 1, "cache_gb": 1.0}}
    source = describe(TrialConfig.from_dict(tree).component("data"))
    pool = tmp_path / "pool"
    pool.mkdir()
    for split in ("train", "val", "test"):
        for number in range(5):
            source.read(split, number).save(pool / f"{split}-{number}.png")  # type: ignore[arg-type]
    wanted = TrialConfig.from_dict({**tree, "unlabeled": {"folder": {"root": str(pool)}}})
    ready = prepare(source, image_size=8, channels=1, cache=tmp_path / "cache")
    found = open_unlabeled(wanted, ready, tmp_path / "cache")
    assert found.names == tuple(f"train-{number}.png" for number in range(5))
    assert found.left_out == {"validation images": 5, "test images": 5}
    every = open_unlabeled(TrialConfig.from_dict(tree), ready, tmp_path / "cache")
    assert len(every) == len(describe(TrialConfig.from_dict({"data": {"digits": {}}}).component("data")).names["train"])


BAD = {
    "missing": "does not exist; allowed: a folder of images",
    "file": "is not a folder; allowed: a folder of images",
    "empty": "no image in it; allowed: files ending in",
    "notes only": "no image in it; allowed: files ending in",
    "test": "holds the test images of data.folder; allowed: other images",
    "in test": "holds the test images of data.folder; allowed: other images",
    "val": "holds the val images of data.folder; allowed: other images",
    "copy of test": "no image is left to pretrain on (8 test images); allowed: other images",
    "few": "7 images to pretrain on, fewer than two batches of 4; allowed: at least 8 images, or "
    "pretrain.simclr.batch_size of at most 3",
    "few but copies": "4 images to pretrain on (left out: 8 test images), fewer than two batches of 4",
    "broken link": "1 broken link: 'gone.png'",
    "damaged": "1 of 9 images cannot be read: damaged.png (not an image); fix or delete them, or leave them out with "
    "--skip-unreadable",
    "variable": "the environment variable IMGCLS_NOWHERE is not set",
}


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_folder_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        labelled(tmp_path / "photos" / split, 4)
        for number, path in enumerate(sorted((tmp_path / "photos" / split).rglob("*.png"))):
            photo(path, hash_of(split) + number)
    data = {"folder": {"root": str(tmp_path / "photos")}}
    pool = tmp_path / "pool"
    pool.mkdir()
    root = str(pool)
    match case:
        case "missing":
            root = str(tmp_path / "nowhere")
        case "file":
            root = str(tmp_path / "photos" / "train" / "cat" / "01.png")
        case "notes only":
            (pool / "notes.txt").write_text("none")
            (pool / ".hidden.png").write_bytes(b"")
        case "test" | "val":
            root = str(tmp_path / "photos" / case)
        case "in test":
            root = str(tmp_path / "photos" / "test" / "cat")
        case "copy of test":
            shutil.copytree(tmp_path / "photos" / "test", pool / "copy")
        case "few" | "few but copies":
            for number in range(7 if case == "few" else 4):
                photo(pool / f"{number}.png", 5000 + number)
            if case == "few but copies":
                shutil.copytree(tmp_path / "photos" / "test", pool / "copy")
        case "broken link":
            (pool / "gone.png").symlink_to(pool / "nothing.png")
        case "damaged":
            for number in range(8):
                photo(pool / f"{number}.png", 5000 + number)
            (pool / "damaged.png").write_bytes(b"nothing")
        case "variable":
            root = "${IMGCLS_NOWHERE}/pool"
    wanted = config(data, {"folder": {"root": root}}, batch_size=4)
    early = case not in ("copy of test", "few but copies", "damaged")
    with pytest.raises(UserError) as caught:
        look_for_unlabeled(wanted) if early else opened(wanted, tmp_path / "cache")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("unlabeled.folder")
    assert BAD[case] in line


def hash_of(text: str) -> int:
    return 100 * len(text) + 10_000 * ord(text[0])


def test_unreadable_images_are_left_out_where_that_is_asked_for_and_said(tmp_path: Path) -> None:
    data = {"folder": {"root": str(labelled(tmp_path / "photos"))}}
    pool = labelled(tmp_path / "pool", 4)
    for path in pool.rglob("*.png"):
        photo(path, 900 + int(path.stem))
    (pool / "cat" / "damaged.png").write_bytes(b"nothing")
    found = opened(config(data, {"folder": {"root": str(pool), "skip_unreadable": True}}), tmp_path / "cache")
    assert len(found) == len(found.pixels) == 8
    assert found.unreadable == ("cat/damaged.png (not an image)",)
    assert "left out 1 image that cannot be read: cat/damaged.png (not an image)" in found.lines()[1]


def test_too_few_training_images_are_refused(tmp_path: Path) -> None:
    wanted = config({"folder": {"root": str(labelled(tmp_path / "photos"))}}, {"train": {}}, batch_size=100)
    with pytest.raises(DataError, match=r"unlabeled.train: \d+ images to pretrain on, fewer than two batches of 100"):
        opened(wanted, tmp_path / "cache")
