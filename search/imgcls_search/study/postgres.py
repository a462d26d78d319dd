"""A study in a PostgreSQL database, which others may share, and whose server may go away and come back.

Who writes a study holds an advisory lock of the server's, which ends with the connection that took it. So all is
written through that one connection: as long as it works, nobody else writes. When it breaks, another is made, takes the
lock again, and looks whether another run has had the study in between (`SIGNATURE`); then the transaction is tried
again and told so, since nobody knows whether its commit was heard (`Step`). A server that has not noticed the break
still holds the lock for the old connection; that one is ended, so that what it may yet hear is never done.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy.dialects import postgresql

from imgcls_search.errors import StudyError, UserError, closest
from imgcls_search.study.address import KEPT, Address
from imgcls_search.study.database import SAFE, Step, T, explaining, innermost, refuse_other_version
from imgcls_search.study.holder import RUN, Holder
from imgcls_search.study.postgres_connection import NAME, REMEDIES, answering, make_engine, make_storage, passes

PATIENCE_SECONDS = 90.0
"""How long a search waits for a server that went away."""

LONGEST_PAUSE = 2.0
"""Seconds between two tries to connect, at most; the first are sooner."""

BUSY_SECONDS = 2.0
"""How long a lock is waited for: a server needs a moment to notice that a process was killed."""

SIGNATURE = "imgcls_search:writer"
"""The attribute of a study that says which process held it last."""

_STUDIES: Any = models.StudyModel.__table__
_NOTES: Any = models.StudySystemAttributeModel.__table__
_TRIALS: Any = models.TrialModel.__table__
_VALUES: Any = models.TrialValueModel.__table__

Say = Callable[[str], None]
"""Takes a line that a person should see."""


class PostgresStudy:
    """One study in a database on a server."""

    def __init__(self, address: Address, name: str) -> None:
        """Nothing is connected yet.

        Raises:
            UserError: psycopg is not installed.
        """
        try:
            importlib.import_module("psycopg")
        except ImportError as error:
            raise UserError(f"{address}: PostgreSQL needs psycopg: pip install 'imgcls-search[postgres]'") from error
        self.address = address
        self.name = name
        self.access = _Session(address, name)
        self.engine = make_engine(address, poolclass=sqlalchemy.NullPool)

    def __str__(self) -> str:
        return str(self.address)

    def exists(self) -> bool:
        """Tell whether the study is there.

        Raises:
            StudyError: the database cannot be reached, or is not ours.
        """
        return self.name in self.names()

    def names(self) -> list[str]:
        """Return the studies of the database; one that is being made is none yet.

        Raises:
            StudyError: the database cannot be reached, or is not ours.
        """
        with explaining(str(self), "opened", REMEDIES), self.engine.connect() as connection:
            if not self._has_tables(connection):
                return []
            names = connection.execute(sqlalchemy.select(_STUDIES.c.study_name)).scalars().all()
        # What a study was before its space grew is found by its own name only.
        return sorted(name for name in names if not name.endswith(_DRAFT) and (KEPT not in name or name == self.name))

    def must_exist(self) -> None:
        """Refuse a study that is not there.

        Raises:
            StudyError: there is none of this name; names near ones.
        """
        known = self.names()
        if self.name not in known:
            shown = f"; studies there: {', '.join(known)}" if known else "; there is no study there yet"
            raise StudyError(f"{self}: no such study as {self.name!r}{closest(self.name, known)}{shown}")

    def open(self) -> RDBStorage:
        """Open a database that has Optuna's tables, and make none.

        Raises:
            StudyError: it cannot be reached.
        """
        with explaining(str(self), "opened", REMEDIES):
            return make_storage(self.address, skip_table_creation=True)

    @contextmanager
    def making(self) -> Iterator[tuple[RDBStorage, str]]:
        """Yield the database and a name that the study has until it is whole.

        Raises:
            StudyError: it cannot be made.
        """
        draft = self.name + _DRAFT
        with explaining(str(self), "written", REMEDIES):
            with self.engine.begin() as connection:
                # Two that begin at once would both make Optuna's tables. The lock ends with the transaction.
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_key("tables"))))
                storage = make_storage(self.address, skip_table_creation=self._has_tables(connection))
            try:
                with suppress(KeyError):
                    optuna.delete_study(study_name=draft, storage=storage)
                yield storage, draft
                with storage.engine.begin() as connection:
                    named = _STUDIES.update().where(_STUDIES.c.study_name == draft)
                    connection.execute(named.values(study_name=self.name))
            finally:
                storage.engine.dispose()

    @contextmanager
    def held(self, say: Say | None = None, *, task: str = RUN) -> Iterator[None]:
        """Hold the study for this process alone; released by the server when the connection ends.

        Raises:
            StudyError: another process holds it.
        """
        self.access.take(say, task)
        try:
            yield
        finally:
            self.access.release()

    def holder(self, mark: Path) -> Holder | None:
        """Return who works on the study, on whichever machine; the server knows, whatever stands in the folder here.

        Raises:
            StudyError: the server cannot be reached.
        """
        query = sqlalchemy.text(f"SELECT application_name {_HOLDER}")
        with explaining(str(self), "read", REMEDIES), self.engine.connect() as connection:
            found = connection.execute(query, {"key": self.access.key}).first()
        return None if found is None else _read_name(found[0] or "")

    def stamp(self) -> Any:
        """Return what changes when a trial begins or ends."""
        ours = sqlalchemy.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == self.name).scalar_subquery()
        query = (
            sqlalchemy.select(
                _TRIALS.c.state, sqlalchemy.func.count(), sqlalchemy.func.max(_TRIALS.c.datetime_complete)
            )
            .where(_TRIALS.c.study_id == ours)
            .group_by(_TRIALS.c.state)
            .order_by(_TRIALS.c.state)
        )
        with explaining(str(self), "read", REMEDIES), self.engine.connect() as connection:
            return connection.execute(query).all()

    def _has_tables(self, connection: sqlalchemy.Connection) -> bool:
        found = set(sqlalchemy.inspect(connection).get_table_names())
        if not found:
            return False
        if not {"studies", "trials", "version_info", "alembic_version"} <= found:
            shown = ", ".join(sorted(found)[:3])
            raise StudyError(
                f"{self}: is no database of Optuna's (it has {len(found)} table(s), for example {shown}); make one of "
                "its own: createdb"
            )
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        library = connection.exec_driver_sql("SELECT library_version FROM version_info").scalar()
        refuse_other_version(str(self), str(self), version or "", str(library))
        return True


def studies_of(address: Address) -> list[str]:
    """Return the names of the studies of a database.

    Raises:
        StudyError: it cannot be reached, or is not ours.
    """
    return PostgresStudy(address, "").names()


class _Session:
    """How one study on a server is read and written."""

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self.key = _key(f"study {name}")
        self.engine: sqlalchemy.Engine | None = None
        """What makes the connection that holds the lock; None while it is not to be held."""
        self.connection: sqlalchemy.Connection | None = None
        self.backend: int | None = None
        """The server's process behind the latest connection that held the lock."""
        self.say: Say | None = None
        self.signature = uuid.uuid4().hex
        self.has_signed = False
        self.is_checked = False

    @contextmanager
    def reading(self, engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
        """Yield a connection that sees one moment of the database.

        Raises:
            StudyError: the database cannot be read.
        """
        with explaining(str(self.address), "read", REMEDIES), engine.connect() as connection:
            yield connection.execution_options(isolation_level="REPEATABLE READ")
            connection.rollback()

    def transact(self, engine: sqlalchemy.Engine, study_id: int, step: Step[T], *, durable: bool = False) -> T:
        """Do a step in one transaction, again after each break; every commit is on the server's disk.

        Raises:
            StudyError: the database cannot be written, or another run came in between.
        """

        def attempt(again: bool) -> T:
            if self.engine is None:
                # Something that is said about a study from outside, as that the test split was opened.
                with engine.begin() as connection:
                    return step(connection, again)
            connection = self._connected(study_id)
            with answering(connection), connection.begin():
                return step(connection, again)

        return self._until_it_is_back(attempt)

    def take(self, say: Say | None, task: str) -> None:
        """Take the lock; from then on a lost connection is waited for and said.

        Raises:
            StudyError: another process holds it, or the server cannot be reached.
        """
        self.say = say
        self.engine = make_engine(self.address, task, poolclass=sqlalchemy.NullPool)
        try:
            with explaining(str(self.address), "opened", REMEDIES):
                self._connect()
        except _BusyError:
            holder = self._holder()
            self.release()
            gone = "if its machine vanished, the server lets go of it within 30 s"
            raise StudyError(f"{self.address}: another run is working on this study ({holder}); {gone}") from None
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back."""
        self._drop()
        self.engine = None

    def _until_it_is_back(self, attempt: Callable[[bool], T]) -> T:
        lost_at, pause = None, 0.1
        with explaining(str(self.address), "written", REMEDIES):
            while True:
                try:
                    found = attempt(lost_at is not None)
                    break
                except (sqlalchemy.exc.DBAPIError, _BusyError) as error:
                    if self.engine is None or (isinstance(error, sqlalchemy.exc.DBAPIError) and not passes(error)):
                        raise
                    now = time.monotonic()
                    if lost_at is None:
                        lost_at = now
                        said = f"cannot be written now ({innermost(error)})"
                        self._tell(f"{said}; trying again for up to {PATIENCE_SECONDS:g} s")
                    elif now - lost_at >= PATIENCE_SECONDS:
                        if isinstance(error, _BusyError):
                            raise StudyError(f"{self.address}: {self._taken()}") from None
                        said = f"could not be written for {now - lost_at:.0f} s ({innermost(error)})"
                        raise StudyError(f"{self.address}: {said}; {SAFE}") from error
                self._drop()
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        if lost_at is not None:
            self._tell(f"is written again after {time.monotonic() - lost_at:.0f} s")
        return found

    def _tell(self, text: str) -> None:
        if self.say is not None:
            self.say(f"{self.address}: {text}")

    def _connected(self, study_id: int) -> sqlalchemy.Connection:
        connection = self.connection or self._connect()
        ours = (_NOTES.c.study_id == study_id) & (_NOTES.c.key == SIGNATURE)
        if not self.has_signed:
            row = {"study_id": study_id, "key": SIGNATURE, "value_json": json.dumps(self.signature)}
            signing = postgresql.insert(_NOTES).values(row)
            with answering(connection), connection.begin():
                connection.execute(
                    signing.on_conflict_do_update(
                        index_elements=[_NOTES.c.study_id, _NOTES.c.key],
                        set_={"value_json": signing.excluded.value_json},
                    )
                )
            self.has_signed = self.is_checked = True
        if not self.is_checked:
            with answering(connection), connection.begin():
                signed = connection.execute(sqlalchemy.select(_NOTES.c.value_json).where(ours)).scalar()
            if signed != json.dumps(self.signature):
                raise StudyError(f"{self.address}: {self._taken()}")
            self.is_checked = True
        return connection

    def _connect(self) -> sqlalchemy.Connection:
        assert self.engine is not None
        self._drop()
        self.connection = self.engine.connect()
        self.is_checked = False
        deadline = time.monotonic() + BUSY_SECONDS
        taking = sqlalchemy.text("SELECT pg_try_advisory_lock(:key), pg_backend_pid()")
        with answering(self.connection):
            while True:
                with self.connection.begin():
                    is_ours, backend = self.connection.execute(taking, {"key": self.key}).one()
                    if is_ours:
                        self.backend = backend
                        return self.connection
                    self._end_former(self.connection)
                if time.monotonic() >= deadline:
                    raise _BusyError
                time.sleep(0.1)

    def _end_former(self, connection: sqlalchemy.Connection) -> None:
        """End the connection that this process held the lock by, where the server still takes it for alive."""
        is_former = "pid = :former AND application_name = current_setting('application_name')"
        ending = sqlalchemy.text(f"SELECT pg_terminate_backend(pid) {_HOLDER} AND {is_former}")
        connection.execute(ending, {"key": self.key, "former": self.backend})

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.invalidate()
            self.connection.close()
            self.connection = None

    def _holder(self) -> str:
        """Return who holds the lock, as far as the server tells."""
        query = sqlalchemy.text(f"SELECT application_name {_HOLDER}")
        assert self.connection is not None
        with self.connection.begin():
            found: str | None = self.connection.execute(query, {"key": self.key}).scalar()
        return _read_name(found or "").process

    def _taken(self) -> str:
        return f"another run took this study while the connection was lost; {SAFE}"


class _BusyError(Exception):
    """Another connection holds the lock."""


_DRAFT = "~new"
"""No name of a study holds such a sign."""

_HOLDER = (
    "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND datname = "
    "current_database() AND ((classid::bigint << 32) | objid::bigint) = :key"
)
"""Whose connection holds a lock."""


def _key(what: str) -> int:
    """Return a number of 64 bits for what is locked; locks of one database are nothing to another."""
    digest = hashlib.sha256(f"imgcls-search: {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _read_name(name: str) -> Holder:
    """Return who a connection belongs to, by its name."""
    task, colon, process = name.removeprefix(NAME).partition(": ")
    # Without a task it is of an earlier version, or has a name that the address gives it.
    return Holder(process=process, task=task) if colon else Holder(process=task or "process unknown")
