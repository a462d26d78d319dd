"""Kill and stop the processes of a search again and again, and check that nothing is lost.

python scripts/bench/chaos.py                                 200 blows to a search with two workers, then 60 with one
python scripts/bench/chaos.py --kills 20 --kills-alone 10     a short form
python scripts/bench/chaos.py --seed 7 --keep broken          other blows; the folder of the search is kept
python scripts/bench/chaos.py --storage postgresql://...      the studies in a PostgreSQL database, where they stay

The script starts a search on the digits. At random (seeded), its workers, fork server and `run` process get a blow:
SIGKILL, SIGTERM, or SIGSTOP and shortly afterwards SIGCONT; at any moment, while a checkpoint is being written, or
right after something was recorded. Whenever the `run` process has ended, the same command is started again. At the end
the study must be complete and consistent (see `problems`). With one worker, its table must equal that of an undisturbed
search bit for bit. The exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from imgcls_search.study import address
from imgcls_search.training import checkpoint

EPOCHS = 9
SPACE = """
study: {{trials: {trials}, pruner: {{asha: {{min_epochs: 2, eta: 2}}}}, retries: 1000, seed: 3, learn_from: none}}
data: {{digits: {{max_train: 400}}}}
model: {{lenet5: {{width: {{choice: [0.5, 1, 2]}}, activation: {{choice: [relu, tanh]}}}}}}
optimizer: {{adamw: {{lr: {{float: [1e-4, 1e-2], log: true}}}}}}
training: {{epochs: {epochs}, batch_size: 50}}
"""
PATIENCE = 600.0
"""Seconds to wait before a search counts as stuck."""

SETTLED = 0.8
"""Share of the blows that wait until all workers and the helper have started."""

Blow = tuple[str, str, str]
"""The process, the signal and the moment."""

MOMENTS = ("any", "checkpoint", "record")


def main() -> None:
    """Disturb two searches, compare them with an undisturbed one, print and write the results."""
    arguments = _arguments()
    at = address.parse(arguments.storage, "--storage") if arguments.storage else None
    with _folder(arguments.keep) as folder:
        found = {}
        if arguments.kills:
            search = Search(folder / "two", 2, arguments.trials, at)
            found["two_workers"] = disturb(search, arguments.kills, random.Random(arguments.seed))  # noqa: S311
        if arguments.kills_alone:
            search = Search(folder / "one", 1, arguments.trials, at)
            found["one_worker"] = disturb(search, arguments.kills_alone, random.Random(arguments.seed + 1))  # noqa: S311
            undisturbed = Search(folder / "undisturbed", 1, arguments.trials, at)
            undisturbed.finish()
            if table(undisturbed.study()) != table(search.study()):
                found["one_worker"]["problems"].append("the table differs from that of the undisturbed search")
    print(json.dumps(found, indent=2))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "chaos.json").write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(part["problems"] for part in found.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="blows to the search with two workers; default: 200")
    parser.add_argument("--kills-alone", type=int, default=60, help="blows to that with one; 0: none; default: 60")
    parser.add_argument("--trials", type=int, default=40, help="of each search; default: 40")
    parser.add_argument("--seed", type=int, default=0, help="of the blows; default: 0")
    parser.add_argument("--storage", help="the address of a PostgreSQL database; default: SQLite files")
    parser.add_argument("--keep", type=Path, help="a folder to leave the searches in; default: a temporary one")
    parser.add_argument("--out", type=Path, help="a folder for chaos.json; default: only printed")
    return parser.parse_args()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Search:
    """A search in its own folder, whose command is started again whenever it has ended."""

    def __init__(self, folder: Path, workers: int, trials: int, at: address.Address | None) -> None:
        folder.mkdir()
        self.folder, self.workers, self.at = folder, workers, at
        self.name = f"chaos-{folder.name}-{uuid.uuid4().hex[:8]}"
        self.database = folder / f"studies/{self.name}.db"
        url = at.url() if at is not None else f"sqlite:///{self.database}"
        self.engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        self.checkpoints = folder / f"studies/{self.name}/checkpoints"
        self.starts = 0
        self.more = trials // 2
        """Number of trials to add each time the search is complete."""

        self.ask_for(trials)
        self.begin()

    def ask_for(self, trials: int) -> None:
        """Write the space file; the next start continues up to this number of trials."""
        self.trials = trials
        (self.folder / "space.yaml").write_text(SPACE.format(trials=trials, epochs=EPOCHS))

    def begin(self) -> None:
        """Start the command."""
        command = [sys.executable, "-m", "imgcls_search", "run", "space.yaml", "--name", self.name]
        command += ["--workers", str(self.workers)]
        with (self.folder / "run.log").open("ab") as log:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2] / "search"),
            }
            if self.at is not None:
                environment[address.VARIABLE] = self.at.url().render_as_string(hide_password=False)
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment)
        self.starts += 1

    def ended(self) -> int | None:
        """Return the exit code of the command, or None while it runs."""
        return self.process.poll()

    def finish(self) -> None:
        """Let the search run undisturbed to its end."""
        while True:
            code = self.process.wait(timeout=PATIENCE)
            if code == 0:
                return
            if code not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT):
                raise RuntimeError(f"the search ended with {code}:\n{(self.folder / 'run.log').read_text()[-3000:]}")
            self.begin()

    def study(self) -> optuna.Study:
        """Return the study as plain Optuna reads it."""
        url = self.engine.url.render_as_string(hide_password=False)
        return optuna.load_study(storage=url, study_name=self.name)

    def recorded(self) -> Any:
        """Return a value that changes whenever something is recorded."""
        if self.at is None:
            with suppress(OSError):
                return self.database.with_name(f"{self.database.name}-wal").stat().st_mtime_ns
            return 0
        with self.engine.connect() as connection:
            return connection.exec_driver_sql("SELECT pg_current_wal_insert_lsn()").scalar()

    def processes(self) -> dict[str, list[int]]:
        """Return the ids of the run process, its fork servers, and the workers including the helper."""
        servers = children(self.process.pid)
        return {
            "run": [self.process.pid],
            "server": servers,
            "worker": [forked for server in servers for forked in children(server)],
        }


def disturb(search: Search, kills: int, dice: random.Random) -> dict[str, Any]:
    """Disturb a search `kills` times, let it end, and return statistics and problems."""
    started = time.monotonic()
    given: Counter[str] = Counter()
    while sum(given.values()) < kills:
        blow = strike(search, dice)
        if blow is not None:
            given["{} {} ({})".format(*blow)] += 1
            told = f"{search.workers} worker(s), blow {sum(given.values())} of {kills}: {' '.join(blow)}"
            print(told, file=sys.stderr, flush=True)
        code = search.ended()
        if code == 0 and search.workers == 1:
            # With more trials, it could not be compared with the undisturbed search.
            break
        if code == 0:
            # The search was complete before all blows.
            search.ask_for(search.trials + search.more)
        if code is not None:
            search.begin()
    search.finish()
    return {
        "blows": sum(given.values()),
        "kinds": dict(given.most_common()),
        "trials": search.trials,
        "starts": search.starts,
        "seconds": round(time.monotonic() - started, 1),
        "problems": list(problems(search)),
    }


def strike(search: Search, dice: random.Random) -> Blow | None:
    """Wait for a random moment and give one blow; return None if the search had ended by then."""
    whom = dice.choices(["worker", "run", "server"], [6, 2, 1])[0]
    what = dice.choices(["SIGKILL", "SIGTERM", "SIGSTOP"], [5, 2, 2])[0]
    moment = dice.choices(MOMENTS, [2, 1, 1])[0]
    if dice.random() < SETTLED:
        _wait(lambda: search.ended() is not None or len(search.processes()["worker"]) > search.workers, PATIENCE, 0.05)
    time.sleep(dice.uniform(0.05, 1.5))
    if moment == "checkpoint":
        _wait(lambda: any(search.checkpoints.glob("*.tmp")))
    elif moment == "record":
        before = search.recorded()
        _wait(lambda: search.recorded() != before)
    pids = search.processes()[whom]
    if search.ended() is not None or not pids:
        return None
    with suppress(ProcessLookupError):
        pid = dice.choice(sorted(pids))
        os.kill(pid, signal.Signals[what])
        if what == "SIGSTOP":
            time.sleep(dice.uniform(0.05, 1.0))
            os.kill(pid, signal.SIGCONT)
    return whom, what, moment


def _wait(condition: Callable[[], bool], seconds: float = 3.0, between: float = 0.0002) -> None:
    # Writing a checkpoint takes only milliseconds, so poll thousands of times per second, but with a timeout, and sleep
    # in between so that the processes that write it have the core.
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(between)


def children(pid: int) -> list[int]:
    """Return the ids of the live child processes of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The program's name, before the last bracket, may contain any characters.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


