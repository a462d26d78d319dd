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
from imgcls_search.data import InputShape, Prepared
from imgcls_search.errors import BuildError, CheckpointError, DivergedError, StoppedError
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, finetune
from imgcls_search.training.device import fastest_layout
from imgcls_search.training.evaluation import evaluate, predict
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit, settle_statistics, train_epoch
from imgcls_search.training.recipe import Finetune
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, measuring, networks, pipeline

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


SMALL = BASE + "model: {resnet: {depths: [1, 1], width: 4}}\ntraining: {epochs: 4, batch_size: 50}\n"
NEW_OPTIMIZERS = {
    "muon": SMALL + "optimizer: {muon: {}}\n",
    "lion": SMALL + "optimizer: {lion: {}}\n",
    "schedule_free": SMALL + "optimizer: {schedule_free: {}}\nschedule: {constant: {warmup_epochs: 1}}\n",
    "sam": SMALL + "optimizer: {sam: {rho: 0.1}}\n",
    "sam around adamw": SMALL + "optimizer: {sam: {base: adamw, lr: 0.002}}\n",
}
TEXTS = {"vit": VIT, "resnet": RESNET, "augmented": AUGMENTED, "balanced": BALANCED, **NEW_OPTIMIZERS}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
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


@pytest.mark.parametrize("name", NEW_OPTIMIZERS)
def test_new_optimizers_learn_with_rates_by_layer(
    name: str, digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    session = new_session(NEW_OPTIMIZERS[name], digits)
    anatomy = session.model.anatomy
    assert isinstance(anatomy, Anatomy)
    finetune.slow_backbone(session.optimizer, session.model, anatomy, Finetune(layer_decay=0.7))
    session.peak_rates = [group["lr"] for group in session.optimizer.param_groups]
    assert len(set(session.peak_rates)) > 2
    history = list(fit(session, *images, until_epoch=3))
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_schedule_free_is_scored_and_saved_as_its_average(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = new_session(NEW_OPTIMIZERS["schedule_free"], digits)
    history = list(fit(session, *images, until_epoch=2))
    optimizer: Any = session.optimizer
    assert evaluate(session.deployed, images[1])["loss"] == history[-1]["loss"]
    name, weight = next(session.model.named_parameters())
    saved = session.state_dict()["model"][name].clone()
    optimizer.train()
    assert not torch.equal(weight, saved), "gradients are taken elsewhere"
    optimizer.eval()
    torch.testing.assert_close(weight.detach(), saved)


def test_statistics_are_those_of_the_weights_that_are_evaluated(
    digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    session = new_session(NEW_OPTIMIZERS["schedule_free"].replace("augment: {crop_padding: 1}", ""), digits)
    list(fit(session, *images, until_epoch=1))
    layer = next(each for each in session.model.modules() if isinstance(each, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    session.model.train()
    order = images[0].shuffled().tensor_split(5)
    settle_statistics(session, images[0], order)
    assert layer.running_mean is not None
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in seen]).mean(0)
    torch.testing.assert_close(layer.running_mean, expected)
    assert layer.momentum == 0.1


def test_sam_adds_micro_batches_up_in_both_passes(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    text = NEW_OPTIMIZERS["sam"].replace("resnet: {depths: [1, 1], width: 4}", "vit: {width: 16, depth: 1, heads: 2}")
    whole, parted = new_session(text, digits), new_session(text, digits)
    parted.micro_batches = 4
    for session in (whole, parted):
        list(fit(session, *images, until_epoch=1))
    for a, b in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("optimizer: {sam: {}}\ntraining: {precision: fp16}", "training.precision: fp16 scales gradients for one pass"),
        ("optimizer: {schedule_free: {}}", "schedule.cosine: optimizer.schedule_free has an average in place of a sch"),
        (
            "optimizer: {schedule_free: {}}\nschedule: {constant: {}}\ntraining: {ema: 0.9}",
            "training.ema: 0.9: optimizer.schedule_free averages by itself; allowed: 0",
        ),
        (
            "optimizer: {schedule_free: {}}\nschedule: {constant: {}}\n"
            "prune: {unstructured: {amount: 0.5, finetune_epochs: 1}}",
            "prune.unstructured.finetune_epochs: optimizer.schedule_free keeps averages",
        ),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused(settings: str, said: str) -> None:
    config = config_of("data: {digits: {}}\nmodel: {lenet5: {}}\n" + settings)
    shape = InputShape(image_size=8, channels=1, classes=10)
    with pytest.raises(BuildError) as caught:
        measuring.measure(config, shape, measuring.count(config.component("model"), shape))
    assert said in str(caught.value)


def test_weighted_micro_batches_count_what_their_classes_weigh(
    digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    text = SMALL.replace("resnet: {depths: [1, 1], width: 4}", "vit: {width: 16, depth: 1, heads: 2}")
    text += "optimizer: {sgd: {}}\nloss: {cross_entropy: {class_weights: {'3': 9, '1': 0.1}}}\n"
    whole, parted = new_session(text, digits), new_session(text, digits)
    parted.micro_batches = 4
    losses = [next(fit(session, *images, until_epoch=1))["train_loss"] for session in (whole, parted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
