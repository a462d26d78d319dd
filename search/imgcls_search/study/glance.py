"""A quick look at a study: what it searches and how many trials it has, without reading the trials."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import text

from imgcls_search.errors import StudyError
from imgcls_search.study import database, folder_checks
from imgcls_search.study.files import StudyFiles


@dataclass(frozen=True, kw_only=True)
class Glance:
    """A study's description of itself, unchecked."""

    objectives: Any
    version: Any
    """The version of this package that made it."""

    space: Any
    trials: int


def glance(files: StudyFiles) -> Glance:
    """Take a quick look at a study.

    Raises:
        StudyError: it is not there, cannot be read, or was made by something else.
    """
    files.must_exist()
    with database.explaining(str(files.store), "read"), database.explaining_damage(str(files.store)):
        engine = _engine(files)
        try:
            with engine.connect() as connection:
                return _look(connection, files)
        finally:
            engine.dispose()


def _look(connection: sqlalchemy.Connection, files: StudyFiles) -> Glance:
    found = connection.execute(
        text("SELECT study_id FROM studies WHERE study_name = :name"), {"name": files.recorded_as}
    )
    study = {"study": found.scalar()}
    if study["study"] is None:
        raise StudyError(f"{files.store}: holds no study of the name {files.recorded_as!r}")
    query = text("SELECT key, value_json FROM study_user_attributes WHERE study_id = :study")
    facts: Mapping[str, str] = {row.key: row.value_json for row in connection.execute(query, study)}
    if "objectives" not in facts:
        raise StudyError(f"{files.store}: this study was not made by imgcls-search")
    counted = connection.execute(text("SELECT count(*) FROM trials WHERE study_id = :study"), study).scalar()
    known = {name: json.loads(facts.get(name, "null")) for name in ("objectives", "imgcls_search", "space")}
    return Glance(
        objectives=known["objectives"],
        version=known["imgcls_search"],
        space=known["space"],
        trials=int(counted or 0),
    )


def _engine(files: StudyFiles) -> sqlalchemy.Engine:
    if files.address is not None:
        from imgcls_search.study.postgres_connection import make_engine

        return make_engine(files.address, poolclass=sqlalchemy.NullPool)
    return sqlalchemy.create_engine("sqlite://", creator=_opening(files.database), poolclass=sqlalchemy.NullPool)


def _opening(path: Path) -> Callable[[], sqlite3.Connection]:
    is_writable = folder_checks.is_writable(path) and folder_checks.is_writable(path.parent)
    # Without `immutable`, SQLite would create files beside a read-only database.
    url = f"{path.resolve().as_uri()}?{'mode=rw' if is_writable else 'mode=ro&immutable=1'}"
    return lambda: sqlite3.connect(url, uri=True, timeout=database.LOCK_SECONDS)
