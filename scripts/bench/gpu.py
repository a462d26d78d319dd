"""Measure the speed of this package on one GPU, in less than nine minutes: images per second and trials per hour.

First it runs `workers.py` with 1, 2, 4 and 8 workers. Then it measures images per second of one worker, alternating
with a bare loop: the same network, optimizer, precision and memory layout on ready tensors and nothing else. The cases
are ResNet-8, ResNet-18 and a small ViT at 32, 96 and 224 pixels; with RandAugment at 32; and at 32 with the network
compiled, without and with CUDA graphs.

python scripts/bench/gpu.py                                          one GPU
python scripts/bench/gpu.py --device cpu --tiny                      only a test run of seconds

Random images: speeds only. Writes gpu.json after each case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frame
import numpy as np
import torch
from imgcls_search.catalog import catalog
from imgcls_search.data import Prepared
from imgcls_search.errors import StoppedError
from imgcls_search.space import parse
from imgcls_search.training.device import autocast, fastest_layout, settle_in
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import train_epoch
from imgcls_search.training.session import Session
from imgcls_search.worker import pipeline
from torch import nn

CLASSES = 10

MODELS = {
    "resnet8": "resnet: {depths: [1, 1, 1], width: 16}",
    "resnet18": "resnet: {depth: 18}",
    "vit_small": "vit: {patch_size: %d, width: 384, depth: 12, heads: 6}",
}

PATCHES = {32: 4, 96: 16, 224: 16}
"""Side of a patch by image size."""

LEAST = 0.95
"""Lower bound of ours / bare."""


def main() -> None:
    """Measure, print and write."""
    arguments = _arguments()
    settle_in(arguments.device)
    with frame.results("gpu", arguments.out) as results:
        results["device"] = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
        results["settings"] = {name: value for name, value in vars(arguments).items() if name != "out"}
        # First, before this process trains anything on the device.
        results["workers"] = trials_an_hour(arguments)
        results["images"] = []
        for case in _cases(arguments):
            results["images"].append(measure(arguments, **case))
            frame.write(results, arguments.out, "gpu")


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cuda or cpu; default: cuda")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step; default: 128")
    parser.add_argument("--images", type=int, default=8192, help="at 32 pixels, fewer at larger ones; default: 8192")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; default: 3")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement; default: 1.5")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument("--tiny", action="store_true", help="one small network, few images, one worker")
    found = parser.parse_args()
    if found.tiny:
        found.batch_size, found.images, found.rounds, found.seconds, found.workers = 8, 32, 1, 0.01, [1]
    return found


def _cases(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cases to measure, the plain ones first."""
    if arguments.tiny:
        return [{"model": "resnet8", "size": 32}, {"model": "resnet8", "size": 32, "policy": "rand"}]
    plain = [{"model": model, "size": size} for size in PATCHES for model in MODELS]
    policies = [{"model": model, "size": 32, "policy": "rand"} for model in ("resnet8", "vit_small")]
    compiled = [
        {"model": model, "size": 32, "compiled": wanted}
        for model in ("resnet8", "vit_small")
        for wanted in ("true", "reduce_overhead")
    ]
    return [*plain, *policies, *compiled]


def measure(
    arguments: argparse.Namespace, *, model: str, size: int, policy: str = "none", compiled: str = "false"
) -> dict[str, Any]:
    """Return images per second of both ways, and their ratio."""
    session, images = prepare(arguments, model, size, policy, compiled)
    ways: dict[str, Callable[[float], float]] = {
        "ours": lambda seconds: ours(session, images, seconds),
        "bare": bare(session, arguments.batch_size, size),
    }
    for way in ways.values():
        way(min(0.5, arguments.seconds))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds):
        for name in [*ways][:: 1 if turn % 2 == 0 else -1]:
            rates[name].append(ways[name](arguments.seconds))
    ratio = frame.spread([a / b for a, b in zip(rates["ours"], rates["bare"], strict=True)])
    print(
        f"{model}, {size} pixels, policy {policy}, compiled {compiled}: ours {statistics.median(rates['ours']):.0f} "
        f"images/s, ours / bare {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
        f"{frame.verdict(ratio['median'], at_least=LEAST)}",
        flush=True,
    )
    spreads = {name: frame.spread(found, 1) for name, found in rates.items()}
    return {"model": model, "size": size, "policy": policy, "compiled": compiled, **spreads, "ratio": ratio}


