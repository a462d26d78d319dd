"""Optuna's tables, and how to read a trial from their rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
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
    """Return a trial from its row and the rows that belong to it, without the values that dashboards draw."""
    distributions = {name: read_distribution(text) for name, _, text in params}
    read = models.TrialValueModel.stored_repr_to_value
    return FrozenTrial(
        number=row.number,
        trial_id=row.trial_id,
        state=row.state,
        value=None,
        values=[read(value, kind) for _, value, kind in sorted(values, key=lambda entry: entry[0])] or None,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params={name: distributions[name].to_external_repr(value) for name, value, _ in params},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in user},
        system_attrs={key: json.loads(text) for key, text in system},
        intermediate_values={},
    )


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
