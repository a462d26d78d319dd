"""The steps in which a record is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from imgcls_search.config import Scalar
from imgcls_search.study.database import Step, T


class Writes(Protocol):
    """Where a record's steps go: `Rows`, or nowhere in a replay."""

    engine: Any
    """What holds the connection, None where there is none."""

    def read(self, after: int = -1, /) -> list[FrozenTrial]:
        """Return all trials by their numbers, or those of a higher id than `after`."""

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
        """Write a running trial whole, and return its id."""

    def update(
        self, trial_id: int, attributes: Mapping[str, Any], /, *, value: tuple[int, float] | None = None
    ) -> None:
        """Write attributes of a running trial."""

    def set_fact(self, name: str, value: Any, /) -> None:
        """Write a fact about the study as a whole."""

    def append_fact(self, name: str, entry: Mapping[str, Any], /) -> list[Any]:
        """Add an entry to a list that is a fact about the study as a whole, and return the list."""

    def mark_entry(self, name: str, which: str, marks: Mapping[str, Any], /) -> list[Any]:
        """Add to the entry of an id in a list that is a fact about the study as a whole, and return the list."""

    def read_fact(self, name: str, /) -> Any:
        """Return a fact about the study as it is now, None where there is none."""

    def read_list(self, connection: sqlalchemy.Connection, name: str, /) -> list[Any]:
        """Return a list of facts, which nobody else changes until the transaction of a connection ends."""

    @property
    def upserts(self) -> Mapping[Any, Any]:
        """Statements that write attributes, by table."""

    def transact(self, step: Step[T], /) -> T:
        """Do a step in one transaction."""

    def read_end(self, trial_id: int, /) -> tuple[TrialState, tuple[float, ...] | None]:
        """Return the state of a trial, and its values where it has some."""

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
