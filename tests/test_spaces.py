"""The shipped spaces: each loads, samples, builds and takes a step; golden sizes of branches and starts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from imgcls_search.catalog import catalog
from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.data import InputShape, Prepared, known_shape
from imgcls_search.space import Space, read_space
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.view import View
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import train_epoch
from imgcls_search.trial import MEASURED
from imgcls_search.worker import measuring, networks, pipeline

from tests.conftest import Answer

PATHS = {path.stem: path for path in sorted((Path(__file__).parent.parent / "spaces").glob("*.yaml"))}

GOLDEN: Mapping[str, Mapping[str | int, tuple[int, int]]] = {
    "airbench": {"airbench": (73_664, 683_040), 0: (272_832, 1_766_560)},
    "alexnet": {"alexnet": (45_346, 221_824), 0: (179_386, 876_800)},
    "cifar10": {
        "vit": (142_026, 10_880_128),
        "resnet": (78_042, 12_501_632),
        "mobilenetv3": (409_394, 5_547_008),
        "convnext": (228_394, 8_142_080),
        0: (272_474, 40_813_184),
        1: (78_042, 12_501_632),
    },
    "compressed": {"resnet": (5_122, 135_840), 0: (77_754, 763_520)},
    "convnext": {"convnext": (15_642, 93_888), 0: (102_378, 635_008)},
    "densenet": {"densenet": (13_338, 513_344), 0: (44_026, 1_219_296)},
    "efficientnet": {"efficientnet": (126_678, 349_824), 0: (126_678, 349_824)},
    "finetune": {"timm": (3_383_818, 31_352_192), 0: (3_383_818, 125_370_368), 1: (3_383_818, 125_370_368)},
    "lenet5": {"lenet5": (5_658, 19_260), 0: (83_082, 245_520)},
    "mixed": {
        "vit": (18_218, 317_888),
        "resnet": (19_810, 193_344),
        "lenet5": (21_386, 66_600),
        "alexnet": (45_346, 221_824),
        "vgg": (38_994, 539_200),
        "densenet": (20_010, 545_088),
        "efficientnet": (126_678, 349_824),
        "mobilenetv3": (119_698, 199_272),
        "convnext": (28_666, 178_240),
        "airbench": (9_536, 158_400),
        0: (77_754, 763_520),
        1: (83_082, 245_520),
        2: (154_074, 2_151_552),
    },
    "mobilenetv3": {"mobilenetv3": (119_698, 199_272), 0: (119_698, 199_272)},
    "photos": {
        "resnet": (11_181_642, 148_050_944),
        "efficientnet": (4_020_358, 31_979_392),
        "mobilenetv3": (409_394, 21_379_328),
        0: (11_181_642, 148_050_944),
    },
    "pretrain": dict.fromkeys(("resnet", 0), (308_826, 64_685_312)),
    "resnet": {"resnet": (5_122, 135_840), 0: (77_754, 763_520)},
    "vgg": {"vgg": (38_994, 539_200), 0: (154_074, 2_151_552)},
    "vit": {"vit": (18_218, 317_888), 0: (227_722, 1_127_424)},
}
"""Parameters and MACs of each branch's first configuration, and of each start configuration by number, of 10 classes.

Two by hand, at 8x8 pixels in grey. LeNet-5 at half its width has convolutions of 3 and 8 channels and layers of 60, 42
and 10 on 2x2 pixels: 78 + 608 + 1980 + 2562 + 430 parameters, 64 x 75 + 16 x 600 + 1920 + 2520 + 420 MACs. The ResNet
of two stages of one block, 8 and 16 channels, has 88 parameters in its stem, 1184 and 3680 in its blocks, 170 in its
head, and 64 x 72 + 64 x 1152 + 16 x 3584 + 160 MACs.
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: tiny networks on several wait for each other, hundredfold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pick:
    """Suggests what it was told, and otherwise the first choice and the lowest value, or by a generator any."""

    def __init__(self, told: Mapping[str, Scalar], random: np.random.Generator | None = None) -> None:
        self.told = told
        self.random = random

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        place = int(self.random.integers(len(choices))) if self.random else 0
        return self.told.get(name, choices[place])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        return self.told.get(name, int(self.random.choice(range(low, high + 1, step))) if self.random else low)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        return self.told.get(name, self.random.uniform(low, high) if self.random else low)


