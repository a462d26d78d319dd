"""Ultralytics' classifier from scratch, because its weights are a download, with its defaults and its limit of time.

    python scripts/bench/recipes/yolo.py photos/train --minutes 10 --seed 0 --out run

It cuts a fifth of the photos for validation by itself.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import shared

os.environ["YOLO_CONFIG_DIR"] = str(Path("settings").resolve())

from ultralytics import YOLO

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
    # What it cuts is written beside the photos.
    shutil.copytree(given.images, out / "photos")
    YOLO("yolo26n-cls.yaml").train(
        data=str(out / "photos"),
        time=(shared.STARTED + 60 * given.minutes - SAVING_SECONDS - time.monotonic()) / 3600,
        imgsz=shared.side(given.images),
        seed=given.seed,
        device="cpu",
        workers=1,
        plots=False,
        project=str(out),
        name="model",
    )
    (out / "model" / "weights" / "best.pt").rename(out / "best.pt")


if __name__ == "__main__":
    main()
