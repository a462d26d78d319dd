"""The training loop on real digits: what a seed decides, what a checkpoint carries, how it ends."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import CheckpointError, DivergedError, StoppedError
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.device import fastest_layout
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import Session, evaluate, fit, predict, train_epoch
from imgcls_search.worker import image_sets, networks, pipeline

BASE = "data: {digits: {max_train: 201}}\naugment: {crop_padding: 1}\n"
VIT = (
    BASE
    + "model: {vit: {width: 16, depth: 1, heads: 2, dropout: 0.1}}\ntraining: {epochs: 4, batch_size: 50, ema: 0.9}\n"
)
RESNET = (
    BASE + "model: {resnet: {depths: [1, 1], width: 4}}\noptimizer: {sgd: {lr: 0.05, nesterov: true}}\n"
    "training: {epochs: 4, batch_size: 40, clip: 1.0}\n"
)

AUGMENTED = """
data: {digits: {max_train: 201}}
augment:
  {flip: alternating, crop_padding: 1, resized_crop: 0.6, rotation: 15, brightness: 0.3, contrast: 0.3, saturation: 0.3,
   hue: 0.1, erasing: 0.5, policy: {rand: {num_ops: 3}}, mixup: 0.4, cutmix: 1}
model: {resnet: {depths: [1, 1], width: 4}}
loss: {focal: {class_weights: balanced}}
training: {epochs: 4, batch_size: 40}
"""
"""Everything that draws random numbers."""

BALANCED = AUGMENTED.replace("epochs: 4", "epochs: 4, draw: balanced").replace(
    "augment:", "image: {channels: 3}\naugment:"
)
BALANCED = BALANCED.replace("hue: 0.1,", "hue: 0.1, blur: 1, noise: 0.05, grey: 0.3, zoom: 0.2, jpeg: 40,")


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    return pipeline.prepare_data(config_of(VIT), tmp_path_factory.mktemp("images"))


@pytest.fixture
def images(digits: Prepared) -> tuple[ImageSet, ImageSet]:
    train, validation = image_sets.image_sets(digits, "train", "cpu")
    assert validation is not None
    return train, validation


def new_session(text: str, digits: Prepared, seed: int = 5) -> Session:
    return pipeline.new_session(config_of(text), digits, seed=seed, device="cpu")


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in history]


@pytest.mark.parametrize("text", [VIT, RESNET, AUGMENTED, BALANCED], ids=["vit", "resnet", "augmented", "balanced"])
def test_resumed_training_equals_undisturbed_bit_for_bit(
    text: str, digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    whole = new_session(text, digits)
    list(fit(whole, *images, until_epoch=4))
    first = new_session(text, digits)
    list(fit(first, *images, until_epoch=2))
    checkpoint.save(first.state_dict(), tmp_path / "half.pt")
    # Another seed: everything must come from the file.
    second = new_session(text, digits, seed=99)
    second.load_state_dict(checkpoint.load(tmp_path / "half.pt"))
    torch.rand(17)
    list(fit(second, *images, until_epoch=4))
    assert without_times(second.history) == without_times(whole.history)
    for name, tensor in whole.deployed.state_dict().items():
        assert torch.equal(tensor, second.deployed.state_dict()[name]), name
    other = new_session(text, digits, seed=6)
    list(fit(other, *images, until_epoch=1))
    assert without_times(other.history) != without_times(whole.history[:1])


def test_training_learns(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = new_session(
        BASE + "model: lenet5\noptimizer: {adamw: {lr: 5e-3}}\ntraining: {epochs: 12, batch_size: 20}", digits
    )
    history = list(fit(session, *images, until_epoch=12))
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["accuracy"] > 0.7


def test_rate_of_a_step_is_that_of_its_middle(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = new_session(
        BASE + "model: lenet5\noptimizer: {sgd: {lr: 0.4}}\nschedule: {cosine: {warmup_epochs: 1}}\n"
        "training: {epochs: 3, batch_size: 51}",
        digits,
    )
    rates: list[float] = []
    session.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    list(fit(session, *images, until_epoch=3))
    # Four steps an epoch: up in a straight line over one epoch, then down half a cosine over two.
    rising = [0.4 * (step + 0.5) / 4 for step in range(4)]
    falling = [0.2 * (1 + math.cos(math.pi * (step + 0.5) / 8)) for step in range(8)]
    assert rates == pytest.approx([*rising, *falling])


def test_every_image_is_seen_once_an_epoch_in_batches_of_nearly_equal_size(digits: Prepared) -> None:
    class Watched(ImageSet):
        def batches(self, parts: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
            seen.extend(parts)
            return super().batches(parts)

    seen: list[torch.Tensor] = []
    train, _ = image_sets.image_sets(digits, "train", "cpu")
    watched = Watched(**vars(train))
    # 201 images in batches of 50: a rest of one would break batch normalisation.
    train_epoch(new_session(VIT, digits), watched, lambda: False)
    assert sorted(torch.cat(seen).tolist()) == list(range(201))
    assert {len(index) for index in seen} == {40, 41}


def test_balanced_epochs_have_as_many_steps_and_all_classes_alike(digits: Prepared) -> None:
    train, _ = image_sets.image_sets(digits, "train", "cpu")
    # One class has 150 images, three have 20, 10 and 1, one has none.
    counts = {0: 150, 1: 20, 3: 10, 4: 1}
    labels = np.repeat(list(counts), list(counts.values()))
    labels = np.random.default_rng(0).permutation(labels).astype(np.int64)
    images = replace(train, pixels=np.asarray(train.pixels)[: len(labels)], labels=labels)
    session = new_session(VIT.replace("ema: 0.9", "draw: balanced"), digits)
    seen: list[torch.Tensor] = []

    class Watched(ImageSet):
        def batches(self, parts: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
            seen.extend(parts)
            return super().batches(parts)

    orders = []
    for epoch in (0, 0, 1):
        seen.clear()
        session.history = [{}] * epoch
        train_epoch(session, Watched(**vars(images)), lambda: False)
        assert len(seen) == math.ceil(181 / 50)
        orders.append(torch.cat(seen))
        drawn = labels[orders[-1].numpy()]
        # 181 draws of four classes: 45 each, and one more of one.
        assert sorted(np.bincount(drawn, minlength=5).tolist()) == [0, 45, 45, 45, 46]
        times = np.bincount(orders[-1].numpy(), minlength=181)
        for number, count in counts.items():
            of_class = times[labels == number]
            # No image comes again before all others of its class have come.
            assert of_class.max() - of_class.min() <= 1, number
            assert abs(of_class.sum() - count * of_class.mean()) < 1e-9
        # Mixed, not class after class.
        assert len(set(drawn[:30].tolist())) == 4
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_balanced_draws_take_decoded_images_as_they_come(digits: Prepared) -> None:
    """Streamed images are read by number, each as often as it is drawn, and all of a batch belong together."""

    class Reads:
        shape = (6, 1, 2, 2)

        def __getitem__(self, index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (len(index), 1, 2, 2)).copy()

    labels = np.array([0, 0, 0, 0, 0, 1])
    images = ImageSet(pixels=Reads(), labels=labels, mean=(0.0,), std=(1.0,), device="cpu")  # type: ignore[arg-type]
    torch.manual_seed(0)
    for index, pixels, found in images.batches(images.balanced().tensor_split(2)):
        assert pixels[:, 0, 0, 0].tolist() == index.tolist()
        assert found.tolist() == labels[index.numpy()].tolist()


def test_average_is_the_exponential_one(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = new_session(VIT, digits)
    assert session.average is not None
    followed: dict[str, Any] = {}
    step = session.optimizer.step

    def watch(*arguments: Any, **named: Any) -> Any:
        result = step(*arguments, **named)
        for name, tensor in session.model.state_dict().items():
            before = followed.get(name)
            followed[name] = tensor.clone() if before is None else 0.9 * before + 0.1 * tensor
        return result

    session.optimizer.step = watch  # type: ignore[method-assign]
    train_epoch(session, images[0], lambda: False)
    for name, tensor in session.deployed.state_dict().items():
        assert torch.allclose(tensor, followed[name], atol=1e-6), name


def test_clipping_bounds_the_step(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    text = BASE + "model: lenet5\noptimizer: {sgd: {lr: 1, momentum: 0, weight_decay: 0}}\nschedule: constant\n"
    session = new_session(text + "training: {epochs: 1, batch_size: 201, clip: 0.01}", digits)
    before = torch.cat([p.detach().flatten().clone() for p in session.model.parameters()])
    train_epoch(session, images[0], lambda: False)
    after = torch.cat([p.detach().flatten() for p in session.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-2)


def test_divergence_is_an_error_with_the_epoch(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = new_session(BASE + "model: lenet5\noptimizer: {sgd: {lr: 1e30}}\ntraining: {epochs: 3}", digits)
    with pytest.raises(DivergedError, match=r"the training loss became (nan|inf) in epoch 1"):
        list(fit(session, *images, until_epoch=3))
    # The last step of an epoch can break a network whose losses were numbers.
    with torch.no_grad():
        next(session.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="NaN or infinite logits"):
        evaluate(session.model, images[1])


def test_stop_ends_within_an_epoch(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = new_session(VIT, digits)
    calls = iter([False, False, True])
    with pytest.raises(StoppedError, match="epoch 1"):
        list(fit(session, *images, until_epoch=4, should_stop=lambda: next(calls)))
    assert session.history == []


def test_evaluation_changes_nothing_and_agrees_with_predictions(
    digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    session = new_session(RESNET, digits)
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    state = torch.get_rng_state()
    found = evaluate(session.model, images[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.model.state_dict().items())
    right = predict(session.model, images[1]).argmax(1) == np.asarray(images[1].labels)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert math.isfinite(evaluate(session.model, images[1], precision="bf16")["loss"])


def test_saved_weights_are_the_deployed_ones(
    digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    session = new_session(VIT, digits)
    (metrics,) = fit(session, *images, until_epoch=1)
    config = config_of(VIT)
    checkpoint.save({**session.state_dict(), **networks.describe_weights(config, digits)}, tmp_path / "w.pt")
    model, again, data = networks.load_weights(checkpoint.load(tmp_path / "w.pt"), "w.pt")
    assert (again, data) == (config, digits)
    assert evaluate(model, images[1])["loss"] == metrics["loss"]


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04", pickle.dumps(Harmful()), b"\x80\x04garbage"])
def test_bad_weights_file_is_refused_and_nothing_runs(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"bad\.pt: not a weights file"):
        checkpoint.load(path)
    assert not Path("harmed").exists()


def test_failing_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save({"x": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"x": lambda: None}, path)
    assert checkpoint.load(path) == {"x": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("width", "layout"), [(8, torch.contiguous_format), (16, torch.channels_last), (32, torch.channels_last)]
)
def test_channels_come_last_where_that_is_safe(digits: Prepared, width: int, layout: torch.memory_format) -> None:
    # Narrower strided 1x1 convolutions overrun memory in oneDNN with the channels last.
    session = new_session(f"model: {{resnet: {{depths: [1, 1], width: {width}}}}}\n", digits)
    assert fastest_layout(session.model) == layout
    assert session.model.get_submodule("layer1.0.conv1").weight.is_contiguous(memory_format=layout)
