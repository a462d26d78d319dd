"""A study in a PostgreSQL database, which may be shared, and whose server may become unreachable and come back.

The writer of a study holds an advisory lock, which ends with the connection that took it. It writes everything through
that connection: while it works, nobody else writes. If it breaks, a new connection takes the lock again and checks
whether another run has held the study in between (`SIGNATURE`). Then the transaction runs again, knowing that its first
commit may have succeeded (`Step`). A server that has not noticed the break still holds the lock for the old
connection; that one is terminated, so that no late statement of it takes effect.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from imgcls_search.errors import StudyError, UserError, closest
from imgcls_search.progress import Say
from imgcls_search.study.address import KEPT, Address
from imgcls_search.study.database import explaining, refuse_other_version
from imgcls_search.study.holder import RUN, Holder
from imgcls_search.study.postgres_connection import REMEDIES, make_engine, make_storage
from imgcls_search.study.postgres_session import HOLDER, WritingSession, key_of, read_name
from imgcls_search.study.tables import STUDIES, TRIALS
from imgcls_search.words import counted


class PostgresStudy:
    """One study in a database on a server."""

    def __init__(self, address: Address, name: str) -> None:
        """Do not connect yet.

        Raises:
            UserError: psycopg is not installed.
        """
        try:
            importlib.import_module("psycopg")
        except ImportError as error:
            raise UserError(f"{address}: PostgreSQL needs psycopg: pip install 'imgcls-search[postgres]'") from error
        self.address = address
        self.name = name
        self.access = WritingSession(address, name)
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
        """Return the studies of the database, without those that are still being created.

        Raises:
            StudyError: the database cannot be reached, or is not ours.
        """
        with explaining(str(self), "opened", REMEDIES), self.engine.connect() as connection:
            if not self._has_tables(connection):
                return []
            names = connection.execute(sqlalchemy.select(STUDIES.c.study_name)).scalars().all()
        # An earlier state of a study is found only by its own name.
        return sorted(name for name in names if not name.endswith(_DRAFT) and (KEPT not in name or name == self.name))

    def must_exist(self) -> None:
        """Raise an error if the study does not exist.

        Raises:
            StudyError: there is none of this name; the message suggests similar names.
        """
        known = self.names()
        if self.name not in known:
            shown = f"; studies there: {', '.join(known)}" if known else "; there is no study there yet"
            raise StudyError(f"{self}: no such study as {self.name!r}{closest(self.name, known)}{shown}")

    def open(self) -> RDBStorage:
        """Open a database that has Optuna's tables; create none.

        Raises:
            StudyError: it cannot be reached.
        """
        with explaining(str(self), "opened", REMEDIES):
            return make_storage(self.address, skip_table_creation=True)

    @contextmanager
    def making(self) -> Iterator[tuple[RDBStorage, str]]:
        """Yield the database and the draft name that the study has until it is complete.

        Raises:
            StudyError: it cannot be created.
        """
        draft = self.name + _DRAFT
        with explaining(str(self), "written", REMEDIES):
            with self.engine.begin() as connection:
                # Otherwise two processes could create Optuna's tables at once. The lock ends with the transaction.
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(key_of("tables"))))
                storage = make_storage(self.address, skip_table_creation=self._has_tables(connection))
            try:
                with suppress(KeyError):
                    optuna.delete_study(study_name=draft, storage=storage)
                yield storage, draft
                with storage.engine.begin() as connection:
                    named = STUDIES.update().where(STUDIES.c.study_name == draft)
                    connection.execute(named.values(study_name=self.name))
            finally:
                storage.engine.dispose()

    def remove(self) -> None:
        """Delete the study.

        Raises:
            StudyError: the server cannot be reached.
        """
        storage = self.open()
        try:
            with explaining(str(self), "deleted", REMEDIES):
                optuna.delete_study(study_name=self.name, storage=storage)
        finally:
            storage.engine.dispose()

    @contextmanager
    def held(self, say: Say | None = None, *, task: str = RUN) -> Iterator[None]:
        """Lock the study for this process; the server releases it when the connection ends.

        Raises:
            StudyError: another process holds it.
        """
        self.access.take(say, task)
        try:
            yield
        finally:
            self.access.release()

    def holder(self, mark: Path) -> Holder | None:
        """Return who works on the study, on any machine: the server knows, so the mark in the folder is ignored.

        Raises:
            StudyError: the server cannot be reached.
        """
        query = sqlalchemy.text(f"SELECT application_name {HOLDER}")
        with explaining(str(self), "read", REMEDIES), self.engine.connect() as connection:
            found = connection.execute(query, {"key": self.access.key}).first()
        return None if found is None else read_name(found[0] or "")

    def stamp(self) -> Any:
        """Return a value that changes when a trial begins or ends."""
        ours = sqlalchemy.select(STUDIES.c.study_id).where(STUDIES.c.study_name == self.name).scalar_subquery()
        query = (
            sqlalchemy.select(TRIALS.c.state, sqlalchemy.func.count(), sqlalchemy.func.max(TRIALS.c.datetime_complete))
            .where(TRIALS.c.study_id == ours)
            .group_by(TRIALS.c.state)
            .order_by(TRIALS.c.state)
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
                f"{self}: is not an Optuna database (it has {counted('table', len(found))}, for example {shown}); "
                "create another one: createdb"
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


_DRAFT = "~new"
"""Suffix of a draft name; no name of a study contains `~`."""
