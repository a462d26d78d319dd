"""Measure a Ray cluster on this machine: trials per hour compared with the local executor, and the time losses cost.

python scripts/bench/cluster.py                                  half an hour on two cores; trials of about 30 s each
python scripts/bench/cluster.py --epochs 4 --trials 2 --rounds 1  a short run of a few minutes
python scripts/bench/cluster.py --rounds 0                       only the losses

Trials per hour are measured from the first trial's start to the last one's end, with two workers, alternating between
cluster and local. Losses happen in a search on two nodes of one CPU each: SIGKILL of a worker process, of an actor, and
of all processes of a node; and SIGSTOP of all processes of a node, as if its power or network had failed. The trial of
a lost node resumes on a node where nothing has run before. The seconds of a loss last until the start of the first
epoch that the trial completes afterwards. Linux only. Writes cluster.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frame
import optuna

LEAST_RATIO = 0.9
"""Lower bound of trials per hour on a cluster / trials per hour locally."""

MOST_SECONDS = {"worker killed": 5.0, "actor killed": 5.0, "node killed": 30.0, "node silent": 30.0}
"""Upper bounds of the seconds that a loss costs."""

TRIES_SECONDS = 120.0
"""Timeout for a trial to train again, seconds."""


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    with frame.results("cluster", arguments.out) as results:
        # Ray reads these variables when it is imported, and passes them on to its processes.
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
        with tempfile.TemporaryDirectory() as folder:
            space = Path(folder) / "space.yaml"
            if arguments.rounds:
                results["throughput"] = _compare(space, arguments)
            if arguments.losses:
                results["losses"] = _lose(space, arguments.losses)


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="searches each way; default: 3")
    parser.add_argument("--trials", type=int, default=8, help="of each search; default: 8")
    parser.add_argument("--epochs", type=int, default=75, help="of each trial; default: 75")
    parser.add_argument("--train", type=int, default=1000, help="images of each trial; default: 1000")
    parser.add_argument("--losses", type=int, default=3, help="of each kind; default: 3")
    return parser.parse_args()


def _space(trials: int, epochs: int, images: int = 1000) -> str:
    return f"""
