"""AutoGluon MultiModal with the same network and weights, its defaults and its time_limit.

    python scripts/bench/recipes/gluon.py photos/train --weights lite0 --minutes 10 --seed 0 --out run
    python scripts/bench/recipes/gluon.py photos/test --predict run/model

Runs in a separate environment. `--weights` is a folder in AutoGluon's form of a local timm network: config.json and
pytorch_model.bin. `--predict` also accepts the path of a checkpoint in the folder of the finished model.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

STARTED = time.monotonic()  # The imports below are part of the minutes.

# The weights are local, so look nothing up on the internet.
os.environ["HF_HUB_OFFLINE"] = "1"

import pandas as pd  # noqa: E402
from autogluon.multimodal import MultiModalPredictor  # noqa: E402


def table(folder: Path) -> pd.DataFrame:
    """Return the image paths and labels of a folder of classes."""
    files = sorted(path for path in folder.resolve().glob("*/*") if path.is_file())
    return pd.DataFrame({"image": [str(file) for file in files], "label": [file.parent.name for file in files]})


def main() -> None:
    """Fit for some minutes, or predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--predict", type=Path, nargs="+")
    given = parser.parse_args()
    images = table(given.images)
    if given.predict:
        names = [f"{Path(path).parent.name}/{Path(path).name}" for path in images["image"]]
        found = {}
        for path in given.predict:
            predictor = MultiModalPredictor.load(str(path.resolve()), verbosity=0)
            found[str(path)] = dict(zip(names, map(str, predictor.predict(images[["image"]])), strict=True))
        print(json.dumps(found))
        return
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=str(given.out.resolve() / "model"))
    predictor.fit(
        images,
        time_limit=60 * given.minutes - (time.monotonic() - STARTED),
        seed=given.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(given.weights.resolve()),
        },
    )


if __name__ == "__main__":
    main()
