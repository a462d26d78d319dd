"""Measure how fast networks train on this machine: a few epochs on a few images, within a fixed time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, Prints, Source, Split, load, prepare
from imgcls_search.errors import SearchError
from imgcls_search.executors import processes
from imgcls_search.image_size import ImageSize
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import Network
from imgcls_search.progress import WorkProgress

MOST_SECONDS = 30.0
MOST_SHARE = 0.04
"""Share of the total time that measuring may take."""

FEWEST_SECONDS = 6.0
"""With less time, nothing is measured: starting processes takes a part of it."""

MOST_PROCESSES = 4
"""Most trainings to time in parallel, like trials."""

TRAIN_IMAGES, EVALUATED_IMAGES = 48, 16
BATCH = 16
MOST_PASSES = 4
FIRST_PASS = 2.0
"""The first pass, which also sets up the network's kernels, takes at least this many times as long for each image."""

ASSUMED = {"cpu": (8e9, 4e9), "cuda": (1e12, 2e11), "mps": (2e11, 4e10)}
"""Multiply-accumulates per second of a worker if nothing is measured, for plain and for depthwise convolutions."""

MEASURED_SHARE = 0.6
"""Share of a core's rates that networks are expected to reach. On a Xeon, EfficientNets and MobileNetV3 reach 0.8 to
1.0 of the rates, ResNet-18 and ViT-tiny more; reading and augmenting images also takes time."""

STEP = 4.0
"""A training step takes this many times as long as a prediction, if nothing is measured."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds per multiply-accumulate of one worker."""

    train: float
    predict: float
    is_measured: bool
    epochs: int = 0
    """Number of measured epochs."""


def assumed(network: Network, machine: Machine) -> Speed:
    """Return the expected speed of a network that was not measured."""
    ((family, _),) = network.model.items()
    dense, light = ASSUMED[machine.device]
    if machine.rates is not None:
        dense, light = (MEASURED_SHARE * rate for rate in machine.rates)
    rate = (dense if family in ("resnet", "lenet5", "vit", "vgg", "alexnet") else light) / machine.slowdown
    return Speed(train=STEP / rate, predict=1 / rate, is_measured=False)


def time_allowed(seconds: float) -> float:
    """Return how many of the total `seconds` measuring may take; 0 if these are too few to measure anything."""
    found = min(MOST_SECONDS, MOST_SHARE * seconds)
    return found if found >= FEWEST_SECONDS else 0.0