@lru_cache
def read(name: str) -> Space:
    return read_space(PATHS[name], catalog())


def families(name: str) -> list[str]:
    return list(read(name).root.document()["model"])


def shape_of(config: TrialConfig) -> InputShape:
    """Return what a model of a configuration is built for; 10 classes where the images are not there."""
    size, channels, classes = known_shape(config.component("data"))
    image = config.section("image")
    return InputShape(
        image_size=image["size"] or size or 0, channels=image["channels"] or channels or 0, classes=classes or 10
    )


def sizes(config: TrialConfig) -> tuple[int, int]:
    found = measuring.count(config.component("model"), shape_of(config), head=measuring.head_to_count(config))
    return found.params, found.macs


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def take_step(config: TrialConfig) -> None:
    """Train on one batch of random images; something must move, and nothing may break."""
    shape = shape_of(config)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, shape.channels, shape.image_size, shape.image_size), dtype=np.uint8)
    mean, std = (0.5,) * shape.channels, (0.25,) * shape.channels
    data = Prepared(
        fingerprint="",
        classes=tuple(map(str, range(shape.classes))),
        image_size=shape.image_size,
        channels=shape.channels,
        counts={"train": 4, "val": 0, "test": 0},
        class_counts=(1,) * shape.classes,
        mean=mean,
        std=std,
        folder="",
    )
    # No network has been pretrained here.
    session = pipeline.new_session(config, data, seed=0, device="cpu", from_pretrained=not config.needs_backbone)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    images = ImageSet(pixels=pixels, labels=random.integers(0, shape.classes, 4), mean=mean, std=std, device="cpu")
    assert train_epoch(session, images, lambda: False) > 0
    assert any(not torch.equal(before[name], value) for name, value in session.model.state_dict().items())


def test_there_is_a_space_for_each_family_and_one_across_them() -> None:
    from imgcls_search.models import MODELS

    own = set(MODELS) - {"timm"}
    assert own | {"mixed", "cifar10", "photos", "finetune", "compressed", "pretrain"} == set(PATHS)
    assert all(families(family) == [family] for family in own)
    assert set(families("mixed")) == own


def test_every_space_is_on_the_page_of_shipped_spaces() -> None:
    page = (Path(__file__).parent.parent / "docs/reference/shipped-spaces.md").read_text()
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`(\w+)\.yaml`", rows)) == sorted(PATHS), "each has its name in one row"


@pytest.mark.parametrize("name", PATHS)
def test_sizes_of_first_configurations_and_start_settings(name: str) -> None:
    space = read(name)
    found: dict[str | int, tuple[int, int]] = {
        family: sizes(space.sample(Pick({"model": family}))) for family in families(name)
    }
    found |= {number: sizes(space.sample(Pick(told))) for number, told in enumerate(space.start)}
    assert found == GOLDEN.get(name), "add what was found to GOLDEN, or say in the commit why a size has changed"


@pytest.mark.parametrize("name", PATHS)
def test_start_settings_are_possible_and_within_the_limits(name: str) -> None:
    space = read(name)
    assert space.start
    assert space.limits
    for told in space.start:
        config = space.sample(Pick(told))
        shape = shape_of(config)
        measured = measuring.measure(config, shape, measuring.count(config.component("model"), shape))
        assert all(measured[limit] <= value for limit, value in space.limits.items() if limit not in MEASURED)


@pytest.mark.parametrize(("name", "family"), [(name, family) for name in PATHS for family in families(name)])
def test_every_branch_takes_a_step(name: str, family: str) -> None:
    space = read(name)
    # Small photographs, and none of the weights that a network is needed for.
    told: dict[str, Scalar] = {"model": family, "image.size": 64, f"model.{family}.weights": None}
    take_step(space.sample(Pick(told)))
    take_step(space.sample(Pick(told, np.random.default_rng(0))))


