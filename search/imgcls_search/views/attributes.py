"""The attributes of a study and its trials: one line each for a dashboard, and all as JSON under a path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

MOST = 160
"""Most characters of a shown attribute."""

_ADDRESS = re.compile(r"/attributes/(study|\d{1,9})\.json")


def shorten(page: MutableMapping[str, Any], record: Record) -> None:
    """Shorten the attributes on a study's page, and add the path of the full ones."""
    page["user_attrs"] = _entries({**record.facts}, "study")
    for key in ("trials", "best_trials"):
        shorten_trials(page[key], record)


def shorten_trials(entries: Sequence[MutableMapping[str, Any]], record: Record) -> None:
    """Shorten the attributes of trials on a page in the same way."""
    for entry in entries:
        # The record may be older than the page, and trials of other programs have other attributes.
        trial = record.by_number.get(entry["number"])
        known = {each["key"]: _read(each["value"]) for each in entry["user_attrs"]}
        if "all" not in known:
            of_ours = {} if trial is None else _long_ones(trial)
            kept = {key: value for key, value in of_ours.items() if key in known}
            entry["user_attrs"] = _entries({**known, **kept}, str(entry["number"]))


def shorten_summary(summary: MutableMapping[str, Any], record: Record) -> None:
    """Do the same to a study in the list of all studies, which may be another one than the record's."""
    if summary["study_name"] == record.study.study_name:
        summary["user_attrs"] = _entries({**record.facts}, "study")
        return
    known = {each["key"]: _read(each["value"]) for each in summary["user_attrs"]}
    # The list has only the beginning of long JSON.
    cut = [key for key, value in known.items() if isinstance(value, str) and value.startswith(("{", "["))]
    known |= dict.fromkeys(cut, "too long for this list")
    summary["user_attrs"] = [{"key": key, "value": brief(value)} for key, value in known.items()]


def _entries(attributes: Mapping[str, Any], name: str) -> list[dict[str, str]]:
    shown = [{"key": key, "value": brief(value)} for key, value in attributes.items()]
    return [{"key": "all", "value": f"/attributes/{name}.json"}, *shown]


def _long_ones(trial: Trial) -> dict[str, Any]:
    """Return summaries of the attributes of a trial that are too long for a page."""
    config = trial.candidate.config.to_dict()
    chosen = [f"{section} {next(iter(value))}" for section, value in config.items() if len(value) == 1]
    last = trial.epochs[-1] if trial.epochs else {}
    return {
        "config": ", ".join(chosen),
        "epochs": f"{trial.epoch}, last: {brief({name: last[name] for name in last if name != 'epoch'})}",
        "scores": {f"after epoch {epoch}": scores for epoch, scores in list(trial.scores.items())[-1:]},
        "rejected_before": [rejection.reason for rejection in trial.rejected_before],
    }


def _read(text: Any) -> Any:
    """Parse an attribute: JSON, unless it is a text, was cut off, or is damaged."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text


def brief(value: Any) -> str:
    """Return a value in at most `MOST` characters."""
    try:
        text = _words(value)
    except RecursionError:
        text = "too many levels of values in each other"
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def _words(value: Any) -> str:
    match value:
        case bool() | int():
            return json.dumps(value)
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case Mapping():
            return ", ".join(f"{key} {_words(part)}" for key, part in list(value.items())[:MOST])
        case list() | tuple():
            short = len(value) <= 5 and not any(isinstance(part, Mapping) for part in value)
            return ", ".join(map(_words, value)) if short else f"{len(value)}, last: {_words(value[-1])}"
    return "none" if value is None else str(value)


def is_address(path: str) -> bool:
    """Tell whether a path is that of attributes."""
    return _ADDRESS.fullmatch(path) is not None


def whole(path: str, record: Record) -> bytes:
    """Return the attributes that a path names, as JSON; one that is damaged is a text.

    Raises:
        KeyError: there is no such trial.
        StudyError: the database cannot be read.
    """
    found = _ADDRESS.fullmatch(path)
    assert found is not None
    if found[1] == "study":
        stored = record.rows.read_texts()
    else:
        number = int(found[1])
        known = record.ids.get(number)
        other = record.foreign_trials.get(number)
        trial_id = known if known is not None else other.id if other is not None else None
        if trial_id is None:
            raise KeyError(number)
        stored = record.rows.read_texts(trial_id)
    return json.dumps({key: _read(text) for key, text in stored.items()}, indent=1, default=str).encode()
