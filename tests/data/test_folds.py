"""Images outside the test split in folds: each in one of them, classes even, groups whole."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import describe, load, prepare, read_headers, summarise
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.folds import places
from imgcls_search.data.source import Source
from imgcls_search.errors import BuildError, DataError
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from tests.conftest import Answer, is_one_line


def digits(**args: Any) -> Source:
    return describe(Component(path="data.digits", name="digits", args=args))


def folder(top: Path, **args: Any) -> Source:
    return describe(Component(path="data.folder", name="folder", args={"root": str(top), **args}))


def plant(top: Path, counts: dict[str, int], *, patients: int = 0) -> Path:
    """Write images of noise, so many of each class; with `patients` their names begin with one of them."""
    rng = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (top / name).mkdir(parents=True, exist_ok=True)
        for item in range(count):
            who = f"p{rng.integers(patients):02}-" if patients else ""
            pixels = rng.integers(0, 256, (6, 6, 3)).astype("uint8")
            Image.fromarray(pixels).save(top / name / f"{who}{item:03}.png")
    return top


def names_of_folds(source: Source) -> list[tuple[str, ...]]:
    names = [*source.names["train"], *source.names["val"]]
    found = places(source.folds, len(source.names["train"]))
    return [tuple(names[place] for place in fold.tolist()) for fold in found]


def test_every_image_outside_the_test_split_is_in_one_fold_and_classes_are_even() -> None:
    plain, folded = digits(), digits(folds=4)
    outside = [*plain.names["train"], *plain.names["val"]]
    assert sorted(name for fold in names_of_folds(folded) for name in fold) == sorted(outside)
    assert folded.names["test"] == plain.names["test"]
    counts = np.stack([np.bincount(labels, minlength=10) for labels in folded.fold_labels()])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert names_of_folds(digits(folds=4)) == names_of_folds(folded)
    assert names_of_folds(digits(folds=4, split_seed=1)) != names_of_folds(folded)


def test_labels_of_folds_are_those_of_their_images() -> None:
    known = dict(zip(digits().names["train"], digits().labels["train"].tolist(), strict=True))
    folded = digits(folds=3)
    for names, labels in zip(names_of_folds(folded), folded.fold_labels(), strict=True):
        assert all(known.get(name, label) == label for name, label in zip(names, labels.tolist(), strict=True))


def test_max_train_counts_all_images_outside_the_test_split() -> None:
    assert digits(folds=5, max_train=200).folds == (40,) * 5


def test_groups_are_whole_and_as_even_as_a_trusted_cut(tmp_path: Path) -> None:
    top = plant(tmp_path, {"a": 90, "b": 60, "c": 40}, patients=25)
    source = folder(top, folds=4, group=r"/(p\d+)-")
    folds = names_of_folds(source)
    patients = [{name.split("/")[1][:3] for name in fold} for fold in folds]
    assert sum(map(len, patients)) == len(set().union(*patients)), "a patient is in two folds"
    assert min(map(len, folds)) > 0

    def unevenness(parts: list[np.ndarray[Any, Any]]) -> float:
        counts = np.stack([np.bincount(part, minlength=3) for part in parts]).astype(float)
        return float((((counts / counts.sum(axis=0)) - 1 / len(parts)) ** 2).sum())

    labels = np.concatenate(source.fold_labels())
    owners = np.array([name.split("/")[1][:3] for fold in folds for name in fold])
    cuts = StratifiedGroupKFold(n_splits=4, shuffle=True, random_state=0).split(labels, labels, owners)
    trusted = unevenness([labels[held] for _, held in cuts])
    assert unevenness(source.fold_labels()) <= 1.2 * trusted


def test_no_fold_is_empty_even_with_as_many_groups_as_folds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for patient in range(6):
            (tmp_path / name).mkdir(exist_ok=True)
            for item in range(1 + 5 * (patient == 0)):
                pixels = np.full((6, 6, 3), 20 * patient + item, dtype="uint8")
                Image.fromarray(pixels).save(tmp_path / name / f"p{patient:02}-{item}.png")
    assert min(folder(tmp_path, folds=4, test=0.1, group=r"/(p\d+)-").folds) > 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"folds": 500, "max_train": 100}, "folds is 500, but there are 100 images outside the test split"),
        ({"folds": 5, "max_train": 12}, "are in one of 5 folds; needed: at least 2 images, or groups, of each class"),
    ],
)
def test_too_few_images_are_refused(args: dict[str, int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        digits(**args)


def test_too_few_groups_are_refused(tmp_path: Path) -> None:
    top = plant(tmp_path, {"a": 40, "b": 40}, patients=6)
    with pytest.raises(DataError, match=r"folds is 6, but there are \d groups outside the test split"):
        folder(top, folds=6, group=r"/(p\d+)-")


def test_share_of_validation_images_has_no_use_beside_folds() -> None:
    with pytest.raises(BuildError, match=r"0\.3 has no use beside folds: 5"):
        digits(folds=5, val=0.3)


def test_given_validation_split_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        plant(tmp_path / split, {"a": 10, "b": 10})
    with pytest.raises(DataError, match=r"folds is 3, but a validation split is given \(20 images\)"):
        folder(tmp_path, folds=3)


def test_given_test_split_stays_sealed(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 5)):
        plant(tmp_path / split, {"a": count, "b": count})
    source = folder(tmp_path, folds=3)
    assert source.folds == (8, 8, 8)
    assert all(name.startswith("test/") for name in source.names["test"])


def table(top: Path, split: Callable[[str, int], str], **args: Any) -> Source:
    with (top / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "part"])
        for name in ("a", "b"):
            for number, path in enumerate(sorted((top / name).iterdir())):
                rows.writerow([path.relative_to(top).as_posix(), name, split(name, number)])
    located = {"file": str(top / "t.csv"), "split": "part", **args}
    return describe(Component(path="data.table", name="table", args=located))


def test_rows_that_say_train_are_trained_on_by_each_network_and_score_none(tmp_path: Path) -> None:
    top = plant(tmp_path, {"a": 20, "b": 20})
    source = table(top, lambda name, number: "train" if number < 6 else "", folds=3)
    scored = {name for fold in names_of_folds(source) for name in fold}
    assert scored.isdisjoint({f"{name}/{number:03}.png" for name in "ab" for number in range(6)})
    assert len(scored) + 12 == len(source.names["train"]) + len(source.names["val"])


def test_rows_that_say_val_are_refused(tmp_path: Path) -> None:
    top = plant(tmp_path, {"a": 20, "b": 20})
    with pytest.raises(DataError, match="a validation split is given"):
        table(top, lambda name, number: "val" if number < 6 else "", folds=3)


def test_class_with_fewer_images_than_folds_is_said(tmp_path: Path) -> None:
    top = plant(tmp_path, {"a": 30, "b": 30, "rare": 4})
    source = folder(top, folds=5)
    (note,) = source.notes
    assert note == "no image in some folds of class 'rare' (not in 2 of 5)"
    lines = summarise(source, read_headers(source)).lines()
    assert any(note in line for line in lines)
    assert "train and val are 5 folds of" in lines[0]


def test_images_that_cannot_be_read_shrink_their_fold(tmp_path: Path) -> None:
    top = plant(tmp_path / "photos", {"a": 20, "b": 20})
    whole = folder(top, folds=3, skip_unreadable=True)
    victim = names_of_folds(whole)[1][0]
    (top / victim).write_bytes(b"no image")
    source = folder(top, folds=3, skip_unreadable=True)
    found = prepare(source, image_size=6, channels=3, cache=tmp_path / "cache")
    first, second, third = whole.folds
    assert found.folds == (first, second - 1, third)
    names = [*load(found, "train").names, *load(found, "val").names]
    second_fold = [names[place] for place in places(found.folds, found.counts["train"])[1].tolist()]
    assert second_fold == [name for name in names_of_folds(whole)[1] if name != victim]


def test_copies_in_several_folds_are_counted(tmp_path: Path) -> None:
    top = plant(tmp_path / "photos", {"a": 20, "b": 20})
    assert prepare(folder(top, folds=3), image_size=6, channels=3, cache=tmp_path / "cache").repeated == 0
    folds = names_of_folds(folder(top, folds=3))
    (top / folds[1][0]).write_bytes((top / folds[0][0]).read_bytes())
    found = prepare(folder(top, folds=3), image_size=6, channels=3, cache=tmp_path / "cache")
    assert found.repeated == 1


def test_chosen_images_are_those_of_the_arrays() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (count, 3, 4, 5)).astype("uint8") for count in (7, 4, 1)]
    chosen = rng.permutation(12)[:9]
    index = rng.integers(0, 9, 30)
    found = Chosen(parts, chosen)
    assert (len(found), found.shape) == (9, (9, 3, 4, 5))
    np.testing.assert_array_equal(found[index], np.concatenate(parts)[chosen][index])


def test_configuration_without_folds_is_the_one_of_before() -> None:
    tree = {"training": {"epochs": 5}, "data": {"digits": {"val": 0.15}}}
    older, newer = (TrialConfig.from_dict({**tree, "data": {"digits": data}}) for data in ({}, {"folds": None}))
    folded = TrialConfig.from_dict({**tree, "data": {"digits": {"folds": 4}}})
    assert older.digest() == newer.digest() != folded.digest()
    assert (older.epochs, newer.epochs, folded.epochs) == (5, 5, 20)


SPACE = "model: {lenet5: {}}\ndata: {digits: {}}\ntraining: {epochs: 2}\n"


@pytest.mark.parametrize("folds", ["1", "0", "2.5", "{int: [2, 5]}"])
def test_numbers_of_folds_that_are_none_are_one_line(folds: str, here: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    answer = here("check", "s.yaml", "--samples", "0", "--set", f"data.digits.folds={folds}")
    assert is_one_line(answer), answer
    assert "data.digits.folds" in answer.err


@pytest.mark.parametrize(
    "setting",
    [
        "quantize=int8",
        "prune={structured: {amount: 0.5}}",
        "prune={none: {}, unstructured: {amount: 0.5}}",
        "distill={study: {name: other}}",
        "pretrain={none: {}, imitate: {teacher: {study: {name: other}}}}",
        "pretrain={imitate: {teacher: {file: {path: other.pt}}}}",
    ],
)
def test_what_would_see_or_leave_out_a_fold_is_one_line_in_a_search_with_folds(
    setting: str, here: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE + "optimizer: {adamw: {lr: {float: [0.001, 0.01]}}}\n")
    for command in (("check", "--samples", "0"), ("run",)):
        name, *more = command
        answer = here(name, "s.yaml", *more, "--set", "data.digits.folds=3", "--set", setting)
        assert is_one_line(answer), answer
        assert "not in a search with folds: 3" in answer.err
