"""How many wrong labels `inspect` finds: some are swapped at random, and the first suspects are looked through.

    python scripts/bench/suspects.py --images photos
    python scripts/bench/suspects.py --images photos --seeds 1 --models network
    python scripts/bench/suspects.py --images photos --share 0.1 --epochs 10

As many suspects as labels were swapped are looked at; fewer where fewer are named. A list in random order finds the
share that was swapped. All images are judged, as with --judge-test, so that all that is swapped can be found. Labels
that were wrong before count as found by mistake.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import frame
import numpy as np
from imgcls_search.config import Component
from imgcls_search.data.inventory import Inventory
from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images, take_inventory
from imgcls_search.jobs.inspect.quick_model import MODELS

TIMES_RANDOM = 8.0
"""What the first suspects must find, against a list in random order."""


def main() -> None:
    """Swap labels by several seeds, inspect, count."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder with a subfolder for each class")
    parser.add_argument("--share", type=float, default=0.05, help="share of the labels to swap; default: 0.05")
    parser.add_argument("--seeds", type=int, default=3, help="swaps to try; default: 3")
    parser.add_argument("--epochs", type=int, help="epochs of the network; default: as inspect chooses")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="parts of the model")
    arguments = parser.parse_args()
    root = str(arguments.images.resolve())
    images = take_inventory(Component(path="data.folder", name="folder", args={"root": root}))
    with frame.results("suspects", arguments.out) as found:
        found |= {"images": len(images), "share": arguments.share, "models": arguments.models, "runs": []}
        for seed in range(arguments.seeds):
            wanted = Wanted(with_test=True, epochs=arguments.epochs, models=tuple(arguments.models), seed=seed)
            found["runs"].append(measure(images, arguments.share, wanted))
        found["precision"] = frame.spread([run["precision"] for run in found["runs"]])
        found["recall"] = frame.spread([run["recall"] for run in found["runs"]])
        times = float(np.mean([run["precision"] for run in found["runs"]])) / arguments.share
        found["times_random"] = round(times, 2)
        print(f"{times:.1f} times a random list; {frame.verdict(times, at_least=TIMES_RANDOM)}")


def measure(images: Inventory, share: float, wanted: Wanted) -> dict[str, Any]:
    """Return what the first suspects find of labels that were swapped by a seed."""
    swapped, labels = swap(images.labels, len(images.classes), share, wanted.seed)
    started, used = time.perf_counter(), time.process_time()
    found = inspect_images(replace(images, labels=labels), wanted, lambda what, done, total: None)
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
    """Return which labels were swapped for a random other one, and all labels afterwards."""
    random = np.random.default_rng(seed)
    count = round(share * len(labels))
    swapped = random.choice(len(labels), count, replace=False)
    changed = labels.copy()
    changed[swapped] = (changed[swapped] + random.integers(1, classes, count)) % classes
    return swapped, changed


if __name__ == "__main__":
    main()
