"""Measure how many wrong labels `inspect` finds: swap some at random, and count how many are among the first suspects.

    python scripts/bench/suspects.py --images photos
    python scripts/bench/suspects.py --images photos --seeds 1 --models network
    python scripts/bench/suspects.py --images photos --share 0.1 --epochs 10
    python scripts/bench/suspects.py --images photos --backbone '{resnet: {depth: 18, weights: imagenet}}'

The number of suspects that are checked equals the number of swapped labels, or is smaller if `inspect` names fewer. In
a list in random order, the share of swapped labels would be `--share`. All images are judged, as with --judge-test, so
that all swapped labels can be found. Labels that were already wrong count as false suspects.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import frame
import numpy as np
import yaml
from imgcls_search.config import Component
from imgcls_search.data.inventory import Inventory
from imgcls_search.jobs.inspect.by_backbone import judging_by_backbone
from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images, take_inventory
from imgcls_search.jobs.inspect.quick_model import MODELS

TIMES_RANDOM = 8.0
"""Lower bound of the precision of the first suspects / that of a list in random order."""


def main() -> None:
    """Swap labels with several seeds, inspect, and count."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder with a subfolder for each class")
    parser.add_argument("--share", type=float, default=0.05, help="share of the labels to swap; default: 0.05")
    parser.add_argument("--seeds", type=int, default=3, help="swaps to try; default: 3")
    parser.add_argument("--epochs", type=int, help="epochs of the network; default: as inspect chooses")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="parts of the model")
    parser.add_argument(
        "--backbone", type=yaml.safe_load, help="a pretrained network instead, as under `model` in a space"
    )
    arguments = parser.parse_args()
    root = str(arguments.images.resolve())
    images = take_inventory(Component(path="data.folder", name="folder", args={"root": root}))
    with frame.results("suspects", arguments.out) as found:
        found |= {
            "images": len(images),
            "share": arguments.share,
            "models": arguments.backbone or arguments.models,
            "runs": [],
        }
        for seed in range(arguments.seeds):
            wanted = Wanted(with_test=True, epochs=arguments.epochs, models=tuple(arguments.models), seed=seed)
            found["runs"].append(measure(images, arguments.share, wanted, arguments.backbone))
        found["precision"] = frame.spread([run["precision"] for run in found["runs"]])
        found["recall"] = frame.spread([run["recall"] for run in found["runs"]])
        times = float(np.mean([run["precision"] for run in found["runs"]])) / arguments.share
        found["times_random"] = round(times, 2)
        print(f"{times:.1f} times a random list; {frame.verdict(times, at_least=TIMES_RANDOM)}")


def measure(images: Inventory, share: float, wanted: Wanted, backbone: Any = None) -> dict[str, Any]:
    """Swap labels and return how many of them are among the first suspects."""
    swapped, labels = swap(images.labels, len(images.classes), share, wanted.seed)
    started, used = time.perf_counter(), time.process_time()
    judge = None if backbone is None else judging_by_backbone(backbone, seed=wanted.seed)
    found = inspect_images(replace(images, labels=labels), wanted, lambda what, done, total: None, judge)
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    if found.judgement is None:
        raise SystemExit(f"labels were not judged: {found.not_judged}")
    suspects = [suspect.image.number for suspect in found.judgement.suspects]
    looked_at = suspects[: len(swapped)]
    right = len(set(looked_at) & set(swapped.tolist()))
    run = {
        "seed": wanted.seed,
        "swapped": len(swapped),
        "suspects": len(suspects),
        "looked_at": len(looked_at),
        "found": right,
        "precision": round(right / max(len(looked_at), 1), 4),
        "recall": round(right / len(swapped), 4),
        "recall_of_all_suspects": round(len(set(suspects) & set(swapped.tolist())) / len(swapped), 4),
        "agreement": round(found.judgement.agreement, 4),
        "estimated_wrong": round(found.judgement.estimated_wrong, 4),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
    }
    print(run, flush=True)
    return run


def swap(labels: np.ndarray[Any, Any], classes: int, share: float, seed: int) -> tuple[Any, Any]:
    """Replace some labels by a random other one; return their positions and all labels afterwards."""
    random = np.random.default_rng(seed)
    count = round(share * len(labels))
    swapped = random.choice(len(labels), count, replace=False)
    changed = labels.copy()
    changed[swapped] = (changed[swapped] + random.integers(1, classes, count)) % classes
    return swapped, changed


if __name__ == "__main__":
    main()
