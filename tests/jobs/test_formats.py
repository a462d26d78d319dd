"""Bundles whose model is in another format than ONNX, served by that format's own runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search import digests
from imgcls_search.compress.quantize import quantize
from imgcls_search.deploy import bundle, openvino_ir
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.training import checkpoint

from tests.conftest import Answer, is_one_line
from tests.jobs.test_bundle import noise

openvino = pytest.importorskip("openvino", reason="openvino is an extra")

WEIGHTS = "trained/best/seed-1.pt"
Run = Callable[..., Answer]


@pytest.fixture
def here(here: Run, photos_and_weights: Path, tmp_path: Path) -> Run:
    for name in ("photos", "trained"):
        shutil.copytree(photos_and_weights / name, tmp_path / name)
    return here


@pytest.mark.parametrize("more", [(), ("--tta", "mirror_shift")], ids=["plain", "tta"])
def test_openvino_says_what_onnx_runtime_says(more: tuple[str, ...], here: Run, tmp_path: Path) -> None:
    assert here("export", WEIGHTS, "--bundle", "onnx", *more).code == 0
    answer = here("export", WEIGHTS, "--bundle", "other", "--format", "openvino", "--json", *more)
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    names = ["MODEL_CARD.md", "bundle.json", "config.yaml", "labels.json", "metrics.json", "model.bin", "model.xml"]
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == names
    assert facts["parity"]["equal_top1"] == facts["parity"]["images"] > 10
    assert 0 <= facts["parity"]["max_difference"] < 1e-3
    assert facts["latency"]["conditions"]["runtime"] == f"openvino {openvino_version()}"
    kilobytes = sum((tmp_path / "other" / name).stat().st_size for name in names[-2:]) / 1024
    assert facts["size"]["file_kb"] == pytest.approx(kilobytes)
    ours, theirs = (bundle.read(tmp_path / name) for name in ("other", "onnx"))
    assert isinstance(ours.artifact.session, openvino_ir.Session)
    one, two = (served.artifact.answers(noise()) for served in (ours, theirs))
    np.testing.assert_allclose(one[0], two[0], atol=1e-3 * max(1.0, float(np.abs(two[0]).max())))
    assert ours.sureness == theirs.sureness
    assert (one[1] is None) == (two[1] is None)
    if one[1] is not None:
        np.testing.assert_allclose(one[1], two[1], rtol=1e-3, atol=1e-3)
    # Through the command: the same classes for the same files.
    said = [json.loads(here("predict", name, "photos", "--json").out)["predictions"] for name in ("other", "onnx")]
    for mine, wanted in zip(*said, strict=True):
        assert (mine["image"], mine["classes"][0]["label"]) == (wanted["image"], wanted["classes"][0]["label"])
        assert mine["classes"][0]["probability"] == pytest.approx(wanted["classes"][0]["probability"], abs=1e-3)
    # Nothing of this machine's folders.
    assert not [name for name in names if str(tmp_path).encode() in (tmp_path / "other" / name).read_bytes()]
    assert "With OpenVINO alone" in (tmp_path / "other" / "MODEL_CARD.md").read_text()


def openvino_version() -> str:
    from importlib import metadata

    return metadata.version("openvino")


def test_several_threads_get_their_own_answers(here: Run, tmp_path: Path) -> None:
    assert here("export", WEIGHTS, "--bundle", "other", "--format", "openvino").code == 0
    artifact = bundle.read(tmp_path / "other").artifact
    pixels = noise()
    alone = [artifact.logits(pixels[place : place + 1]) for place in range(len(pixels))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: artifact.logits(pixels[place : place + 1]), range(len(pixels))))
    np.testing.assert_array_equal(together, alone)


def test_damaged_models_are_one_line(here: Run, tmp_path: Path) -> None:
    assert here("export", WEIGHTS, "--bundle", "whole", "--format", "openvino").code == 0

    def spoil(name: str, change: Callable[[Path], Any], *, signed: bool = True) -> str:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        change(folder)
        if signed:
            about = json.loads((folder / "bundle.json").read_text())
            for entry in about["files"].values():
                if "sha256" in entry and (folder / entry["name"]).is_file():
                    entry["sha256"] = digests.of_file(folder / entry["name"])
            (folder / "bundle.json").write_text(json.dumps(about))
        answer = here("predict", name, "photos/china/01.jpg")
        assert is_one_line(answer), answer
        return answer.err

    def forget_weights(folder: Path) -> None:
        about = json.loads((folder / "bundle.json").read_text())
        del about["files"]["weights"]
        (folder / "bundle.json").write_text(json.dumps(about))

    assert "model.bin: missing" in spoil("no-weights", lambda folder: (folder / "model.bin").unlink())
    changed = spoil("changed", lambda folder: (folder / "model.bin").write_bytes(b"x"), signed=False)
    assert "model.bin: damaged, or changed" in changed
    assert "damaged" in spoil("short", lambda folder: (folder / "model.bin").write_bytes(b"x"))
    assert "damaged" in spoil("text", lambda folder: (folder / "model.xml").write_text("no network"))
    assert "files.weights: names no file" in spoil("unnamed", forget_weights)


def test_what_cannot_be_is_refused_in_one_line(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'tflite'" in here("export", WEIGHTS, "--bundle", "other", "--format", "tflite").err
    answer = here("export", WEIGHTS, "-o", "file.yaml", "--format", "openvino")
    assert is_one_line(answer)
    assert "--format: has no effect without --bundle" in answer.err
    assert here("export", WEIGHTS, "--bundle", "whole", "--format", "openvino").code == 0
    monkeypatch.setattr(openvino_ir, "find_spec", lambda name: None)
    for command in (
        ("export", WEIGHTS, "--bundle", "other", "--format", "openvino"),
        ("predict", "whole", "photos/china/01.jpg"),
    ):
        answer = here(*command)
        assert is_one_line(answer), answer
        assert "pip install 'imgcls-search[openvino]'" in answer.err
    assert not (tmp_path / "other").exists()


def test_quantized_networks_stay_onnx(here: Run, tmp_path: Path) -> None:
    assert here("export", WEIGHTS, "--bundle", "plain").code == 0
    path = tmp_path / WEIGHTS
    artifact = path.with_suffix(".onnx")
    quantize(tmp_path / "plain" / "model.onnx", artifact, mode="static", calibration=noise())
    state = checkpoint.load(path)
    about = json.loads(state["about"])
    about["config"]["quantize"] = {"int8": {}}
    state = {**state, "about": json.dumps(about), "artifact": digests.of_file(artifact)}
    checkpoint.save(state, path)
    assert Artifact.load(artifact).quantized == "static"
    answer = here("export", WEIGHTS, "--bundle", "other", "--format", "openvino")
    assert is_one_line(answer), answer
    assert "is quantized" in answer.err
    assert not (tmp_path / "other").exists()
