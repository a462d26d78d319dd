"""The database under faults: locked, full, read-only, far away, damaged, of another version."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.errors import SearchError, StudyError
from imgcls_search.orchestrator.faults import Faults
from imgcls_search.protocol import Failed
from imgcls_search.space import parse
from imgcls_search.study import database, folder_checks
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.settings import StudySettings
from imgcls_search.trial import Trial

from scripts.bench import simulation
from tests.conftest import PATIENCE, Answer
from tests.gate import slow_epochs
from tests.orchestrator.test_run import LIMITED
from tests.training_job import training_job

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


@contextmanager
def held(path: Path) -> Iterator[Callable[[], None]]:
    """Let another process hold the lock on a database; yield what has it given back."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"

        def give_back() -> None:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()

        try:
            yield give_back
        finally:
            process.kill()


def new_record(folder: Path) -> Record:
    return simulation.new_record(folder, SPACE, "s")


def running(record: Record) -> Trial:
    """Return a trial that was just recorded, with one epoch."""
    record.add(new_trial(len(record.trials)))
    record.add_epoch(record.trials[-1], simulation.curve(0.5)[0])
    return record.trials[-1]


def new_trial(number: int) -> Trial:
    trial = simulation.make_trials(SPACE, number + 1)[number]
    trial.state, trial.epochs, trial.values, trial.judged, trial.until = "running", [], None, 0, 2
    return trial


def essence(trial: Trial) -> tuple[Any, ...]:
    values = trial.values if trial.state == "complete" else None
    return trial.number, trial.state, trial.epochs, trial.until, values, trial.reason, trial.seed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=8m tmpfs {disk} 2>/dev/null") != 0:  # noqa: S605
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill_up(disk: Path) -> Path:
    """Fill a file system to its last byte."""
    ballast = disk / "ballast"
    with ballast.open("ab") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return ballast


WRITES: dict[str, Callable[[Record, Trial], None]] = {
    "add": lambda record, trial: record.add(new_trial(len(record.trials))),
    "epoch": lambda record, trial: record.add_epoch(trial, simulation.curve(0.5)[1]),
    "note": lambda record, trial: record.note(trial, worker="w"),
    "plan": lambda record, trial: record.set_plan(trial, until=3, paused=True),
    "complete": lambda record, trial: record.complete(trial, [0.5]),
    "prune": lambda record, trial: record.prune(trial, "why"),
    "fail": lambda record, trial: record.fail(trial, "why"),
    "fact": lambda record, trial: record.set_fact("name", {"x": 1}),
}


@pytest.mark.slow
def test_every_write_waits_for_the_lock_of_another_process(tmp_path: Path) -> None:
    assert database.LOCK_SECONDS >= 30
    for name, write in WRITES.items():
        record = new_record(tmp_path / name)
        trial = running(record)
        files = StudyFiles(tmp_path / name, "s")
        with held(files.database) as give_back:
            later = threading.Timer(0.6, give_back)
            started = time.monotonic()
            later.start()
            write(record, trial)
            later.join()
            # Longer than SQLite waits at a time.
            assert time.monotonic() - started > database.STEP_SECONDS, name
        again = records.load(files)
        assert [essence(trial) for trial in again.trials] == [essence(trial) for trial in record.trials], name
        assert again.facts == record.facts, name


def test_lock_that_is_never_given_back_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.5)
    record = new_record(tmp_path)
    trial = running(record)
    with held(tmp_path / "s.db"), pytest.raises(StudyError, match=r"cannot be written.*locked.*end that one"):
        record.complete(trial, [0.5])


