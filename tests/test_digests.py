"""Digests are those that `sha256sum` gives, whatever a file's length."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from imgcls_search import digests


@pytest.mark.parametrize("length", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_a_file_of_any_length(tmp_path: Path, length: int) -> None:
    content = bytes(range(251)) * (length // 251 + 1)
    (tmp_path / "file").write_bytes(content[:length])
    assert digests.of_file(tmp_path / "file") == hashlib.sha256(content[:length]).hexdigest()


def test_a_text_and_one_that_is_not_utf_8() -> None:
    assert digests.of_text("Größe") == hashlib.sha256("Größe".encode()).hexdigest()
    assert digests.of_text(os.fsdecode(b"caf\xe9")) == hashlib.sha256(rb"caf\udce9").hexdigest()
