"""The interface for writing a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from imgcls_search.config import Scalar
from imgcls_search.study.database import Step, T


class Writes(Protocol):
    """Where a record writes to: `Rows`, or nowhere in a replay."""

    engine: Any
    """The engine of the database, None if there is none."""

    def read(self, after: int = -1, /) -> list[FrozenTrial]:
        """Return all trials ordered by number, or only those with a higher id than `after`."""

    def claim(
        self,
        trial_id: int,
        params: Mapping[str, Scalar],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
        /,
    ) -> None:
        """Make a waiting trial a running one."""

    def refuse(self, trial_id: int, reason: str, /) -> None:
        """End a waiting trial as failed."""

    def add(
        self,
        number: int,
        params: Mapping[str, Scalar],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
        /,
    ) -> int:
        """Write a running trial with all its rows, and return its id."""

    def update(
        self, trial_id: int, attributes: Mapping[str, Any], /, *, value: tuple[int, float] | None = None
    ) -> None:
        """Write attributes of a running trial."""

    def set_fact(self, name: str, value: Any, /) -> None:
        """Write a fact about the study as a whole."""

    def append_fact(self, name: str, entry: Mapping[str, Any], /) -> list[Any]:
        """Append to a list that is a fact about the study as a whole, and return the list."""

    def mark_entry(self, name: str, which: str, marks: Mapping[str, Any], /) -> list[Any]:
        """Update the entry with an id in a list that is a fact about the study as a whole, and return the list."""

    def read_fact(self, name: str, /) -> Any:
        """Return the current value of a fact about the study, or None if it is not set."""

    def read_texts(self, trial_id: int | None = None, /) -> dict[str, Any]:
        """Return the user attributes of a trial, or of the study, as the texts that are stored."""

    def read_list(self, connection: sqlalchemy.Connection, name: str, /) -> list[Any]:
        """Return a list of facts, which cannot change until the transaction of the connection ends."""

    @property
    def upserts(self) -> Mapping[Any, Any]:
        """Statements that write attributes, by table."""

    def transact(self, step: Step[T], /) -> T:
        """Do a step in one transaction."""

    def read_end(self, trial_id: int, /) -> tuple[TrialState, tuple[float, ...] | None]:
        """Return the state of a trial, and its values if it has any."""

    def end(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float],
        attributes: Mapping[str, Any],
        system_attributes: Mapping[str, Any],
        /,
    ) -> None:
        """Write the end of a running trial."""
