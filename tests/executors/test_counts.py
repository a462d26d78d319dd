"""Remembered counts are thrown away when the code that made them changes, wherever that code has moved."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import imgcls_search
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.compress import prune
from imgcls_search.data import InputShape
from imgcls_search.executors import counts
from imgcls_search.space import parse
from imgcls_search.worker import measuring

PACKAGE = Path(imgcls_search.__file__).parent
PASSED_THROUGH = {"config.py", "signature.py", "digests.py", "errors.py"}
"""Files that carry settings to the code that counts, and decide nothing."""

SPACES = (
    "model: {vit: {patch_size: 4, width: 24, heads: 4, depth: 1}}\nprune: {structured: {amount: 0.5}}\n",
    "model: {resnet: {width: 8}}\nprune: {structured: {amount: 0.5}}\nloss: {focal: {}}\noptimizer: {sgd: {}}\n",
    "model: {convnext: {}}\nschedule: {step: {}}\n",
)


def _files_that_answer(text: str) -> set[Path]:
    """Return the files of ours whose functions run while the sizes of a configuration are found."""
    config = parse(text, catalog(), source="space.yaml").first()
    shape = InputShape(image_size=32, channels=3, classes=10)
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        # An import runs files too, and says nothing of an answer.
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        model = config.component("model")
        found = measuring.count(model, shape)
        pruned = measuring.structured_amount(config)
        deployed = measuring.count(model, shape, pruned=pruned) if pruned else None
        measuring.measure(config, shape, found, deployed=deployed)
    finally:
        sys.setprofile(before)
    assert dataclasses.asdict(found)["params"] > 0
    ours = {Path(name) for name in seen if Path(name).is_relative_to(PACKAGE)}
    return {path for path in ours if str(path.relative_to(PACKAGE)) not in PASSED_THROUGH}


def test_every_file_that_takes_part_in_an_answer_is_a_part_of_its_key() -> None:
    # Once before, so that nothing is being imported while it is watched.
    for text in SPACES:
        _files_that_answer(text)
    answering = set().union(*map(_files_that_answer, SPACES))
    assert {PACKAGE / "models/resnet.py", PACKAGE / "compress/prune.py"} <= answering
    assert answering <= set(counts.counted_files())


def test_a_module_that_is_gone_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "COUNTED_BY", (*counts.COUNTED_BY, "imgcls_search.compress.no_such_module"))
    with pytest.raises(AssertionError, match="no_such_module has moved"):
        counts.counted_files()


def test_a_change_of_such_a_file_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "prune.py"
    changed.write_bytes(Path(prune.__file__).read_bytes() + b"# another rule\n")
    before = counts._versions.__wrapped__()
    files = [changed if path == Path(prune.__file__) else path for path in counts.counted_files()]
    monkeypatch.setattr(counts, "counted_files", lambda: files)
    assert counts._versions.__wrapped__()["builders"] != before["builders"]
