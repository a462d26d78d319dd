"""Small images first: the sizes of the epochs, what a network sees of them, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.data.augment import Augment
from imgcls_search.errors import BuildError
from imgcls_search.executors.questions import Measure
from imgcls_search.jobs.plan import work_out
from imgcls_search.space import parse
from imgcls_search.space.writer import dump
from imgcls_search.study.memory import record_in_memory
from imgcls_search.training import checkpoint
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.resolution import Resolution, Shrinking, progressive
from imgcls_search.training.session import Session
from imgcls_search.worker import pipeline
from torchvision.transforms import v2

from tests.conftest import Answer, is_one_line
from tests.strategy.test_strategy import trial

TEXT = """
data: {digits: {max_train: 120}}
image: {size: 16}
augment: {crop_padding: 1, mixup: 0.2}
model: {resnet: {depths: [1, 1], width: 4}}
optimizer: {sgd: {lr: 0.05}}
training: {epochs: 5, batch_size: 40, resolution: {progressive: {start: 0.5, until: 0.8}}}
"""
PLAIN = TEXT.replace(", resolution: {progressive: {start: 0.5, until: 0.8}}", "")


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


def begin(text: str, digits: Prepared) -> Session:
    return pipeline.new_session(config_of(text), digits, seed=5, device="cpu")


@pytest.mark.parametrize(
    ("full", "epochs", "sizes"),
    [
        (32, 10, [16, 20, 20, 24, 24, 28, 28, 32, 32, 32]),
        (8, 4, [4, 5, 7, 8]),
        ((64, 96), 4, [(32, 48), (40, 64), (56, 80), (64, 96)]),
        (224, 5, [112, 144, 176, 208, 224]),
        (32, 2, [16, 32]),
        (32, 1, [32]),
    ],
)
def test_sides_grow_to_the_full_size_before_the_last_epoch(full: Any, epochs: int, sizes: list[Any]) -> None:
    found = progressive(start=0.5, until=0.7)
    assert [found.size(full, epoch, epochs) for epoch in range(epochs)] == sizes


@pytest.mark.parametrize("until", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("start", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("full", [1, 7, 28, 96, (30, 500)])
def test_sizes_never_fall_and_end_full(full: Any, start: float, until: float) -> None:
    for epochs in (1, 2, 3, 40):
        found = progressive(start=start, until=until)
        sizes = [found.size(full, epoch, epochs) for epoch in range(epochs)]
        pairs = [(size, size) if isinstance(size, int) else size for size in sizes]
        assert sizes[-1] == full
        assert all(min(pair) >= 1 for pair in pairs)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(pairs))
        assert len(found.sizes(full, epochs)) == len(set(sizes))


def test_network_sees_the_sizes_in_training_and_the_full_one_when_it_is_scored(
    digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    session = begin(TEXT, digits)
    seen: list[tuple[bool, int]] = []
    session.model.register_forward_pre_hook(lambda module, given: seen.append((module.training, given[0].shape[-1])))
    list(fit(session, *images, until_epoch=5))
    trained = [size for is_training, size in seen if is_training]
    assert trained == [size for size in (8, 10, 12, 14, 16) for _ in range(3)]
    assert {size for is_training, size in seen if not is_training} == {16}


def test_images_are_shrunk_as_torchvision_does_after_their_augmentation(
    digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    ours, plain = begin(TEXT, digits), begin(PLAIN, digits)
    found = []
    for session in (ours, plain):
        session.model.register_forward_pre_hook(lambda module, given: found.append(given[0].clone()))
        list(fit(session, *images, until_epoch=1))
    small, full = found[0], next(each for each in found if each.shape[-1] == 16 and len(each) == 40)
    expected = v2.functional.resize(full, [8, 8], antialias=True)
    assert torch.allclose(small, expected, atol=1e-5)


@pytest.mark.parametrize("more", ["", ", ema: 0.9", ", swa: 2"])
def test_resumed_training_equals_an_undisturbed_one(
    digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path, more: str
) -> None:
    text = TEXT.replace("batch_size: 40", f"batch_size: 40{more}")
    whole = begin(text, digits)
    list(fit(whole, *images, until_epoch=5))
    for stop in (1, 3):
        session = begin(text, digits)
        list(fit(session, *images, until_epoch=stop))
        checkpoint.save(session.state_dict(), tmp_path / "state.pt")
        session = begin(text, digits)
        session.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
        list(fit(session, *images, until_epoch=5))
        ours, theirs = session.deployed.state_dict(), whole.deployed.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_full_is_the_default_and_changes_nothing(digits: Prepared) -> None:
    plain, full = config_of(PLAIN), config_of(PLAIN.replace("batch_size: 40", "batch_size: 40, resolution: full"))
    assert plain == full
    before = TrialConfig.from_dict(
        {**plain.to_dict(), "training": {k: v for k, v in plain.to_dict()["training"].items() if k != "resolution"}}
    )
    assert before.digest() == plain.digest() != config_of(TEXT).digest()
    # Weights of earlier versions do not say it.
    session = pipeline.new_session(before, digits, seed=5, device="cpu")
    assert isinstance(session.augment, Augment)
    assert isinstance(begin(TEXT, digits).augment, Shrinking)


def test_a_network_of_one_size_is_refused_with_its_reason(digits: Prepared, tmp_path: Path) -> None:
    text = TEXT.replace("resnet: {depths: [1, 1], width: 4}", "vit: {patch_size: 4, width: 16, depth: 1, heads: 2}")
    question = Measure(config=config_of(text), shape=digits.shape, counts=tmp_path / "counts")
    for _ in range(2):
        with pytest.raises(BuildError, match=r"model.vit for 16 pixels cannot read images of 8 .*; allowed: .*full"):
            question.answer(lambda _: None)
    # Just so where the answer is remembered; and none is asked for where all images are of full size.
    plain = text.replace(", resolution: {progressive: {start: 0.5, until: 0.8}}", "")
    assert Measure(config=config_of(plain), shape=digits.shape, counts=tmp_path / "counts").answer(lambda _: None)
    assert Measure(config=config_of(TEXT), shape=digits.shape, counts=tmp_path / "counts").answer(lambda _: None)


def test_sizes_are_searched_and_refused_in_one_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(TEXT.replace("{start: 0.5, until: 0.8}", "{start: {choice: [0.5, 0.75]}}, full: {}"))
    answer = here("check", file, "--samples", 6)
    assert answer.code == 0, answer.err
    assert "training.resolution.progressive.start" in answer.out
    for change, told in {
        "training.resolution={progressive: {start: 1.0}}": "start: 1.0 is not allowed; allowed: float > 0 and < 1",
        "training.resolution=small": "full, progressive",
    }.items():
        answer = here("check", file, "--set", change)
        assert answer.code == 2
        assert is_one_line(answer), answer.err
        assert told in answer.err


def test_teacher_is_refused(digits: Prepared, tmp_path: Path) -> None:
    config = config_of(f"{TEXT}distill: {{file: {{path: teacher.pt}}}}")
    with pytest.raises(BuildError, match=r"training.resolution: progressive beside distill\.file, .*; allowed: full"):
        Measure(config=config, shape=digits.shape, counts=tmp_path / "counts").answer(lambda _: None)


def test_plan_counts_that_later_epochs_cost_more() -> None:
    made = record_in_memory("x", (("accuracy", "maximize"),))
    config = config_of(TEXT.replace("epochs: 5", "epochs: 4"))
    ran = trial(0, 0.1, 0.2)
    resolution = Resolution(start=0.5, until=0.8)
    seconds = [8 * resolution.work(epoch, 4) for epoch in range(2)]
    epochs = [{**each, "seconds": took} for each, took in zip(ran.epochs, seconds, strict=True)]
    made.trials.append(replace(ran, epochs=epochs, candidate=replace(ran.candidate, config=config)))
    space = parse(TEXT.replace("epochs: 5", "epochs: 4") + "study: {pruner: none}", catalog(), source="x.yaml")
    wanted = sum(8 * resolution.work(epoch, 4) for epoch in range(4)) / 4
    assert work_out(space, made, workers=1).epoch_seconds == pytest.approx(wanted)


def test_exported_configuration_says_the_sizes() -> None:
    config = config_of(TEXT)
    assert config_of(dump(config)) == config
