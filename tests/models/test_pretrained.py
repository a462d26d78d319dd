"""Pretrained weights: files where torchvision and timm look for them, our own checkpoints, freezing, slow backbones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import BuildError, CheckpointError
from imgcls_search.models import MODELS
from imgcls_search.space import parse
from imgcls_search.training import finetune
from imgcls_search.training.loop import fit
from imgcls_search.training.recipe import Finetune
from imgcls_search.worker import measuring, networks, pipeline, start_weights

from tests.conftest import Answer

TWINS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet", {}),
    "vit_b_32": ("vit", {"patch_size": 32, "width": 768, "depth": 12, "heads": 12}),
    "densenet121": ("densenet", {}),
    "mobilenet_v3_small": ("mobilenetv3", {}),
    "convnext_tiny": ("convnext", {"depths": [3, 3, 9, 3], "width": 96}),
    "efficientnet_b0": ("efficientnet", {}),
    "alexnet": ("alexnet", {}),
    "vgg11_bn": ("vgg", {}),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, torch.Tensor]]:
    """Return a function that puts weights where torchvision looks before it fetches, as an earlier fetch would."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def put(name: str) -> dict[str, torch.Tensor]:
        weights: Any = torchvision.models.get_model_weights(name).DEFAULT
        torch.manual_seed(7)
        state = torchvision.models.get_model(name).state_dict()
        if name.startswith("densenet"):
            # The published file has the names of an older torchvision.
            state = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in state.items()}
        path = tmp_path / "torch/hub/checkpoints" / weights.url.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)
        return dict(state)

    return put


def config(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test").config()


def model_section(family: str, **arguments: Any) -> str:
    return f"model: {json.dumps({family: arguments})}\n"


def data(size: int, channels: int = 3, classes: int = 4) -> Prepared:
    return Prepared(
        fingerprint="none",
        classes=tuple(map(str, range(classes))),
        image_size=size,
        channels=channels,
        counts={"train": 8, "val": 8, "test": 8},
        class_counts=(2,) * classes,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        folder="nowhere",
    )


@pytest.mark.parametrize("name", TWINS)
def test_every_family_starts_from_torchvisions_weights_but_for_its_head(
    name: str, hub: Callable[[str], dict[str, torch.Tensor]]
) -> None:
    family, arguments = TWINS[name]
    state = hub(name)
    trial = config(model_section(family, **arguments, weights="imagenet"))
    images = data(224 if family == "vit" else 64)
    ours = pipeline.new_session(trial, images, seed=1, device="cpu").model
    head = ours.anatomy.head
    assert ours.get_submodule(head).out_features == 4
    modern = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])", r"\1\2", key): value for key, value in state.items()}
    body = {key: value for key, value in ours.state_dict().items() if not key.startswith(f"{head}.")}
    assert body.keys() == {key for key in modern if not key.startswith(f"{head}.")}
    assert all(torch.equal(value, modern[key]) for key, value in body.items())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    settled = start_weights.with_normalisation(trial, images)
    assert (settled.mean, settled.std) == (mean, std)


@pytest.mark.slow
def test_position_embeddings_are_resized_as_torchvision_does(hub: Callable[[str], dict[str, torch.Tensor]]) -> None:
    state = hub("vit_b_32")
    trial = config(model_section("vit", **TWINS["vit_b_32"][1], weights="imagenet"))
    model = pipeline.new_session(trial, data(96), seed=1, device="cpu").model
    from torchvision.models.vision_transformer import interpolate_embeddings

    theirs = interpolate_embeddings(96, 32, state)["encoder.pos_embedding"]
    assert theirs.shape == (1, 10, 768)
    assert torch.equal(model.state_dict()["encoder.pos_embedding"], theirs)


def checkpoint(tmp_path: Path, width: int = 8) -> tuple[Path, TrialConfig, torch.nn.Module]:
    """Return a file as `train` saves it, what it was trained by, and its model."""
    trial = config(model_section("resnet", depths=[1, 1], width=width))
    session = pipeline.new_session(trial, data(16), seed=5, device="cpu")
    path = tmp_path / "seed-1.pt"
    torch.save({**session.state_dict(), **networks.describe_weights(trial, data(16))}, path)
    return path, trial, session.model


def test_own_weights_start_a_model_with_other_classes_and_keep_their_normalisation(tmp_path: Path) -> None:
    path, _, theirs = checkpoint(tmp_path)
    trial = config(model_section("resnet", depths=[1, 1], width=8, weights=str(path)))
    other = data(32, classes=9)
    model = pipeline.new_session(trial, other, seed=1, device="cpu").model
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)
    assert model.fc.out_features == 9
    assert start_weights.with_normalisation(trial, other).mean == (0.5, 0.5, 0.5)
    # A plain state dict, as torchvision users save it, is taken for one of ImageNet's.
    torch.save(theirs.state_dict(), path)
    assert torch.equal(pipeline.new_session(trial, other, seed=1, device="cpu").model.conv1.weight, theirs.conv1.weight)
    assert start_weights.with_normalisation(trial, other).mean == (0.485, 0.456, 0.406)


