"""A record that is kept in memory only, for replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from imgcls_search.study.record import Record


class DiscardingRows:
    """Accepts the calls of `Rows` but stores nothing; only the record's own trials remain."""

    engine = None
    upserts: Mapping[Any, Any] = {}

    def read(self, after: int = -1) -> list[FrozenTrial]:
        """Return no trials."""
        return []

    def add(self, number: int, params: Any, distributions: Any, attributes: Mapping[str, Any]) -> int:
        """Return the trial's number as its id."""
        return number

    def claim(self, trial_id: int, params: Any, distributions: Any, attributes: Mapping[str, Any]) -> None:
        """Not called: no trial waits in a replay."""
        raise NotImplementedError

    def refuse(self, trial_id: int, reason: str) -> None:
        """Not called: no trial waits in a replay."""
        raise NotImplementedError

    def update(self, trial_id: int, attributes: Mapping[str, Any], *, value: tuple[int, float] | None = None) -> None:
        """Do nothing."""

    def read_end(self, trial_id: int) -> Any:
        """Not called: nobody else ends a trial of a replay."""
        raise NotImplementedError

    def set_fact(self, name: str, value: Any) -> None:
        """Do nothing."""

    def append_fact(self, name: str, entry: Mapping[str, Any]) -> list[Any]:
        """Return the entry alone."""
        return [entry]

    def mark_entry(self, name: str, which: str, marks: Mapping[str, Any]) -> list[Any]:
        """Not called: a replay gets no requests."""
        raise NotImplementedError

    def read_fact(self, name: str) -> Any:
        """Return None: nobody else writes."""

    def read_texts(self, trial_id: int | None = None) -> dict[str, Any]:
        """Not called: there is no database."""
        raise NotImplementedError

    def read_list(self, connection: Any, name: str) -> list[Any]:
        """Not called: there is no database."""
        raise NotImplementedError

    def transact(self, step: Any) -> Any:
        """Not called: there is no database."""
        raise NotImplementedError

    def end(
        self,
        trial_id: int,
        state: Any,
        values: Sequence[float],
        attributes: Mapping[str, Any],
        system_attributes: Mapping[str, Any],
    ) -> None:
        """Do nothing."""


def record_in_memory(name: str, objectives: Sequence[tuple[str, str]]) -> Record:
    """Return an empty record in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name, directions=[StudyDirection[direction.upper()] for _, direction in objectives]
    )
    study.set_user_attr("objectives", [list(objective) for objective in objectives])
    return Record(study, DiscardingRows())
