"""What a call of `auto` gets, who shows its progress, and what it delivers."""

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
    """What a call of `auto` asks for."""

    component: Component
    seconds: float | None
    """In all, over all calls; None: as said before, or an hour."""

    out: Path | None
    flips: Flips | None
    ask_flips: Callable[[], Flips]
    """Asks a person, where the draft is made and the call does not say."""

    studies: Path
    storage: str | None
    cluster: str | None
    changes: list[tuple[str, str]]
    """Paths of the space, with other values for this call."""

    started: float
    """When the call began, by `time.monotonic`."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What `auto` made."""

    output: OutputFolder
    files: StudyFiles
    record: Record
    trial: Trial
    """The chosen one."""

    confirmed: Confirmation | None
    account: AutoFact
    decisions: tuple[Decision, ...]
    """Of the draft, where this call made it."""

    has_report: bool


class Interrupted(Exception):  # noqa: N818 - no error
    """A person stopped the search, which saved what it had."""

    def __init__(self, ending: str) -> None:
        super().__init__(ending)
        self.ending = ending
