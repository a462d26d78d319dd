"""Measure trials per hour with 1, 2 and 4 workers on one device, alternating within one run.

python scripts/bench/workers.py --images cifar10-images --device cuda      one GPU
python scripts/bench/workers.py --workers 1 2 --device cpu                 scikit-learn's digits

A search is a complete `imgcls-search run` in a separate process: random draws of ResNets around ResNet-8 of width 16,
no pruning, no pictures. The rate is measured from the first trial's start to the last one's end, so that imports, which
a long search does only once, do not hide the benefit of several workers; the seconds of the whole command are also
reported. Writes workers.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import frame
import optuna


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    with frame.results("workers", arguments.out) as results:
        results["device"] = _device(arguments.device)
        rates: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
        seconds: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
        with tempfile.TemporaryDirectory() as folder:
            space = Path(folder) / "space.yaml"
            space.write_text(_space(arguments))
            for turn in range(arguments.rounds):
                for workers in arguments.workers:
                    rate, took = _search(space, f"round{turn}-{workers}", workers)
                    rates[workers].append(rate)
                    seconds[workers].append(took)
        for workers, found in rates.items():
            results[f"{workers} workers"] = {
                "trials_per_hour": frame.spread(found, 1),
                "command_seconds": frame.spread(seconds[workers], 1),
            }
            ratio = frame.spread([a / b for a, b in zip(found, rates[arguments.workers[0]], strict=True)], 2)
            print(
                f"{workers} worker(s): {results[f'{workers} workers']['trials_per_hour']['median']:.0f} trials an hour "
                f"({min(found):.0f} to {max(found):.0f}), {ratio['median']:.2f} times those of {arguments.workers[0]}"
            )


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, help="an ImageFolder tree of 32x32 images; default: digits")
    parser.add_argument("--device", default="cuda", help="cuda, mps or cpu; default: cuda")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=12, help="of each search; default: 12")
    parser.add_argument("--epochs", type=int, default=5, help="of each trial; default: 5")
    parser.add_argument("--max-train", type=int, default=20_000, help="training images; default: 20000")
    parser.add_argument("--rounds", type=int, default=3, help="searches with each number of workers; default: 3")
    return parser.parse_args()


def _device(name: str) -> str:
    import torch

    return torch.cuda.get_device_name() if name == "cuda" else name


def _space(arguments: argparse.Namespace) -> str:
    data = f"folder: {{root: {arguments.images.resolve()}," if arguments.images else "digits: {"
    return f"""
study: {{trials: {arguments.trials}, sampler: random, pruner: none, pictures: false}}
data: {{{data} max_train: {arguments.max_train}}}}}
augment: {{flip: horizontal, crop_padding: {4 if arguments.images else 1}}}
model: {{resnet: {{depths: [1, 1, 1], width: {{choice: [16, 24]}}}}}}
optimizer: {{sgd: {{lr: {{float: [0.01, 0.3], log: true}}, nesterov: true}}}}
training: {{epochs: {arguments.epochs}, batch_size: 128, device: {arguments.device}}}
"""


def _search(space: Path, folder: str, workers: int) -> tuple[float, float]:
    """Return trials per hour and the seconds of the whole command; all searches share the decoded images."""
    studies = space.parent / "studies"
    command = [sys.executable, "-m", "imgcls_search", "run", str(space), "--name", folder, "--workers", str(workers)]
    started = time.perf_counter()
    subprocess.run([*command, "--studies", str(studies)], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - started
    trials: Sequence[Any] = optuna.load_study(
        storage=f"sqlite:///{studies / folder}.db", study_name=folder
    ).get_trials()
    first = min(trial.datetime_start for trial in trials)
    last = max(trial.datetime_complete for trial in trials)
    return len(trials) / (last - first).total_seconds() * 3600, took


if __name__ == "__main__":
    main()
