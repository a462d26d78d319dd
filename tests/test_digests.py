"""Digests are those that `sha256sum` gives, whatever a file's length."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    "values", [{}, {"a": [1, 2.5, None], "b": {"c": "\u00df"}}, {"mean": 0.1 + 0.2, "same": {3: ["x"]}}]
)
def test_sealed_values_are_read_as_they_were_written_or_not_at_all(values: dict[str, Any]) -> None:
    text = digests.sealed(values)
    assert digests.unsealed(text) == digests.unsealed(text.encode()) == json.loads(json.dumps(values))
    for place in range(len(text)):
        changed = f"{text[:place]}{'1' if text[place] != '1' else '2'}{text[place + 1 :]}"
        assert digests.unsealed(changed) is None


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", "[", "[]", "null", "7", "NaN", '"x"', "{}", '{"digest": null}', "[" * 10**5]
)
def test_what_nobody_sealed_has_no_values(text: str | bytes) -> None:
    assert digests.unsealed(text) is None
