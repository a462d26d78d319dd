"""Measure the cost of large studies: the seconds of commands on a study of 10,000 trials, and the memory of a long run.

python scripts/bench/load.py                                  some minutes on two cores
python scripts/bench/load.py --trials 1000 10000 --tiny-trials 0    seconds only, of two sizes
python scripts/bench/load.py --trials --tiny-trials 2000 --sampler tpe    memory only; tpe takes a quarter of an hour

The script creates a study of the digits with one trial (`imgcls-search run`), fills it by inserting rows into Optuna's
tables, and then uses the commands themselves: `run` adds two more trials; then `best`, `export`, `trials --top 5`, and
the dashboard with its page and the study. It measures each whole command from start to end, in wall time and in
processor time, without the workers of `run`. Processor time, which other work hardly affects, is compared with the
bounds.

Memory is the resident memory of the process that runs a search on simulated workers; everything else is real. Its
growth is the slope of a line fitted to the last three quarters of the trials, and to each quarter. Writes load.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from unittest import mock

import frame
import imgcls_search.orchestrator.begin
import imgcls_search.orchestrator.engines
import numpy as np
import optuna
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study import database
from imgcls_search.study.files import StudyFiles
from simulation import EPOCHS, SPACE, Nobody, Simulated, attributes_like_the_record, fill, make_trials

NAME = "load"
RUN = ("run", "space.yaml", "--name", NAME, "--workers", "1", "--set", "data.digits.max_train=100")

MOST_SECONDS = {"resume": 60.0, "best": 15.0, "export": 15.0, "trials": 15.0, "dashboard": 60.0}
"""Upper bounds of processor seconds with 10,000 trials, as in docs/benchmarks/scale.md."""

MOST_KB = 30.0
"""Upper bound of the run process's growth, KB per trial."""


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with frame.results("load", arguments.out) as results:
        # First, because memory that a large study has freed would hide growth.
        if arguments.tiny_trials:
            results["memory"] = measure_memory(arguments.tiny_trials, arguments.sampler)
        results["commands"] = [measure_commands(held, arguments.sampler) for held in arguments.trials]


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--trials", type=int, nargs="*", default=[10_000], help="in the study; default: 10000")
    parser.add_argument("--tiny-trials", type=int, default=2000, help="of the long run; default: 2000")
    parser.add_argument("--sampler", choices=["random", "tpe"], default="random")
    return parser.parse_args()


def measure_commands(held: int, sampler: str) -> dict[str, Any]:
    """Time the commands on a study of `held` finished trials, and return the times and their results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = SPACE.format(sampler=sampler, epochs=EPOCHS)
        (folder / "space.yaml").write_text(text)
        command(folder, *RUN, "--set", "study.trials=1")
        started = time.perf_counter()
        space = parse(text, catalog(), source="load").fill({"image.size": 8, "image.channels": 1})
        storage = database.open_storage(StudyFiles(folder / "studies", NAME).database)
        study = optuna.load_study(storage=storage, study_name=NAME)
        trials = make_trials(space, held - 1)
        fill(storage, study, trials, attributes_like_the_record(folder / "template", space))
        storage.engine.dispose()
        found: dict[str, Any] = {"trials": held, "sampler": sampler, "filled_in": time.perf_counter() - started}
        taken = found["seconds"] = {}
        taken["resume"], _ = command(folder, *RUN, "--set", f"study.trials={held + 2}")
        taken["best"], said = command(folder, "best", NAME, "--json")
        found["best"] = json.loads(said)["best"][0]["values"]["accuracy"]
        found["best_that_was_filled_in"] = max(value for trial in trials for value in trial.values or ())
        taken["export"], _ = command(folder, "export", NAME, "-o", "best.yaml")
        found["exported"] = (folder / "best.yaml").read_text().startswith("#")
        taken["trials"], said = command(folder, "trials", NAME, "--top", "5", "--json")
        found["top"] = len(json.loads(said))
        taken["dashboard"], found["dashboard"] = measure_dashboard(folder)
    for what, seconds in taken.items():
        asked = MOST_SECONDS[what] if held == 10_000 else None
        print(
            f"{held:6} trials, {what:9}: {seconds['clock']:6.1f} s by the clock, {seconds['processor']:6.1f} s of "
            f"processors {frame.verdict(seconds['processor'], at_most=asked)}"
        )
    return found


def measure_dashboard(folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the seconds from the dashboard's start to its answer with all trials, and a summary of the answer."""
    started = _seconds()
    arguments = [sys.executable, "-m", "imgcls_search", "dashboard", NAME, "--port", "0"]
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.findall(r"http://[^/\s]+/", next(iter(process.stdout or ())))[0]
            page = _fetch(f"{address}dashboard")
            (summary,) = json.loads(_fetch(f"{address}api/studies"))["study_summaries"]
            study = json.loads(_fetch(f"{address}api/studies/{summary['study_id']}"))
        finally:
            process.kill()
    return _since(started), {"page": "<html" in page, "study": study["name"], "trials": len(study["trials"])}


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=600) as answer:  # noqa: S310 - the dashboard's own address
        text: str = answer.read().decode()
    return text