def prepare(
    arguments: argparse.Namespace, model: str, size: int, policy: str, compiled: str
) -> tuple[Session, ImageSet]:
    """Return a session like a worker's, with random images on the device."""
    network = MODELS[model] % PATCHES[size] if "%" in MODELS[model] else MODELS[model]
    text = f"""
        data: {{folder: {{root: random}}}}
        augment: {{flip: horizontal, crop_padding: {size // 8}, policy: {{{policy}: {{}}}}}}
        model: {{{network}}}
        optimizer: {{adamw: {{lr: 1e-3}}}}
        training: {{epochs: 1000, batch_size: {arguments.batch_size}, device: {arguments.device}, compile: {compiled}}}
    """
    config = parse(text, catalog(), source=__file__).config()
    count = max(2 * arguments.batch_size, arguments.images * 32**2 // size**2)
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(256, size=(count, 3, size, size), dtype=np.uint8))
    labels = torch.from_numpy(random.integers(CLASSES, size=count))
    mean, std = (0.5,) * 3, (0.25,) * 3
    data = Prepared(
        fingerprint="",
        classes=tuple(map(str, range(CLASSES))),
        image_size=size,
        channels=3,
        counts={"train": count, "val": 0, "test": 0},
        class_counts=(count // CLASSES,) * CLASSES,
        mean=mean,
        std=std,
        folder="",
    )
    device = f"{arguments.device}:0" if arguments.device == "cuda" else arguments.device
    session = pipeline.new_session(config, data, seed=0, device=device)
    images = ImageSet(pixels=pixels.to(device), labels=labels.to(device), mean=mean, std=std, device=device)
    return session, images


def ours(session: Session, images: ImageSet, seconds: float) -> float:
    """Train like a worker for at least `seconds`; return images per second."""
    done, each = 0.0, len(images) / -(-len(images) // session.recipe.batch_size)
    _wait(session.device)
    started = time.perf_counter()

    def is_over() -> bool:
        nonlocal done
        done += each
        return done > each and time.perf_counter() - started > seconds

    while time.perf_counter() - started < seconds:
        with contextlib.suppress(StoppedError):
            train_epoch(session, images, is_over)
            continue
        # The step after the last call of `is_over` was not taken.
        done -= each
    _wait(session.device)
    return done / (time.perf_counter() - started)


def bare(session: Session, batch_size: int, size: int) -> Callable[[float], float]:
    """Return a plain loop over a ready batch, with a copy of the session's network."""
    import copy

    model = copy.deepcopy(session.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model) if session.is_compiled else model
    inputs = torch.randn(batch_size, 3, size, size, device=session.device).to(memory_format=fastest_layout(model))
    labels = torch.randint(CLASSES, (batch_size,), device=session.device)

    def run(seconds: float) -> float:
        model.train()
        done = 0
        _wait(session.device)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            with autocast(session.device, session.precision):
                loss = nn.functional.cross_entropy(forward(inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += batch_size
        _wait(session.device)
        return done / (time.perf_counter() - started)

    return run


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def trials_an_hour(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the results of `workers.py` on the digits."""
    small = ["--trials", "2", "--epochs", "1", "--max-train", "32"] if arguments.tiny else ["--trials", "24"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(Path(__file__).with_name("workers.py")),
            "--out",
            folder,
            "--rounds",
            "1",
            *small,
        ]
        asked = ["--device", arguments.device, "--workers", *map(str, arguments.workers)]
        subprocess.run([*command, *asked], check=True)
        found: dict[str, Any] = json.loads((Path(folder) / "workers.json").read_text())
    return {name: value for name, value in found.items() if name.endswith("workers")}


if __name__ == "__main__":
    main()
