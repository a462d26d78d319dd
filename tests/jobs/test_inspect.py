"""What an inspection finds: counts, copies, labels that are likely wrong, and the table without them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.errors import DataError, UserError
from imgcls_search.jobs.inspect import confident, quick_model
from imgcls_search.jobs.inspect.clean_table import check_target, write_clean
from imgcls_search.jobs.inspect.features import features
from imgcls_search.jobs.inspect.findings import Inspection
from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images, take_inventory
from imgcls_search.jobs.inspect.out_of_fold import FOLDS, plan_folds
from PIL import Image

from tests.conftest import Answer

LOOK_ONLY = Wanted(labels=False)


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing."""


def photo(path: Path, seed: int, red: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Write an image of soft blobs that no other seed gives, more or less red, and return it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 140, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    pixels[..., 0] += red
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(path)
    return image


def plant(top: Path, count: int = 12) -> Path:
    """Make a folder of two classes that differ in colour."""
    for number in range(count):
        photo(top / "ash" / f"{number:02}.png", number)
        photo(top / "oak" / f"{number:02}.png", 500 + number, red=190)
    return top


def folder(root: Path, **args: Any) -> Component:
    return Component(path="data.folder", name="folder", args={"root": str(root), **args})


def look(component: Component, wanted: Wanted = LOOK_ONLY) -> Inspection:
    return inspect_images(take_inventory(component), wanted, quiet)


def sets(found: Inspection) -> dict[str, list[set[str]]]:
    kinds: dict[str, list[set[str]]] = {"file": [], "pixels": [], "near": []}
    for each in found.copies:
        kinds[each.kind].append({image.name for image in each.images})
    return kinds


# ------------------------------------------------------------------------------------------------ counts and files


def test_counts_sizes_formats_and_channels(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos")
    photo(root / "ash" / "wide.jpg", 77, size=(200, 50))
    photo(root / "oak" / "small.bmp", 78, size=(10, 8))
    rgba = photo(root / "oak" / "clear.png", 79).convert("RGBA")
    rgba.putalpha(128)
    rgba.save(root / "oak" / "clear.png")
    photo(root / "oak" / "grey.png", 80).convert("L").save(root / "oak" / "grey.png")
    deep = np.random.default_rng(0).integers(0, 65535, (20, 24)).astype(np.uint16)
    Image.fromarray(deep).save(root / "oak" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(root / "ash" / "turned.jpg", 81, size=(60, 30)).save(root / "ash" / "turned.jpg", exif=exif)
    Image.new("RGB", (20, 20), "white").save(root / "ash" / "white.png")
    (root / "ash" / "broken.jpg").write_bytes(b"no image")
    (root / "ash" / "notes.txt").write_text("no image")
    found = look(folder(root))
    assert {entry.name: entry.total for entry in found.classes} == {"ash": 16, "oak": 16}
    assert found.images == 32 == sum(sum(entry.by_split.values()) for entry in found.classes)
    source = describe(folder(root))
    for split in ("train", "val", "test"):
        counts = np.bincount(source.labels[split], minlength=2).tolist()
        assert [entry.by_split[split] for entry in found.classes] == counts
    assert found.imbalance == 1
    assert found.sizes is not None
    assert (found.sizes.smallest, found.sizes.smallest_name) == ((10, 8), "oak/small.bmp")
    assert (found.sizes.largest, found.sizes.largest_name) == ((200, 50), "ash/wide.jpg")
    assert found.sizes.median == (24, 20)
    assert found.sizes.aspect == (0.5, 1.2, 4.0)
    assert sum(count for _, _, count in found.sizes.histogram) == 31
    assert found.formats == {"PNG": 28, "JPEG": 2, "BMP": 1}
    assert found.kinds == {"colour, 8 bits": 29, "grey, 8 bits": 1, "grey, 16 bits": 1}
    assert (found.transparent, found.turned) == (1, 1)
    assert [image.name for image in found.flat] == ["ash/white.png"]
    assert [(entry.image.name, entry.reason) for entry in found.unreadable] == [("ash/broken.jpg", "not an image")]
    assert [entry.reason for entry in found.left_out] == ["file ending in .txt"]
    assert found.not_judged == "left out by --no-labels"


def test_findings_are_strict_json(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos")
    shutil.copy(root / "ash" / "00.png", root / "oak" / "copy.png")
    found = look(folder(root)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["copies"][0]["across_classes"] is True


# ------------------------------------------------------------------------------------------------ copies


def test_copies_are_told_apart_by_kind_class_and_split(tmp_path: Path) -> None:
    top = tmp_path / "photos"
    for split in ("train", "val", "test"):
        for number in range(4):
            photo(top / split / "ash" / f"{number}.png", 10 * number + len(split), size=(64, 48))
            photo(top / split / "oak" / f"{number}.png", 900 + 10 * number + len(split), size=(64, 48))
    shutil.copy(top / "train/ash/0.png", top / "train/ash/again.png")
    shutil.copy(top / "train/ash/1.png", top / "train/oak/wrong.png")
    Image.open(top / "train/oak/1.png").save(top / "test/oak/pixels.bmp")
    Image.open(top / "val/oak/2.png").resize((128, 96), Image.Resampling.BICUBIC).save(top / "test/oak/large.png")
    for name in ("ash/white.png", "oak/white.bmp"):
        Image.new("RGB", (30, 30), "white").save(top / "train" / name)
    found = look(folder(top))
    assert sets(found) == {
        "file": [{"train/ash/0.png", "train/ash/again.png"}, {"train/ash/1.png", "train/oak/wrong.png"}],
        "pixels": [{"train/oak/1.png", "test/oak/pixels.bmp"}],
        "near": [{"val/oak/2.png", "test/oak/large.png"}],
    }
    files, pixels, near = (found.copy_counts[kind] for kind in ("file", "pixels", "near"))
    assert (files.within_class, files.across_classes, files.across_splits, files.across_test) == (1, 1, 0, 0)
    assert (pixels.across_classes, pixels.across_splits, pixels.across_test) == (0, 1, 1)
    assert (near.sets, near.images, near.across_test) == (1, 2, 1)


def test_pixels_of_images_in_memory_are_compared() -> None:
    found = look(Component(path="data.digits", name="digits", args={}))
    assert found.images == 1797
    assert sets(found)["file"] == []
    assert found.formats == {"pixels": 1797}


# ------------------------------------------------------------------------------------------------ confident learning


def random_case(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    # A stream that numpy has frozen, so that what cleanlab said of it stays true.
    random = np.random.RandomState(seed)
    true = random.randint(0, 4, 120)
    probabilities = random.dirichlet(np.ones(4) * 0.5, 120) * 0.5
    probabilities[np.arange(120), true] += 0.5
    labels = true.copy()
    swapped = random.choice(120, 12, replace=False)
    labels[swapped] = (labels[swapped] + 1) % 4
    return probabilities, labels


CLEANLAB = {
    0: (
        [[18, 0, 0, 4], [2, 14, 0, 0], [0, 1, 8, 0], [0, 0, 0, 14]],
        [4, 22, 41, 54, 58, 60, 71, 73, 90, 111],
    ),
    1: (
        [[17, 0, 0, 2], [1, 18, 0, 0], [0, 2, 13, 0], [0, 0, 1, 13]],
        [6, 35, 47, 49, 55, 58, 79, 88, 114, 115],
    ),
}
"""What cleanlab 2.9.0 returns: compute_confident_joint without calibration, and find_label_issues by
prune_by_noise_rate."""


@pytest.mark.parametrize("seed", CLEANLAB)
def test_confident_learning_finds_what_cleanlab_finds(seed: int) -> None:
    probabilities, labels = random_case(seed)
    joint, issues = CLEANLAB[seed]
    assert confident.confident_joint(probabilities, labels).tolist() == joint
    found, likely = confident.suspects(probabilities, labels)
    assert sorted(found.tolist()) == issues
    assert (likely == probabilities[found].argmax(axis=1)).all()
    ratio = probabilities[found, labels[found]] / probabilities[found, likely]
    assert (np.diff(ratio) >= 0).all()


def test_joint_distribution_is_that_of_the_paper() -> None:
    # Figure 1 of Northcutt et al. 2021: dogs, foxes and cows.
    joint = np.array([[100, 40, 20], [56, 60, 0], [32, 12, 80]])
    found = confident.joint_distribution(joint, joint.sum(axis=1))
    assert np.round(found, 2).tolist() == [[0.25, 0.1, 0.05], [0.14, 0.15, 0.0], [0.08, 0.03, 0.2]]
    # Rows are scaled to the images that have the label.
    assert confident.joint_distribution(joint, np.array([10, 10, 20])).sum(axis=1) == pytest.approx([0.25, 0.25, 0.5])
    assert confident.joint_distribution(np.zeros((2, 2), np.int64), np.array([3, 1])).tolist() == [
        [0.75, 0],
        [0, 0.25],
    ]


def test_thresholds_are_means_over_the_images_of_a_label() -> None:
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    assert confident.thresholds(probabilities, np.array([0, 0, 1])) == pytest.approx([0.7, 0.8])
    assert confident.confident_classes(probabilities, np.array([0, 0, 1])).tolist() == [0, -1, 1]
    assert confident.thresholds(probabilities, np.array([0, 0, 0])).tolist()[1] == 1


# ------------------------------------------------------------------------------------------------ judging


def test_folds_keep_groups_together_and_hold_every_class() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    labels = groups % 3
    folds = plan_folds(labels, groups, 0)
    assert set(folds.tolist()) == set(range(FOLDS))
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    assert all(len(set(labels[folds == fold].tolist())) == 3 for fold in range(FOLDS))
    assert (plan_folds(labels, groups, 0) == folds).all()


def test_features_tell_colour_and_are_finite() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pixels[1] = 0
    found = features(pixels)
    assert found.shape == (3, features(np.zeros((1, 64, 64, 3), np.uint8)).shape[1])
    assert np.isfinite(found).all()
    # Shares of each histogram add up to one: 64 colours, three channels of 16, saturation.
    assert found[:, :64].sum(axis=1) == pytest.approx(1, abs=1e-2)
    assert found[1, 0] == 1


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, set[str]]:
    """Return a folder of 80 images, three of which are in the wrong class, and their names."""
    top = plant(tmp_path_factory.mktemp("swapped") / "photos", 40)
    component = folder(top, test=0.1)
    # Three that are not in the test split.
    held = set(describe(component).names["test"])
    wrong = [name for name in (f"ash/{number:02}.png" for number in range(40)) if name not in held][:3]
    for name in wrong:
        (top / name).rename(top / "oak" / f"was-{Path(name).name}")
    return component, {f"oak/was-{Path(name).name}" for name in wrong}


@pytest.mark.parametrize("model", quick_model.MODELS)
def test_wrong_labels_are_the_first_suspects_and_the_test_split_is_not_judged(
    swapped: tuple[Component, set[str]], model: str
) -> None:
    component, wrong = swapped
    found = look(component, Wanted(epochs=12, models=(model,))).judgement
    assert found is not None
    sealed = set(describe(component).names["test"])
    # Confident learning expects at most as many as are confidently of the other class.
    named = [suspect.image.name for suspect in found.suspects]
    assert len(wrong & set(named)) >= 2
    assert set(named[:2]) <= wrong
    assert not {suspect.image.name for suspect in found.suspects} & sealed
    assert all(suspect.likely == "ash" for suspect in found.suspects if suspect.image.name in wrong)
    assert found.images == 80 - len(sealed)
    assert not found.with_test
    again = look(component, Wanted(epochs=12, models=(model,))).judgement
    assert again == found


def test_test_labels_are_judged_when_asked(swapped: tuple[Component, set[str]]) -> None:
    component, wrong = swapped
    found = look(component, Wanted(epochs=1, models=("trees",), with_test=True)).judgement
    assert found is not None
    assert found.images == 80
    assert {suspect.image.name for suspect in found.suspects[:2]} <= wrong


def test_labels_of_the_test_split_change_nothing_that_is_said_of_the_others(tmp_path: Path) -> None:
    top = tmp_path / "photos"
    plant(top / "train", 14)
    for number in range(6):
        photo(top / "test" / "ash" / f"{number}.png", 700 + number)
        photo(top / "test" / "oak" / f"{number}.png", 800 + number, red=190)
    wanted = Wanted(epochs=1, models=("trees",))
    before = look(folder(top), wanted).judgement
    (top / "test" / "ash").rename(top / "test" / "x")
    (top / "test" / "oak").rename(top / "test" / "ash")
    (top / "test" / "x").rename(top / "test" / "oak")
    assert look(folder(top), wanted).judgement == before


def test_classes_with_too_few_images_are_not_judged_and_named(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos")
    for number in range(4):
        photo(root / "elm" / f"{number}.png", 300 + number)
    judged = look(folder(root), Wanted(epochs=1, models=("trees",))).judgement
    assert judged is not None
    assert judged.left_out == ("elm",)
    shutil.rmtree(root / "oak")
    found = look(folder(root), Wanted(epochs=1))
    assert found.judgement is None
    assert "fewer than two classes" in (found.not_judged or "")


def test_images_that_cannot_be_cut_are_looked_at_all_the_same(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos")
    photo(root / "elm" / "only.png", 1)
    found = look(folder(root), Wanted(epochs=1, models=("trees",)))
    assert found.uncut is not None
    assert "too few images in class 'elm' (1)" in found.uncut
    assert {entry.name: dict(entry.by_split) for entry in found.classes}["elm"] == {"": 1}
    assert found.judgement is not None
    assert found.judgement.images == 24
    # Groups are known of images that are cut alone: nothing is judged as if there were none.
    with pytest.raises(DataError, match="too few images"):
        take_inventory(folder(root, group="/([0-9o])"))
    alone = tmp_path / "alone"
    photo(alone / "elm" / "only.png", 1)
    assert look(folder(alone)).images == 1
    with pytest.raises(DataError, match="no class folders"):
        take_inventory(folder(tmp_path / "alone" / "elm"))


def test_rows_without_a_split_beside_named_ones_are_looked_at_where_they_cannot_be_cut(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 4)
    photo(root / "elm" / "only.png", 9000)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = [f"photos/{name},{name[:3]},{'test' if name.endswith('0.png') else ''}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows]))
    args = {"file": str(tmp_path / "labels.csv"), "root": None, "image": "image", "label": "label", "split": "split"}
    found = look(Component(path="data.table", name="table", args=args))
    assert found.uncut is not None
    by_split = {entry.name: dict(entry.by_split) for entry in found.classes}
    assert by_split == {"ash": {"test": 1, "": 3}, "elm": {"test": 0, "": 1}, "oak": {"test": 1, "": 3}}
    # The split that is named stays so in a table.
    written = write_clean(found, tmp_path / "clean.csv", "mark")
    assert (written.rows, written.settings) == (9, ("data.table.split=split",))
    assert {row["image"]: row["split"] for row in rows_of(tmp_path / "clean.csv")} == {
        name: split for name, _, split in (row.split(",") for row in rows)
    }


# ------------------------------------------------------------------------------------------------ the table


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def spoiled(top: Path) -> Component:
    """Make a folder with splits, copies of every kind, and a file that is no image."""
    for split, count in (("train", 14), ("val", 6), ("test", 6)):
        for number in range(count):
            photo(top / split / "ash" / f"{number}.png", 1000 * len(split) + number)
            photo(top / split / "oak" / f"{number}.png", 1000 * len(split) + 500 + number, red=190)
    shutil.copy(top / "train/ash/0.png", top / "train/ash/again.png")
    shutil.copy(top / "train/ash/1.png", top / "train/oak/conflict.png")
    shutil.copy(top / "val/ash/2.png", top / "train/ash/leak.png")
    shutil.copy(top / "test/oak/3.png", top / "train/ash/leak-test.png")
    (top / "train/oak/broken.png").write_bytes(b"no image")
    return folder(top)


def test_clean_table_leaves_out_copies_and_keeps_the_test_split_whole(tmp_path: Path) -> None:
    found = look(spoiled(tmp_path / "photos"))
    target = tmp_path / "clean.csv"
    written = write_clean(found, target, "mark")
    assert written.left_out == {
        "exact copy of an image that stays": 3,
        "exact copies with different labels": 2,
        "cannot be read": 1,
    }
    rows = {row["image"]: row for row in rows_of(target)}
    assert len(rows) == written.rows == 52 + 5 - 6
    assert "photos/train/ash/0.png" in rows
    # Of copies the one of the most held-out split stays, whatever its label; of conflicting ones nobody knows which.
    assert "photos/val/ash/2.png" in rows
    assert rows["photos/test/oak/3.png"]["label"] == "oak"
    out = ("train/ash/again", "train/ash/1", "train/oak/conflict", "train/ash/leak", "train/ash/leak-test")
    assert not [name for name in out if f"photos/{name}.png" in rows]
    assert {row["split"] for row in rows.values()} == {"train", "val", "test"}
    assert sum(row["split"] == "test" for row in rows.values()) == 12
    args = {"file": str(target), **dict(setting.removeprefix("data.table.").split("=") for setting in written.settings)}
    source = describe(Component(path="data.table", name="table", args=args))
    assert {split: len(names) for split, names in source.names.items()} == {"train": 27, "val": 12, "test": 12}


def judged_table(found: Inspection, tmp_path: Path, rule: Any) -> tuple[list[dict[str, str]], Mapping[str, int]]:
    written = write_clean(found, tmp_path / f"{rule}.csv", rule, 0.6)
    return rows_of(tmp_path / f"{rule}.csv"), written.left_out


def test_suspects_are_marked_relabelled_or_dropped(swapped: tuple[Component, set[str]], tmp_path: Path) -> None:
    component, wrong = swapped
    found = look(component, Wanted(epochs=1, models=("trees",)))
    rows, left = judged_table(found, tmp_path, "mark")
    assert found.judgement is not None
    suspects = {suspect.image.name: suspect for suspect in found.judgement.suspects}
    assert len(wrong & set(suspects)) >= 2
    assert left == {}
    root = str(component.args["root"])
    # The table is elsewhere: its paths start from the folder of the images.
    marked = {row["image"]: row for row in rows if row["likely_label"]}
    assert set(marked) == set(suspects)
    assert all(row["label"] == "oak" for name, row in marked.items() if name in wrong)
    assert all(0 < float(row["confidence"]) <= 1 for row in marked.values())
    rows, left = judged_table(found, tmp_path, "relabel")
    changed = {row["image"]: row for row in rows if row["given_label"]}
    sure = {name for name, suspect in suspects.items() if suspect.confidence >= 0.6}
    assert set(changed) == sure
    assert wrong & sure
    assert all(row["label"] == "ash" and row["given_label"] == "oak" for name, row in changed.items() if name in wrong)
    rows, left = judged_table(found, tmp_path, "drop")
    assert left == {"suspicious label (--suspects drop)": len(sure)}
    assert not {row["image"] for row in rows} & sure
    # None is so sure: all are marked.
    assert write_clean(found, tmp_path / "sure.csv", "drop", 1.1).marked == len(suspects)
    args = {"file": str(tmp_path / "relabel.csv"), "root": root, "split": "split"}
    assert describe(Component(path="data.table", name="table", args=args)).classes == ("ash", "oak")


def test_groups_stay_in_the_table(tmp_path: Path) -> None:
    top = tmp_path / "photos"
    for group in range(8):
        for number in range(2):
            photo(top / "ash" / f"p{group}-{number}.png", 10 * group + number)
            photo(top / "oak" / f"q{group}-{number}.png", 500 + 10 * group + number, red=190)
    found = look(folder(top, group="/([pq][0-9])-"))
    assert found.groups == 16
    written = write_clean(found, tmp_path / "clean.csv", "mark")
    assert written.settings == ("data.table.split=split", "data.table.group=group")
    assert all(row["group"] == Path(row["image"]).name[:2] for row in rows_of(tmp_path / "clean.csv"))


def test_table_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 6)
    (tmp_path / "there.csv").write_text("mine")
    for target, where, words in (
        (tmp_path / "there.csv", root, "--force replaces it"),
        (tmp_path / "table.xlsx", root, "ends in .csv"),
        (tmp_path / "no" / "table.csv", root, "cannot be written"),
        (tmp_path / "table.csv", None, "needs images that are files"),
    ):
        with pytest.raises(UserError, match=words):
            check_target(where, target, force=False)
    (tmp_path / "linked.csv").symlink_to("there.csv")
    with pytest.raises(UserError, match="is the table of the images itself"):
        check_target(root, tmp_path / "there.csv", force=True, read=tmp_path / "linked.csv")
    (tmp_path / "linked.csv").unlink()
    check_target(root, tmp_path / "there.csv", force=True)
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "there.csv"]


def test_names_that_a_table_cannot_hold_are_left_out_and_said(tmp_path: Path) -> None:
    root = plant(tmp_path / "photos", 6)
    strange = ["line\nbreak.png", 'quote"s, and comma.png', "=1+1.png", "ünï.png"]
    for number, name in enumerate(strange):
        photo(root / "ash" / name, 70 + number)
    # No UTF-8, as names from an old system are not.
    (root / "ash" / "00.png").rename(root / "ash" / os.fsdecode(b"bad\xff.png"))
    found = look(folder(root))
    written = write_clean(found, tmp_path / "clean.csv", "mark")
    assert written.left_out == {"name that a table cannot hold": 1}
    table = Component(path="data.table", name="table", args={"file": str(tmp_path / "clean.csv")})
    assert len([name for names in describe(table).names.values() for name in names]) == written.rows == 15


# ------------------------------------------------------------------------------------------------ the command


SPACE = """
study: {trials: 1, pruner: none, pictures: false}
model: {lenet5: {}}
optimizer: {adamw: {lr: {float: [0.004, 0.006]}}}
training: {epochs: 4, batch_size: 8}
image: {size: 16}
"""


def test_a_study_judges_with_its_best_settings_and_trains_on_the_clean_table(
    tmp_path: Path, swapped: tuple[Component, set[str]], imgcls: Callable[..., Answer]
) -> None:
    shutil.copytree(swapped[0].args["root"], tmp_path / "photos")
    (tmp_path / "space.yaml").write_text(SPACE)
    args = ("--data", "folder:photos", "--set", "data.folder.test=0.1")
    ran = imgcls("run", "space.yaml", *args, "--workers", "1", "--name", "s")
    assert ran.code == 0, ran.err
    unknown = imgcls("inspect", "--study", "s", "--trial", "7", "--no-page")
    assert unknown.code == 2
    assert "study 's' has no trial 7; allowed: 0 to 0" in unknown.err
    done = imgcls("inspect", "--study", "s", "--trial", "0", "--json", "--write", "clean.csv", "--no-page")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["judgement"]["by"] == "trial 0 of study s"
    assert found["judgement"]["images"] == sum(entry["total"] - entry["by_split"]["test"] for entry in found["classes"])
    assert found["judgement"]["agreement"] > 0.8
    settings = [word for setting in found["written"]["set"] for word in ("--set", setting)]
    again = imgcls("run", "space.yaml", "--data", found["written"]["data"], *settings, "--workers", "1", "--name", "t")
    assert again.code == 0, again.err
    assert f"test {found['classes'][0]['by_split']['test'] * 2}" in again.out
