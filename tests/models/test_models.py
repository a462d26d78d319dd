"""Families against torchvision's own models, at sizes from digits to photographs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from imgcls_search.errors import BuildError
from imgcls_search.models import MODELS
from imgcls_search.models.resnet import TWINS as RESNETS
from imgcls_search.models.vit import TWINS as VITS
from torchvision.ops import StochasticDepth


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def same_outputs(reference: str, family: str, arguments: dict[str, Any]) -> None:
    """Compare a model with torchvision's at its own image size: as many parameters, and equal logits for equal ones."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(reference).eval()
    for parameter in theirs.parameters():
        if not parameter.any():  # a head of zeros would make all outputs equal
            torch.nn.init.normal_(parameter, std=0.02)
    with torch.device("meta"):
        ours = MODELS[family](image_size=224, channels=3, classes=1000, **arguments).eval()
    assert count(ours) == count(theirs)
    assert ours.anatomy.twin == reference
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits = ours(images)
        assert logits.std() > 0
        assert torch.equal(logits, theirs(images))


def check_twin(family: str, reference: str, arguments: dict[str, Any]) -> None:
    """Compare the names and shapes of a model's state with torchvision's, without making it."""
    with torch.device("meta"):
        ours = MODELS[family](image_size=224, channels=3, classes=1000, weights="imagenet", **arguments)
        theirs = torchvision.models.get_model(reference)
    assert ours.anatomy.twin == reference
    assert count(ours) == count(theirs)
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def check_shape(family: str, arguments: dict[str, Any], size: int, channels: int) -> None:
    """Train a step, which must reach every parameter, and count the parameters without making them."""
    model = MODELS[family](image_size=size, channels=channels, classes=7, **arguments)
    logits = model.train()(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.device("meta"):
        assert count(MODELS[family](image_size=size, channels=channels, classes=7, **arguments)) == count(model)


def check_anatomy(model: torch.nn.Module, head: str) -> None:
    """Find every parameter in exactly one stage or in the head, in the order of the forward pass."""
    anatomy = model.anatomy
    assert anatomy.head == head
    assert isinstance(model.get_submodule(head), torch.nn.Linear)
    parts = [*anatomy.stages, (head,)]
    owned: dict[str, int] = {name: 0 for part in parts for name in part}
    order = []
    for parameter, _ in model.named_parameters():
        (owner,) = (
            (place, name)
            for place, part in enumerate(parts)
            for name in part
            if parameter == name or parameter.startswith(f"{name}.")
        )
        owned[owner[1]] += 1
        order.append(owner[0])
    assert all(owned.values())
    assert order == sorted(order)


VIT_B_16 = {"patch_size": 16, "width": 768, "depth": 12, "heads": 12}


@pytest.mark.parametrize(
    ("reference", "family", "arguments"),
    [
        ("resnet18", "resnet", {"stem": "large"}),
        ("resnet34", "resnet", {"depths": (3, 4, 6, 3), "drop_path": 0.2}),
        ("resnet50", "resnet", {"depths": (3, 4, 6, 3), "block": "bottleneck"}),
        ("resnet50", "resnet", {"depth": 50, "drop_path": 0.2}),
        ("vit_b_16", "vit", VIT_B_16),
        ("vit_b_16", "vit", {**VIT_B_16, "drop_path": 0.2}),
    ],
)
def test_canonical_settings_equal_torchvision(reference: str, family: str, arguments: dict[str, Any]) -> None:
    same_outputs(reference, family, arguments)


@pytest.mark.parametrize(
    ("family", "reference", "arguments"),
    [
        *(("resnet", reference, arguments) for reference, arguments in RESNETS.items()),
        *(("resnet", f"resnet{depth}", {"depth": depth}) for depth in (18, 34, 50, 101, 152)),
        *(("vit", reference, arguments) for reference, arguments in VITS.items()),
    ],
)
def test_twins_have_torchvisions_layers(family: str, reference: str, arguments: dict[str, Any]) -> None:
    check_twin(family, reference, arguments)


def test_lenet5_has_the_papers_layer_sizes() -> None:
    assert count(MODELS["lenet5"](image_size=32, channels=1, classes=10)) == 61_706


SMALL: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"width": 32, "depth": 2}),
    ("vit", {"width": 16, "depth": 1, "heads": 2, "pooling": "mean", "drop_path": 0.1}),
    ("resnet", {"depths": (1, 1, 1), "width": 8}),
    ("resnet", {"depth": 18, "width": 2, "drop_path": 0.1}),
    ("lenet5", {}),
]


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 96])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("family", "arguments"),
    SMALL,
)
def test_families_take_any_sensible_shape(family: str, arguments: dict[str, Any], size: int, channels: int) -> None:
    check_shape(family, arguments, size, channels)


