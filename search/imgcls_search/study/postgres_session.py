"""The connection of the one process that writes a study in PostgreSQL: take it, keep it, restore it."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy
from sqlalchemy.dialects import postgresql

from imgcls_search.errors import StudyError
from imgcls_search.progress import Say
from imgcls_search.study.address import Address
from imgcls_search.study.database import SAFE, Step, T, explaining, innermost
from imgcls_search.study.holder import Holder
from imgcls_search.study.postgres_connection import NAME, REMEDIES, answering, make_engine, passes
from imgcls_search.study.tables import NOTES

PATIENCE_SECONDS = 90.0
"""How long a search waits for a server that went away."""

LONGEST_PAUSE = 2.0
"""Longest pause between two attempts to connect, in seconds; the first pauses are shorter."""

BUSY_SECONDS = 2.0
"""How long to wait for a lock: a server needs a moment to notice that a process was killed."""

SIGNATURE = "imgcls_search:writer"
"""The attribute of a study that says which process held it last."""


class WritingSession:
    """Reads and writes one study on a server."""

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self.key = key_of(f"study {name}")
        self.engine: sqlalchemy.Engine | None = None
        """Creates the connection that holds the lock; None while this process does not hold it."""
        self.connection: sqlalchemy.Connection | None = None
        self.backend: int | None = None
        """The server's process behind the latest connection that held the lock."""
        self.say: Say | None = None
        self.signature = uuid.uuid4().hex
        self.has_signed = False
        self.is_checked = False

    @contextmanager
    def reading(self, engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
        """Yield a connection that sees a snapshot of the database.

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
                # A write by a process that does not hold the study, such as the note that the test split was opened.
                with engine.begin() as connection:
                    return step(connection, again)
            connection = self._connected(study_id)
            with answering(connection), connection.begin():
                return step(connection, again)

        return self._until_it_is_back(attempt)

    def take(self, say: Say | None, task: str) -> None:
        """Take the lock; from then on, report a lost connection and wait for it.

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
            gone = "if its machine vanished, the server releases it within 30 s"
            raise StudyError(f"{self.address}: another run is working on this study ({holder}); {gone}") from None
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock."""
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
        ours = (NOTES.c.study_id == study_id) & (NOTES.c.key == SIGNATURE)
        if not self.has_signed:
            row = {"study_id": study_id, "key": SIGNATURE, "value_json": json.dumps(self.signature)}
            signing = postgresql.insert(NOTES).values(row)
            with answering(connection), connection.begin():
                connection.execute(
                    signing.on_conflict_do_update(
                        index_elements=[NOTES.c.study_id, NOTES.c.key],
                        set_={"value_json": signing.excluded.value_json},
                    )
                )
            self.has_signed = self.is_checked = True
        if not self.is_checked:
            with answering(connection), connection.begin():
                signed = connection.execute(sqlalchemy.select(NOTES.c.value_json).where(ours)).scalar()
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
        """End this process's former connection if the server still holds the lock for it."""
        is_former = "pid = :former AND application_name = current_setting('application_name')"
        ending = sqlalchemy.text(f"SELECT pg_terminate_backend(pid) {HOLDER} AND {is_former}")
        connection.execute(ending, {"key": self.key, "former": self.backend})

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.invalidate()
            self.connection.close()
            self.connection = None

    def _holder(self) -> str:
        """Return who holds the lock, as far as the server knows."""
        query = sqlalchemy.text(f"SELECT application_name {HOLDER}")
        assert self.connection is not None
        with self.connection.begin():
            found: str | None = self.connection.execute(query, {"key": self.key}).scalar()
        return read_name(found or "").process

    def _taken(self) -> str:
        return f"another run took this study while the connection was lost; {SAFE}"


class _BusyError(Exception):
    """Another connection holds the lock."""


HOLDER = (
    "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND datname = "
    "current_database() AND ((classid::bigint << 32) | objid::bigint) = :key"
)
"""Selects the connection that holds a lock."""


def key_of(what: str) -> int:
    """Return a 64-bit key for a lock; each database has its own locks."""
    digest = hashlib.sha256(f"imgcls-search: {what}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def read_name(name: str) -> Holder:
    """Return the owner of a connection from its name."""
    task, colon, process = name.removeprefix(NAME).partition(": ")
    # Without a task, the connection is from an older version, or the address sets its name.
    return Holder(process=process, task=task) if colon else Holder(process=task or "process unknown")
