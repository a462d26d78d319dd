"""Several devices for one training: the gradients, losses and statistics of one device on the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Augment, InputShape, Moment, Prepared, draws
from imgcls_search.errors import BuildError
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.batch_norm import Normalised
from imgcls_search.training.group import Group
from imgcls_search.training.loop import fit
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, pipeline, pretraining
from torch import nn
from torch.nn import functional

from tests.groups import Together, together
from tests.training_job import training_job

DATA = "data: {digits: {max_train: 203}}\n"
RESNET = "model: {resnet: {depths: [1, 1], width: 4}}\noptimizer: {sgd: {lr: 0.05}}\n"
EVERY_CHANGE = """
augment:
  {flip: alternating, crop_padding: 1, resized_crop: 0.6, rotation: 15, brightness: 0.3, contrast: 0.3, saturation: 0.3,
   hue: 0.1, erasing: 0.5, policy: {rand: {num_ops: 2}}, blur: 1, noise: 0.05, grey: 0.3, zoom: 0.2, jpeg: 40}
image: {channels: 3}
"""

CASES = {
    "batch_norm": DATA + RESNET + "training: {epochs: 2, batch_size: 40}\n",
    "vit": DATA + "model: {vit: {width: 16, depth: 1, heads: 2}}\ntraining: {epochs: 2, batch_size: 64, clip: 0.5}\n",
    "augmented": DATA + EVERY_CHANGE + RESNET + "training: {epochs: 2, batch_size: 50}\n",
    "mixed": DATA + "augment: {mixup: 0.4, cutmix: 1, crop_padding: 1}\n" + RESNET + "training: {batch_size: 50}\n",
    "weighted": DATA + RESNET + "loss: {focal: {class_weights: {'3': 7, '1': 0.2}}}\ntraining: {batch_size: 33}\n",
    "weighted mix": DATA
    + "augment: {mixup: 1}\n"
    + RESNET
    + "loss: {cross_entropy: {class_weights: {'3': 7}, label_smoothing: 0.1}}\ntraining: {batch_size: 33}\n",
    "sam": DATA + RESNET.replace("{sgd: {lr: 0.05}}", "{sam: {rho: 0.1}}") + "training: {batch_size: 50}\n",
    "schedule_free": DATA
    + RESNET.replace("{sgd: {lr: 0.05}}", "{schedule_free: {}}\nschedule: {constant: {}}")
    + "training: {batch_size: 50}\n",
    "swa": DATA + RESNET + "training: {epochs: 1, batch_size: 40, swa: 1}\n",
    "balanced": DATA + RESNET + "training: {batch_size: 40, draw: balanced, ema: 0.9}\n",
}


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    with together(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("images")


def session_of(text: str, data: Prepared, group: Group | None, **more: Any) -> Session:
    return pipeline.new_session(config_of(text), data, seed=3, device="cpu", group=group, **more)


def trained(group: Group | None, text: str, data: Prepared, epochs: int, more: dict[str, Any]) -> dict[str, Any]:
    """Train, and return the first step's gradients, what epochs measured, and the weights."""
    session = session_of(text, data, group, **more)
    first: list[torch.Tensor] = []

    def look(optimizer: Any, *_: Any) -> None:
        if not first:
            first.extend(p.grad.clone() for each in optimizer.param_groups for p in each["params"])

    session.optimizer.register_step_pre_hook(look)
    sets = image_sets.image_sets(data, "train", "cpu")
    history = [dict(epoch) for epoch in fit(session, *sets, until_epoch=epochs)]
    # Plain arrays: tensors would be shared memory between processes.
    gradients = torch.cat([gradient.reshape(-1) for gradient in first]).numpy()
    weights = {name: value.numpy().copy() for name, value in session.deployed.state_dict().items()}
    return {"gradients": gradients, "history": history, "weights": weights}