@pytest.mark.parametrize(("family", "arguments"), SMALL)
def test_every_parameter_lies_in_one_stage_or_the_head(family: str, arguments: dict[str, Any]) -> None:
    model = MODELS[family](image_size=32, channels=3, classes=7, **arguments)
    check_anatomy(model, head={"vit": "heads.head", "resnet": "fc", "lenet5": "fc3"}[family])


DROPPING: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"width": 16, "depth": 4, "heads": 2}),
    ("vit", {"width": 16, "depth": 4, "heads": 2, "pooling": "mean"}),
    ("resnet", {"depths": (2, 2), "width": 8}),
    ("resnet", {"depths": (2, 2), "width": 8, "block": "bottleneck"}),
]


def with_and_without_drop_path(family: str, arguments: dict[str, Any]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a model that drops branches and one that does not, of equal parameters, none of them zero."""
    torch.manual_seed(0)
    dropping = MODELS[family](image_size=8, channels=3, classes=5, drop_path=0.8, **arguments)
    for parameter in dropping.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    whole = MODELS[family](image_size=8, channels=3, classes=5, **arguments)
    whole.load_state_dict(dropping.state_dict())
    return dropping, whole


@pytest.mark.parametrize(("family", "arguments"), DROPPING)
def test_drop_path_drops_branches_of_single_images_in_training_only(family: str, arguments: dict[str, Any]) -> None:
    dropping, whole = with_and_without_drop_path(family, arguments)
    images = torch.randn(1, 3, 8, 8).expand(16, -1, -1, -1)

    def logits(model: torch.nn.Module, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(images)

    assert torch.equal(logits(dropping, 0), logits(dropping, 0))
    assert not torch.equal(logits(dropping, 0), logits(dropping, 1))
    assert len(logits(dropping, 0).unique(dim=0)) > 1
    assert torch.equal(logits(whole, 0), logits(whole, 1))
    # Statistics of the batches above differ between the two.
    whole.load_state_dict(dropping.state_dict())
    assert torch.equal(logits(dropping.eval(), 0), logits(whole.eval(), 1))


@pytest.mark.parametrize(("family", "arguments"), DROPPING)
def test_drop_path_rises_to_its_rate_at_the_last_block(family: str, arguments: dict[str, Any]) -> None:
    dropping, whole = with_and_without_drop_path(family, arguments)
    rates = [module.p for module in dropping.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert not any(isinstance(module, StochasticDepth) for module in whole.modules())


def test_mean_pooling_reads_the_patches_and_not_the_class_token() -> None:
    torch.manual_seed(0)
    cls, mean = (
        MODELS["vit"](image_size=8, channels=1, classes=5, width=16, depth=2, heads=2, pooling=pooling).eval()
        for pooling in ("cls", "mean")
    )
    torch.nn.init.normal_(cls.heads.head.weight)
    mean.load_state_dict(cls.state_dict())
    images = torch.randn(2, 1, 8, 8)
    tokens: list[torch.Tensor] = []
    mean.encoder.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    logits = mean(images)
    assert tokens[0].shape == (2, 1 + 4, 16)
    torch.testing.assert_close(logits, cls.heads(tokens[0][:, 1:].mean(dim=1)))
    torch.testing.assert_close(cls(images), cls.heads(tokens[0][:, 0]))
    assert not torch.allclose(logits, cls(images))


def test_resnet_of_a_depth_is_the_one_of_its_blocks() -> None:
    with torch.device("meta"):
        named, listed = (
            MODELS["resnet"](image_size=32, channels=1, classes=10, width=8, **arguments)
            for arguments in ({"depth": 50}, {"depths": (3, 4, 6, 3), "block": "bottleneck"})
        )
    assert str(named) == str(listed)


@pytest.mark.parametrize(
    ("family", "size", "arguments", "argument", "said"),
    [
        ("vit", 8, {"patch_size": 3}, "patch_size", "3 does not divide the image size 8; allowed: 1, 2, 4, 8"),
        ("vit", 8, {"patch_size": 16}, "patch_size", "16 does not divide the image size 8"),
        ("vit", 8, {"width": 32, "heads": 3}, "heads", "3 does not divide the width 32"),
        ("resnet", 8, {"depths": (1,) * 5}, "depths", "5 stages are too many for a 8x8 image"),
        ("resnet", 8, {"stem": "large"}, "depths", "allowed: at most 2"),
        ("resnet", 8, {"stem": "large", "depth": 18}, "depth", "4 stages are too many .* allowed: at most 2"),
        ("resnet", 32, {"depth": 18, "depths": (2, 2, 2, 2)}, "depths", r"\[2, 2, 2, 2\] beside depth 18"),
        ("resnet", 32, {"depth": 50, "block": "basic"}, "block", "'basic' beside depth 50, which gives it"),
        ("lenet5", 12, {"padding": "valid"}, "padding", "needs images of at least 16 pixels, got 12"),
    ],
)
def test_impossible_shape_names_the_argument(
    family: str, size: int, arguments: dict[str, Any], argument: str, said: str
) -> None:
    with pytest.raises(BuildError, match=said) as error:
        MODELS[family](image_size=size, channels=1, classes=10, **arguments)
    assert error.value.path == argument


@pytest.mark.parametrize(
    ("family", "channels", "arguments", "argument", "said"),
    [
        ("resnet", 3, {"depth": 50, "width": 32}, "width", "32 does not fit weights 'imagenet'; .* beside them: 64"),
        ("resnet", 3, {"depth": 50, "stem": "small"}, "stem", "'small' does not fit .* beside them: 'large'"),
        ("resnet", 3, {"depths": (2, 2)}, "depths", r"\(2, 2\) does not fit"),
        ("resnet", 3, {"block": "bottleneck"}, "block", "'bottleneck' does not fit .* beside them: 'basic'"),
        ("resnet", 1, {"depth": 18}, "weights", "'imagenet' takes 3 channels, got 1"),
        ("vit", 3, {}, "patch_size", "4 does not fit"),
        ("vit", 3, {**VIT_B_16, "patch_size": 8}, "patch_size", "8 does not fit .* beside them: 16, 32"),
        ("vit", 3, {**VIT_B_16, "width": 96}, "width", "96 does not fit .* beside them: 768"),
        ("vit", 3, {**VIT_B_16, "pooling": "mean"}, "pooling", "'mean' does not fit .* beside them: 'cls'"),
        ("vit", 3, {**VIT_B_16, "mlp_ratio": 2.0}, "mlp_ratio", "2.0 does not fit .* beside them: 4.0"),
        ("vit", 1, VIT_B_16, "weights", "'imagenet' takes 3 channels, got 1"),
    ],
)
def test_weights_that_do_not_exist_name_the_argument(
    family: str, channels: int, arguments: dict[str, Any], argument: str, said: str
) -> None:
    with pytest.raises(BuildError, match=said) as error:
        MODELS[family](image_size=224, channels=channels, classes=10, weights="imagenet", **arguments)
    assert error.value.path == argument
