"""SQLite files: opened when sound, written under a lock that is waited for; and what any database says in one line."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from imgcls_search.errors import StudyError
from imgcls_search.study import place

LOCK_SECONDS = 60.0
"""How long to wait while another process holds the lock on a database."""

STEP_SECONDS = 0.25
"""How long SQLite waits at a time, with pauses that grow; in between Ctrl-C is heard."""

T = TypeVar("T")
Step = Callable[[sqlalchemy.Connection, bool], T]
"""What is done in one transaction; told whether an earlier try of it may have been committed."""

SAFE = "what is recorded is safe; run the same command again to resume"

_RESCUE = (
    "nothing in it was changed; put back a copy of it (made by: imgcls-search copy), or save what can be read: "
    "sqlite3 {0} .recover | sqlite3 rescued.db"
)

Remedies = tuple[tuple[str, str], ...]

_REMEDIES: Remedies = (
    ("full", f"free some space; {SAFE}"),
    ("locked", f"another process has held its lock for {LOCK_SECONDS:g} s; end that one; {SAFE}"),
    ("readonly", f"make it writable; {SAFE}"),
    ("I/O error", f"check whether the disk is full, at its quota or broken; {SAFE}"),
    ("malformed", _RESCUE),
    ("not a database", _RESCUE),
    ("UTF-8", _RESCUE),
    ("no such", _RESCUE),
)
"""What to do, by a word in what SQLite says."""


class Access(Protocol):
    """How a kind of database is read and written."""

    def reading(self, engine: sqlalchemy.Engine) -> AbstractContextManager[sqlalchemy.Connection]:
        """Yield a connection that sees one moment of the database."""

    def transact(self, engine: sqlalchemy.Engine, study_id: int, step: Step[T], *, durable: bool = False) -> T:
        """Do a step in one transaction; what is durable is on the disk when this returns."""


class FileAccess:
    """How SQLite files are read and written."""

    @contextmanager
    def reading(self, engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
        """Yield a connection that sees one moment of the database.

        Raises:
            StudyError: the database cannot be read.
        """
        with explaining(public_name(engine.url), "read"), engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
            connection.rollback()

    def transact(self, engine: sqlalchemy.Engine, study_id: int, step: Step[T], *, durable: bool = False) -> T:
        """Do a step once; a commit to a file is never in doubt.

        Raises:
            StudyError: the database cannot be written.
        """
        with writing(engine, durable=durable) as connection:
            return step(connection, False)


def make(database: Path) -> RDBStorage:
    """Make a database with Optuna's tables, or open one that nobody else knows yet.

    Raises:
        StudyError: it cannot be made.
    """
    with explaining(database, "made"):
        _use_write_ahead_log(database)
        return _storage(f"sqlite:///{database}")


def open_storage(database: Path) -> RDBStorage:
    """Open a database that exists; one in a place that cannot be written is opened for reading.

    Raises:
        StudyError: it is damaged, not Optuna's, of another version of Optuna, or cannot be opened.
    """
    with explaining(database, "opened as a study"):
        url = sound_url(database)
        if "immutable" in url:
            return _storage(f"sqlite:///{url}&uri=true")
        _use_write_ahead_log(database)
        return _storage(f"sqlite:///{database}")


def sound_url(database: Path) -> str:
    """Return by what URI SQLite opens a database, after a look at all of it.

    Raises:
        StudyError: it is damaged, not Optuna's, or of another version of Optuna.
    """
    url = f"{database.resolve().as_uri()}?mode=rw"
    if not (place.is_writable(database) and place.is_writable(database.parent)):
        _refuse_unread_log(database)
        # Without `immutable` SQLite would make files beside it.
        url = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
    with explaining_damage(str(database)):
        _refuse_unsound(database, url)
    return url


@contextmanager
def writing(engine: sqlalchemy.Engine, *, durable: bool = False) -> Iterator[sqlalchemy.Connection]:
    """Yield a connection in a transaction that holds the lock; what is durable is on the disk when this returns.

    Raises:
        StudyError: the database cannot be written.
    """
    with explaining(public_name(engine.url), "written"), engine.connect() as connection:
        if durable:
            _sync(connection, "FULL")
        try:
            _take_lock(connection)
            yield connection
            connection.commit()
        finally:
            connection.rollback()
            if durable:
                _sync(connection, "NORMAL")


@contextmanager
def explaining(database: Path | str, what: str, remedies: Remedies = _REMEDIES) -> Iterator[None]:
    """Turn what a database answers into one line that says what to do, by a word in it."""
    try:
        yield
    except (sqlalchemy.exc.DBAPIError, StorageInternalError, sqlite3.Error) as error:
        said = innermost(error)
        remedy = next((remedy for word, remedy in remedies if word in said), SAFE)
        raise StudyError(f"{database}: cannot be {what} ({said}); {remedy.format(database)}") from error


_NOBODY_WROTE = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""What values raise that are of another type or shape than any program would have written."""


