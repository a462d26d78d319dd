"""Write and read tables of recorded trainings, and draw their configurations."""

from __future__ import annotations

import itertools
import json
import lzma
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cell import add_family
from imgcls_search.catalog import catalog
from imgcls_search.space import Space, read_space
from imgcls_search.strategy.draws import draw_random, fixed_candidate
from imgcls_search.strategy.view import View
from imgcls_search.trial import Candidate

TABLES = Path(__file__).parent / "tables"
COLUMNS = ("accuracy", "macro_f1", "loss", "train_loss", "seconds")
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training that was recorded from its first epoch to its last."""

    number: int
    """Number of the configuration in the space's pool."""

    seed: int
    params: Mapping[str, Any]
    curve: Mapping[str, Sequence[float]]
    """Values of each epoch, by column."""

    failed: str = ""
    """Why it ended early, for example `diverged`."""

    @property
    def epochs(self) -> int:
        """Number of trained epochs."""
        return len(self.curve[COLUMNS[0]])


def read_table(path: Path) -> list[Training]:
    """Return the trainings of a table; none if the file does not exist."""
    if not path.exists():
        return []
    with lzma.open(path, "rt") as file:
        return [Training(**json.loads(line)) for line in file]


def write_table(path: Path, trainings: Sequence[Training]) -> None:
    """Replace a table atomically with these trainings, sorted by number and seed."""
    ordered = sorted(trainings, key=lambda each: (each.number, each.seed))
    text = "".join(json.dumps(vars(each), separators=(",", ":")) + "\n" for each in ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(lzma.compress(text.encode()))
    new.replace(path)


def space_of(name: str, images: Path | None = None) -> Space:
    """Return the space of a table, with its images if it is to be trained."""
    add_family()
    data = None if images is None else f"folder:{images.resolve()}"
    return read_space(TABLES / f"{name}.yaml", catalog(), data=data)


def pool(space: Space, count: int) -> list[Candidate]:
    """Return the first `count` configurations of a space's pool: random draws, or a finite space in random order."""
    view = View(space, [], [], seed=0)
    if space.num_combinations() is None:
        return [draw_random(view, number, 0) for number in range(count)]
    every = list(space.combinations())
    random.Random(0).shuffle(every)  # noqa: S311
    return [fixed_candidate(view, params) for params in itertools.islice(every, count)]


OPDA_SPACE = """
study: {name: opda, objectives: {accuracy: maximize}}
data: {digits: {}}
model: {alexnet: {}}
optimizer:
  sgd: {lr: {float: [0.005, 50.0], log: true}, momentum: {float: [0.7, 0.99999]},
        weight_decay: {float: [1.0e-6, 1.0e-3], log: true}}
loss: {cross_entropy: {label_smoothing: {float: [0.0, 0.5]}}}
training: {epochs: %d, batch_size: {choice: [128, 256, 512, 1024]}}
config: {epochs: {int: [20, 100]}, peak: {float: [0.0, 0.8]}}
"""
"""`config` contains settings without a path in our spaces: a training's length, and when its rate is highest."""


def opda(folder: Path, epochs: int) -> tuple[str, list[Training]]:
    """Return the space and the trainings of opda's AlexNet on ImageNet.

    With 20 `epochs`, each training is reported in 20 equal parts; otherwise its first `epochs` epochs are reported.
    """
    lines = (folder / "alexnet_tuning.results.jsonl").read_text().splitlines()
    found = []
    for row in map(json.loads, lines):
        if epochs > 20 and row["epochs"] < epochs:
            continue
        curve = [epoch["top_1"] for epoch in row["learning_curve"]]
        ends = [math.ceil(part * row["epochs"] / epochs) if epochs == 20 else part for part in range(1, epochs + 1)]
        params = {
            "optimizer.sgd.lr": row["lr"],
            "optimizer.sgd.momentum": row["momentum"],
            "optimizer.sgd.weight_decay": row["weight_decay"],
            "loss.cross_entropy.label_smoothing": row["label_smoothing"],
            "training.batch_size": row["batch_size"],
            "config.epochs": row["epochs"],
            "config.peak": row["lr_peak_epoch"] / row["epochs"],
        }
        shown = [curve[end - 1] for end in ends if end <= len(curve)]
        found.append(Training(number=row["iteration"], seed=0, params=params, curve={"accuracy": shown}))
    return OPDA_SPACE % epochs, found