def test_weights_of_another_shape_are_refused_with_the_tensor(tmp_path: Path) -> None:
    path, *_ = checkpoint(tmp_path)
    wide = config(model_section("resnet", depths=[1, 1], width=16, weights=str(path)))
    with pytest.raises(
        BuildError, match=r"does not fit: conv1.weight is \(8, 3, 3, 3\) there and \(16, 3, 3, 3\) here"
    ) as e:
        start_weights.check_weights(wide.component("model"), data(16).shape)
    assert e.value.path == "model.resnet.weights"
    deep = config(model_section("resnet", depths=[1, 1, 1], width=8, weights=str(path)))
    with pytest.raises(BuildError, match="does not fit: it lacks 1"):
        start_weights.check_weights(deep.component("model"), data(16).shape)
    shallow = config(model_section("resnet", depths=[1], width=8, weights=str(path)))
    with pytest.raises(BuildError, match="does not fit: it has 1"):
        start_weights.check_weights(shallow.component("model"), data(16).shape)


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def saved(kind: str, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Save weights as other programs do."""
    from safetensors.torch import save_file

    plain = {name: tensor.clone() for name, tensor in state.items()}
    match kind:
        case "safetensors":
            save_file(plain, path)
        case "prefixed safetensors":
            save_file(prefixed("module.", plain), path)
        case "DataParallel":
            torch.save(prefixed("module.", plain), path)
        case "compiled and DataParallel":
            torch.save({"state_dict": prefixed("module._orig_mod.", plain)}, path)
        case "Lightning":
            torch.save({"epoch": 3, "state_dict": prefixed("model.", plain)}, path)
        case "nested":
            torch.save({"model": {"state_dict": plain}}, path)
        case key:
            torch.save({key: plain, "epoch": 3}, path)


KINDS = [
    "model",
    "state_dict",
    "model_state_dict",
    "nested",
    "DataParallel",
    "compiled and DataParallel",
    "Lightning",
    "safetensors",
    "prefixed safetensors",
]


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_programs_are_read_whatever_they_are_called(kind: str, ending: str, tmp_path: Path) -> None:
    *_, theirs = checkpoint(tmp_path)
    path = tmp_path / f"theirs{ending}"
    saved(kind, theirs.state_dict(), path)
    trial = config(model_section("resnet", depths=[1, 1], width=8, weights=str(path)))
    ours = pipeline.new_session(trial, data(32, classes=9), seed=1, device="cpu").model.state_dict()
    body = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")}
    assert all(torch.equal(tensor, ours[name]) for name, tensor in body.items())


def test_what_does_not_fit_is_named_with_examples(tmp_path: Path) -> None:
    *_, theirs = checkpoint(tmp_path)
    state, path = theirs.state_dict(), tmp_path / "theirs.pt"
    trial = config(model_section("resnet", depths=[1, 1], width=8, weights=str(path)))

    def said(tensors: Mapping[str, torch.Tensor]) -> str:
        torch.save(dict(tensors), path)
        with pytest.raises(BuildError) as error:
            start_weights.check_weights(trial.component("model"), data(16).shape)
        assert error.value.path == "model.resnet.weights"
        assert "\n" not in error.value.message
        return error.value.message.removeprefix(f"{path}: ")

    assert re.search(
        r"every name begins with encoder\., and \d+ of \d+ names fit without it", said(prefixed("encoder.", state))
    )
    fewer = {name: tensor for name, tensor in state.items() if name not in ("conv1.weight", "bn1.bias")}
    assert re.fullmatch(r"does not fit: it lacks 2 of \d+ tensors, as conv1.weight, bn1.bias", said(fewer))
    more = {**state, "a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1), "d": torch.zeros(1)}
    assert said(more) == "does not fit: it has 4 tensors more, as a, b, c, ..."
    other = {**state, "conv1.weight": torch.zeros(8, 3, 5, 5), "bn1.bias": torch.zeros(4)}
    assert said(other) == (
        "does not fit: conv1.weight is (8, 3, 5, 5) there and (8, 3, 3, 3) here (2 tensors have other shapes)"
    )
    renamed = {("x" if name == "conv1.weight" else name): tensor for name, tensor in state.items()}
    assert re.search(r"it lacks 1 of \d+ tensors, as conv1.weight; it has 1 tensors more, as x$", said(renamed))
    torch.save({"epoch": 3, "loss": 0.1}, path)
    with pytest.raises(CheckpointError, match=r"theirs.pt: holds no tensors; its entries: epoch, loss$"):
        start_weights.check_weights(trial.component("model"), data(16).shape)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("broken.safetensors", r"broken.safetensors: not a weights file, or damaged \("),
        (
            "imagenett",
            r"'imagenett': no such file \(did you mean 'imagenet'\?\); allowed: imagenet, or the path of a file",
        ),
        ("broken.pt", r"broken.pt: not a weights file, or damaged \("),
        ("list.pt", "list.pt: not a weights file; it holds a list"),
        ("code.pt", r"code.pt: not a weights file, or damaged \(UnpicklingError\)"),
    ],
)
def test_bad_weights_files_get_one_line(
    weights: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.pt").write_bytes(b"no weights")
    Path("broken.safetensors").write_bytes(b"\x10" + bytes(7) + b'{"a": 1}')
    torch.save([1, 2], "list.pt")
    torch.save({"model": torch.nn.Linear(1, 1)}, "code.pt")
    trial = config(model_section("resnet", depths=[1, 1], width=8, weights=weights))
    with pytest.raises(CheckpointError, match=f"^model.resnet.weights: {said}") as error:
        start_weights.check_weights(trial.component("model"), data(16).shape)
    assert "\n" not in str(error.value)


def test_without_a_network_the_run_ends_before_any_trial(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    space = tmp_path / "pretrained.yaml"
    space.write_text(
        "study: {trials: 2}\ndata: {digits: {max_train: 100}}\nimage: {size: 32, channels: 3}\n"
        "model: {resnet: {weights: imagenet, drop_path: {float: [0, 0.2]}}}\ntraining: {epochs: 1}\n"
    )
    # A port nobody listens on is a network that is not there, wherever the test runs.
    answer = imgcls("run", space, env={"TORCH_HOME": str(tmp_path / "torch"), "https_proxy": "http://127.0.0.1:9"})
    assert answer.code == 2
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("error: model.resnet.weights: the pretrained weights of resnet18 cannot be fetched (")
    assert "connect to a network, or put resnet18-f37072fd.pth into" in line
    assert not (tmp_path / "studies/pretrained-digits.db").exists()


def train(trial: TrialConfig, epochs: int) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """Train on random images; return the model and its weights before and after each epoch."""
    import numpy as np
    from imgcls_search.training.images import ImageSet

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 3, 16, 16), dtype=np.uint8)
    images = ImageSet(pixels=pixels, labels=random.integers(0, 4, 16), mean=(0.5,) * 3, std=(0.2,) * 3, device="cpu")
    session = pipeline.new_session(trial, data(16), seed=3, device="cpu")
    states = [copied(session.model)]
    states += [copied(session.model) for _ in fit(session, images, images, until_epoch=epochs)]
    return session.model, states


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def moved(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize(
    ("freeze", "moving"),
    [("none", {"conv1", "bn1", "layer1", "layer2", "fc"}), ("backbone", {"fc"}), (2, {"layer2", "fc"})],
)
def test_frozen_parts_rest_and_thaw_when_told(freeze: str | int, moving: set[str], tmp_path: Path) -> None:
    path, *_ = checkpoint(tmp_path)
    section = model_section("resnet", depths=[1, 1], width=8, weights=str(path))
    trial = config(
        f"{section}finetune: {{freeze: {freeze}, freeze_epochs: 2}}\ntraining: {{epochs: 3, batch_size: 8}}\n"
    )
    _, states = train(trial, 3)
    assert moved(states[0], states[1]) == moving
    assert moved(states[1], states[2]) == moving
    assert moved(states[2], states[3]) == {"conv1", "bn1", "layer1", "layer2", "fc"}


def test_backbone_learns_at_a_fraction_of_the_rate(tmp_path: Path) -> None:
    path, *_ = checkpoint(tmp_path)
    section = model_section("resnet", depths=[1, 1], width=8, weights=str(path))
    trial = config(f"{section}finetune: {{backbone_lr_factor: 0.1}}\noptimizer: {{adamw: {{lr: 0.01}}}}\n")
    session = pipeline.new_session(trial, data(16), seed=3, device="cpu")
    rates = {id(p): group["lr"] for group in session.optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in session.model.named_parameters() if name.startswith("fc.")} == {
        "fc.weight": 0.01,
        "fc.bias": 0.01,
    }
    assert {rates[id(p)] for name, p in session.model.named_parameters() if not name.startswith("fc.")} == {0.001}
    assert len(rates) == len(list(session.model.parameters()))


@pytest.mark.parametrize(("decay", "factor"), [(0.5, 1.0), (0.8, 0.1), (1.0, 0.1)])
def test_each_stage_learns_at_a_fraction_of_the_rate_of_the_next(decay: float, factor: float, tmp_path: Path) -> None:
    path, *_ = checkpoint(tmp_path)
    section = model_section("resnet", depths=[1, 1], width=8, weights=str(path))
    slower = f"finetune: {{layer_decay: {decay}, backbone_lr_factor: {factor}}}\n"
    trial = config(f"{section}{slower}optimizer: {{adamw: {{lr: 0.01}}}}\n")
    session = pipeline.new_session(trial, data(16), seed=3, device="cpu")
    rates = {id(p): group["lr"] for group in session.optimizer.param_groups for p in group["params"]}
    # Three stages: the stem, layer1 and layer2, which is one step away from the head.
    steps = {"conv1": 3, "bn1": 3, "layer1": 2, "layer2": 1}
    for name, parameter in session.model.named_parameters():
        part = name.partition(".")[0]
        expected = 0.01 if part == "fc" else 0.01 * factor * decay ** steps[part]
        assert rates[id(parameter)] == pytest.approx(expected), name
    assert len(rates) == len(list(session.model.parameters()))
    # Kept optimizer states find their parameters: the head's are the first.
    assert {id(p) for p in session.optimizer.param_groups[0]["params"]} <= {
        id(p) for p in session.model.fc.parameters()
    }


def test_layer_decay_counts_timms_stages() -> None:
    trial = config("model: {timm: {name: test_vit, weights: w.pt}}\nfinetune: {layer_decay: 0.5}\n")
    model = networks.build_model(trial, data(160).shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    finetune.slow_backbone(optimizer, model, model.anatomy, Finetune(layer_decay=0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    stages = len(model.anatomy.stages)
    for place, names in enumerate(model.anatomy.stages):
        assert {rates[id(model.get_parameter(name))] for name in names} == {0.5 ** (stages - place)}
    assert {rates[id(p)] for p in model.head.parameters()} == {1.0}


def test_more_frozen_stages_than_there_are_is_an_impossible_combination(tmp_path: Path) -> None:
    path, *_ = checkpoint(tmp_path)
    section = model_section("resnet", depths=[1, 1], width=8, weights=str(path))
    trial = config(f"{section}finetune: {{freeze: 4}}\n")
    shape = data(16).shape
    with pytest.raises(BuildError, match=r"^finetune.freeze: 4 stages, but the model has 3; allowed: 1 to 3"):
        measuring.measure(trial, shape, measuring.count(trial.component("model"), shape))


def test_finetune_without_pretrained_weights_is_refused(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    tiny.write_text(tiny.read_text() + "finetune: {freeze: backbone}\n")
    answer = imgcls("check", tiny)
    assert answer.code == 2
    assert "tiny.yaml:8:1: finetune: no model here starts from pretrained weights" in answer.err


@pytest.mark.slow
def test_a_search_from_own_weights_trains_exports_and_retrains(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    first = tmp_path / "first.yaml"
    first.write_text(
        "data: {digits: {max_train: 200}}\nmodel: {resnet: {depths: [1, 1], width: 8}}\ntraining: {epochs: 2}\n"
    )
    assert imgcls("train", first).code == 0
    second = tmp_path / "second.yaml"
    second.write_text(
        "study: {trials: 3, pictures: false}\ndata: {digits: {max_train: 200}}\n"
        "model: {resnet: {depths: [1, 1], width: {choice: [8, 16]}, weights: trained/first/seed-1.pt}}\n"
        "finetune: {freeze: {choice: [none, backbone, 1]}, freeze_epochs: 1, backbone_lr_factor: {choice: [0.1, 1]}}\n"
        "training: {epochs: 2}\n"
    )
    answer = imgcls("run", second)
    assert answer.code == 0, answer.err
    status = json.loads(imgcls("status", "second-digits", "--json").out)
    assert status["trials"]["total"] == 3
    assert status["trials"]["fail"] == 0
    # Only width 8 fits the file; the other is refused before training, by name.
    assert all("does not fit" in reason for reason in status["rejected"])
    assert imgcls("export", "second-digits", "-o", "best.yaml").code == 0
    assert imgcls("train", "best.yaml").code == 0


def test_twins_are_names_of_torchvisions_models_with_weights() -> None:
    for family in MODELS:
        module = __import__(f"imgcls_search.models.{family}", fromlist=["TWINS"])
        for name in getattr(module, "TWINS", {}):
            assert torchvision.models.get_model_weights(name)
