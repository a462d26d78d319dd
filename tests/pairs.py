"""A small data set of images with several labels: two scanned digits side by side, labelled with both digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SPACE = """\
study: {name: pairs, trials: 2, sampler: random, pruner: none, workers: 1, seed: 1}
data: {table: {file: pairs/labels.csv, label: tags, separator: ";"}}
model: {resnet: {depths: [1, 1], width: {choice: [8, 16]}}}
image: {size: [8, 16]}
optimizer: {adamw: {lr: {float: [5e-3, 2e-2], log: true}}}
training: {epochs: 3, batch_size: 16}
"""


def draw(count: int, seed: int = 0) -> list[tuple[np.ndarray[tuple[int, int], np.dtype[np.uint8]], list[str]]]:
    """Return images, uint8 [8, 16], each with the sorted digits in it."""
    found = load_digits()
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        pair = random.integers(0, len(found.target), 2)
        pixels = np.hstack([found.images[place] for place in pair]) * (255 / 16)
        drawn.append((pixels.round().astype(np.uint8), sorted({str(found.target[place]) for place in pair})))
    return drawn


def write_table(folder: Path, count: int = 200, seed: int = 0, *, empty: int = 0) -> list[list[str]]:
    """Write images and `labels.csv` with the labels in one column; the first `empty` are blank and have no label."""
    folder.mkdir(parents=True)
    rows, labels = ["image,tags"], []
    for number, (pixels, digits) in enumerate(draw(count, seed)):
        if number < empty:
            pixels, digits = np.zeros_like(pixels) + np.uint8(number), []
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        rows.append(f"{number:03}.png,{';'.join(digits)}")
        labels.append(digits)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return labels


def write_rows(folder: Path, header: str, rows: Sequence[str]) -> Path:
    """Write a table and an image of a single colour for the path that each row begins with; return the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(dict.fromkeys(row.partition(",")[0] for row in rows)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (number % 256, number // 256, 7)).save(path)
    table = folder / "labels.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    return table
