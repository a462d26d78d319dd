"""Tell whether a search is running on a study, and its state otherwise. All views use this answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imgcls_search.study import endings
from imgcls_search.study.holder import RUN, Holder
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

StudyState = Literal["running", "interrupted", "stopped", "finished"]
"""`stopped`: a budget of the study ended the run; `interrupted`: a person or a fault did."""

ShownState = Literal["complete", "running", "interrupted", "paused", "pruned", "fail"]
"""The state of a trial as shown to people. Optuna also says "running" for a trial that no process trains any more."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The state of a study."""

    state: StudyState
    holder: Holder | None
    """The process that works on it, possibly with another command than `run`."""

    to_resume: int
    """Trials that the next run resumes first."""

    paused: int
    """Trials that it may resume."""

    ended_by: str = ""
    """The setting of the study, or of `auto`, that ended its last run."""

    def __str__(self) -> str:
        """Return the state as part of a sentence."""
        if self.state == "running":
            return f"running, {_worked_on(self.holder)}"
        what = f"{self.state} by {self.ended_by}" if self.ended_by else self.state
        if self.state == "finished":
            return what if self.holder is None else f"{what}, {_worked_on(self.holder)}"
        left = f"{self.to_resume or 'no'} trial{'' if self.to_resume == 1 else 's'} to resume"
        if self.paused:
            left += f" and {self.paused} paused"
        return f"{what}, {left}, {_worked_on(self.holder)}"


def _worked_on(holder: Holder | None) -> str:
    if holder is None:
        return "nobody is working"
    return f"{holder.process} is working" + (f" ({holder.task})" if holder.task != RUN else "")


def activity(record: Record) -> Activity:
    """Return the current state of a study.

    Raises:
        StudyError: its database cannot be reached.
    """
    return activity_of(record, record.files.holder() if record.files is not None else None)


def activity_of(record: Record, holder: Holder | None) -> Activity:
    """Return the state of a study that `holder` works on; None means that nobody does."""
    to_resume, paused = (sum(trial.state == state for trial in record.trials) for state in ("running", "paused"))
    ending = _last_ending(record)
    is_known_end = ending in ("finished", "exhausted", "unknown") or _has_all(record)
    state: StudyState = "interrupted"
    if holder is not None and holder.task == RUN:
        state = "running"
    elif ending in endings.REACHED or (is_known_end and not to_resume and not paused):
        state = "finished"
    elif ending in endings.SPENT:
        state = "stopped"
    ended_by = _ended_by(ending, record) if state in ("stopped", "finished") else ""
    return Activity(state=state, holder=holder, to_resume=to_resume, paused=paused, ended_by=ended_by)


def _ended_by(ending: str, record: Record) -> str:
    timeout = record.facts.get("space", {}).get("study", {}).get("timeout")
    if ending == "timeout" and timeout is None and "auto" in record.facts:
        return "the --time of auto"
    return endings.setting_of(ending)


def shown_state(trial: Trial, record: Record) -> ShownState:
    """Return the state of a trial as shown to people.

    Raises:
        StudyError: the database of its study cannot be reached.
    """
    if trial.state == "running" and activity(record).state != "running":
        return "interrupted"
    return trial.state


def progress_of(record: Record) -> dict[str, int]:
    """Return the counts that a run stores at its end; a mismatch later shows that another run was killed since."""
    return {"trials": len(record.trials), "epochs": sum(trial.epoch for trial in record.trials)}


def _last_ending(record: Record) -> str:
    """Return how the last run ended: empty if it was killed, `unknown` if an older version did not store it."""
    runs = record.facts.get("runs", [])
    if not runs:
        return ""
    last = runs[-1]
    if "ending" not in last:
        return "unknown"
    is_latest = all(last.get(name) == count for name, count in progress_of(record).items())
    return str(last["ending"]) if is_latest else ""


def _has_all(record: Record) -> bool:
    asked: int = record.facts.get("space", {}).get("study", {}).get("trials", 0)
    return record.num_drawn >= asked
