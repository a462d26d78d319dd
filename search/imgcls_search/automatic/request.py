"""The request and the result of a call of `auto`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls_search.automatic.output import OutputFolder
from imgcls_search.config import Component
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import AutoFact, Confirmation
from imgcls_search.trial import Trial

if TYPE_CHECKING:
    from imgcls_search.jobs.init.draft import Decision, Flips


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a call of `auto`."""

    component: Component
    seconds: float | None
    """Total over all calls; None: as in an earlier call, else one hour."""

    out: Path | None
    flips: Flips | None
    ask_flips: Callable[[], Flips | None]
    """Asks the user when a draft is made and `flips` is None; returns None if `changes` say it."""

    studies: Path
    storage: str | None
    cluster: str | None
    changes: list[tuple[str, str]]
    """Paths in the space and their values for this call."""

    started: float
    """When the call began, by `time.monotonic`."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """The result of a call of `auto`."""

    output: OutputFolder
    files: StudyFiles
    record: Record
    trial: Trial
    """The chosen trial."""

    confirmed: Confirmation | None
    account: AutoFact
    decisions: tuple[Decision, ...]
    """Decisions of the draft, if this call made it."""

    has_report: bool


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user stopped the search, which saved its state."""

    def __init__(self, ending: str) -> None:
        super().__init__(ending)
        self.ending = ending
