"""Write a study's trials to Optuna's tables, one transaction per step.

Optuna's storage uses a transaction for every attribute, value and state, and looks a trial up again for each; together
they cost more than the decisions that they record. Optuna reads these rows like its own; tests compare them with rows
that Optuna writes.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from imgcls_search.config import Scalar
from imgcls_search.errors import StudyError
from imgcls_search.study.database import Access, FileAccess, Step, T, explaining_damage, public_name
from imgcls_search.study.tables import (
    FACTS,
    INSERTS,
    NOTES,
    PARAMS,
    STEPS,
    STUDIES,
    SYSTEM,
    TRIALS,
    USER,
    VALUES,
    freeze,
    upsert,
)


class EndedError(Exception):
    """Another process has ended the trial; it accepts no more writes."""


class NumberTakenError(Exception):
    """Another process has added a trial with this number."""


class Rows:
    """The trials of one study in the database."""

    def __init__(self, engine: sqlalchemy.Engine, study_id: int, access: Access | None = None) -> None:
        """Take the engine of an Optuna storage that holds the study."""
        self.engine = engine
        self.study_id = study_id
        self.access = access or FileAccess()
        self.insert = INSERTS[engine.name]
        self.upserts = {table: upsert(self.insert, table) for table in (USER, SYSTEM, FACTS, NOTES)}

    def read(self, after: int = -1) -> list[FrozenTrial]:
        """Return a snapshot of all trials, ordered by number, without the values that dashboards draw.

        With `after`, read only trials with a higher id: those that were added since.

        Optuna's own reader parses every distribution of every trial again and takes several times as long.

        Raises:
            StudyError: the database cannot be read.
        """
        with self.access.reading(self.engine) as connection:
            which = (TRIALS.c.study_id == self.study_id) & (TRIALS.c.trial_id > after)
            trials = connection.execute(sqlalchemy.select(TRIALS).where(which).order_by(TRIALS.c.number)).all()
            if not trials:
                return []
            params = self._by_trial(connection, which, PARAMS, "param_name", "param_value", "distribution_json")
            values = self._by_trial(connection, which, VALUES, "objective", "value", "value_type")
            user, system = (self._by_trial(connection, which, table, "key", "value_json") for table in (USER, SYSTEM))
        return [
            freeze(row, params[row.trial_id], values[row.trial_id], user[row.trial_id], system[row.trial_id])
            for row in trials
        ]

    def add(
        self,
        number: int,
        params: Mapping[str, Scalar],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
    ) -> int:
        """Write a running trial with all its rows, and return its id.

        Raises:
            NumberTakenError: another process has added trials since they were read; nothing was written.
            StudyError: the database cannot be written.
        """
        trial = {"number": number, "study_id": self.study_id, "state": TrialState.RUNNING, "datetime_start": _now()}
        its_number = (TRIALS.c.study_id == self.study_id) & (TRIALS.c.number == number)

        def step(connection: sqlalchemy.Connection, again: bool) -> int:
            if again and (known := connection.execute(sqlalchemy.select(TRIALS.c.trial_id).where(its_number)).scalar()):
                if not self._is_written_so(connection, known, TrialState.RUNNING, attributes):
                    raise NumberTakenError
                return int(known)
            trial_id = int(connection.execute(TRIALS.insert().returning(TRIALS.c.trial_id), trial).scalar_one())
            count = sqlalchemy.select(sqlalchemy.func.count()).where(TRIALS.c.study_id == self.study_id)
            if connection.execute(count).scalar_one() != number + 1:
                raise NumberTakenError
            self._set_params(connection, trial_id, params, distributions)
            self._set_attributes(connection, USER, trial_id, attributes)
            return trial_id

        return self.transact(step)

    def claim(
        self,
        trial_id: int,
        params: Mapping[str, Scalar],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
    ) -> None:
        """Turn a waiting trial that someone else added into a running one of ours.

        Raises:
            EndedError: it no longer waits.
            StudyError: the database cannot be written.
        """
        begun = {"state": TrialState.RUNNING, "datetime_start": _now()}

        def step(connection: sqlalchemy.Connection, again: bool) -> None:
            if again and self._is_written_so(connection, trial_id, TrialState.RUNNING, attributes):
                return
            self._hold(connection, trial_id, TrialState.WAITING)
            connection.execute(PARAMS.delete().where(PARAMS.c.trial_id == trial_id))
            self._set_params(connection, trial_id, params, distributions)
            self._set_attributes(connection, USER, trial_id, attributes)
            connection.execute(TRIALS.update().where(TRIALS.c.trial_id == trial_id), begun)

        self.transact(step)

    def refuse(self, trial_id: int, reason: str) -> None:
        """End a waiting trial that someone else added as failed.

        Raises:
            EndedError: it no longer waits.
            StudyError: the database cannot be written.
        """
        ended = {"state": TrialState.FAIL, "datetime_complete": _now()}

        def step(connection: sqlalchemy.Connection, again: bool) -> None:
            if again and self._is_written_so(connection, trial_id, TrialState.FAIL, {"reason": reason}):
                return
            self._hold(connection, trial_id, TrialState.WAITING)
            self._set_attributes(connection, USER, trial_id, {"reason": reason})
            connection.execute(TRIALS.update().where(TRIALS.c.trial_id == trial_id), ended)

        self.transact(step, durable=True)

    def update(self, trial_id: int, attributes: Mapping[str, Any], *, value: tuple[int, float] | None = None) -> None:
        """Write attributes of a running trial, and its value at an epoch if there is one.

        Raises:
            EndedError: another process has ended the trial.
            StudyError: the database cannot be written.
        """

        def step(connection: sqlalchemy.Connection, again: bool) -> None:
            self._hold(connection, trial_id)
            self._set_attributes(connection, USER, trial_id, attributes)
            if value is not None:
                shown, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value[1])
                if again:
                    # Attributes are replaced, but a step that an earlier attempt wrote would be refused.
                    is_there = (STEPS.c.trial_id == trial_id) & (STEPS.c.step == value[0])
                    connection.execute(STEPS.delete().where(is_there))
                entry = {"trial_id": trial_id, "step": value[0], "intermediate_value": shown}
                connection.execute(STEPS.insert(), {**entry, "intermediate_value_type": kind})

        self.transact(step)

    def end(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float],
        attributes: Mapping[str, Any],
        system_attributes: Mapping[str, Any],
    ) -> None:
        """Write the end of a running trial with its values and attributes; it is on disk on return.

        Raises:
            EndedError: another process has ended the trial.
            StudyError: the database cannot be written.
        """
        ended = {"state": state, "datetime_complete": _now()}

        def step(connection: sqlalchemy.Connection, again: bool) -> None:
            if again and self._is_written_so(connection, trial_id, state, attributes):
                return
            self._hold(connection, trial_id)
            self._set_attributes(connection, USER, trial_id, attributes)
            self._set_attributes(connection, SYSTEM, trial_id, system_attributes)
            for objective, value in enumerate(values):
                shown, kind = models.TrialValueModel.value_to_stored_repr(value)
                entry = {"trial_id": trial_id, "objective": objective, "value": shown, "value_type": kind}
                connection.execute(VALUES.insert(), entry)
            connection.execute(TRIALS.update().where(TRIALS.c.trial_id == trial_id), ended)

        self.transact(step, durable=True)

    def set_fact(self, name: str, value: Any) -> None:
        """Write an attribute of the study as a whole.

        Raises:
            StudyError: the database cannot be written.
        """
        row = {"study_id": self.study_id, "key": name, "value_json": json.dumps(value)}
        self._replace(FACTS, [row])

    def append_fact(self, name: str, entry: Mapping[str, Any]) -> list[Any]:
        """Append to a list that is an attribute of the study, safely while others do so, and return the list.

        Raises:
            StudyError: the database cannot be written, or the attribute is not a list.
        """
        mark = {"id": uuid.uuid4().hex[:12], **entry}
        return self._change_list(name, lambda known: known if mark in known else [*known, mark])

    def mark_entry(self, name: str, which: str, marks: Mapping[str, Any]) -> list[Any]:
        """Update the entry with an id in a list that is an attribute of the study, and return the list.

        Raises:
            StudyError: the database cannot be written, or the attribute is not a list.
        """
        return self._change_list(
            name, lambda known: [{**entry, **marks} if entry.get("id") == which else entry for entry in known]
        )

    def read_fact(self, name: str) -> Any:
        """Return the current value of an attribute of the study, or None if it is not set.

        Raises:
            StudyError: the database cannot be read.
        """
        mine = (FACTS.c.study_id == self.study_id) & (FACTS.c.key == name)
        with explaining_damage(public_name(self.engine.url)), self.access.reading(self.engine) as connection:
            text = connection.execute(sqlalchemy.select(FACTS.c.value_json).where(mine)).scalar()
            return None if text is None else json.loads(text)

    def read_texts(self, trial_id: int | None = None) -> dict[str, Any]:
        """Return the user attributes of a trial, or of the study, as the texts that are stored, whatever they are.

        Raises:
            StudyError: the database cannot be read.
        """
        table, owner = (FACTS, FACTS.c.study_id) if trial_id is None else (USER, USER.c.trial_id)
        query = sqlalchemy.select(table.c["key", "value_json"])
        mine = query.where(owner == (self.study_id if trial_id is None else trial_id))
        with self.access.reading(self.engine) as connection:
            return {str(key): text for key, text in connection.execute(mine)}

    def read_list(self, connection: sqlalchemy.Connection, name: str) -> list[Any]:
        """Return a list that is an attribute of the study; it cannot change until the transaction ends.

        Raises:
            StudyError: the attribute is not a list.
        """
        study = STUDIES.update().where(STUDIES.c.study_id == self.study_id)
        # Write without a change, to take the lock: others wait here for their turn to read the list.
        connection.execute(study.values(study_name=STUDIES.c.study_name))
        mine = (FACTS.c.study_id == self.study_id) & (FACTS.c.key == name)
        text = connection.execute(sqlalchemy.select(FACTS.c.value_json).where(mine)).scalar()
        with explaining_damage(public_name(self.engine.url)):
            known = [] if text is None else json.loads(text)
        if not isinstance(known, list):
            raise StudyError(f"{public_name(self.engine.url)}: the study's {name!r} is damaged: not a list")
        return known

    def _change_list(self, name: str, change: Callable[[list[Any]], list[Any]]) -> list[Any]:
        def step(connection: sqlalchemy.Connection, again: bool) -> list[Any]:
            changed = change(self.read_list(connection, name))
            row = {"study_id": self.study_id, "key": name, "value_json": json.dumps(changed)}
            connection.execute(self.upserts[FACTS], [row])
            return changed

        return self.transact(step)

    def read_system_facts(self) -> dict[str, Any]:
        """Return the attributes that Optuna and its dashboard store for the study.

        Raises:
            StudyError: the database cannot be read.
        """
        query = sqlalchemy.select(NOTES.c["key", "value_json"]).where(NOTES.c.study_id == self.study_id)
        with explaining_damage(public_name(self.engine.url)), self.access.reading(self.engine) as connection:
            # Keys that are not text come from damage; nothing looks them up.
            return {key: json.loads(text) for key, text in connection.execute(query) if isinstance(key, str)}

    def set_system_facts(self, facts: Mapping[str, Any]) -> None:
        """Write several of the attributes that Optuna and its dashboard store for the study, in one transaction.

        Raises:
            StudyError: the database cannot be written.
        """
        rows = [
            {"study_id": self.study_id, "key": key, "value_json": json.dumps(value)} for key, value in facts.items()
        ]
        self._replace(NOTES, rows)

    def read_end(self, trial_id: int) -> tuple[TrialState, tuple[float, ...] | None]:
        """Return the state of a trial, and its values if it has any.

        Raises:
            StudyError: the database cannot be read.
        """
        which = sqlalchemy.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id)
        told = sqlalchemy.select(VALUES.c["value", "value_type"]).where(VALUES.c.trial_id == trial_id)

        def step(connection: sqlalchemy.Connection, again: bool) -> tuple[TrialState, tuple[float, ...] | None]:
            read = models.TrialValueModel.stored_repr_to_value
            values = connection.execute(told.order_by(VALUES.c.objective)).all()
            return connection.execute(which).scalar_one(), tuple(read(*value) for value in values) or None

        return self.transact(step)

    def _replace(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        def step(connection: sqlalchemy.Connection, again: bool) -> None:
            connection.execute(self.upserts[table], rows)

        self.transact(step)

    def transact(self, step: Step[T], *, durable: bool = False) -> T:
        """Do a step in one transaction.

        Raises:
            StudyError: the database cannot be written.
        """
        return self.access.transact(self.engine, self.study_id, step, durable=durable)

    def _is_written_so(
        self, connection: sqlalchemy.Connection, trial_id: int, state: TrialState, attributes: Mapping[str, Any]
    ) -> bool:
        """Tell whether an earlier attempt was committed: the trial then has this state and these attributes."""
        found = sqlalchemy.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id)
        known = sqlalchemy.select(USER.c.key, USER.c.value_json).where(USER.c.trial_id == trial_id)
        written: dict[str, str] = dict(map(tuple, connection.execute(known)))
        return connection.execute(found).scalar_one() is state and all(
            written.get(key) == json.dumps(value) for key, value in attributes.items()
        )

    @staticmethod
    def _by_trial(connection: sqlalchemy.Connection, which: Any, table: Any, *names: str) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = defaultdict(list)
        ours = sqlalchemy.select(TRIALS.c.trial_id).where(which)
        # In the order in which the rows were written.
        order = next(iter(table.primary_key.columns))
        query = sqlalchemy.select(table.c.trial_id, *table.c[names]).where(table.c.trial_id.in_(ours)).order_by(order)
        for trial_id, *rest in connection.execute(query):
            found[trial_id].append(rest)
        return found

    def _hold(self, connection: sqlalchemy.Connection, trial_id: int, state: TrialState = TrialState.RUNNING) -> None:
        """Lock a trial by a write that changes nothing, and check that it is in the given state."""
        is_so = (TRIALS.c.trial_id == trial_id) & (TRIALS.c.state == state)
        held = connection.execute(TRIALS.update().where(is_so).values(number=TRIALS.c.number))
        if held.rowcount == 0:
            raise EndedError

    @staticmethod
    def _set_params(
        connection: sqlalchemy.Connection,
        trial_id: int,
        params: Mapping[str, Scalar],
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        rows = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(distributions[name]),
            }
            for name, value in params.items()
        ]
        if rows:
            connection.execute(PARAMS.insert(), rows)

    def _set_attributes(
        self, connection: sqlalchemy.Connection, table: Any, trial_id: int, attributes: Mapping[str, Any]
    ) -> None:
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
        ]
        if rows:
            connection.execute(self.upserts[table], rows)


def _now() -> datetime:
    # UTC without a zone, as Optuna stores it; its trials show local time.
    return datetime.now(timezone.utc).replace(tzinfo=None)
