"""Shared by the recipes of tools with separate environments: start time, options, images.

It needs only Pillow, because each environment has different packages.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

STARTED = time.monotonic()  # The imports that follow this one are part of the minutes.


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder with a subfolder for each class")
    parser.add_argument("--weights", type=Path, help="of timm's network, in timm's names")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--predict", type=Path, nargs="+", help="print what these saved models say of the images")
    return parser.parse_args()


def files(folder: Path) -> list[Path]:
    """Return the images below a folder of classes."""
    return sorted(path for path in folder.resolve().glob("*/*") if path.is_file())


def side(folder: Path) -> int:
    """Return the longer side of the first photo, at most 224, rounded up to a multiple of 32."""
    with Image.open(files(folder)[0]) as picture:
        return -(-min(224, max(picture.size)) // 32) * 32


def show(folder: Path, models: dict[str, Sequence[str]]) -> None:
    """Print the class of each image by each model."""
    names = [f"{file.parent.name}/{file.name}" for file in files(folder)]
    print(json.dumps({path: dict(zip(names, classes, strict=True)) for path, classes in models.items()}))
