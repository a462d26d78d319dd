"""How many pretrained networks a search will need, said by check and plan; and what clean leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import DataError
from imgcls_search.jobs.expected_pretrainings import expected, timed_as
from imgcls_search.space import Space, parse

from tests.conftest import Answer, is_one_line

SPACE = """
study: {trials: 30, pictures: false}
data: {digits: {max_train: 200}}
model: {lenet5: {width: {choice: [0.5, 1]}}}
pretrain: {none: {}, simclr: {epochs: 20, batch_size: 256, crop: {choice: [0.2, 0.4]}}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 5, batch_size: 100}
"""


def space_of(*changes: tuple[str, str]) -> Space:
    text = SPACE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse(text, catalog(), source="s.yaml")


def test_equal_networks_count_once_and_each_fold_has_its_own() -> None:
    found = expected(space_of())
    assert found is not None
    # Two widths, two crops; learning rates of the training are no matter of the pretraining.
    assert (found.trials, found.networks, found.epochs, found.images) == (30, 4, 80, None)
    assert 0 < found.pretraining < 30
    folded = expected(space_of(("max_train: 200", "folds: 3")))
    assert folded is not None
    assert (folded.networks, folded.epochs) == (12, 240)
    assert expected(space_of(("none: {}, ", ""))) is not None
    assert expected(space_of((", simclr: {epochs: 20, batch_size: 256, crop: {choice: [0.2, 0.4]}}", ""))) is None


def test_a_folder_is_counted_and_refused_where_it_has_too_few(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(600):
        (pool / f"{number}.png").write_bytes(b"")
    unlabeled = ("training: {", f"unlabeled: {{folder: {{root: {pool}}}}}\ntraining: {{")
    found = expected(space_of(unlabeled, ("max_train: 200", "folds: 3")))
    assert found is not None
    # The images of a folder are in no fold: one network serves all.
    assert (found.networks, found.images) == (4, 600)
    for number in range(200):
        (pool / f"{number}.png").unlink()
    with pytest.raises(Exception, match="400 images to pretrain on, fewer than two batches of 256"):
        expected(space_of(unlabeled))


def test_trials_that_only_pretrain_start_from_no_network_and_their_folder_is_looked_at() -> None:
    only = (
        ("pictures: false", "pictures: false, objectives: {probe_accuracy: maximize}"),
        ("none: {}, ", ""),
        ("lr: {float: [1e-4, 1e-2], log: true}", "lr: 1e-3"),
    )
    assert expected(space_of(*only)) is None
    with pytest.raises(DataError, match="nowhere: does not exist; allowed: a folder of images"):
        expected(space_of(*only, ("training: {", "unlabeled: {folder: {root: nowhere}}\ntraining: {")))


def test_pretrainings_are_timed_by_a_few_epochs_and_with_each_trial() -> None:
    found = json.loads(timed_as(space_of())["pretrain"])
    assert set(found) == {"simclr"}
    assert found["simclr"]["epochs"] == 2
    assert found["simclr"]["batch_size"] == 256


def test_check_says_how_many(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    said = here("check", "s.yaml", "--samples", "0")
    assert re.search(r"\d+ of 30 random trials start from a pretrained network: 4 distinct, 80 epochs", said.out)
    assert json.loads(here("check", "s.yaml", "--samples", "0", "--json").out)["pretraining"]["networks"] == 4
    refused = here("check", "s.yaml", "--samples", "0", "--set", "unlabeled={folder: {root: nowhere}}")
    assert is_one_line(refused), refused.err
    assert "does not exist; allowed: a folder of images" in refused.err


@pytest.mark.slow
def test_plan_says_how_long(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    done = imgcls("plan", "s.yaml", "--epochs", "2", "--workers", "1", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["pretrained_networks"], found["pretraining_epochs"]) == (4, 80)
    assert 0 < found["pretraining_seconds"] < found["seconds"]
    assert not (tmp_path / "studies" / ".backbones").exists()


def test_clean_leaves_pretrained_networks_unless_it_is_told(tmp_path: Path, here: Callable[..., Answer]) -> None:
    folder = tmp_path / "studies" / ".backbones"
    folder.mkdir(parents=True)
    (folder / "key.pt").write_bytes(b"0" * 2_000_000)
    (tmp_path / "studies" / ".teachers").mkdir()
    assert here("clean").code == 0
    assert (folder / "key.pt").exists()
    assert not (tmp_path / "studies" / ".teachers").exists()
    assert "would delete studies/.backbones: 2.0 MB" in here("clean", "--pretrained", "--dry-run").out
    assert (folder / "key.pt").exists()
    assert here("clean", "--pretrained").code == 0
    assert not folder.exists()