def table(study: optuna.Study) -> list[Any]:
    """Return everything about a study that must not depend on what happened to the processes."""
    return [
        (trial.number, trial.state.name, trial.values, trial.params, trial.intermediate_values, _epochs(trial))
        for trial in study.trials
    ]


def _epochs(trial: optuna.trial.FrozenTrial) -> list[dict[str, float]]:
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in trial.user_attrs.get("epochs", [])]


def problems(search: Search) -> Iterator[str]:
    """Yield the problems of a finished study."""
    if search.at is None:
        with search.engine.connect() as connection:
            answer = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
        if answer != "ok":
            yield f"integrity_check: {answer}"
    found = search.study().trials
    if [trial.number for trial in found] != list(range(search.trials)):
        yield f"trial numbers are not 0 to {search.trials - 1}: {[trial.number for trial in found]}"
    for trial in found:
        yield from _problems_of(trial)
    for path in sorted(search.checkpoints.glob("*")):
        if path.suffix != ".pt":
            yield f"{path.name} was left over"
        elif not isinstance(checkpoint.load(path), dict):
            yield f"{path.name} cannot be loaded"


def _problems_of(trial: optuna.trial.FrozenTrial) -> Iterator[str]:
    epochs = [epoch["epoch"] for epoch in _epochs(trial)]
    if trial.state.name not in ("COMPLETE", "PRUNED"):
        yield f"trial {trial.number} is {trial.state.name}: {trial.user_attrs.get('reason')}"
    if epochs != list(range(1, len(epochs) + 1)):
        yield f"trial {trial.number}: its epochs are {epochs}"
    if list(trial.intermediate_values) != epochs:
        yield f"trial {trial.number}: values at {list(trial.intermediate_values)}, epochs {epochs}"
    if trial.state.name == "COMPLETE" and len(epochs) != EPOCHS:
        yield f"trial {trial.number} is complete after {len(epochs)} epochs"


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
