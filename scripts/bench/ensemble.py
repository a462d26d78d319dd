"""Measure the gain of an ensemble of a study's networks on test images, and how much of it a single student keeps.

    python scripts/bench/ensemble.py --images cifar10-images    an ImageFolder tree with train/ and test/
    python scripts/bench/ensemble.py --seeds 2 --trials 3 --epochs 2

Each seed is a separate search among random configurations of a small ResNet that keeps all networks. Then `ensemble
--picks --distill --test` combines them, and trains the best configuration again with the ensemble as its teacher, for
the same number of epochs. Both are compared with the search's winner on the same test images, seed by seed: differences
of accuracy with Student's 95 % interval. The student keeps half of the gain if the interval of its gain minus half of
the ensemble's is not below 0. Without `--images` the script uses digits. It writes ensemble.json after each seed.

Measured on 2026-11-30, CIFAR-10 as JPEG files: see docs/decisions/2026-11-30-ensembles.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import frame
from imgcls_search.confidence import interval

SPACE = """
study: {trials: TRIALS, keep: TRIALS, sampler: random, pruner: none, pictures: false, workers: 1, learn_from: none}
data: DATA
image: {size: SIZE}
augment: AUGMENT
model: {resnet: {depths: [1, 1, 1], width: {choice: [8, 16]}}}
optimizer: {sgd: {lr: {float: [0.02, 0.3], log: true}, nesterov: true, weight_decay: {choice: [1e-4, 5e-4, 2e-3]}}}
schedule: {cosine: {warmup_epochs: 1}}
training: {epochs: EPOCHS, batch_size: 64, device: cpu}
"""


def main() -> None:
    """Search, combine and distil with each seed, and compare on the test images."""
    given = _arguments()
    with frame.results("ensemble", given.out) as results, tempfile.TemporaryDirectory() as folder:
        asked = {name: value for name, value in vars(given).items() if name not in ("out", "images")}
        results["asked"] = {**asked, "images": "digits" if given.images is None else given.images.name}
        results["seeds"] = []
        for seed in range(given.first, given.first + given.seeds):
            results["seeds"].append(_measure(seed, Path(folder), given))
            print(f"seed {seed}: {results['seeds'][-1]}", flush=True)
            frame.write(results, given.out, "ensemble")
        results["summary"] = _summarise(results["seeds"])
        _print(results["summary"])


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, help="an ImageFolder tree with train/ and test/; default: digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed; default: 0")
    parser.add_argument("--trials", type=int, default=6, help="of each search; default: 6")
    parser.add_argument("--epochs", type=int, default=8, help="of each training; default: 8")
    parser.add_argument("--train-images", type=int, default=4000, help="of each training; default: 4000")
    parser.add_argument("--size", type=int, default=16, help="pixels; default: 16")
    parser.add_argument("--picks", type=int, default=5)
    return parser.parse_args()


def _measure(seed: int, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Return test accuracies of the winner, the ensemble and the student of one search."""
    (folder / "space.yaml").write_text(_space(given))
    name = f"seed-{seed}"
    _run(folder, "run", "space.yaml", "--name", name, "--set", f"study.seed={seed}", "--workers", "1")
    more = ("--picks", str(given.picks), "--distill", f"student-{seed}", "--test", "--json")
    found = json.loads(_run(folder, "ensemble", name, *more))
    return {
        "seed": seed,
        "picks": [member["count"] for member in found["members"]],
        "validation": found["validation"],
        "macs": {which: found["sizes"][which]["macs"] for which in ("ensemble", "winner")},
        **{which: found["test"][which] for which in ("winner", "ensemble", "student", "images")},
    }


def _space(given: argparse.Namespace) -> str:
    data, augment = f"{{digits: {{max_train: {given.train_images}}}}}", "{crop_padding: 1}"
    if given.images is not None:
        data = f"{{folder: {{root: {given.images.resolve()}, val: 0.04, max_train: {given.train_images}}}}}"
        augment = "{flip: horizontal, crop_padding: 2}"
    text = SPACE.replace("DATA", data).replace("AUGMENT", augment)
    for name, value in (("TRIALS", given.trials), ("EPOCHS", given.epochs), ("SIZE", given.size)):
        text = text.replace(name, str(value))
    return text


def _run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "imgcls_search", *arguments]
    # One thread, because other work may run on the machine.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def _summarise(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gains = [found["ensemble"] - found["winner"] for found in seeds]
    kept = [found["student"] - found["winner"] for found in seeds]
    beyond_half = [student - gain / 2 for student, gain in zip(kept, gains, strict=True)]
    gain, student = sum(gains) / len(gains), sum(kept) / len(kept)
    return {
        "ensemble_minus_winner": interval(gains),
        "student_minus_winner": interval(kept),
        "student_gain_less_half_of_the_ensemble_s": interval(beyond_half),
        "share_kept": student / gain if gain else None,
    }


def _print(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if not isinstance(value, dict):
            print(f"share of the gain that the student keeps: {value if value is None else round(value, 3)}")
            continue
        half = "" if value["ci95"] is None else f" ± {100 * value['ci95']:.2f} (95 %)"
        print(f"{name.replace('_', ' ')}, points of accuracy: {100 * value['mean']:+.2f}{half}")
    low = found["ensemble_minus_winner"]
    if low["ci95"] is not None:
        # Not worse beyond the interval means that its upper end is at least 0.
        print(f"upper end of the gain's interval: {frame.verdict(low['mean'] + low['ci95'], at_least=0.0)}")


if __name__ == "__main__":
    main()
