"""Which weights files a study's trials started from: noted, and compared when they are trained again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.data import InputShape
from imgcls_search.executors.questions import FetchWeights
from imgcls_search.models import weights_files
from imgcls_search.orchestrator import weights_used
from imgcls_search.space import parse
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles

from tests.conftest import Answer

LITE = "tf_efficientnet_lite0"

SPACE = """
study: {name: mine, trials: 1, pictures: false, workers: 1}
data: {digits: {max_train: 40}}
image: {size: 32, channels: 3}
model: {timm: {name: tf_efficientnet_lite0, weights: imagenet}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-3]}}}
training: {epochs: 1, batch_size: 20}
"""


def other_weights(folder: Path) -> Path:
    """Put other weights of the same model into a folder of a person's own."""
    ((_, _, file),) = list(weights_files.packaged())
    state = torch.load(file, weights_only=True)
    state["_conv_stem.weight"] *= 1.5
    folder.mkdir()
    torch.save(state, folder / f"{LITE}.pth")
    return folder


def test_file_of_a_package_is_told_from_another_of_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    config = parse(SPACE.replace("{float: [1e-4, 1e-3]}", "1e-3"), catalog(), source="x.yaml").config()
    shape = InputShape(image_size=32, channels=3, classes=10)

    def used() -> dict[str, Any]:
        # As the helper answers it, whose process would keep the folders of weights that it began with.
        return {weights_used.name_of(config): FetchWeights(config=config, shape=shape).answer(lambda told: None)}

    known = used()
    ((name, fact),) = known.items()
    assert name == f"timm name={LITE}"
    # torch's convention: the name ends in the digest's first digits.
    assert fact["file"] == "efficientnet-lite0-57934424.pth"
    assert len(fact["sha256"]) == 64
    assert list(weights_used.differing(known, used())) == []
    monkeypatch.setenv(weights_files.VARIABLE, str(other_weights(tmp_path / "mine")))
    (line,) = weights_used.differing(known, used())
    assert line.startswith(f"weights of {name}: were efficientnet-lite0-57934424.pth (sha256 {fact['sha256'][:12]})")
    assert f"are now {LITE}.pth (sha256 " in line


def test_names_tell_apart_what_starts_from_different_files() -> None:
    def name(model: str) -> str:
        return weights_used.name_of(parse(f"model: {model}\nstudy: {{name: s}}", catalog(), source="x.yaml").config())

    small, large = (name(f"{{resnet: {{depth: {depth}, stem: large, weights: imagenet}}}}") for depth in (18, 34))
    assert small != large
    assert name("{resnet: {depth: 18, stem: large, weights: mine/resnet18.pth}}") == "mine/resnet18.pth"


def test_study_knows_its_weights_and_says_when_they_are_others(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    pytest.importorskip("timm")
    (tmp_path / "lite.yaml").write_text(SPACE)
    ran = imgcls("run", "lite.yaml")
    assert ran.code == 0, ran.err
    noted = records.load(StudyFiles(tmp_path / "studies", "mine")).facts["weights"]
    assert [fact["file"] for fact in noted.values()] == ["efficientnet-lite0-57934424.pth"]
    same = imgcls("reproduce", "mine", "--trial", "0")
    assert "weights of" not in same.out
    env = {weights_files.VARIABLE: str(other_weights(tmp_path / "others"))}
    other = imgcls("reproduce", "mine", "--trial", "0", env=env)
    assert f"differs: weights of timm name={LITE}: were efficientnet-lite0-57934424.pth" in other.out, other.err
    confirmed = imgcls("confirm", "mine", "--seeds", "2", env=env)
    assert confirmed.code == 0, confirmed.err
    assert f"trial 0: weights of timm name={LITE}: were" in confirmed.err