def measure(
    networks: Sequence[Network],
    sizes: Sequence[ImageSize],
    source: Source,
    machine: Machine,
    *,
    channels: int,
    seconds: float,
    progress: WorkProgress,
) -> dict[str, Speed]:
    """Measure the speeds of networks, each with images of its size; leave out those that did not finish in time.

    Trainings run in parallel like trials, which share memory and cores. Nothing is stored.
    """
    ends = time.monotonic() + seconds
    found: dict[str, dict[Connection, Speed]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imgcls-init-")))
        jobs = _jobs(networks, sizes, source, folder, channels)
        device = "cuda:0" if machine.device == "cuda" else machine.device
        started = [
            processes.start(_time_all, f"speed-{number}", jobs, device, ends)
            for number in range(min(machine.workers, MOST_PROCESSES) if jobs else 0)
        ]
        for process, connection in started:
            stack.callback(process.join)
            stack.callback(process.kill)
            stack.callback(connection.close)
        listening = [connection for _, connection in started]
        while listening and (left := ends - time.monotonic()) > 0:
            for ready in wait(listening, min(left, 1.0)):
                assert isinstance(ready, Connection)
                try:
                    name, speed = ready.recv()
                    # A later figure of a process comes from more passes.
                    found.setdefault(name, {})[ready] = speed
                except EOFError:
                    listening.remove(ready)
            progress("measuring the speed of networks", sum(map(len, found.values())), len(started) * len(jobs))
    return {name: _mean(list(speeds.values())) for name, speeds in found.items()}


def _mean(speeds: Sequence[Speed]) -> Speed:
    return Speed(
        train=sum(speed.train for speed in speeds) / len(speeds),
        predict=sum(speed.predict for speed in speeds) / len(speeds),
        is_measured=True,
        epochs=sum(speed.epochs for speed in speeds),
    )


@dataclass(frozen=True, kw_only=True)
class _TimedJob:
    name: str
    config: TrialConfig
    data: Prepared
    macs: int


def _jobs(
    networks: Sequence[Network], sizes: Sequence[ImageSize], source: Source, folder: Path, channels: int
) -> list[_TimedJob]:
    jobs = []
    few = _few(source)
    for network, size in zip(networks, sizes, strict=True):
        taken = 3 if network.is_pretrained else channels
        try:
            data = prepare(few, image_size=size, channels=taken, cache=folder, fit="squash")
            macs = network.macs(size, taken, len(source.classes))
        except SearchError:
            # Damaged images and similar problems are reported elsewhere.
            continue
        jobs.append(
            _TimedJob(
                name=network.key,
                config=network.config(size, taken, batch=BATCH, several=source.has_several_labels),
                data=data,
                macs=macs,
            )
        )
    return jobs


def _few(source: Source) -> Source:
    """Return a source of a few images that skips damaged ones and does not read all files for a fingerprint."""
    names: dict[Split, tuple[str, ...]] = {"train": source.names["train"], "val": source.names["val"], "test": ()}
    counts = {"train": TRAIN_IMAGES, "val": EVALUATED_IMAGES, "test": 0}
    kept: dict[Split, list[int]] = {
        split: list(range(0, len(names[split]), max(1, len(names[split]) // max(1, counts[split]))))[: counts[split]]
        for split in names
    }
    return replace(
        source,
        names={split: tuple(names[split][index] for index in kept[split]) for split in kept},
        labels={split: source.labels[split][kept[split]] for split in kept},
        read=lambda split, index: source.read(split, kept[split][index]),
        make_prints=lambda: Prints(whole="few", seen="few"),
        first_fingerprint=None,
        skips_unreadable=True,
        folds=(),
        groups=None,
        group_names=None,
    )


def _time_all(connection: Connection, jobs: Sequence[_TimedJob], device: str, ends: float) -> None:
    """Time trainings one after the other, and send the speed after each pass."""
    from imgcls_search.training.device import settle_in

    settle_in(device)
    for number, job in enumerate(jobs):
        share = (ends - time.monotonic()) / (len(jobs) - number)
        for speed in _time(job, device, time.monotonic() + 0.9 * share):
            connection.send((job.name, speed))


def _time(job: _TimedJob, device: str, ends: float) -> Iterator[Speed]:
    """Yield the speed after each pass over the images, from the fastest so far."""
    from imgcls_search.training.evaluation import predict
    from imgcls_search.training.loop import train_epoch
    from imgcls_search.worker import image_sets, pipeline

    session = pipeline.new_session(job.config, job.data, seed=0, device=device, from_pretrained=False)
    images = load(job.data, "train", whole=True)
    one = np.arange(min(BATCH, len(images.labels)))
    batch = replace(images, pixels=images.pixels[one], labels=images.labels[one])
    trained: list[float] = []
    predicted: list[float] = []
    # The slow first pass gets one batch.
    for part in (batch, *[images] * (MOST_PASSES - 1)):
        shown = image_sets.on_device(part, job.data, device)
        work = job.macs * len(shown)
        if trained:
            expected = trained[-1] * work / (FIRST_PASS if len(trained) == 1 else 1.0)
            if time.monotonic() + expected > ends:
                return
        trained.append(_seconds(partial(train_epoch, session, shown, lambda: False)) / work)
        predicted.append(_seconds(partial(predict, session.model, shown)) / work)
        yield Speed(train=min(trained), predict=min(predicted), is_measured=True, epochs=len(trained))


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
