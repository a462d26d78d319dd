"""Measure head trials per minute with stored features and with the network run each time, in two searches of one space.

    python scripts/bench/heads.py --images photos
    python scripts/bench/heads.py --images photos --seconds 60 --size 64 64 --views 4

Both are complete searches with processes, checkpoints and a study, and last equally long. They differ only in
`finetune.views`: either a few augmented views of each image, whose features are computed once, or a new augmentation in
each epoch, for which the network must run. The number of trials is the epochs of the search / the epochs of a trial, so
that an unfinished trial counts by its share. The time is that of the whole search.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import frame
import yaml
from imgcls_search.study.files import find_study
from imgcls_search.study.record import load

TIMES_UNCACHED = 50.0
"""Target for head trials per minute with stored features / without."""

SPACE: dict[str, Any] = {
    "model": {"timm": {"name": "tf_efficientnet_lite0", "weights": "imagenet"}},
    "head": {
        "linear": {"dropout": {"choice": [0.0, 0.2, 0.5]}},
        "mlp": {"hidden": {"choice": [128, 256]}, "dropout": {"choice": [0.0, 0.2, 0.5]}},
    },
    "augment": {"flip": "horizontal"},
    "optimizer": {"adamw": {"lr": {"float": [1e-4, 1e-2], "log": True}, "weight_decay": {"float": [0.0, 0.1]}}},
    "loss": {"cross_entropy": {"label_smoothing": {"choice": [0.0, 0.1]}}},
}


def main() -> None:
    """Run both searches and compare them."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder with a subfolder for each class")
    parser.add_argument("--size", type=int, nargs=2, default=[84, 112], help="height and width; default: 84 112")
    parser.add_argument("--seconds", type=int, default=180, help="of each search; default: 180")
    parser.add_argument("--trials", type=int, default=100_000, help="of each search at most; default: 100,000")
    parser.add_argument("--epochs", type=int, default=10, help="of a trial; default: 10")
    parser.add_argument("--views", type=int, default=2, help="augmented views that are kept; default: 2")
    parser.add_argument("--model", type=yaml.safe_load, help="as under `model` in a space; default: EfficientNet-Lite0")
    arguments = parser.parse_args()
    with frame.results("heads", arguments.out) as found, tempfile.TemporaryDirectory() as folder:
        found |= {"seconds": arguments.seconds, "size": arguments.size, "epochs": arguments.epochs}
        space = {
            **SPACE,
            "study": {
                "trials": arguments.trials,
                "timeout": arguments.seconds,
                "pruner": "none",
                "pictures": False,
                "learn_from": "none",
            },
            "data": {"folder": {"root": str(arguments.images.resolve())}},
            "image": {"size": arguments.size, "channels": 3},
            "training": {"epochs": arguments.epochs},
            **({"model": arguments.model} if arguments.model else {}),
        }
        # The first search decodes the images for both.
        for name, views in (("cached", arguments.views), ("uncached", None)):
            found[name] = search(name, {**space, "finetune": {"freeze": "backbone", "views": views}}, Path(folder))
            print(name, found[name], flush=True)
        times = found["cached"]["trials_a_minute"] / found["uncached"]["trials_a_minute"]
        found["times_uncached"] = round(times, 1)
        print(f"{times:.0f} times as many trials a minute; {frame.verdict(times, at_least=TIMES_UNCACHED)}")


def search(name: str, space: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a search in a separate process and return figures from its study."""
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(space))
    command = [sys.executable, "-m", "imgcls_search", "run", str(file), "--name", name, "--studies", str(folder / "s")]
    done = subprocess.run(command, capture_output=True, text=True)
    # Exit code 1: the time was over before any trial was complete.
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    record = load(find_study(folder / "s", name, None))
    seconds = sum(run["seconds"] for run in record.facts["runs"])
    epochs, each = sum(trial.epoch for trial in record.trials), space["training"]["epochs"]
    values = [trial.values[0] for trial in record.trials if trial.values]
    return {
        "complete": sum(trial.state == "complete" for trial in record.trials),
        "epochs": epochs,
        "seconds": round(seconds, 2),
        "trials_a_minute": round(60 * epochs / each / seconds, 3),
        "best_accuracy": round(max(values), 4) if values else None,
    }


if __name__ == "__main__":
    main()
