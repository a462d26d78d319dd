"""Export a trial as a configuration file that can be trained on its own."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeGuard

from imgcls_search.errors import StudyError, UserError
from imgcls_search.measures import of_features
from imgcls_search.orchestrator.study_data import load_with_images
from imgcls_search.space import dump
from imgcls_search.study import best
from imgcls_search.study.activity import shown_state
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trial import Origin, Trial

_ORIGIN = re.compile(r"^#[ \t]*origin:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)


def refuse_pretraining(objectives: Iterable[tuple[str, str]], what: str) -> None:
    """Refuse a search over the pretraining, whose networks have no classes.

    Raises:
        UserError: an objective is measured on features.
    """
    if (metric := of_features(objectives)) is not None:
        raise UserError(
            f"the objective {metric} is of a search over the pretraining, whose networks classify nothing yet; {what} "
            "needs a search that trains on labels; export the best trial and pretrain it"
        )


def export_trial(files: StudyFiles, number: int | None) -> str:
    """Return a trial of a study, by default the confirmed or else the best one, as YAML in the space language.

    Raises:
        StudyError: there is no such study or trial, or several are on its front and none is named.
        NoResultError: no trial is complete.
    """
    record = load_with_images(files)
    trial = chosen_trial(record, number)
    origin = {"study": files.name, "trial": trial.number}
    comments = [
        f"Trial {trial.number} of study {files.name}, exported by imgcls-search.",
        f"Searched {record.where_scored}: {_values(trial, record)}.",
        f"origin: {json.dumps(origin)}",
    ]
    return dump(trial.candidate.config, comments=comments)


def chosen_trial(record: Record, number: int | None) -> Trial:
    """Return the trial with a number; without one, the trial that `confirm` chose, or else the best.

    Raises:
        StudyError: there is no such trial, or several are on the study's front and none is confirmed.
        NoResultError: no trial is complete.
    """
    if number is not None:
        return find_trial(record, number)
    confirmed = record.facts.get("confirmed")
    return best.the_best(record) if confirmed is None else find_trial(record, confirmed["chosen"])


def complete_trial(files: StudyFiles, record: Record, number: int | None) -> Trial:
    """Return the trial that `chosen_trial` returns, and refuse one that is not complete.

    Raises:
        StudyError: as `chosen_trial`, or the trial is not complete.
        NoResultError: no trial is complete.
    """
    trial = chosen_trial(record, number)
    if trial.state != "complete":
        stands = shown_state(trial, record)
        raise StudyError(f"trial {trial.number} of study {files.name!r} is {stands}; allowed: a complete trial")
    return trial


def find_trial(record: Record, number: int) -> Trial:
    """Return a trial by its number.

    Raises:
        StudyError: the study has no such trial.
    """
    if number in record.foreign_trials:
        raise StudyError(f"trial {number} of study {record.study.study_name!r} was not made by imgcls-search")
    if number not in record.by_number:
        allowed = f"0 to {max(record.by_number)}" if record.trials else "none yet"
        raise StudyError(f"study {record.study.study_name!r} has no trial {number}; allowed: {allowed}")
    return record.by_number[number]


def read_origin(text: str) -> tuple[Origin | None, str | None]:
    """Return the study and trial in an exported file's origin comment, None if there is none; and what is wrong there.

    Users may edit the comment, so an invalid one does not stop a training.
    """
    found = _ORIGIN.search(text)
    if found is None:
        return None, None
    with contextlib.suppress(ValueError, RecursionError):
        origin = json.loads(found[1])
        if is_origin(origin):
            return origin, None
    example = json.dumps({"study": "NAME", "trial": 7})
    line = text.count("\n", 0, found.start()) + 1
    return None, f"{line}: the comment {found[0]!r:.120} names no study and trial; allowed: # origin: {example}"


def is_origin(value: Any) -> TypeGuard[Origin]:
    """Tell whether a value names a study and a trial."""
    if not isinstance(value, dict) or not isinstance(value.get("study"), str) or type(value.get("trial")) is not int:
        return False
    with contextlib.suppress(StudyError):
        StudyFiles(Path(), value["study"])
        return bool(value["trial"] >= 0)
    return False


def now() -> str:
    """Return the current time in UTC, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _values(trial: Trial, record: Record) -> str:
    if trial.values is None:
        return f"none, the trial is {shown_state(trial, record)}"
    shown = best.values_in_words(trial, record)
    over = best.over_limits(trial)
    return f"{shown}, which is over {', '.join(over)}" if over else shown