def test_interrupt_is_heard_while_the_lock_is_waited_for(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    trial = running(record)
    main = threading.main_thread().ident
    assert main is not None
    # A shell that starts the tests in the background lets them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with held(tmp_path / "s.db"):
            timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
            started = time.monotonic()

            def wait_interrupted() -> None:
                timer.start()
                record.complete(trial, [0.5])

            with pytest.raises(KeyboardInterrupt):
                wait_interrupted()
            assert time.monotonic() - started < database.LOCK_SECONDS / 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_study_is_made_whatever_is_held_on_the_leftover_of_an_earlier_try(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    files.make()
    with closing(sqlite3.connect(files.folder / "new.db")) as connection:
        connection.execute("CREATE TABLE half (a)")
    with held(files.folder / "new.db"):
        record = new_record(tmp_path)
    assert record.trials == []
    assert records.load(files).facts == record.facts


@pytest.mark.slow
def test_full_disk_ends_a_search_in_one_line_and_loses_nothing(
    small_disk: Path, tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    arguments = ("run", tiny, "--studies", small_disk, "--workers", "1", "--set", "study.pruner=none")
    settings = ("--set", "training.epochs=12", "--set", "study.trials=1", *LIMITED)
    env = slow_epochs(tiny.parent / "slow", 0.5)
    files = StudyFiles(small_disk, "tiny-digits")
    process = start(*arguments, *settings, env=env)
    seen: list[Any] = []

    def recorded() -> int:
        if files.database.exists():
            with closing(sqlite3.connect(files.database)) as connection:
                seen[:] = connection.execute("SELECT trial_id, step FROM trial_intermediate_values").fetchall()
        return len(seen)

    deadline = time.monotonic() + PATIENCE
    while recorded() < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ballast = fill_up(small_disk)
    while process.poll() is None:
        recorded()
        time.sleep(0.02)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, (out, err)
    assert re.fullmatch(r"error: [^\n]*(full|No space left)[^\n]*run the same command again to resume\n", err), err
    ballast.unlink()
    trials = records.load(files).study.get_trials()
    assert {trial.state.name for trial in trials} <= {"RUNNING", "COMPLETE"}
    assert set(seen) <= {(t.number + 1, step) for t in trials for step in t.intermediate_values}
    answer = imgcls(*arguments, *settings, env=env)
    assert answer.code == 0, answer.err
    trials = records.load(files).study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"]
    assert all(list(trial.intermediate_values) == list(range(1, 13)) for trial in trials)


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_full_disk_under_a_worker_fails_no_trial(
    what: str, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls_search.worker import pipeline
    from imgcls_search.worker.job_runner import JobRunner
    from imgcls_search.worker.main import _logging_to

    text = (
        "data: {digits: {max_train: 100}}\nmodel: {lenet5: {}}\nimage: {size: 8, channels: 1}\ntraining: {epochs: 3}\n"
    )
    config: TrialConfig = parse(text, catalog(), source="test").config()
    data = pipeline.prepare_data(config, tmp_path / "images")
    where = {"checkpoint": tmp_path / "c.pt", "log": tmp_path / "t.log", what: small_disk / "file"}
    job = training_job(config, data, tmp_path, **{name: str(path) for name, path in where.items()})
    fill_up(small_disk)
    # As in a worker, where nobody captures what is printed.
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115
    with _logging_to(where["log"]):
        events = list(JobRunner("cpu").work(job, threading.Event()))
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == "disk", events[-1]
    assert "No space left on device" in events[-1].reason
    record = new_record(tmp_path)
    trial = running(record)
    faults = Faults(record, StudyFiles(tmp_path, "s"), StudySettings(), print)
    with pytest.raises(StudyError, match="No space left on device"):
        faults.take_failure(trial, events[-1])
    assert trial.state == "running"


def test_full_disk_leaves_an_epoch_out_whole(small_disk: Path) -> None:
    record = new_record(small_disk)
    trial = running(record)
    files = StudyFiles(small_disk, "s")
    ballast = fill_up(small_disk)
    # SQLite asks for no room as long as its log has some of its own.
    metrics = {**simulation.curve(0.5)[1], **{f"metric-{number}": 0.5 for number in range(100_000)}}
    with pytest.raises(StudyError, match=r"cannot be written.*full.*free some space"):
        record.add_epoch(trial, metrics)
    ballast.unlink()
    (kept,) = records.load(files).trials
    assert kept.epoch == 1
    with closing(sqlite3.connect(files.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    running(record)
    script = (
        "import resource, sys; from pathlib import Path; from imgcls_search.study import record as records\n"
        "from imgcls_search.study.files import StudyFiles\n"
        "found = records.load(StudyFiles(Path(sys.argv[1]), 's'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "try:\n  found.set_fact('large', 'x' * 2_000_000)\n"
        "except Exception as error:\n  print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert re.match(r"StudyError .*cannot be written.*check whether the disk is full, at its quota", done.stdout), done
    again = records.load(StudyFiles(tmp_path, "s"))
    assert [essence(trial) for trial in again.trials] == [essence(trial) for trial in record.trials]
    assert "large" not in again.facts


def test_read_only_file_system_is_read_and_not_searched(
    small_disk: Path, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    record = simulation.new_record(small_disk, SPACE, "tiny-digits")
    record.complete(running(record), [0.5])
    record.rows.engine.dispose()
    record.study._storage.remove_session()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    answer = imgcls("run", tiny, "--studies", small_disk)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "not writable; choose another place with --studies" in answer.err
    assert json.loads(imgcls("status", "tiny-digits", "--studies", small_disk, "--json").out)["trials"]["complete"] == 1


def test_log_that_cannot_be_read_in_on_a_read_only_file_system_is_told(small_disk: Path) -> None:
    record = new_record(small_disk)
    running(record)
    assert (small_disk / "s.db-wal").stat().st_size
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=False)
    if folder_checks.is_writable(small_disk):
        # Linux takes no file system away from files open for writing; a bind mount may be read-only all the same.
        subprocess.run(["mount", "--bind", small_disk, small_disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", small_disk], check=True)
    try:
        with pytest.raises(StudyError, match=r"is read-only, and s.db-wal holds what is not in it yet; copy both"):
            records.load(StudyFiles(small_disk, "s"))
    finally:
        subprocess.run(["umount", "-l", small_disk], check=True)


def test_network_file_system_is_refused_with_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    home.mkdir()
    mounts = tmp_path / "mounts"
    escaped = str(home).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/home {escaped} nfs4 rw 0 0\n")
    assert folder_checks.file_system(tmp_path, mounts) == "ext4"
    assert folder_checks.file_system(home / "studies", mounts) == "nfs4"
    with pytest.raises(StudyError, match=r"network file system \(nfs4\).*--studies"):
        folder_checks.refuse_unfit(home, mounts)
    # What is mounted later hides what was there.
    mounts.write_text(mounts.read_text() + f"tmpfs {escaped} tmpfs rw 0 0\n")
    folder_checks.refuse_unfit(home, mounts)
    assert folder_checks.file_system(home, tmp_path / "none") is None


def spoil(path: Path, how: str) -> str:
    """Damage a database file; return what is to be said of it."""
    whole = path.read_bytes()
    match how:
        case "empty":
            path.write_bytes(b"")
            return "is empty, 0 bytes; put back a copy"
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "cut in its header":
            path.write_bytes(whole[:50])
        case "another file":
            path.write_text("hello\n" * 1000)
        case "overwritten in the middle":
            path.write_bytes(whole[:8192] + b"\xa5" * 8192 + whole[16384:])
        case "in what only dashboards read":
            with closing(sqlite3.connect(path)) as connection:
                (size,) = connection.execute("PRAGMA page_size").fetchone()
                query = "SELECT rootpage FROM sqlite_master WHERE name = 'trial_intermediate_values'"
                (page,) = connection.execute(query).fetchone()
            path.write_bytes(whole[: (page - 1) * size] + b"\xa5" * size + whole[page * size :])
        case "another program's":
            path.unlink()
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE songs (a)")
            return "is not an Optuna database"
    return r"put back a copy of it \(made by: imgcls-search copy\), or save what can be read: sqlite3 .* .recover"


@pytest.mark.parametrize(
    "how",
    [
        *("empty", "truncated", "cut in its header", "another file", "overwritten in the middle"),
        *("in what only dashboards read", "another program's"),
    ],
)
def test_damaged_database_is_refused_and_left_as_it_is(how: str, tmp_path: Path) -> None:
    record = new_record(tmp_path)
    for _ in range(5):
        record.set_fact("large", "x" * 50_000)
    record.rows.engine.dispose()
    record.study._storage.remove_session()
    files = StudyFiles(tmp_path, "s")
    assert not (tmp_path / "s.db-wal").exists()
    said = spoil(files.database, how)
    before = files.database.read_bytes()
    with pytest.raises(StudyError, match=said) as caught:
        records.load(files)
    assert "\n" not in str(caught.value)
    assert files.database.read_bytes() == before


def test_damaged_or_lost_database_is_never_begun_again(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    studies = tiny.parent / "studies"
    assert imgcls("run", tiny, "--set", "study.trials=1", "--workers", "1").code == 0
    path = studies / "tiny-digits.db"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for command in (("run", tiny), ("status", "tiny-digits"), ("dashboard", "tiny-digits", "--port", "0")):
        answer = imgcls(*command)
        assert (answer.code, answer.err.count("\n")) == (2, 1), answer
        assert "put back a copy of it" in answer.err
    path.unlink()
    answer = imgcls("run", tiny)
    assert answer.code == 2
    assert "tiny-digits.db: is gone, but" in answer.err
    assert "holds checkpoints of 1 trial; put the database or a copy of it back" in answer.err
    assert not path.exists()


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("v3.0.0.d", r"an older Optuna .*copy it .*, then: optuna storage upgrade --storage sqlite:///"),
        ("v99.0.0.a", r"a newer Optuna .*pip install -U optuna"),
    ],
)
def test_database_of_another_optuna_is_refused_with_what_to_do(version: str, said: str, tmp_path: Path) -> None:
    new_record(tmp_path).rows.engine.dispose()
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    with pytest.raises(StudyError, match=said):
        records.load(StudyFiles(tmp_path, "s"))
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (version,)


def test_password_of_a_database_is_never_shown() -> None:
    url = sqlalchemy.make_url("postgresql+psycopg://me:hunter2@host/db")
    assert database.public_name(url) == "postgresql+psycopg://me:***@host/db"


def test_what_a_database_says_is_told_without_the_statement_and_its_values(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    with pytest.raises(SearchError) as caught, database.writing(record.rows.engine) as connection:
        connection.execute(sqlalchemy.text("INSERT INTO nowhere VALUES (:value)"), {"value": "a secret"})
    assert "no such table: nowhere" in str(caught.value)
    assert "a secret" not in str(caught.value)
