"""LightlyTrain's fine-tuning for classification, with local weights of the same network and otherwise its defaults.

    python scripts/bench/recipes/lightlytrain.py photos/train --weights lite0.pt --minutes 10 --seed 0 --out run

LightlyTrain counts steps, not minutes, so two short trainings measure the time of a step. `lite0` is needed because,
for timm's EfficientNets, LightlyTrain takes the features before the last convolution but their number after it, and
fails.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import shared

os.environ["LIGHTLY_TRAIN_CACHE_DIR"] = str(Path("cache").resolve())
os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"

import lightly_train
import timm
import torch
from sklearn.model_selection import train_test_split
from timm.models import register_model

PROBES = (4, 24)
SAVING_SECONDS = 5.0


@register_model
def lite0(file: str, **options: object) -> torch.nn.Module:
    """Return the pretrained network with its last convolution moved into its last stage."""
    options = {name: value for name, value in options.items() if not name.startswith("pretrained")}
    model = timm.create_model("tf_efficientnet_lite0", **options)
    model.load_state_dict(torch.load(file, weights_only=True))
    model.blocks[-1].extend([model.conv_head, model.bn2])
    return model


def main() -> None:
    """Train for some minutes, or predict."""
    given = shared.arguments(__doc__)
    files = shared.files(given.images)
    if given.predict:
        found = {}
        for path in given.predict:
            model = lightly_train.load_model(path)
            batches = (model.predict_batch(list(map(str, files[k : k + 64]))) for k in range(0, len(files), 64))
            found[str(path)] = [model.classes[int(each["labels"][0])] for batch in batches for each in batch]
        shared.show(given.images, found)
        return
    until = shared.STARTED + 60 * given.minutes - SAVING_SECONDS
    given.out.mkdir(parents=True, exist_ok=True)
    labels = [file.parent.name for file in files]
    parts = train_test_split(files, test_size=0.15, stratify=labels, random_state=given.seed)
    for name, part in zip(("train", "val"), parts, strict=True):
        with (given.out / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image_path", "label"), *((path, path.parent.name) for path in part)])
    side = shared.side(given.images)

    def train(name: str, steps: int) -> float:
        begun = time.monotonic()
        lightly_train.train_image_classification(
            out=given.out / name,
            data={
                "train": str(given.out.resolve() / "train.csv"),
                "val": str(given.out.resolve() / "val.csv"),
                "classes": dict(enumerate(sorted(set(labels)))),
            },
            model="timm/lite0",
            model_args={"backbone_args": {"file": str(given.weights.resolve())}},
            transform_args={"image_size": (side, side), "normalize": {"mean": (0.5,) * 3, "std": (0.5,) * 3}},
            steps=steps,
            precision="32-true",  # There is no GPU.
            seed=given.seed,
        )
        return time.monotonic() - begun

    short, long = (train(f"probe-{steps}", steps) for steps in PROBES)
    a_step = (long - short) / (PROBES[1] - PROBES[0])
    steps = max(1, int((until - time.monotonic() - short) / a_step) + PROBES[0])
    train("model", steps)
    (given.out / "model" / "exported_models" / "exported_best.pt").rename(given.out / "best.pt")
    print(f"{side} pixels, {steps} steps of {a_step:.2f} s", flush=True)


if __name__ == "__main__":
    main()
