"""DenseNet, VGG and AlexNet: against torchvision's own, on small images, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from imgcls_search.errors import BuildError
from imgcls_search.models import MODELS
from imgcls_search.models.alexnet import TWINS as ALEXNETS
from imgcls_search.models.densenet import TWINS as DENSENETS
from imgcls_search.models.vgg import TWINS as VGGS
from torch import nn

from tests.models.test_models import check_anatomy, check_shape, check_twin, count, same_outputs

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("densenet", {"growth_rate": 4, "depths": (1, 1, 1, 1)}),
    ("densenet", {"growth_rate": 4, "depths": (2, 1), "width": 6, "dropout": 0.1}),
    ("vgg", {"width": 4}),
    ("vgg", {"width": 4, "depth": 16, "batch_norm": False, "hidden": 12}),
    ("alexnet", {"width": 0.1}),
    ("alexnet", {"width": 0.05, "hidden": 12, "dropout": 0.1}),
]


def build(family: str, size: int, channels: int = 3, classes: int = 10, **arguments: Any) -> nn.Module:
    return MODELS[family](image_size=size, channels=channels, classes=classes, **arguments)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("reference", "family", "arguments"),
    [
        ("densenet121", "densenet", {}),
        ("vgg16", "vgg", {"depth": 16, "batch_norm": False}),
        ("vgg11_bn", "vgg", {}),
        ("alexnet", "alexnet", {}),
    ],
)
def test_canonical_settings_equal_torchvision(reference: str, family: str, arguments: dict[str, Any]) -> None:
    same_outputs(reference, family, arguments)


@pytest.mark.parametrize(
    ("family", "reference", "arguments"),
    [
        (family, reference, arguments)
        for family, twins in (("densenet", DENSENETS), ("vgg", VGGS), ("alexnet", ALEXNETS))
        for reference, arguments in twins.items()
    ],
)
def test_twins_have_torchvisions_layers(family: str, reference: str, arguments: dict[str, Any]) -> None:
    check_twin(family, reference, arguments)


def test_defaults_that_are_left_to_the_family_are_the_twins() -> None:
    with torch.device("meta"):
        assert build("densenet", 224, growth_rate=48, depths=(6, 12, 36, 24)).anatomy.twin == "densenet161"
        assert build("vgg", 224, depth=19).anatomy.twin == "vgg19_bn"
        assert build("alexnet", 224).anatomy.twin == "alexnet"
        assert build("alexnet", 224, hidden=100).anatomy.twin is None
        assert build("alexnet", 64).anatomy.twin is None


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 96])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("family", "arguments"), SMALL)
def test_families_take_any_sensible_shape(family: str, arguments: dict[str, Any], size: int, channels: int) -> None:
    check_shape(family, arguments, size, channels)


@pytest.mark.parametrize("size", [8, 96])
@pytest.mark.parametrize(("family", "arguments"), SMALL)
def test_every_parameter_lies_in_one_stage_or_the_head(family: str, arguments: dict[str, Any], size: int) -> None:
    check_anatomy(build(family, size, **arguments), head="classifier" if family == "densenet" else "classifier.6")


@pytest.mark.parametrize("family", ["densenet", "vgg", "alexnet"])
def test_auto_takes_the_small_stem_up_to_64_pixels_without_pretrained_weights(family: str) -> None:
    with torch.device("meta"):
        small, large = (shapes(build(family, 64, stem=stem)) for stem in ("small", "large"))
        assert small != large
        assert shapes(build(family, 64)) == small
        assert shapes(build(family, 65)) == large
        assert shapes(build(family, 64, weights="imagenet")) == large
        assert shapes(build(family, 64, weights="mine.pt")) == small


def test_small_stems_keep_the_detail_of_small_images() -> None:
    def poolings(model: nn.Module) -> list[int]:
        """Return the sides of the maps behind the poolings."""
        sides: list[int] = []
        for module in model.modules():
            if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
                module.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
        model.eval()(torch.zeros(1, 3, size, size))
        return sides

    seen = {}
    for size in (8, 28, 64):
        seen[size] = [
            poolings(build(*family, size, **arguments)) for *family, arguments in (SMALL[0], SMALL[2], SMALL[4])
        ]
    assert seen == {
        8: [[4, 2, 1], [4, 2, 1], [4, 2, 1]],
        28: [[14, 7, 3], [14, 7, 3, 1], [14, 7, 3]],
        64: [[32, 16, 8], [32, 16, 8, 4, 2], [32, 16, 8]],
    }


def test_classifiers_of_small_images_do_not_outweigh_the_convolutions() -> None:
    for family in ("vgg", "alexnet"):
        with torch.device("meta"):
            model = build(family, 32)
        assert count(model.get_submodule("classifier")) < count(model.get_submodule("features"))


def test_other_channels_are_initialised_like_three() -> None:
    torch.manual_seed(0)
    for channels in (1, 3, 4):
        weight = build("densenet", 96, channels, depths=(1,), growth_rate=32).get_parameter("features.conv0.weight")
        assert weight.std().item() == pytest.approx((2 / (channels * 49)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("family", ["vgg", "alexnet"])
@pytest.mark.parametrize("size", [8, 32])
def test_small_stems_start_with_signals_that_do_not_fade(family: str, size: int) -> None:
    torch.manual_seed(0)
    model = build(family, size, width={"vgg": 16, "alexnet": 0.25}[family]).eval()
    with torch.inference_mode():
        assert 0.1 < model(torch.randn(32, 3, size, size)).std() < 10


def test_large_stems_start_as_torchvisions_do() -> None:
    torch.manual_seed(0)
    ours = build("vgg", 96, width=16)
    assert ours.get_parameter("classifier.3.weight").std().item() == pytest.approx(0.01, rel=0.01)
    ours = build("alexnet", 96, width=0.25)
    bound = ours.get_submodule("classifier.4").in_features ** -0.5
    assert ours.get_parameter("classifier.4.weight").abs().max().item() == pytest.approx(bound, rel=0.01)


def test_dropout_acts_in_training_only() -> None:
    for family, arguments in (SMALL[1], ("vgg", {"width": 4}), ("alexnet", {"width": 0.1})):
        model = build(family, 32, **arguments)
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert not torch.equal(model(images), model(images)), family
        model.eval()
        assert torch.equal(model(images), model(images)), family


@pytest.mark.parametrize(
    ("family", "arguments", "least"),
    [
        ("densenet", {"stem": "large", "growth_rate": 4, "depths": (1, 1, 1, 1)}, 29),
        ("densenet", {"stem": "large", "growth_rate": 4, "depths": (1, 1)}, 5),
        ("densenet", {"stem": "small", "growth_rate": 4, "depths": (1, 1, 1)}, 4),
        ("vgg", {"stem": "large", "width": 4}, 32),
        ("alexnet", {"stem": "large", "width": 0.1}, 63),
        ("alexnet", {"stem": "small", "width": 0.1}, 8),
    ],
)
def test_smallest_image_is_what_the_refusal_says(family: str, arguments: dict[str, Any], least: int) -> None:
    assert build(family, least, **arguments).eval()(torch.zeros(1, 3, least, least)).shape == (1, 10)
    with pytest.raises(BuildError, match=f"images of at least {least} pixels, got {least - 1}"):
        build(family, least - 1, **arguments)


@pytest.mark.parametrize(
    ("family", "size", "channels", "arguments", "argument", "said"),
    [
        (
            "densenet",
            *(8, 3, {"depths": (1,) * 5}),
            "depths",
            "5 blocks behind a small stem need images of at least 16 pixels, got 8; allowed: at most 4 blocks",
        ),
        ("densenet", 8, 3, {"depths": (1,) * 5, "stem": "large"}, "depths", "got 8; allowed: at most 2 blocks"),
        (
            "densenet",
            *(16, 3, {"stem": "large"}),
            "stem",
            "'large' and 4 blocks need images of at least 29 pixels, got 16; smallest sizes: small 8, large 29",
        ),
        ("densenet", 28, 3, {"weights": "imagenet"}, "stem", "'large' and 4 blocks need images of at least 29 pixels"),
        ("densenet", 64, 3, {"weights": "imagenet", "growth_rate": 24}, "growth_rate", "24 does not fit .* them: 32"),
        ("densenet", 64, 3, {"weights": "imagenet", "width": 32}, "width", "32 does not fit .* beside them: 64"),
        ("densenet", 64, 3, {"weights": "imagenet", "depths": (6, 6)}, "depths", r"\(6, 6\) does not fit"),
        ("densenet", 64, 3, {"weights": "imagenet", "stem": "small"}, "stem", "'small' does not fit"),
        ("densenet", 64, 1, {"weights": "imagenet"}, "weights", "'imagenet' takes 3 channels, got 1"),
        (
            "vgg",
            *(28, 3, {"stem": "large"}),
            "stem",
            "'large' needs images of at least 32 pixels, got 28; smallest sizes: small 1, large 32",
        ),
        ("vgg", 64, 3, {"weights": "imagenet", "width": 32}, "width", "32 does not fit .* beside them: 64"),
        ("vgg", 64, 3, {"weights": "imagenet", "hidden": 512}, "hidden", "512 does not fit .* beside them: 4096"),
        ("vgg", 64, 3, {"weights": "imagenet", "stem": "small", "hidden": 4096}, "stem", "beside them: 'large'"),
        ("vgg", 64, 1, {"weights": "imagenet"}, "weights", "'imagenet' takes 3 channels, got 1"),
        (
            "alexnet",
            *(32, 3, {"stem": "large"}),
            "stem",
            "'large' needs images of at least 63 pixels, got 32; smallest sizes: small 8, large 63",
        ),
        ("alexnet", 4, 3, {}, "stem", "'small' needs images of at least 8 pixels, got 4"),
        ("alexnet", 64, 3, {"weights": "imagenet", "width": 0.5}, "width", "0.5 does not fit .* beside them: 1.0"),
        ("alexnet", 64, 3, {"weights": "imagenet", "hidden": 64}, "hidden", "64 does not fit .* beside them: 4096"),
        ("alexnet", 64, 1, {"weights": "imagenet"}, "weights", "'imagenet' takes 3 channels, got 1"),
    ],
)
def test_impossible_shape_names_the_argument(
    family: str, size: int, channels: int, arguments: dict[str, Any], argument: str, said: str
) -> None:
    with pytest.raises(BuildError, match=said) as error:
        build(family, size, channels, **arguments)
    assert error.value.path == argument
