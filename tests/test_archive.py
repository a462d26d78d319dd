"""Weights files with flipped bits are refused, also our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from imgcls_search import archive
from imgcls_search.config import Component
from imgcls_search.errors import CheckpointError
from imgcls_search.models import weights_reading
from imgcls_search.training import checkpoint

STATE = {"model": {"weight": torch.arange(3000.0)}, "about": "digits", "history": [{"epoch": 1}]}


def flipped(whole: bytes, random_numbers: np.random.Generator) -> bytes:
    spoiled = bytearray(whole)
    spoiled[random_numbers.integers(len(whole))] ^= 1 << random_numbers.integers(8)
    return bytes(spoiled)


def test_each_flipped_copy_is_refused(tmp_path: Path) -> None:
    checkpoint.save(STATE, tmp_path / "good.pt")
    assert torch.equal(checkpoint.load(tmp_path / "good.pt")["model"]["weight"], STATE["model"]["weight"])
    whole, random_numbers, refused = (tmp_path / "good.pt").read_bytes(), np.random.default_rng(7), 0
    for _ in range(80):
        (tmp_path / "bad.pt").write_bytes(flipped(whole, random_numbers))
        with pytest.raises(CheckpointError, match=r"bad\.pt: not a weights file of this program, or damaged"):
            checkpoint.load(tmp_path / "bad.pt")
        refused += 1
    assert refused == 80


def test_each_bit_of_the_digest_counts(tmp_path: Path) -> None:
    checkpoint.save(STATE, tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    for place in range(len(whole) - 110, len(whole)):
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << place % 8
        (tmp_path / "bad.pt").write_bytes(spoiled)
        with pytest.raises(archive.DamagedError):
            archive.verify(tmp_path / "bad.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_file_that_was_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    checkpoint.save(STATE, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path / "w.pt")


@pytest.mark.parametrize("is_archive", [True, False])
def test_files_without_a_digest_are_read(is_archive: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=is_archive)
    assert checkpoint.load(tmp_path / "old.pt")["about"] == "digits"


def test_flipped_weights_of_others_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(3000.0)}, tmp_path / "theirs.pt")
    whole, random_numbers = (tmp_path / "theirs.pt").read_bytes(), np.random.default_rng(7)
    # Within the numbers themselves, which torch reads without a look at their checksum.
    start = whole.index(torch.arange(3000.0).numpy().tobytes())
    for _ in range(20):
        spoiled = bytearray(whole)
        spoiled[start + random_numbers.integers(12_000)] ^= 1 << random_numbers.integers(8)
        (tmp_path / "bad.pt").write_bytes(spoiled)
        component = Component(path="model.vit", name="vit", args={"weights": str(tmp_path / "bad.pt")})
        with pytest.raises(CheckpointError, match=r"model\.vit\.weights: .*bad\.pt: not a weights file, or damaged"):
            weights_reading.contents_of(f"{component.path}.weights", str(component.args["weights"]))
