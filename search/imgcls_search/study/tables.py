"""Optuna's tables, and how to read a trial from their rows."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy.dialects import postgresql, sqlite

STUDIES: Any = models.StudyModel.__table__
TRIALS: Any = models.TrialModel.__table__
PARAMS: Any = models.TrialParamModel.__table__
VALUES: Any = models.TrialValueModel.__table__
STEPS: Any = models.TrialIntermediateValueModel.__table__
USER: Any = models.TrialUserAttributeModel.__table__
FACTS: Any = models.StudyUserAttributeModel.__table__
NOTES: Any = models.StudySystemAttributeModel.__table__
SYSTEM: Any = models.TrialSystemAttributeModel.__table__
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def freeze(row: Any, params: Any, values: Any, user: Any, system: Any) -> FrozenTrial:
    """Return a trial from its row and the rows that belong to it, without the values that dashboards draw.

    Raises:
        TypeError, ValueError, LookupError: a value is not one that a program writes.
    """
    distributions = {name: read_distribution(text) for name, _, text in params}
    read = models.TrialValueModel.stored_repr_to_value
    return FrozenTrial(
        number=row.number,
        trial_id=row.trial_id,
        state=row.state,
        value=None,
        values=[read(value, kind) for _, value, kind in sorted(values, key=lambda entry: entry[0])] or None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={name: _param(name, value, distributions[name]) for name, value, _ in params},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in user},
        system_attrs={key: json.loads(text) for key, text in system},
        intermediate_values={},
    )


def _local(stored: datetime | None) -> datetime | None:
    """Return a stored time, UTC without a zone, as the local time that Optuna shows."""
    return None if stored is None else stored.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)


def _param(name: Any, value: Any, distribution: BaseDistribution) -> Any:
    """Return a stored parameter; SQLite keeps a value of any type in any column, and Optuna checks none."""
    if not isinstance(name, str) or type(value) not in (int, float) or not math.isfinite(value):
        raise TypeError(f"parameter {name!r:.80} is {value!r:.40}")
    # Others are numbers of choices, or whole numbers.
    if not isinstance(distribution, FloatDistribution) and value != int(value):
        raise ValueError(f"parameter {name} is {value!r:.40}, which is no whole number")
    if isinstance(distribution, CategoricalDistribution) and value < 0:
        raise ValueError(f"parameter {name} is choice {value!r:.40}")
    return distribution.to_external_repr(value)


@lru_cache(maxsize=4096)
def read_distribution(text: str) -> BaseDistribution:
    """Parse a stored distribution; a reader cannot do anything about Optuna's warnings of choices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Choices for a categorical distribution", category=UserWarning)
        return json_to_distribution(text)


def upsert(insert: Any, table: Any) -> Any:
    """Return the statement that writes an attribute or replaces an existing one."""
    statement = insert(table)
    owner = table.c.study_id if table in (FACTS, NOTES) else table.c.trial_id
    return statement.on_conflict_do_update(
        index_elements=[owner, table.c.key], set_={"value_json": statement.excluded.value_json}
    )
