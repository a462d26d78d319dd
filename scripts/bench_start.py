"""Measure the time from the command to the first finished epoch, beside the bare imports plus that epoch, in turns.

python scripts/bench_start.py                   about two minutes on two cores
python scripts/bench_start.py --rounds 3 --space spaces/cifar10.yaml --data folder:cifar10-images

The command is `imgcls-search run`, every time in an empty folder, so that it also decodes the images; the epoch counts
as finished when it stands in the study's database. The bare imports are one `python -c "import ..."` of what any such
program needs, from start to exit; the epoch's seconds are those that the command recorded. Writes start.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_common

SPACE = Path(__file__).parent.parent / "spaces" / "vit.yaml"
IMPORTS = "import torch, torchvision, optuna, sklearn.metrics"
MOST = 1.3
PATIENCE = 300.0
"""Seconds until the first epoch, after which something is wrong."""


def main() -> None:
    """Measure in turns, print it and write it."""
    arguments = _arguments()
    results: dict[str, Any] = {"conditions": bench_common.conditions(), "space": arguments.space.name}
    print(f"conditions: {results['conditions']}")
    commands, bares, epochs = [], [], []
    # The first turn fills the system's cache of files.
    for turn in range(arguments.rounds + 1):
        imports = bare_imports()
        seconds, epoch = first_epoch(arguments.space, arguments.data)
        if turn:
            commands.append(seconds)
            epochs.append(epoch)
            bares.append(imports + epoch)
    ratio = statistics.median(commands) / statistics.median(bares)
    results |= {
        "command_to_first_epoch_seconds": bench_common.spread(commands),
        "imports_and_epoch_seconds": bench_common.spread(bares),
        "epoch_seconds": bench_common.spread(epochs),
        "ratio": round(ratio, 4),
        "ratio_by_turn": bench_common.spread([a / b for a, b in zip(commands, bares, strict=True)]),
        "asked_at_most": MOST,
    }
    print(
        f"{arguments.space.name}: command to first epoch {statistics.median(commands):.2f} s "
        f"({min(commands):.2f} to {max(commands):.2f}); bare imports plus that epoch {statistics.median(bares):.2f} s "
        f"({min(bares):.2f} to {max(bares):.2f}), of which the epoch {statistics.median(epochs):.2f} s; "
        f"ratio {ratio:.2f} {bench_common.verdict(ratio, at_most=MOST)}"
    )
    results["conditions"]["load_at_end"] = bench_common.load()
    bench_common.write(results, arguments.out, "start")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each; default: 5")
    parser.add_argument("--space", type=Path, default=SPACE, help="default: spaces/vit.yaml, which is of digits")
    parser.add_argument("--data", help="as in imgcls-search run, for example folder:photos")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="a folder; default: benchmarks")
    return parser.parse_args()


def bare_imports() -> float:
    """Return the seconds of a program that only imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started


def first_epoch(space: Path, data: str | None) -> tuple[float, float]:
    """Return the seconds until the first epoch is recorded, and that epoch's own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "imgcls_search",
            "run",
            str(space.resolve()),
            "--studies",
            folder,
            "--name",
            "start",
        ]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, *(["--data", data] if data else [])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            while (epoch := recorded_epoch(Path(folder) / "start.db")) is None:
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    raise SystemExit("no epoch was recorded")
                time.sleep(0.02)
            return time.perf_counter() - started, epoch
        finally:
            # One SIGTERM saves and stops; nobody needs what is saved, but the folder must be free of writers.
            process.terminate()
            process.communicate()


def recorded_epoch(database: Path) -> float | None:
    """Return the seconds of the first epoch in a study's database, if there is one."""
    if not database.exists():
        return None
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=1)) as connection:
        row = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'epochs'").fetchone()
        return float(json.loads(row[0])[0]["seconds"]) if row else None
    return None


if __name__ == "__main__":
    main()
