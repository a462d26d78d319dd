"""The store of features: computed once, whole or not at all, never another network's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.data.features import Floats, computing, features, finished
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
    with pytest.raises(DataError, match=r"features need [\d.]+ (kB|bytes), but only 3 bytes are free"):
        features(tmp_path, {}, Counted())
    assert not list(tmp_path.rglob("*.npy"))


def test_what_was_used_last_is_kept_where_not_all_can_be(tmp_path: Path) -> None:
    size = Counted()().nbytes
    entry = 0
    kept: dict[str, Path] = {}
    for name in ("a", "b", "c"):
        features(tmp_path, {"weights": name}, Counted(), most_bytes=100 * size)
        (new,) = {path.parent for path in tmp_path.glob("*/features.npy")} - set(kept.values())
        kept[name] = new
        entry = sum(file.stat().st_size for file in new.iterdir())
    for place, name in enumerate(("b", "c", "a")):
        os.utime(kept[name], (1_000 + place, 1_000 + place))
    features(tmp_path, {"weights": "d"}, Counted(), most_bytes=2 * entry + size)
    assert not kept["b"].exists()
    assert kept["a"].exists()
    with pytest.raises(
        DataError, match=r"features need [\d.]+ (kB|bytes), image.cache_gb allows [\d.]+ (kB|bytes); set it higher"
    ):
        features(tmp_path, {"weights": "e"}, Counted(), most_bytes=size - 1)
    assert not list(tmp_path.glob("*.partial"))


def test_who_waits_for_another_process_goes_on_looking_around(tmp_path: Path) -> None:
    def slowly() -> Generator[int, None, Floats]:
        yield 1
        yield 2
        return Counted(5.0)()

    one, other = computing(tmp_path, {}, slowly), computing(tmp_path, {}, slowly)
    assert next(one) == 1
    assert next(other) is None
    assert next(one) == 2
    assert (finished(one) == 5).all()
    assert (finished(other) == 5).all()
    # One that is given up gives the lock back.
    given_up = computing(tmp_path, {"x": 1}, slowly)
    assert next(given_up) == 1
    given_up.close()
    assert (finished(computing(tmp_path, {"x": 1}, slowly)) == 5).all()
