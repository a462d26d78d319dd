"""Copy a study between databases of any kind, row by row in Optuna's tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

import sqlalchemy
from optuna.storages._rdb import models

from imgcls_search.study.database import explaining_damage
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.tables import FACTS, NOTES, PARAMS, STEPS, STUDIES, SYSTEM, TRIALS, USER, VALUES

_OF_STUDY: tuple[Any, ...] = (models.StudyDirectionModel.__table__, FACTS, NOTES)
_OF_TRIALS: tuple[Any, ...] = (PARAMS, VALUES, STEPS, USER, SYSTEM)

BLOCK = 2000
"""Rows to hold and write at a time."""

_OF_TRIAL = re.compile(r"dashboard:(\d+):")
"""Prefix of optuna-dashboard's keys for notes on a trial, with the trial's id."""


def copy_into(files: StudyFiles, target: sqlalchemy.Engine, name: str, *, first: int | None = None) -> None:
    """Copy a snapshot of a study as `name` into a database with Optuna's tables, in one transaction.

    With `first`, the study `name` exists already: append the trials to it, numbered from `first`.

    Raises:
        StudyError: it cannot be read, or is damaged.
    """
    storage = files.store.open()
    which = _which(files.recorded_as)
    try:
        with (
            explaining_damage(str(files.store)),
            files.store.access.reading(storage.engine) as ours,
            target.begin() as theirs,
        ):
            old = ours.execute(which).scalar_one()
            new = theirs.execute(_adding(name) if first is None else _which(name)).scalar_one()
            ids: dict[int, int] = {}

            def write_trials(rows: list[dict[str, Any]]) -> None:
                bare = [{key: value for key, value in row.items() if key != "trial_id"} for row in rows]
                adding = TRIALS.insert().returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
                ids.update(zip((row["trial_id"] for row in rows), theirs.execute(adding, bare).scalars(), strict=True))

            in_study = TRIALS.c.study_id == old
            moved = {"study_id": lambda _: new, "number": lambda number: number + (first or 0)}
            _carry(ours, TRIALS, in_study, moved, write_trials, keeps_key=True)
            of_trials = sqlalchemy.select(TRIALS.c.trial_id).where(in_study)
            for table in _OF_STUDY if first is None else ():
                changes: dict[str, Callable[[Any], Any]] = {"study_id": lambda _: new}
                if table is NOTES:
                    changes["key"] = lambda key: _with_ids(key, ids)
                _carry(ours, table, table.c.study_id == old, changes, _writing(theirs, table))
            for table in _OF_TRIALS:
                _carry(ours, table, table.c.trial_id.in_(of_trials), {"trial_id": ids.get}, _writing(theirs, table))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def earlier_states(files: StudyFiles) -> list[StudyFiles]:
    """Return the states of a study from before each extension of its space, oldest first.

    Raises:
        StudyError: it cannot be read.
    """
    if files.kept is not None:
        return []
    storage = files.store.open()
    try:
        with files.store.access.reading(storage.engine) as connection:
            names = set(connection.execute(sqlalchemy.select(STUDIES.c.study_name)).scalars())
    finally:
        storage.remove_session()
        storage.engine.dispose()
    numbers = takewhile(lambda number: files.kept_as(number) in names, count(1))
    return [replace(files, kept=number) for number in numbers]


def _with_ids(key: Any, ids: Mapping[int, int]) -> Any:
    """Return a key with the new id of its trial; keys that are not text come from damage, and stay as they are."""
    return _OF_TRIAL.sub(lambda it: f"dashboard:{ids.get(int(it[1]))}:", key) if isinstance(key, str) else key


def _which(name: str) -> Any:
    return sqlalchemy.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)


def _adding(name: str) -> Any:
    return STUDIES.insert().values(study_name=name).returning(STUDIES.c.study_id)


def copy_study_rows(connection: sqlalchemy.Connection, old: int, name: str) -> None:
    """Copy a study to another name within its database, in the transaction of the connection."""
    new = connection.execute(_adding(name)).scalar_one()
    bare = [column for column in TRIALS.c if column.name not in ("trial_id", "study_id")]
    trials = sqlalchemy.select(sqlalchemy.literal(new), *bare).where(TRIALS.c.study_id == old)
    names = ["study_id", *(column.name for column in bare)]
    connection.execute(TRIALS.insert().from_select(names, trials.order_by(TRIALS.c.trial_id)))
    theirs, ours = TRIALS.alias("theirs"), TRIALS.alias("ours")
    same = (theirs.c.study_id == old) & (ours.c.study_id == new) & (ours.c.number == theirs.c.number)
    ids = dict(map(tuple, connection.execute(sqlalchemy.select(theirs.c.trial_id, ours.c.trial_id).where(same))))
    for table in _OF_STUDY:
        columns = [column for column in table.c if column.name not in (*table.primary_key.columns.keys(), "study_id")]
        rows = connection.execute(sqlalchemy.select(*columns).where(table.c.study_id == old)).mappings().all()
        copied = [{**row, "study_id": new} for row in rows]
        if table is NOTES:
            for row in copied:
                row["key"] = _with_ids(row["key"], ids)
        if copied:
            connection.execute(table.insert(), copied)
    for table in _OF_TRIALS:
        (key,) = table.primary_key.columns
        columns = [column for column in table.c if column.name not in (key.name, "trial_id")]
        joined = sqlalchemy.select(ours.c.trial_id, *columns).where(same & (table.c.trial_id == theirs.c.trial_id))
        names = ["trial_id", *(column.name for column in columns)]
        connection.execute(table.insert().from_select(names, joined.order_by(key)))


def _writing(connection: sqlalchemy.Connection, table: Any) -> Callable[[list[dict[str, Any]]], None]:
    def write(rows: list[dict[str, Any]]) -> None:
        connection.execute(table.insert(), rows)

    return write


def _carry(
    source: sqlalchemy.Connection,
    table: Any,
    which: Any,
    changes: Mapping[str, Callable[[Any], Any]],
    write: Callable[[list[dict[str, Any]]], None],
    *,
    keeps_key: bool = False,
) -> None:
    """Pass rows to `write` in their original order, in blocks, with some columns changed."""
    (key,) = table.primary_key.columns
    columns = [column for column in table.c if keeps_key or column is not key]
    found = source.execute(sqlalchemy.select(*columns).where(which).order_by(key))
    for block in found.mappings().partitions(BLOCK):
        write([{**row, **{name: change(row[name]) for name, change in changes.items()}} for row in block])