def command(folder: Path, *arguments: str) -> tuple[dict[str, float], str]:
    """Return the seconds of a command and what it printed."""
    started = _seconds()
    done = subprocess.run(
        [sys.executable, "-m", "imgcls_search", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    return _since(started), done.stdout


def _seconds() -> tuple[float, float]:
    """Return the wall time, and the processor time of all child processes that have ended."""
    times = os.times()
    return time.perf_counter(), times.children_user + times.children_system


def _since(started: tuple[float, float]) -> dict[str, float]:
    clock, processor = (now - then for now, then in zip(_seconds(), started, strict=True))
    return {"clock": round(clock, 2), "processor": round(processor, 2)}


class Weighing(Nobody):
    """A watcher that records the memory of this process whenever a trial has been added."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def changed(self, search: Any) -> None:
        """Record the number of trials and the resident memory, KB."""
        count = len(search.record.trials)
        if not self.points or self.points[-1][0] < count:
            self.points.append((count, _resident_kb()))


def _resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def measure_memory(count: int, sampler: str) -> dict[str, Any]:
    """Return the growth of the run process in KB per trial, in a search on simulated workers."""
    overrides = [
        *(("study.trials", str(count)), ("study.workers", "2"), ("study.pruner", "none")),
        # Few different networks, so that their sizes are not measured for each trial.
        ("model", "{lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}}"),
    ]
    space = parse(SPACE.format(sampler=sampler, epochs=EPOCHS), catalog(), source="load", overrides=overrides)
    watcher = Weighing()
    simulated = mock.patch.object(
        imgcls_search.orchestrator.engines, "LocalExecutor", lambda devices: Simulated(len(devices), 1.0, EPOCHS)
    )
    with tempfile.TemporaryDirectory() as folder, simulated:
        outcome = imgcls_search.orchestrator.begin.run(space, Path(folder), watcher)
    points = np.array(watcher.points)
    slope = _slope(points[len(points) // 4 :])
    found = {
        "trials": len(outcome.record.trials),
        "sampler": sampler,
        "kb_per_trial": round(slope, 1),
        "kb_per_trial_by_quarter": [round(_slope(part), 1) for part in np.array_split(points, 4)],
        "resident_mb": [round(float(points[index, 1]) / 1024, 1) for index in (0, -1)],
        "asked_at_most": MOST_KB,
    }
    print(
        f"{found['trials']} tiny trials, {sampler}: the run process grows by {slope:.1f} KB a trial (by quarters "
        f"{found['kb_per_trial_by_quarter']}), {found['resident_mb']} MB {frame.verdict(slope, at_most=MOST_KB)}"
    )
    return found


def _slope(points: Any) -> float:
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


if __name__ == "__main__":
    main()
