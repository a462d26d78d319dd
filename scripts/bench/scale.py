"""Measure how many workers one writer keeps busy: real search, record and screen with simulated workers, 10,000 trials.

    python scripts/bench/scale.py                                     SQLite, about 20 minutes
    python scripts/bench/scale.py --storage postgresql://me@host/db   on a server
    python scripts/bench/scale.py --trials 500 --workers 64 --seconds 10 --strategies default

Synthetic curves replace the trainings, on a clock that skips all waiting and counts all work of the run process: a
worker whose trial has reached a rung is idle until the writer has received this, decided, drawn and sent the next job.
Epochs are reported while the next one trains. Two things are not measured: building models to count their sizes (which
a helper process does) and the network. Each row is one search; `events` are epochs and rungs. Writes scale.json.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import frame
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.jobs.replay import Idle
from imgcls_search.orchestrator.search import Search
from imgcls_search.protocol import Event, Job, MilestoneReached
from imgcls_search.space import parse
from imgcls_search.study import record as records
from imgcls_search.study.address import settle
from imgcls_search.study.files import StudyFiles
from imgcls_search.views.search_screen import SearchScreen
from rich.console import Console

MOST_IDLE = {(64, 10.0): 0.05}
"""Upper bound of the idle share of the workers' time, by workers and seconds per epoch."""

STRATEGIES = {
    "default": "",
    "random, every trial to its end": "sampler: random, pruner: none, ",
}
SPACE = """
study: {{{strategy}trials: {trials}}}
data: {{digits: {{}}}}
augment: {{crop_padding: {{int: [0, 2]}}}}
model:
  vit: {{patch_size: {{choice: [2, 4]}}, width: {{int: [32, 96], step: 32}}, depth: {{int: [2, 6]}}}}
  resnet: {{depths: {{choice: [[1, 1, 1], [2, 2, 2]]}}, width: {{int: [8, 64]}}}}
optimizer: {{adamw: {{lr: {{float: [1e-4, 1e-1], log: true}}, weight_decay: {{float: [0.0, 0.3]}}}}}}
loss: {{cross_entropy: {{label_smoothing: {{float: [0.0, 0.2]}}}}}}
training: {{epochs: 27, batch_size: {{choice: [32, 64, 128]}}}}
"""


class Rising:
    """Accuracies that rise to a level that depends on the learning rate and on chance."""

    def __init__(self, seconds: float) -> None:
        """Store the mean seconds of an epoch; those of a trial are up to a third less or more."""
        self.seconds = seconds

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return the metrics of an epoch, as many as in a training."""
        chance = random.Random(config.digest())  # noqa: S311
        rate = config.section("optimizer")["adamw"]["lr"]
        top = 0.9 - 0.1 * (math.log10(rate) + 2.5) ** 2 + chance.gauss(0, 0.02)
        value = top * (1 - math.exp(-epoch / (3 + 4 * chance.random())))
        metrics = dict.fromkeys(("train_loss", "loss", "macro_f1", "top5_accuracy"), 1 - value)
        return {**metrics, "accuracy": value, "seconds": self.seconds * (2 / 3 + 2 / 3 * chance.random())}


class OnTheClock(ReplayExecutor):
    """A replay whose clock runs while the run process works."""

    def __init__(self, curves: Rising, workers: int) -> None:
        """Start the clock."""
        super().__init__(curves, workers)
        self.left = time.perf_counter()
        self.freed: deque[float] = deque()
        self.events = 0
        self.idle = self.trained = 0.0

    def start(self, job: Job) -> None:
        """Start a job on the worker that has been idle the longest."""
        self._work()
        if self.freed:
            self.idle += self.now - self.freed.popleft()
        super().start(job)

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event if it happens within the timeout; otherwise advance the clock by the timeout."""
        self._work()
        came = self.now
        if not self.queue or self.queue[0][0] > came + timeout:
            self.now = came + timeout
            return None
        # An event that happened while the run process worked keeps its own time.
        event = super().next_event(timeout)
        due, self.now = self.now, max(came, self.now)
        self.events += 1
        if isinstance(event, MilestoneReached):
            self.freed.append(due)
        return event

    def clock(self) -> float:
        """Return the seconds of all work and waiting so far."""
        self._work()
        return self.now

    def _work(self) -> None:
        now = time.perf_counter()
        self.now += now - self.left
        self.left = now

    def _train(self, job: Job, epoch: int) -> None:
        super()._train(job, epoch)
        self.trained += self._metrics(job, epoch)["seconds"]


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="of each search; default: 10000")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 60.0], help="of an epoch")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--storage", help="a PostgreSQL address; default: an SQLite file")
    given = parser.parse_args()
    with frame.results("scale", given.out) as results:
        results["searches"] = []
        each = [
            (s, w, t, given.trials, given.storage)
            for s in given.strategies
            for w in given.workers
            for t in given.seconds
        ]
        # Run each search in a new process, so that memory is measured separately.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for arguments in each:
                results["searches"].append(pool.apply(measure, arguments))


def measure(strategy: str, workers: int, seconds: float, trials: int, storage: str | None) -> dict[str, Any]:
    """Run one search."""
    space = parse(SPACE.format(strategy=STRATEGIES[strategy], trials=trials), catalog(), source="scale")
    # Normally the data fill these in, but nothing is decoded here.
    space = space.fill({"image.size": 8, "image.channels": 1})
    executor = OnTheClock(Rising(seconds), workers)
    with tempfile.TemporaryDirectory() as folder:
        # A database on a server may hold the studies of earlier calls.
        name = f"scale-{workers}-{seconds:g}-{time.time_ns()}"
        files = StudyFiles(Path(folder), name, settle(storage))
        files.make()
        with Path(os.devnull).open("w") as nowhere, SearchScreen(Console(file=nowhere)) as screen, files.locked():
            search = Search(
                space=space,
                files=files,
                record=records.create(files, space.objectives, {"space": records.to_json(space.document)}),
                executor=executor,
                helper=Idle(),
                watcher=screen,
                num_classes=0,
            )
            files.log(0).parent.mkdir(parents=True)
            before, began, started = peak_memory(), time.process_time(), executor.clock()
            search.run()
            lasted = executor.clock() - started
    busy = search.record.facts["runs"][-1]["writer_seconds"]
    result = {
        "strategy": strategy,
        "storage": "sqlite" if storage is None else "postgresql",
        "workers": workers,
        "epoch_seconds": seconds,
        "trials": len(search.record.trials),
        "events": executor.events,
        "events_a_second": executor.events / lasted,
        "events_a_second_of_work": executor.events / busy,
        "writer_at_work": busy / lasted,
        "writer_cpu_seconds": time.process_time() - began,
        "idle_share": executor.idle / (executor.idle + executor.trained),
        "memory_kb_a_trial": (peak_memory() - before) / 1024 / trials,
    }
    print(
        f"{result['storage']}, {strategy}, {workers} workers, {seconds:g} s an epoch: {executor.events:,} events, "
        f"{result['events_a_second']:.1f} a second; the writer is at work {100 * result['writer_at_work']:.1f} % "
        f"and takes {result['events_a_second_of_work']:.0f} a second; workers idle {100 * result['idle_share']:.2f} % "
        f"{frame.verdict(result['idle_share'], at_most=MOST_IDLE.get((workers, seconds)))}; "
        f"{result['memory_kb_a_trial']:.1f} KB a trial",
        flush=True,
    )
    return result


def peak_memory() -> int:
    """Return the peak resident memory of this process, bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
