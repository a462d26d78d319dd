"""What only a GPU can show; run it if you have one."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.executors.packing import free_memory
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit, train_epoch
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, pipeline
from imgcls_search.worker.job_runner import JobRunner
from PIL import Image

from tests.conftest import Answer
from tests.training_job import training_job

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RESNET = """
data: {digits: {max_train: 640}}
model: {resnet: {depths: [1, 1, 1], width: 16}}
optimizer: {adamw: {lr: 5e-3}}
training: {epochs: 6, batch_size: 64, ema: 0.9}
"""


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


def begin(text: str, data: Prepared, *, seed: int = 5) -> Session:
    return pipeline.new_session(config_of(text), data, seed=seed, device="cuda:0")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return pipeline.prepare_data(config_of(RESNET), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def images(digits: Prepared) -> tuple[ImageSet, ImageSet]:
    train, validation = image_sets.image_sets(digits, "train", "cuda:0")
    assert validation is not None
    return train, validation


def in_memory(images: ImageSet) -> ImageSet:
    """Return the same images as a set too large for the GPU is read: from the host, batch by batch."""
    assert isinstance(images.pixels, torch.Tensor)
    return replace(images, pixels=images.pixels.cpu().numpy(), labels=np.asarray(images.labels.cpu()))


@pytest.mark.parametrize(
    "augment",
    [
        "{}",
        "{flip: alternating, crop_padding: 1}",
        "{flip: horizontal_vertical, rotation: 10, resized_crop: 0.5, erasing: 0.5}",
        "{brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1, mixup: 0.2}",
        "{policy: rand, cutmix: 1.0}",
        "{policy: trivial, mixup: 0.2, cutmix: 1.0}",
    ],
)
@pytest.mark.parametrize("is_resident", [True, False])
def test_the_host_never_waits_in_an_epoch(
    digits: Prepared, images: tuple[ImageSet, ImageSet], augment: str, is_resident: bool
) -> None:
    session = begin(f"{RESNET}augment: {augment}\n", digits)
    train = images[0] if is_resident else in_memory(images[0])
    steps = 640 // 64
    asked = 0

    def watch() -> bool:
        nonlocal asked
        asked += 1
        # The first step makes what lasts; after the last one the loss is fetched.
        with warnings.catch_warnings():
            # torch warns that it may not notice every wait.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error" if 1 < asked < steps else "default")
        return False

    try:
        train_epoch(session, train, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert asked == steps


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_it_learns_in_every_precision_and_goes_on_from_a_checkpoint(
    digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path, precision: str
) -> None:
    text = RESNET.replace("ema: 0.9", f"ema: 0.9, precision: {precision}")
    session = begin(text, digits)
    list(fit(session, *images, until_epoch=3))
    checkpoint.save(session.state_dict(), tmp_path / "three.pt")
    list(fit(session, *images, until_epoch=6))
    assert session.history[-1]["accuracy"] > 0.9
    resumed = begin(text, digits, seed=9)
    resumed.load_state_dict(checkpoint.load(tmp_path / "three.pt"))
    list(fit(resumed, *images, until_epoch=6))
    # Sums on a GPU are not always added in the same order.
    for ours, theirs in zip(resumed.history, session.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)


def test_images_from_the_host_train_as_images_on_the_gpu(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    text = RESNET.replace("ema: 0.9", "precision: fp32") + "augment: {crop_padding: 1, policy: rand, mixup: 0.2}\n"
    losses = []
    for train in (images[0], in_memory(images[0])):
        session = begin(text, digits)
        losses.append([train_epoch(session, train, lambda: False)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    found = {}
    for wanted in ("false", "true", "reduce_overhead"):
        session = begin(RESNET.replace("ema: 0.9", f"precision: fp32, compile: {wanted}"), digits)
        assert session.is_compiled is (wanted != "false")
        found[wanted] = list(fit(session, *images, until_epoch=2))[-1]["train_loss"]
    assert found["true"] == pytest.approx(found["false"], rel=0.05)
    assert found["reduce_overhead"] == pytest.approx(found["false"], rel=0.05)


def test_a_worker_reads_the_images_once_for_all_its_trials(digits: Prepared, tmp_path: Path) -> None:
    runner = JobRunner("cuda:0")
    sets = []
    for trial in range(2):
        job = training_job(config_of(RESNET), digits, tmp_path / str(trial), trial=trial, seed=trial, until_epoch=1)
        events = list(runner.work(job, threading.Event()))
        assert type(events[-1]).__name__ == "MilestoneReached", events
        assert runner.current.images is not None
        sets.append(runner.current.images[1])
    assert sets[0] is sets[1]


def test_a_search_on_one_gpu_with_two_workers(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("run", tiny, "--workers", "2", "--set", "training.device=cuda")
    assert answer.code == 0, answer.err
    found = json.loads(imgcls("best", "tiny-digits", "--json").out)
    assert found
    exported = imgcls("export", "tiny-digits", "-o", "best.yaml")
    assert exported.code == 0, exported.err
    trained = imgcls("train", "best.yaml", "--seeds", "1")
    assert trained.code == 0, trained.err


def test_images_too_many_to_keep_are_decoded_ahead(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    random = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "photos" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(40):
            pixels: Any = random.integers(256, size=(24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "space.yaml").write_text(
        "study: {trials: 1, pruner: none}\ndata: {folder: {root: photos}}\nimage: {size: 16, cache_gb: 0}\n"
        "model: {lenet5: {width: {choice: [1, 2]}}}\ntraining: {epochs: 2, batch_size: 16, device: cuda}\n"
    )
    answer = imgcls("run", "space.yaml")
    assert answer.code == 0, answer.err
    assert "decoded again every epoch" in answer.out + answer.err


def test_free_memory_of_a_shared_gpu_is_read_in_another_process() -> None:
    found = free_memory(["cuda:0", "cuda:0"])
    assert 0 < found["cuda:0"] <= torch.cuda.get_device_properties(0).total_memory
