"""EfficientNet, MobileNetV3 and ConvNeXt: torchvision's at the canonical settings, small images through small stems."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
import torchvision
from imgcls_search.catalog import catalog
from imgcls_search.errors import BuildError
from imgcls_search.models import MODELS
from imgcls_search.models.convnext import TWINS as CONVNEXTS
from imgcls_search.models.efficientnet import TWINS as EFFICIENTNETS
from imgcls_search.models.mobilenetv3 import TWINS as MOBILENETS
from imgcls_search.signature import Leaf, read
from imgcls_search.space import parse

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("efficientnet", {"width_mult": 0.25, "depth_mult": 0.5}),
    ("mobilenetv3", {"size": "small", "width_mult": 0.25}),
    ("mobilenetv3", {"size": "large", "width_mult": 0.25, "squeeze_excite": False}),
    ("convnext", {"depths": (1, 1, 1), "width": 8}),
]
"""Each family in a size that tests can train."""

CANONICAL = [
    *((f"efficientnet_b{n}", "efficientnet", {"variant": f"b{n}"}) for n in range(8)),
    ("mobilenet_v3_small", "mobilenetv3", {}),
    ("mobilenet_v3_large", "mobilenetv3", {"size": "large"}),
    ("convnext_tiny", "convnext", {"depths": (3, 3, 9, 3), "width": 96}),
    ("convnext_large", "convnext", {"depths": (3, 3, 27, 3), "width": 192, "drop_path": 0.5}),
]

TWINS = [
    (family, name, arguments)
    for family, twins in (("efficientnet", EFFICIENTNETS), ("mobilenetv3", MOBILENETS), ("convnext", CONVNEXTS))
    for name, arguments in twins.items()
]


def build(family: str, image_size: int = 32, channels: int = 3, classes: int = 10, **arguments: Any) -> Any:
    return MODELS[family](image_size=image_size, channels=channels, classes=classes, **arguments)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("reference", "family", "arguments"), CANONICAL)
def test_canonical_settings_count_what_torchvisions_do(reference: str, family: str, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(reference)
        ours = build(family, 224, classes=1000, **arguments)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert count(ours) == count(theirs)
    assert ours.anatomy.twin == reference
    # What no state dict holds: strides, and the constants of the norms.
    shown = [re.sub(r"momentum=[\d.]+", "momentum", str(model.features)) for model in (ours, theirs)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("reference", "family", "arguments"),
    [row for row in CANONICAL if row[0] in ("efficientnet_b0", "convnext_tiny") or row[1] == "mobilenetv3"],
)
def test_canonical_settings_compute_what_torchvisions_do(
    reference: str, family: str, arguments: dict[str, Any]
) -> None:
    theirs = torchvision.models.get_model(reference).eval()
    with torch.device("meta"):
        ours = build(family, 224, classes=1000, **arguments).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(("family", "name", "arguments"), TWINS)
def test_twins_build_under_their_names(family: str, name: str, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert build(family, 224, **arguments, weights="imagenet").anatomy.twin == name


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 96])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("family", "arguments"), SMALL)
def test_families_train_on_any_sensible_shape(family: str, arguments: dict[str, Any], size: int, channels: int) -> None:
    torch.manual_seed(0)
    model = build(family, size, channels, 7, **arguments)
    images = torch.randn(2, channels, size, size)
    logits = model.train()(images)
    assert logits.shape == (2, 7)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(images).shape == (2, 7)
    with torch.device("meta"):
        assert count(build(family, size, channels, 7, **arguments)) == count(model)


@pytest.mark.parametrize("family", ["efficientnet", "mobilenetv3", "convnext"])
def test_defaults_take_the_smallest_digits(family: str) -> None:
    model = build(family, 8, 1).eval()
    images = torch.zeros(2, 1, 8, 8)
    assert model(images).shape == (2, 10)
    assert model.features(images).shape[-2:] == (1, 1)


@pytest.mark.parametrize(
    ("family", "arguments", "small", "large"),
    [*((family, arguments, 8, 2) for family, arguments in SMALL[:3]), (*SMALL[3], 8, 4)],
)
def test_stem_says_how_much_smaller_the_last_map_is(
    family: str, arguments: dict[str, Any], small: int, large: int
) -> None:
    def side(size: int, **more: Any) -> int:
        with torch.device("meta"):
            model = build(family, size, **arguments, **more).eval()
            return int(model.features(torch.zeros(1, 3, size, size)).shape[-1])

    assert side(64, stem="small") == side(64) == small
    assert side(64, stem="large") == large
    assert side(96) == side(96, stem="large") != side(96, stem="small")


@pytest.mark.parametrize(("family", "arguments"), SMALL)
@pytest.mark.parametrize("stem", ["small", "large"])
@pytest.mark.parametrize("channels", [1, 3])
def test_replaced_stem_starts_as_torchvisions(family: str, arguments: dict[str, Any], stem: str, channels: int) -> None:
    torch.manual_seed(0)
    weight = build(family, 32, channels, **{**arguments, "width": 96} if family == "convnext" else arguments, stem=stem)
    first = weight.features[0][0]
    assert first.in_channels == channels
    # ConvNeXt draws with one spread for all; the others by the fan out, which the input channels do not change.
    spread = 0.02 if family == "convnext" else (2 / (first.out_channels * 9)) ** 0.5
    assert first.weight.std().item() == pytest.approx(spread, rel=0.25)
    assert first.bias is None or not first.bias.any()


@pytest.mark.parametrize(
    ("family", "arguments"), [*SMALL, ("convnext", {"depths": (2,), "width": 8}), ("efficientnet", {"variant": "b1"})]
)
def test_anatomy_holds_every_parameter_once_in_order(family: str, arguments: dict[str, Any]) -> None:
    model = build(family, 32, **arguments)
    anatomy = model.anatomy
    assert isinstance(model.get_submodule(anatomy.head), torch.nn.Linear)
    assert model.get_submodule(anatomy.head).out_features == 10
    parts = [part for stage in (*anatomy.stages, (anatomy.head,)) for part in stage]
    owned = [f"{part}.{name}" for part in parts for name, _ in model.get_submodule(part).named_parameters()]
    assert Counter(owned) == Counter(name for name, _ in model.named_parameters())
    assert owned == [name for name, _ in model.named_parameters()]
    assert all(anatomy.stages)


def test_stages_follow_the_halvings() -> None:
    with torch.device("meta"):
        assert [len(build(*row[:1], **row[1]).anatomy.stages) for row in SMALL] == [8, 5, 6, 4]


def test_variant_gives_multipliers_and_dropout() -> None:
    with torch.device("meta"):
        named = build("efficientnet", 224, variant="b3")
        same = build("efficientnet", 224, width_mult=1.2, depth_mult=1.4, dropout=0.3)
        plain = build("efficientnet", 224)
        beside = build("efficientnet", 224, variant="b3", width_mult=1.2, dropout=0.0)
    assert str(named) == str(same)
    assert named.classifier[0].p == 0.3
    assert beside.classifier[0].p == 0.0
    assert str(beside.features) == str(named.features)
    assert plain.anatomy.twin == "efficientnet_b0"
    assert plain.classifier[0].p == 0.2


def test_dropout_and_drop_path_arrive() -> None:
    with torch.device("meta"):
        one = build("efficientnet", dropout=0.4, drop_path=0.3)
        two = build("mobilenetv3", dropout=0.4)
        three = build("convnext", drop_path=0.3, layer_scale=0.5)
    assert one.classifier[0].p == two.classifier[2].p == 0.4
    # torchvision's EfficientNet counts from 0 to the number of blocks, its ConvNeXt to the last of them.
    assert one.features[7][0].stochastic_depth.p == pytest.approx(0.3 * 15 / 16)
    assert three.features[5][1].stochastic_depth.p == pytest.approx(0.3)
    assert (build("convnext", layer_scale=0.5).features[1][0].layer_scale == 0.5).all()


def test_squeeze_excite_can_be_left_out() -> None:
    with torch.device("meta"):
        assert "SqueezeExcitation" in str(build("mobilenetv3"))
        assert "SqueezeExcitation" not in str(build("mobilenetv3", squeeze_excite=False))


@pytest.mark.parametrize(("family", "arguments"), [SMALL[1], ("efficientnet", {"variant": "b5"})])
def test_running_statistics_settle_within_a_short_trial(family: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    stem = build(family, 32, **arguments).features[0].train()
    images = torch.randn(8, 3, 32, 32) + 1
    with torch.no_grad():
        for _ in range(50):
            stem(images)
        mean = stem[0](images).mean((0, 2, 3))
    assert torch.allclose(stem[1].running_mean, mean, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "size", "arguments", "argument", "said"),
    [
        (
            "efficientnet",
            28,
            {"stem": "large"},
            "stem",
            "'large' needs images of at least 32 pixels, got 28; smallest sizes: small 8, large 32",
        ),
        ("efficientnet", 7, {}, "stem", "'small' needs images of at least 8 pixels, got 7"),
        ("efficientnet", 28, {"weights": "imagenet"}, "stem", "'large' needs images of at least 32 pixels, got 28"),
        (
            "efficientnet",
            32,
            {"variant": "b1", "width_mult": 0.5},
            "width_mult",
            "0.5 contradicts variant 'b1'; allowed beside it: null or 1.0",
        ),
        ("efficientnet", 32, {"variant": "b1", "depth_mult": 1.0}, "depth_mult", "allowed beside it: null or 1.1"),
        ("mobilenetv3", 28, {"stem": "large"}, "stem", "'large' needs images of at least 32 pixels, got 28"),
        ("mobilenetv3", 7, {}, "stem", "'small' needs images of at least 8 pixels, got 7"),
        (
            "convnext",
            8,
            {"depths": (1, 1, 1, 1)},
            "depths",
            "4 stages need images of at least 16 pixels behind a small stem, got 8; allowed: at most 3",
        ),
        ("convnext", 28, {"stem": "large", "depths": (1,) * 4}, "depths", "at least 32 pixels behind a large stem"),
        ("convnext", 3, {"stem": "large", "depths": (2,)}, "stem", "'large' needs images of at least 4 pixels, got 3"),
        ("convnext", 8, {"depths": (1,)}, "depths", "one block in all is too few; allowed: at least 2"),
    ],
)
def test_impossible_shape_names_the_argument(
    family: str, size: int, arguments: dict[str, Any], argument: str, said: str
) -> None:
    with pytest.raises(BuildError, match=re.escape(said)) as error:
        build(family, size, 1 if "weights" not in arguments else 3, **arguments)
    assert error.value.path == argument


@pytest.mark.parametrize(
    ("family", "arguments", "argument", "said"),
    [
        ("efficientnet", {"width_mult": 0.5}, "width_mult", "0.5 does not fit weights 'imagenet'; allowed"),
        ("efficientnet", {"depth_mult": 1.3}, "depth_mult", "allowed beside them: 1.0, 1.1"),
        ("efficientnet", {"variant": "b2", "stem": "small"}, "stem", "allowed beside them: 'large'"),
        ("efficientnet", {"variant": "b2", "channels": 1}, "weights", "takes 3 channels, got 1"),
        ("mobilenetv3", {"width_mult": 0.5}, "width_mult", "allowed beside them: 1.0"),
        ("mobilenetv3", {"squeeze_excite": False}, "squeeze_excite", "allowed beside them: True"),
        ("mobilenetv3", {"stem": "small"}, "stem", "allowed beside them: 'large'"),
        ("convnext", {"depths": (3, 3, 9, 3)}, "width", "allowed beside them: 96"),
        ("convnext", {"width": 96}, "depths", "allowed beside them: (3, 3, 9, 3), (3, 3, 27, 3)"),
    ],
)
def test_pretrained_weights_name_the_argument_that_does_not_fit(
    family: str, arguments: dict[str, Any], argument: str, said: str
) -> None:
    with pytest.raises(BuildError, match=re.escape(said)) as error:
        build(family, **{"image_size": 224, "weights": "imagenet", **arguments})
    assert error.value.path == argument


@pytest.mark.parametrize("family", ["efficientnet", "mobilenetv3", "convnext"])
def test_suggested_ranges_are_what_a_space_may_say(family: str) -> None:
    fields = read(MODELS[family]).fields
    ranges = {name: leaf.arg.search for name, leaf in fields.items() if isinstance(leaf, Leaf) and leaf.arg.search}
    assert len(ranges) >= 2
    written = ", ".join(f"{name}: {text}" for name, text in ranges.items())
    space = parse(f"model: {{{family}: {{{written}}}}}", catalog(), source=family)
    assert {f"model.{family}.{name}" for name in ranges} <= {parameter.path for parameter in space.parameters()}