def relative(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", CASES)
def test_two_devices_train_as_one_does(name: str, pair: Together, cache: Path) -> None:
    data = pipeline.prepare_data(config_of(CASES[name]), cache)
    parts = {"micro_batches": 3} if name in ("batch_norm", "weighted", "weighted mix") else {}
    alone = trained(None, CASES[name], data, 1, parts)
    for found in pair.call(trained, CASES[name], data, 1, parts):
        assert relative(found["gradients"], alone["gradients"]) < 1e-5
        for measure in ("train_loss", "loss"):
            assert found["history"][0][measure] == pytest.approx(alone["history"][0][measure], rel=1e-3)
        assert found["history"][0]["accuracy"] == pytest.approx(alone["history"][0]["accuracy"], abs=0.03)


def test_devices_end_with_the_same_weights(pair: Together, cache: Path) -> None:
    text = CASES["augmented"] + "loss: {cross_entropy: {class_weights: balanced}}\n"
    first, second = pair.call(trained, text, pipeline.prepare_data(config_of(text), cache), 2, {})
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        np.testing.assert_array_equal(value, second["weights"][name], err_msg=name)


def halves(group: Group | None, text: str, data: Prepared, folder: str) -> list[dict[str, float]]:
    """Train an epoch, save, go on in a new session, and return what all epochs measured."""
    sets = image_sets.image_sets(data, "train", "cpu")
    first = session_of(text, data, group)
    list(fit(first, *sets, until_epoch=1))
    path = Path(folder) / "half.pt"
    if group is None or group.is_leader:
        checkpoint.save(first.state_dict(), path)
    if group is not None:
        group.wait()
    second = pipeline.new_session(config_of(text), data, seed=99, device="cpu", group=group)
    second.load_state_dict(checkpoint.load(path))
    list(fit(second, *sets, until_epoch=3))
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in second.history]


@pytest.mark.parametrize("kind", ["sync", "local"])
def test_resumed_training_of_two_devices_equals_undisturbed_bit_for_bit(
    kind: str, pair: Together, cache: Path, tmp_path: Path
) -> None:
    model = (
        "{vit: {width: 16, depth: 1, heads: 2, dropout: 0.2}}"
        if kind == "sync"
        else "{resnet: {depths: [1, 1], width: 4}}"
    )
    text = (
        DATA
        + f"augment: {{crop_padding: 1, mixup: 0.2}}\nmodel: {model}\n"
        + f"training: {{epochs: 3, batch_size: 50, ema: 0.9, devices: 2, batch_norm: {kind}}}\n"
    )
    data = pipeline.prepare_data(config_of(text), cache)
    whole = pair.call(trained, text, data, 3, {})
    resumed = pair.call(halves, text, data, str(tmp_path))
    expected = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in whole[0]["history"]]
    assert resumed[0] == resumed[1] == expected


def test_devices_drop_different_units(pair: Together) -> None:
    first, second = pair.call(dropped)
    assert first[0] != second[0]
    assert first[1] == second[1], "what is drawn for the whole batch is the same"


def dropped(group: Group) -> tuple[list[float], float]:
    torch.manual_seed(1)
    with group.own_numbers(7, 0, 0, 0):
        own = functional.dropout(torch.ones(64), 0.5).tolist()
    return own, float(torch.rand(()))


def test_changes_of_an_image_are_those_of_the_whole_batch() -> None:
    share = draws.Share(total=9, places=torch.tensor([1, 2, 7]))
    augmentation, _ = pipeline.build_augmentation(
        config_of(CASES["augmented"]), InputShape(channels=3, image_size=8, classes=10)
    )
    assert isinstance(augmentation, Augment)
    images = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8)
    moment = Moment(index=torch.arange(9), epoch=1, seed=2)
    torch.manual_seed(4)
    whole = augmentation(images, moment)
    torch.manual_seed(4)
    with draws.of_share(share):
        part = augmentation(images[share.places], Moment(index=share.places, epoch=1, seed=2))
    assert torch.equal(part, whole[share.places])


# Batch normalisation.


def normalised(group: Group, inputs: Any, change: Any, kind: str) -> list[Any]:
    """Return outputs and gradients of a layer for this device's images, and its running statistics."""
    layer = layer_of(kind, inputs.shape[1])
    own = group.own(len(inputs), 1)
    given = torch.tensor(inputs)[own].requires_grad_()
    with group.normalising("sync", len(own), len(inputs)):
        found = layer(given)
    found.backward(torch.tensor(change)[own])
    sums = [group.add(parameter.grad) for parameter in layer.parameters() if parameter.grad is not None]
    assert given.grad is not None
    return [value.detach().numpy() for value in (found, given.grad, *sums, *layer.buffers())]