def test_photos_start_from_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights: Any = torchvision.models.get_model_weights("resnet18").DEFAULT
    path = tmp_path / "hub/checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.get_model("resnet18").state_dict(), path)
    (told,) = read("photos").start
    assert told["model.resnet.weights"] == "imagenet"
    take_step(read("photos").sample(Pick(told)))


@pytest.mark.parametrize("name", PATHS)
def test_commands_in_the_comments_are_right(name: str) -> None:
    comment = "\n".join(line[1:] for line in PATHS[name].read_text().splitlines() if line.startswith("#"))
    commands = re.findall(r"^ +imgcls-search (.+)$", comment.replace("\\\n", ""), re.MULTILINE)
    assert commands
    for command in commands:
        verb, path, *rest = shlex.split(command)
        assert (verb, path) in {("run", f"spaces/{name}.yaml"), ("check", f"spaces/{name}.yaml")}
        options = list(zip(rest[::2], rest[1::2], strict=True))
        assert {option for option, _ in options} <= {"--set", "--data", "--name"}
        changes = [
            (path, text) for option, value in options if option == "--set" for path, _, text in [value.partition("=")]
        ]
        read_space(PATHS[name], catalog(), overrides=changes, data=dict(options).get("--data"))


SCRATCH = ("model.resnet.weights=null", "model.efficientnet.weights=null", "finetune={}", "start=[]", "image.size=32")
SHORT = (
    *("image.size=16", "model.resnet.width=4"),
    *(f"pretrain.{way}.{change}" for way in ("simclr", "imitate") for change in ("epochs=1", "batch_size=64")),
    "pretrain.imitate.size=32",
)
SMALLER = {
    "photos": SCRATCH,
    "pretrain": SHORT,
    "finetune": ("image.size=32", "start=[{head: logistic}, {head: linear}]"),
}


@pytest.mark.parametrize(
    "name", [name if name == "mixed" else pytest.param(name, marks=pytest.mark.slow) for name in PATHS]
)
def test_shipped_space_runs_on_digits(name: str, imgcls: Callable[..., Answer]) -> None:
    changes = ["study.trials=2", "training.epochs=1", "study.pruner=none", "data.digits.max_train=100"]
    changes += ["study.pictures=false"]
    changes += SMALLER.get(name, ())
    options = [part for change in changes for part in ("--set", change)]
    answer = imgcls("run", PATHS[name], "--data", "digits", *options)
    assert answer.code == 0, answer.err


PARTS = 4
"""Equal architectures fall into one part, so that the processes that share the parts build none of them twice."""


@lru_cache
def thousand_draws() -> Sequence[Sequence[TrialConfig]]:
    view = View(read("mixed"), [], [], 0)
    parts: list[list[TrialConfig]] = [[] for _ in range(PARTS)]
    for number in range(1000):
        config = draw_random(view, number, 0).config
        parts[int(config.digest("model", "image"), 16) % PARTS].append(config)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_thousand_draws_of_the_mixed_space_build_and_have_the_predicted_parameters(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To fill the weights takes most of the time, and none of them is looked at.
    for fill in (name for name in dir(torch.nn.init) if name.endswith("_") and not name.startswith("_")):
        monkeypatch.setattr(torch.nn.init, fill, lambda tensor, *given, **named: tensor)
    assert sum(map(len, thousand_draws())) == 1000
    built: dict[str, int] = {}
    """What a real model of each architecture has; a draw of the same architecture would build the same."""
    predicted: dict[str, int] = {}
    for config in thousand_draws()[part]:
        architecture = config.digest("model", "image", "data")
        if architecture not in built:
            # No draw may be impossible; the limits may refuse some.
            predicted[architecture], _ = sizes(config)
            built[architecture] = count(networks.build_model(config, shape_of(config)))
        assert predicted[architecture] == built[architecture], config.to_dict()
