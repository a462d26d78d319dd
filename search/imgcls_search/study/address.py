"""The address of a study's database on a server; it never shows its password."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcls_search.errors import UserError

if TYPE_CHECKING:
    import sqlalchemy

VARIABLE = "IMGCLS_STORAGE"
"""Environment variable with the address of the studies' database; `--storage` takes precedence."""

KEPT = "@"
"""Separates a study's name from the number of an earlier state; study names cannot contain it."""

EXAMPLE = "postgresql://USER@HOST/DATABASE"

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Address:
    """The address of a PostgreSQL database."""

    text: str
    """Includes the user name, never the password."""

    password: str | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def url(self) -> sqlalchemy.URL:
        """Return the URL to connect with, including the password."""
        import sqlalchemy

        url = sqlalchemy.make_url(self.text)
        return url if self.password is None else url.set(password=self.password)


def is_address(text: str) -> bool:
    """Tell whether a text is the address of a database rather than a path."""
    return "://" in text


def parse(text: str, where: str) -> Address:
    """Parse an address. Errors never quote an invalid one: any part of it may be a password.

    Raises:
        UserError: it is not the address of a PostgreSQL database.
    """
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise UserError(f"{where}: not an address of a database; allowed: {EXAMPLE}") from None
    if url.drivername not in _SCHEMES:
        scheme = url.drivername if url.drivername.replace("+", "").isalnum() else "something else"
        raise UserError(
            f"{where}: got an address of {scheme}; allowed: {EXAMPLE}, or nothing for SQLite files, which are found "
            "by --studies"
        )
    if any("password" in key for key in url.query):
        raise UserError(f"{where}: a password belongs before the @, as USER:PASSWORD@, or in PGPASSWORD or ~/.pgpass")
    if "@" in (url.host or "") or not url.database:
        raise UserError(
            f"{where}: not an address of a database; allowed: {EXAMPLE}, in which a password has its @ written as %40 "
            "and its / as %2F"
        )
    bare = url.set(drivername="postgresql+psycopg")._replace(password=None)
    password = None if url.password is None else str(url.password)
    return Address(bare.render_as_string(hide_password=False), password or None)


def settle(option: str | None, in_space: str | None = None) -> Address | None:
    """Return the studies' address from `--storage`, else the environment, else the space; None means SQLite files.

    Raises:
        UserError: it is not the address of a PostgreSQL database.
    """
    if option is not None:
        return parse(option, "--storage")
    if os.environ.get(VARIABLE):
        return parse(os.environ[VARIABLE], VARIABLE)
    return parse(in_space, "study.storage") if in_space is not None else None


def option(address: Address | None) -> str:
    """Return the option with which a shown command finds a study, without a password; empty if it needs none."""
    if address is None or (os.environ.get(VARIABLE) and address == parse(os.environ[VARIABLE], VARIABLE)):
        return ""
    return f" --storage {shlex.quote(address.text)}"


def unset() -> str:
    """Return the beginning of a shown command that looks in SQLite files; empty if the environment names no server."""
    return f"{VARIABLE}= " if os.environ.get(VARIABLE) else ""


def refuse_password(text: str | None, where: str) -> None:
    """Refuse an address with a password: the study stores its space, which others can read.

    Raises:
        UserError: it has a password, or is not an address.
    """
    if text is not None and parse(text, f"{where}: study.storage").password is not None:
        raise UserError(
            f"{where}: study.storage: holds a password, which the study would keep; leave it out and put it in "
            f"PGPASSWORD or ~/.pgpass, or the whole address in {VARIABLE}"
        )


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], Mapping[str, str]]:
    """Return arguments without passwords in addresses, and the environment variable that holds the password.

    Raises:
        UserError: two addresses have different passwords, or one is invalid.
    """
    bare, found = [], set()
    for number, argument in enumerate(arguments):
        start = argument.find("postgres")
        if start < 0 or not is_address(argument) or (start > 0 and argument[start - 1] != "="):
            bare.append(argument)
            continue
        before = argument[: start - 1] if start else (arguments[number - 1] if number else "")
        address = parse(argument[start:], before)
        if address.password is not None:
            found.add(address.password)
        bare.append(argument[:start] + address.text)
    if len(found) > 1:
        raise UserError("two addresses with different passwords; put them into ~/.pgpass")
    return bare, {"PGPASSWORD": found.pop()} if found else {}
