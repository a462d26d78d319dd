"""Record full learning curves of real image trainings, for benchmarks of search strategies.

    python scripts/bench/record_curves.py --cifar cifar10-images --trashnet trashnet
    python scripts/bench/record_curves.py --cifar cifar10-images --spaces cells --until 2026-12-01T18:00
    python scripts/bench/record_curves.py --cifar cifar10-images --spaces cifar --trainings 2 --tables mytables

Each space of `scripts/bench/tables/` has a table beside it, NAME.jsonl.xz, with one line per training. Recorded
trainings are not repeated, and the file is replaced atomically after each training, so an interrupted recording loses
at most the current training. Configurations are random draws (for `cells` all configurations in a random order) and
numbered, so that a later recording continues with the next ones. Every fifth is also trained with a second seed.
Trainings use a worker's code, in this process, on one thread. The spaces alternate so that each gets the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import frame
from curve_tables import COLUMNS, DIGITS, TABLES, Training, pool, read_table, space_of, write_table
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.protocol import EpochEnded, Failed, Job
from imgcls_search.space import Space

IMAGES = {"cifar": "cifar", "trashnet": "trashnet", "heads": "trashnet", "cells": "cifar"}
"""The image folder of each space."""

TRAININGS = {"cifar": 360, "trashnet": 360, "heads": 360, "cells": 750}
"""Number of trainings of a complete table; `--trainings` can request more."""

TWICE_ONE_IN = 5
"""One configuration in this many is also trained with a second seed."""


def main() -> None:
    """Record until `--until`, or until all tables are complete."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG: train/ and test/ with a folder for each class")
    parser.add_argument("--trashnet", type=Path, help="TrashNet: a folder for each class")
    parser.add_argument("--spaces", nargs="+", choices=list(IMAGES), default=list(IMAGES))
    parser.add_argument("--trainings", type=int, help="of each space; default: what a whole table has")
    parser.add_argument("--until", type=datetime.fromisoformat, help="begin no training after this time")
    parser.add_argument("--tables", type=Path, default=TABLES, help="where the tables are; default: beside this script")
    given = parser.parse_args()
    folders = {name: getattr(given, IMAGES[name]) for name in given.spaces}
    if missing := sorted({IMAGES[name] for name, folder in folders.items() if folder is None}):
        parser.error(f"these spaces need --{' and --'.join(missing)}")
    import torch

    torch.set_num_threads(1)
    with frame.results("record_curves", given.out) as found, tempfile.TemporaryDirectory() as work:
        recordings = [Recording(name, folders[name], given, Path(work)) for name in given.spaces]
        while left := [each for each in recordings if each.lacks]:
            if given.until and datetime.now(given.until.tzinfo) >= given.until:
                break
            min(left, key=lambda each: each.seconds).record_next()
        found["trainings"] = {each.name: len(each.trainings) for each in recordings}


class Recording:
    """The growing table of one space."""

    def __init__(self, name: str, images: Path, given: argparse.Namespace, work: Path) -> None:
        """Read the existing table."""
        from imgcls_search.worker.job_runner import JobRunner

        self.name = name
        self.path = given.tables / f"{name}.jsonl.xz"
        self.cache, self.weights = work / "images", work / f"{name}.pt"
        self.trainings = read_table(self.path)
        space = space_of(name, images)
        count = given.trainings or TRAININGS[name]
        self.pool = pool(space, count)
        known = {(each.number, each.seed) for each in self.trainings}
        self.lacks = [each for each in order(len(self.pool), space)[:count] if each not in known]
        self.runner = JobRunner("cpu")
        self.images: dict[str, Prepared] = {}
        self.seconds = 0.0
        """Processor time of the trainings so far."""

    def record_next(self) -> None:
        """Train the next configuration, and write the table."""
        began = time.process_time()
        training = self._train(*self.lacks.pop(0))
        self.trainings.append(training)
        write_table(self.path, self.trainings)
        seconds = time.process_time() - began
        self.seconds += seconds
        took = f"{seconds:.1f} s, {training.failed or training.curve['accuracy'][-1]}"
        print(f"{self.name}: {len(self.trainings)}, number {training.number}, seed {training.seed}: {took}", flush=True)

    def _images(self, config: TrialConfig) -> Prepared:
        """Return the decoded images, cached: scanning 60,000 files takes longer than a short training."""
        from imgcls_search.worker.pipeline import prepare_data

        shape = repr(config.section("image"))
        if shape not in self.images:
            self.images[shape] = prepare_data(config, self.cache)
        return self.images[shape]

    def _train(self, number: int, seed: int) -> Training:
        candidate = self.pool[number]
        data = self._images(candidate.config)
        self.weights.unlink(missing_ok=True)
        job = Job(
            trial=2 * number + seed,
            config=candidate.config,
            data=data.to_dict(),
            seed=1000 * seed + number,
            portion="train",
            until_epoch=candidate.config.epochs,
            from_epoch=0,
            checkpoint=str(self.weights),
            log=str(self.weights.with_suffix(".log")),
        )
        shown: list[Mapping[str, float]] = []
        failed = ""
        # In a search, the output of a worker goes to the log of its trial.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for event in self.runner.work(job, threading.Event()):
                if isinstance(event, EpochEnded):
                    shown.append(event.metrics)
                elif isinstance(event, Failed) and event.kind != "diverged":
                    raise SystemExit(f"{self.name} {number}: {event.reason}")
                elif isinstance(event, Failed):
                    failed = event.kind
        curve = {name: [round(epoch[name], DIGITS) for epoch in shown] for name in COLUMNS}
        return Training(number=number, seed=seed, params=candidate.params, curve=curve, failed=failed)


def order(count: int, space: Space) -> list[tuple[int, int]]:
    """Return configurations and seeds in the order in which they are recorded."""
    once = [(number, 0) for number in range(count)]
    again = [(number, 1) for number in range(0, count, TWICE_ONE_IN)]
    # In a finite space, record all configurations before second seeds.
    return sorted(once + again) if space.num_combinations() is None else once + again


if __name__ == "__main__":
    main()
