"""Ultralytics' classifier from scratch (its weights would be a download), with its defaults and its time limit.

    python scripts/bench/recipes/yolo.py photos/train --minutes 10 --seed 0 --out run

`best.pt` is the epoch with the best validation accuracy.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import shared

os.environ["YOLO_CONFIG_DIR"] = str(Path("settings").resolve())

from ultralytics import YOLO
from ultralytics.data.split import split_classify_dataset

SAVING_SECONDS = 5.0


def main() -> None:
    """Train for some minutes, or predict."""
    given = shared.arguments(__doc__)
    if given.predict:
        found = {}
        for path in given.predict:
            answers = YOLO(path).predict([str(file) for file in shared.files(given.images)], stream=True, verbose=False)
            found[str(path)] = [answer.names[answer.probs.top1] for answer in answers]
        shared.show(given.images, found)
        return
    out = given.out.resolve()
    # Copy the photos, because the split is written beside them.
    photos = split_classify_dataset(shutil.copytree(given.images, out / "photos"), train_ratio=0.85)
    model = YOLO("yolo26n-cls.yaml")
    model.train(
        data=str(photos),
        time=(shared.STARTED + 60 * given.minutes - SAVING_SECONDS - time.monotonic()) / 3600,
        imgsz=shared.side(given.images),
        seed=given.seed,
        device="cpu",
        workers=1,
        plots=False,
        project=str(out / "runs"),
    )
    shutil.copyfile(model.trainer.best, out / "best.pt")
    print(f"{shared.side(given.images)} pixels, {model.trainer.epoch + 1} epochs", flush=True)


if __name__ == "__main__":
    main()
