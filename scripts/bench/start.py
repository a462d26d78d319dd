"""Compare the time from the command to the first finished epoch with the bare imports plus that epoch, alternating.

python scripts/bench/start.py                   about two minutes on two cores
python scripts/bench/start.py --rounds 3 --space spaces/cifar10.yaml --data folder:cifar10-images

The command is `imgcls-search run`, always in an empty folder, so that it also decodes the images. The epoch counts as
finished when it is in the study's database. The bare imports are one `python -c "import ..."` of the libraries that any
program of this kind needs, from start to exit. The epoch's seconds are those that the command recorded. Writes
start.json.
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

import frame

SPACE = Path(__file__).parents[2] / "spaces" / "vit.yaml"
IMPORTS = "import torch, torchvision, optuna, sklearn.metrics"
MOST = 1.3
PATIENCE = 300.0
"""Timeout for the first epoch, seconds."""


def main() -> None:
    """Measure alternately, print and write the results."""
    arguments = _arguments()
    with frame.results("start", arguments.out) as results:
        results["space"] = arguments.space.name
        commands, bares, epochs = [], [], []
        # The first turn is a warm-up: it fills the system's file cache.
        for turn in range(arguments.rounds + 1):
            imports = bare_imports()
            seconds, epoch = first_epoch(arguments.space, arguments.data)
            if turn:
                commands.append(seconds)
                epochs.append(epoch)
                bares.append(imports + epoch)
        ratio = statistics.median(commands) / statistics.median(bares)
        results |= {
            "command_to_first_epoch_seconds": frame.spread(commands),
            "imports_and_epoch_seconds": frame.spread(bares),
            "epoch_seconds": frame.spread(epochs),
            "ratio": round(ratio, 4),
            "ratio_by_turn": frame.spread([a / b for a, b in zip(commands, bares, strict=True)]),
            "asked_at_most": MOST,
        }
        print(
            f"{arguments.space.name}: command to first epoch {statistics.median(commands):.2f} s "
            f"({min(commands):.2f} to {max(commands):.2f}); bare imports plus that epoch "
            f"{statistics.median(bares):.2f} s ({min(bares):.2f} to {max(bares):.2f}), of which the epoch "
            f"{statistics.median(epochs):.2f} s; ratio {ratio:.2f} {frame.verdict(ratio, at_most=MOST)}"
        )


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each; default: 5")
    parser.add_argument("--space", type=Path, default=SPACE, help="default: spaces/vit.yaml, which is of digits")
    parser.add_argument("--data", help="as in imgcls-search run, for example folder:photos")
    return parser.parse_args()


def bare_imports() -> float:
    """Return the seconds of a program that only imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started


def first_epoch(space: Path, data: str | None) -> tuple[float, float]:
    """Return the seconds until the first epoch is recorded, and the seconds of that epoch."""
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
            # One SIGTERM saves and stops. The saved files are not needed, but nothing may write into the folder later.
            process.terminate()
            process.communicate()


def recorded_epoch(database: Path) -> float | None:
    """Return the seconds of the first epoch in a study's database, None if there is no epoch yet."""
    if not database.exists():
        return None
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=1)) as connection:
        row = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'epochs'").fetchone()
        return float(json.loads(row[0])[0]["seconds"]) if row else None
    return None


if __name__ == "__main__":
    main()
