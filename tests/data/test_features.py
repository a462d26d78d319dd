"""The store of features: computed once, whole or not at all, never another network's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.data.features import Floats, features
from imgcls_search.errors import DataError


class Counted:
    """Makes features, and counts how often."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.calls = 0

    def __call__(self) -> Floats:
        self.calls += 1
        return np.full((3, 2), self.value, dtype=np.float32)


def test_features_are_computed_once_for_the_same_facts(tmp_path: Path) -> None:
    make, other = Counted(), Counted(2.0)
    for _ in range(2):
        found = features(tmp_path / "new", {"weights": "a", "split": "train"}, make)
        assert (found == 1).all()
        assert not found.flags.writeable
    assert make.calls == 1
    assert (features(tmp_path / "new", {"weights": "b", "split": "train"}, other) == 2).all()
    assert other.calls == 1


@pytest.mark.parametrize("name", ["features.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_features_are_computed_again(name: str, damage: str, tmp_path: Path) -> None:
    make = Counted()
    features(tmp_path, {}, make)
    (file,) = tmp_path.rglob(name)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-3])
    elif damage == "flipped":
        content[-3] ^= 16
        file.write_bytes(content)
    else:
        file.unlink()
    assert (features(tmp_path, {}, make) == 1).all()
    assert make.calls == 2


def test_features_that_failed_leave_nothing(tmp_path: Path) -> None:
    def fail() -> Floats:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(tmp_path, {}, fail)
    assert not list(tmp_path.rglob("*.npy"))


def test_no_space_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3))
    with pytest.raises(DataError, match="features need 0 MB, 0 MB are free"):
        features(tmp_path, {}, Counted())
    assert not list(tmp_path.rglob("*.npy"))
