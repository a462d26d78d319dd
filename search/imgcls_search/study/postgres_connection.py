"""Connections to a PostgreSQL server: create them, time them out if nobody answers, and classify errors."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from imgcls_search.study.address import Address
from imgcls_search.study.database import SAFE, Remedies

ANSWER_SECONDS = 30.0
"""Time without an answer after which a connection counts as lost, whatever is between here and the server."""

REMEDIES: Remedies = (
    ("password", "give the right one in PGPASSWORD, ~/.pgpass or the address"),
    ("pg_hba.conf", "the server allows no such login"),
    ("resolve host", "check the host name"),
    ("Name or service not known", "check the host name"),
    ("translate host", "check the host name"),
    ("refused", "check that a server is running there"),
    ("No such file", "check that a server is running there"),
    ("timeout", "check that a server is running there"),
    ("role", "name another user, or make this one: createuser"),
    ("does not exist", "make it: createdb"),
    ("No space left", f"free some space on the server; {SAFE}"),
)

_PATIENT = {
    "connect_timeout": 10,
    # Notice within `ANSWER_SECONDS` that a server has vanished.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Keepalive and timeouts of a connection; parameters in the address take precedence."""

_SESSION = (
    # Waiting for another process's lock is not a lost connection: it ends before `ANSWER_SECONDS`.
    "lock_timeout = '20s'",
    "tcp_keepalives_idle = 15",
    "tcp_keepalives_interval = 5",
    "tcp_keepalives_count = 3",
    "tcp_user_timeout = 30000",
)
"""The same on the server's side, which holds the lock of a machine that vanished."""

NAME = "imgcls-search: "
"""Prefix of the names of our connections in the server's list."""


LOOKING = "look"
"""The task of a connection that holds no study."""


def _options(address: Address, task: str) -> dict[str, Any]:
    process = f"{NAME}{task}: process {os.getpid()} on {socket.gethostname()}"[:63]
    options = {**_PATIENT, "application_name": process}
    query = address.url().query
    return {name: value for name, value in options.items() if name not in query}


def make_engine(address: Address, task: str = LOOKING, **settings: Any) -> sqlalchemy.Engine:
    """Return an engine for a database; the server shows `task` to a process that asks who holds a study."""
    # With `pool_pre_ping`, the pool tests whether an idle connection still works before it hands it out.
    engine = sqlalchemy.create_engine(
        address.url(), pool_pre_ping=True, connect_args=_options(address, task), hide_parameters=True, **settings
    )
    sqlalchemy.event.listen(engine, "connect", _settle_in)
    return engine


def make_storage(address: Address, *, skip_table_creation: bool) -> RDBStorage:
    """Return Optuna's storage for a database; it connects when needed."""
    # Optuna otherwise announces every study it creates.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = RDBStorage(
        # Optuna substitutes text in braces.
        address.url().render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
        {"pool_pre_ping": True, "connect_args": _options(address, LOOKING), "hide_parameters": True},
        # Existing tables are already checked, see `refuse_other_version`.
        skip_compatibility_check=True,
        skip_table_creation=skip_table_creation,
    )
    sqlalchemy.event.listen(storage.engine, "connect", _settle_in)
    storage.engine.dispose()
    return storage


def _settle_in(connection: Any, _: Any) -> None:
    with answering(connection), connection.cursor() as cursor:
        for setting in _SESSION:
            cursor.execute(f"SET {setting}")
        connection.commit()


@contextmanager
def answering(connection: Any) -> Iterator[None]:
    """Cut a connection that does not answer in time; a proxy on the way may keep it open forever."""
    if isinstance(connection, sqlalchemy.Connection):
        connection = connection.connection.driver_connection
    # Duplicate the descriptor, so that no other socket can reuse its number.
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        is_cut = threading.Event()

        def cut() -> None:
            is_cut.set()
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(ANSWER_SECONDS, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            if is_cut.is_set():
                error.orig = TimeoutError(f"no answer for {ANSWER_SECONDS:g} s")
            raise
        finally:
            timer.cancel()


def passes(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Tell whether an error means that the server is away or held up, rather than that it refuses something."""
    state = getattr(error.orig, "sqlstate", None)
    # No state: there was no connection. 57P01 to 57P03: the server is going down, or is not up yet. 55P03: a lock.
    is_absence = isinstance(error, sqlalchemy.exc.OperationalError) and state is None
    return error.connection_invalidated or is_absence or (state or "").startswith(("08", "57P0", "55P03"))
