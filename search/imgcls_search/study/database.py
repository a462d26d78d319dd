"""Check SQLite files before opening them, write them under a lock, and explain database errors in one line."""

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

from imgcls_search.errors import UNWRITTEN, StudyError
from imgcls_search.study import folder_checks

LOCK_SECONDS = 60.0
"""How long to wait while another process holds the lock on a database."""

STEP_SECONDS = 0.25
"""How long SQLite waits for the lock per attempt, with growing pauses; Ctrl-C works between attempts."""

T = TypeVar("T")
Step = Callable[[sqlalchemy.Connection, bool], T]
"""The work of one transaction; the flag says whether an earlier attempt may have been committed."""

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
"""What to do, by a word in SQLite's message."""


class Access(Protocol):
    """Reads and writes one kind of database."""

    def reading(self, engine: sqlalchemy.Engine) -> AbstractContextManager[sqlalchemy.Connection]:
        """Yield a connection that sees a snapshot of the database."""

    def transact(self, engine: sqlalchemy.Engine, study_id: int, step: Step[T], *, durable: bool = False) -> T:
        """Do a step in one transaction; with `durable`, the commit is on disk on return."""


class FileAccess:
    """Reads and writes SQLite files."""

    @contextmanager
    def reading(self, engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
        """Yield a connection that sees a snapshot of the database.

        Raises:
            StudyError: the database cannot be read.
        """
        with explaining(public_name(engine.url), "read"), engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
            connection.rollback()

    def transact(self, engine: sqlalchemy.Engine, study_id: int, step: Step[T], *, durable: bool = False) -> T:
        """Do a step once; the outcome of a commit to a file is always known.

        Raises:
            StudyError: the database cannot be written.
        """
        with writing(engine, durable=durable) as connection:
            return step(connection, False)


def make(database: Path) -> RDBStorage:
    """Create a database with Optuna's tables, or open one that no other process uses yet.

    Raises:
        StudyError: it cannot be created.
    """
    with explaining(database, "made"):
        _use_write_ahead_log(database)
        return _storage(f"sqlite:///{database}")


def open_storage(database: Path) -> RDBStorage:
    """Open an existing database, read-only if it or its folder cannot be written.

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
    """Return the URI that SQLite opens a database with, after an integrity check of the whole file.

    Raises:
        StudyError: it is damaged, not Optuna's, or of another version of Optuna.
    """
    url = f"{database.resolve().as_uri()}?mode=rw"
    if not (folder_checks.is_writable(database) and folder_checks.is_writable(database.parent)):
        _refuse_unread_log(database)
        # Without `immutable`, SQLite would create files beside it.
        url = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
    with explaining_damage(str(database)):
        _refuse_unsound(database, url)
    return url


@contextmanager
def writing(engine: sqlalchemy.Engine, *, durable: bool = False) -> Iterator[sqlalchemy.Connection]:
    """Yield a connection in a transaction that holds the lock; with `durable`, the commit is on disk on return.

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
    """Turn database errors into one line that says what to do, chosen by a word in the message."""
    try:
        yield
    except (sqlalchemy.exc.DBAPIError, StorageInternalError, sqlite3.Error) as error:
        said = innermost(error)
        remedy = next((remedy for word, remedy in remedies if word in said), SAFE)
        raise StudyError(f"{database}: cannot be {what} ({said}); {remedy.format(database)}") from error


@contextmanager
def explaining_damage(database: str) -> Iterator[None]:
    """Turn errors from corrupt values into one line: SQLite's own check covers pages, not values."""
    try:
        yield
    except UNWRITTEN as error:
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
    """Return the location of a database for display, without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def innermost(error: BaseException) -> str:
    """Return the database's own message: SQLAlchemy adds the statement with all its values."""
    while True:
        inner = getattr(error, "orig", None) or (error.__cause__ if isinstance(error, StorageInternalError) else None)
        if inner is None:
            return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        error = inner


def _storage(url: str) -> RDBStorage:
    # Optuna otherwise announces every study it creates, including in-memory views.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Existing tables are already checked, see `refuse_other_version`; Optuna's own check takes 0.1 s.
    storage = RDBStorage(url, {"connect_args": {"timeout": LOCK_SECONDS}}, skip_compatibility_check=True)
    sqlalchemy.event.listen(storage.engine, "connect", _relax)
    # Drop connections made before the listener.
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
        StudyError: the version differs.
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
    """Return the table versions that the installed Optuna knows, its current one first."""
    # Imported here because it is slow. Optuna itself has no other way to find its table version.
    from alembic.script import ScriptDirectory
    from optuna.storages import _rdb

    script = ScriptDirectory(str(Path(_rdb.__file__).parent / "alembic"))
    own = str(script.get_current_head())
    return own, *(revision.revision for revision in script.walk_revisions() if revision.revision != own)


def _use_write_ahead_log(database: Path) -> None:
    # Readers such as a polling dashboard and the writer then never block each other. The file keeps this mode.
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
    """Begin a transaction with the write lock; wait while another process holds it."""
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
