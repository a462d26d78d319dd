"""Bundles whose model is a program of ExecuTorch, served by its runtime for Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from imgcls_search import digests
from imgcls_search.deploy import bundle

from tests.conftest import Answer, is_one_line
from tests.jobs.test_bundle import noise

WEIGHTS = "trained/best/seed-1.pt"
Run = Callable[..., Answer]

installed = pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is an extra")


@pytest.fixture
def here(here: Run, photos_and_weights: Path, tmp_path: Path) -> Run:
    for name in ("photos", "trained"):
        shutil.copytree(photos_and_weights / name, tmp_path / name)
    return here


@installed
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--tta", "mirror_shift")], ids=["plain", "tta"])
def test_executorch_says_what_onnx_runtime_says(more: tuple[str, ...], here: Run, imgcls: Run, tmp_path: Path) -> None:
    assert here("export", WEIGHTS, "--bundle", "onnx", *more).code == 0
    answer = here("export", WEIGHTS, "--bundle", "other", "--format", "executorch", "--json", *more)
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    names = ["MODEL_CARD.md", "bundle.json", "config.yaml", "labels.json", "metrics.json", "model.pte"]
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == names
    assert (facts["format"], facts["parity"]["equal_top1"]) == ("executorch", facts["parity"]["images"])
    assert 0 <= facts["parity"]["max_difference"] < 1e-3
    assert facts["latency"]["conditions"]["runtime"].startswith("executorch ")
    assert facts["size"]["file_kb"] == pytest.approx((tmp_path / "other" / "model.pte").stat().st_size / 1024)
    ours, theirs = (bundle.read(tmp_path / name) for name in ("other", "onnx"))
    assert ours.artifact.runtime == "executorch"
    assert ours.artifact.pixel_shape == theirs.artifact.pixel_shape
    one, two = (served.artifact.answers(noise()) for served in (ours, theirs))
    np.testing.assert_allclose(one[0], two[0], atol=1e-3 * max(1.0, float(np.abs(two[0]).max())))
    assert ours.sureness == theirs.sureness
    assert one[1] is not None
    assert two[1] is not None
    np.testing.assert_allclose(one[1], two[1], rtol=1e-3, atol=1e-3)
    said = [json.loads(here("predict", name, "photos", "--json").out)["predictions"] for name in ("other", "onnx")]
    for mine, wanted in zip(*said, strict=True):
        assert (mine["image"], mine["classes"][0]["label"]) == (wanted["image"], wanted["classes"][0]["label"])
        assert mine["classes"][0]["probability"] == pytest.approx(wanted["classes"][0]["probability"], abs=1e-3)
    assert not [name for name in names if str(tmp_path).encode() in (tmp_path / "other" / name).read_bytes()]
    assert "With ExecuTorch alone: `model.pte`" in (tmp_path / "other" / "MODEL_CARD.md").read_text()
    if more:
        return
    # The runtime prints nothing of its own.
    assert imgcls("predict", "other", "photos/china/01.jpg").err == ""
    for content in (b"no program", (tmp_path / "other" / "model.pte").read_bytes()[:1000]):
        (tmp_path / "other" / "model.pte").write_bytes(content)
        assert "damaged, or changed" in here("predict", "other", "photos/china/01.jpg").err
        about = json.loads((tmp_path / "other" / "bundle.json").read_text())
        about["files"]["model"]["sha256"] = digests.of_file(tmp_path / "other" / "model.pte")
        (tmp_path / "other" / "bundle.json").write_text(json.dumps(about))
        spoiled = here("predict", "other", "photos/china/01.jpg")
        assert is_one_line(spoiled), spoiled
        assert "not a model of ExecuTorch, or damaged" in spoiled.err


def test_without_the_extra_one_line_says_what_to_install(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls_search.deploy import executorch_runtime

    monkeypatch.setattr(executorch_runtime, "find_spec", lambda name: None)
    assert here("export", WEIGHTS, "--bundle", "whole").code == 0
    # A bundle that somebody else made.
    (tmp_path / "whole" / "model.onnx").rename(tmp_path / "whole" / "model.pte")
    about = json.loads((tmp_path / "whole" / "bundle.json").read_text())
    about["files"]["model"]["name"] = "model.pte"
    (tmp_path / "whole" / "bundle.json").write_text(json.dumps(about))
    for command in (
        ("export", WEIGHTS, "--bundle", "other", "--format", "executorch"),
        ("predict", "whole", "photos/china/01.jpg"),
    ):
        answer = here(*command)
        assert is_one_line(answer), answer
        assert "pip install 'imgcls-search[executorch]'" in answer.err
    assert not (tmp_path / "other").exists()