study: {{trials: {trials}, sampler: random, pruner: none, pictures: false}}
data: {{digits: {{max_train: {images}}}}}
model: {{lenet5: {{}}}}
optimizer: {{sgd: {{lr: {{float: [0.01, 0.02]}}}}}}
training: {{epochs: {epochs}, batch_size: 4, device: cpu}}
"""


def _compare(space: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    space.write_text(_space(arguments.trials, arguments.epochs, arguments.train))
    rates: dict[str, list[float]] = {"local": [], "ray": []}
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    for turn in range(arguments.rounds):
        for way, options in (("local", []), ("ray", ["--cluster", "local"])):
            name = f"{way}{turn}"
            subprocess.run(_command(space, name, *options), check=True, stdout=subprocess.DEVNULL)
            trials = _trials(space, name)
            took = [(trial.datetime_complete - trial.datetime_start).total_seconds() for trial in trials]
            seconds[way] += took
            whole = max(trial.datetime_complete for trial in trials) - min(trial.datetime_start for trial in trials)
            rates[way].append(len(trials) / whole.total_seconds() * 3600)
    ratios = frame.spread([ray / local for ray, local in zip(rates["ray"], rates["local"], strict=True)], 3)
    for way, found in rates.items():
        length = frame.spread(seconds[way], 1)["median"]
        print(f"{way}: {', '.join(f'{rate:.0f}' for rate in found)} trials an hour of {length} s each")
    print(f"ray / local: {ratios['median']} ({frame.verdict(ratios['median'], at_least=LEAST_RATIO)})")
    return {
        "trials_per_hour": {way: frame.spread(found, 1) for way, found in rates.items()},
        "trial_seconds": {way: frame.spread(found, 1) for way, found in seconds.items()},
        "ray_over_local": ratios,
    }


def _lose(space: Path, times: int) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    space.write_text(_space(2, 100_000))
    small = {"object_store_memory": 100 * 2**20, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    nodes = [_raylet(cluster.add_node(num_cpus=1, **small)) for _ in range(2)]
    process = subprocess.Popen(
        _command(space, "losses", "--cluster", cluster.address), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    logs = [space.parent / f"studies/losses/logs/trial-0000{trial}.log" for trial in range(2)]
    found: dict[str, list[float]] = {kind: [] for kind in MOST_SECONDS}
    try:
        _wait_for(lambda: all(len(_epochs(log)) > 1 for log in logs))
        for _ in range(times):
            found["worker killed"].append(_seconds_until_training([_worker_on(nodes[0])], logs))
            found["actor killed"].append(_seconds_until_training([_actor_on(nodes[0])], logs))
            for kind, number in (("node killed", signal.SIGKILL), ("node silent", signal.SIGSTOP)):
                nodes.append(_raylet(cluster.add_node(num_cpus=1, **small)))
                lost = _all_on(nodes.pop(0))
                found[kind].append(_seconds_until_training(lost, logs, number))
                _send(lost, signal.SIGKILL)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        cluster.shutdown()
    for kind, seconds in found.items():
        print(
            f"{kind}: its trial trains again after {', '.join(f'{one:.1f}' for one in seconds)} s "
            f"({frame.verdict(max(seconds), at_most=MOST_SECONDS[kind])})"
        )
    return {kind: frame.spread(seconds, 2) for kind, seconds in found.items()}


def _seconds_until_training(lost: list[int], logs: list[Path], number: int = signal.SIGKILL) -> float:
    """Send processes a signal and return how long their trial does not train; then let both trials train a little."""
    before = [_deaths(log) for log in logs]
    killed = time.time()
    _send(lost, number)
    struck = _wait_for(lambda: [log for log, deaths in zip(logs, before, strict=True) if _deaths(log) > deaths])[0]
    seconds = _wait_for(lambda: _epochs(struck))[0]
    began = time.time() - seconds
    _wait_for(lambda: all(len(_epochs(log)) > 1 for log in logs))
    return began - killed


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _deaths(log: Path) -> int:
    return log.read_text().count(" died (")


def _epochs(log: Path) -> list[float]:
    """Return the seconds of the epochs since the last death in a log."""
    if not log.exists():
        return []
    since = log.read_text().rpartition(" died (")[2]
    return [float(seconds) for seconds in re.findall(r"^epoch .*'seconds': ([\d.]+)", since, re.MULTILINE)]


def _wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + TRIES_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError("a trial does not train")


def _raylet(node: Any) -> int:
    """Return the id of Ray's process on a node."""
    return int(node.all_processes["raylet"][0].process.pid)


def _actor_on(raylet: int) -> int:
    return next(pid for pid, (parent, title) in _processes().items() if parent == raylet and "ray::Station" in title)


def _forked_for(raylet: int) -> dict[int, int]:
    """Return the ids of a node's fork server and workers, each with its parent's id."""
    return {pid: parent for pid, (parent, title) in _processes().items() if f"import main; main({raylet}, " in title}


def _worker_on(raylet: int) -> int:
    forked = _forked_for(raylet)
    return next(pid for pid, parent in forked.items() if parent in forked)


def _all_on(raylet: int) -> list[int]:
    return [raylet, *(pid for pid, (parent, _) in _processes().items() if parent == raylet), *_forked_for(raylet)]


def _processes() -> dict[int, tuple[int, str]]:
    """Return the parent and the command line of each process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(entry.name)] = parent, (entry / "cmdline").read_text()
    return found


def _command(space: Path, name: str, *options: str) -> list[str]:
    command = [sys.executable, "-m", "imgcls_search", "run", str(space), "--name", name, "--workers", "2", *options]
    return [*command, "--studies", str(space.parent / "studies")]


def _trials(space: Path, name: str) -> list[Any]:
    storage = f"sqlite:///{space.parent / 'studies' / name}.db"
    return optuna.load_study(storage=storage, study_name=name).get_trials()


if __name__ == "__main__":
    main()