def layer_of(kind: str, channels: int) -> nn.Module:
    torch.manual_seed(2)
    made: nn.Module = {
        "2d": lambda: nn.BatchNorm2d(channels),
        "1d": lambda: nn.BatchNorm1d(channels, momentum=None),
        "plain": lambda: nn.BatchNorm2d(channels, affine=False, eps=1e-3),
        "stateless": lambda: nn.BatchNorm2d(channels, track_running_stats=False),
    }[kind]()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("kind", ["2d", "1d", "plain", "stateless"])
def test_batch_norm_over_two_devices_is_that_of_one_on_the_whole_batch(kind: str, pair: Together) -> None:
    rng = np.random.default_rng(1)
    shape = (7, 5) if kind == "1d" else (7, 5, 3, 4)
    # Far from 0: the difference of squares would have no digit left.
    inputs = (rng.normal(size=shape) + 100).astype(np.float32)
    change = rng.normal(size=shape).astype(np.float32)
    layer, given = layer_of(kind, 5), torch.tensor(inputs, requires_grad=True)
    layer(given).backward(torch.tensor(change))
    first, second = pair.call(normalised, inputs, change, kind)
    expected = [layer_of(kind, 5)(torch.tensor(inputs)), given.grad]
    for place in range(2):
        joined = np.concatenate([first[place], second[place]])
        np.testing.assert_allclose(joined, expected[place].detach().numpy(), rtol=1e-3, atol=2e-4)  # type: ignore[union-attr]
    others = [p.grad for p in layer.parameters()] + list(layer.buffers())
    for ours, theirs in zip(first[2:], others, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]


def test_batch_norm_without_others_has_torchs_gradients() -> None:
    layer, plain = layer_of("2d", 3).double(), layer_of("2d", 3).double()
    inputs = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    change = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    ours, theirs = (inputs.clone().requires_grad_() for _ in range(2))
    with Normalised(lambda values: values, 4, 4):
        layer(ours).backward(change)
    plain(theirs).backward(change)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    with Normalised(lambda values: values, 1, 1), pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.ones(1, 3, 1, 1, dtype=torch.float64))
    # In evaluation nothing is exchanged.
    with Normalised(lambda values: pytest.fail("exchanged"), 4, 4):
        assert torch.equal(layer.eval()(inputs), copy.deepcopy(layer)(inputs))


# Losses that see all images of a batch.


def pretrained(group: Group | None, text: str, data: Prepared) -> Any:
    config = config_of(text).pretraining()
    job = training_job(config, data, Path(), seed=3)
    images = image_sets.image_sets(data, "train", "cpu")[0]
    session = pretraining.new_session(job, data, images, "cpu", group)
    session.observe = None
    first: list[torch.Tensor] = []
    session.optimizer.register_step_pre_hook(
        lambda optimizer, *_: first.append(
            torch.cat([p.grad.reshape(-1) for each in optimizer.param_groups for p in each["params"]])
        )
    )
    history = list(fit(session, images, None, until_epoch=1))
    return first[0].numpy(), history[0]["train_loss"]


def test_contrast_sees_the_images_of_all_devices(pair: Together, cache: Path) -> None:
    text = DATA + RESNET + "pretrain: {simclr: {epochs: 1, batch_size: 51, blur: 0.5}}\n"
    data = pipeline.prepare_data(config_of(text), cache)
    gradients, loss = pretrained(None, text, data)
    for ours, found in pair.call(pretrained, text, data):
        assert relative(ours, gradients) < 1e-5
        assert found == pytest.approx(loss, rel=1e-3)


# What the devices say to each other.


def said(group: Group) -> tuple[bool, bool, list[int]]:
    rows = torch.arange(5)[group.own(5, 1)]
    return group.agree(group.is_leader), group.agree(not group.is_leader), group.whole(rows, group.parts(5, 1)).tolist()


def test_leader_decides_and_rows_come_back_in_order(pair: Together) -> None:
    assert pair.call(said) == [(True, False, [0, 1, 2, 3, 4])] * 2


def too_few(group: Group) -> str:
    with pytest.raises(BuildError) as caught:
        group.check_batches(5, 4)
    return str(caught.value)


def test_batch_without_an_image_for_each_device_is_refused(pair: Together) -> None:
    assert pair.call(too_few)[0] == (
        "training.devices: 2 devices share each batch, and there are 5 training images in batches of 1"
    )