@contextmanager
def explaining_damage(database: str) -> Iterator[None]:
    """Turn what Python answers to values that nobody wrote into one line: SQLite's own check sees pages, not values."""
    try:
        yield
    except (*_NOBODY_WROTE, RecursionError) as error:
        raise damaged(database, _said(error)) from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        if isinstance(error, sqlalchemy.exc.DBAPIError):
            raise
        raise damaged(database, _said(error)) from error


def damaged(database: str, what: str) -> StudyError:
    """Return the error that says what is damaged in a database, and what to do."""
    return StudyError(f"{database}: is damaged ({what}); {_RESCUE.format(database)}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def public_name(url: sqlalchemy.URL) -> str:
    """Return what a person may see of where a database is: never its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def innermost(error: BaseException) -> str:
    """Return what the database itself said: SQLAlchemy adds the statement to it, with all its values."""
    while True:
        inner = getattr(error, "orig", None) or (error.__cause__ if isinstance(error, StorageInternalError) else None)
        if inner is None:
            return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        error = inner


def _storage(url: str) -> RDBStorage:
    # Optuna otherwise announces every study it makes, in-memory views included.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tables that are there have been looked at, see `refuse_other_version`; Optuna's own look takes 0.1 s.
    storage = RDBStorage(url, {"connect_args": {"timeout": LOCK_SECONDS}}, skip_compatibility_check=True)
    sqlalchemy.event.listen(storage.engine, "connect", _relax)
    # Connections made before the listener are dropped.
    storage.engine.dispose()
    return storage


def _refuse_unread_log(database: Path) -> None:
    log = database.with_name(f"{database.name}-wal")
    if log.exists() and log.stat().st_size:
        raise StudyError(
            f"{database}: is read-only, and {log.name} holds what is not in it yet; "
            "copy both files to a folder that can be written and read the study there, with --studies"
        )


def _refuse_unsound(database: Path, url: str) -> None:
    if database.stat().st_size == 0:
        raise StudyError(f"{database}: is empty, 0 bytes; put back a copy of it (made by: imgcls-search copy)")
    with closing(sqlite3.connect(url, uri=True, timeout=LOCK_SECONDS)) as connection:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise StudyError(f"{database}: is damaged ({' '.join(answer.split())}); {_RESCUE.format(database)}")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not {"studies", "trials", "version_info"} <= tables:
            raise StudyError(f"{database}: is not an Optuna database; choose another place with --studies")
        version = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        (library,) = connection.execute("SELECT library_version FROM version_info").fetchone()
    refuse_other_version(database, f"sqlite:///{database}", version[0] if version else "", library)


def refuse_other_version(database: Path | str, url: str, version: str, library: str) -> None:
    """Refuse tables of another version of Optuna.

    Raises:
        StudyError: they are.
    """
    known = _known_versions()
    if version == known[0]:
        return
    if version in known:
        remedy = f"copy it (imgcls-search copy), then: optuna storage upgrade --storage {url}"
        age = "an older"
    else:
        remedy = "install that one: pip install -U optuna"
        age = "a newer"
    raise StudyError(
        f"{database}: has the tables of {age} Optuna ({library}, {version or 'no version'}; here is "
        f"{optuna.__version__}); {remedy}"
    )


@cache
def _known_versions() -> tuple[str, ...]:
    """Return the versions of tables that the installed Optuna knows, its own first."""
    # Imported here: it is slow and only Optuna's own way to know what its tables should be.
    from alembic.script import ScriptDirectory
    from optuna.storages import _rdb

    script = ScriptDirectory(str(Path(_rdb.__file__).parent / "alembic"))
    own = str(script.get_current_head())
    return own, *(revision.revision for revision in script.walk_revisions() if revision.revision != own)


def _use_write_ahead_log(database: Path) -> None:
    # Readers such as a polling dashboard then never block the writer, nor it them. The mode stays with the file.
    with closing(sqlite3.connect(database, timeout=LOCK_SECONDS)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise StudyError(f"{database}: this file system cannot hold a study (SQLite's journal mode stays {mode!r})")


def _relax(connection: Any, _: Any) -> None:
    # A commit then reaches the log at once and the disk soon; a crash of any process loses nothing.
    connection.execute("PRAGMA synchronous=NORMAL")


def _sync(connection: sqlalchemy.Connection, mode: str) -> None:
    connection.exec_driver_sql(f"PRAGMA synchronous={mode}")
    connection.rollback()


def _take_lock(connection: sqlalchemy.Connection) -> None:
    """Begin a transaction that nobody can come between; wait for the holder of the lock."""
    deadline = time.monotonic() + LOCK_SECONDS
    connection.exec_driver_sql(f"PRAGMA busy_timeout={1000 * STEP_SECONDS:.0f}")
    try:
        while not _takes_lock(connection, deadline):
            connection.rollback()
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={1000 * LOCK_SECONDS:.0f}")


def _takes_lock(connection: sqlalchemy.Connection, deadline: float) -> bool:
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except sqlalchemy.exc.OperationalError as error:
        if "locked" in str(error.orig) and time.monotonic() < deadline:
            return False
        raise
    return True
