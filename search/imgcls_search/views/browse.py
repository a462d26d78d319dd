"""Browse studies and trials: lists, tables, and the differences between two of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, final

from imgcls_search.errors import SearchError, UserError, closest
from imgcls_search.jobs.export import find_trial
from imgcls_search.measures import share_of_images, sign_of
from imgcls_search.rounding import pairs
from imgcls_search.space import differences
from imgcls_search.study import best
from imgcls_search.study.activity import ShownState
from imgcls_search.study.address import Address
from imgcls_search.study.files import find_study, study_names
from imgcls_search.study.record import Record, load
from imgcls_search.study.summary import Summary, TrialSummary, describe, summarise
from imgcls_search.terminal import shown
from imgcls_search.trial import Trial


class TrialRow(TrialSummary):
    """A row of a table of trials; values of an unfinished trial are its last ones."""

    family: str


@final
class ListedStudy(Summary):
    """A study in a list."""

    confirmed: int | None
    """The confirmed trial, None if there is none."""


@final
class UnreadableStudy(TypedDict):
    """A study that cannot be read."""

    study: str
    problem: str


class Change(TypedDict):
    """A score or a size of two trials."""

    first: float
    second: float
    change: float


class TrialComparison(TypedDict):
    """Differences between two trials; lists contain the value of the first and of the second."""

    trials: list[int]
    states: list[ShownState]
    epochs: list[int]
    config: list[str]
    """Differences between the configurations, as text."""

    measured: dict[str, Change]
    val_images: int | None
    """The smaller of the two numbers."""

    noise: float | None
    """How much their shares of right images may differ just from sampling the images (95 %)."""


class _Named(TypedDict):
    names: list[str]


class ComparedTrials(_Named, TrialComparison):
    """Two trials and the names that the user gave."""

    kind: Literal["trials"]


class ChosenTrials(TypedDict):
    """The objective by which each study's trial was chosen, and the number of trials on its front."""

    by: list[list[str]]
    of: list[int]


class ComparedStudies(_Named):
    """Two studies; lists contain the value of the first and of the second."""

    kind: Literal["studies"]
    space: list[str]
    """Differences between their spaces, as text."""

    facts: list[str]
    """Differences between their images and versions, as text."""

    trials: list[dict[str, int]]
    """Number of trials, in total and by state."""

    epochs: list[int]
    chosen: ChosenTrials
    best: TrialComparison


def list_studies(root: Path, at: Address | None = None) -> list[ListedStudy | UnreadableStudy]:
    """Summarise each study of a folder or a database; list unreadable ones with the reason.

    Raises:
        StudyError: the database cannot be reached.
    """
    found: list[ListedStudy | UnreadableStudy] = []
    for name in study_names(root, at):
        try:
            record = load(find_study(root, name, at))
        except SearchError as error:
            found.append({"study": name, "problem": str(error)})
            continue
        confirmed = record.facts.get("confirmed")
        found.append({**summarise(record), "confirmed": confirmed["chosen"] if confirmed else None})
    return found


def trial_rows(record: Record, *, top: int | None, family: str | None) -> list[TrialRow]:
    """Return the trials of a study in their order, or with `top` the best ones, finished trials first.

    Raises:
        UserError: no trial is of this family.
    """
    trials = record.trials if top is None else _best_first(record)
    if family is not None:
        known = sorted({family_of(trial) for trial in record.trials})
        if family not in known:
            raise UserError(
                f"--family {family}: no trial is of it{closest(family, known)}; there are: {', '.join(known)}"
            )
        trials = [trial for trial in trials if family_of(trial) == family]
    return [row_of(trial, record) for trial in trials[:top]]


COLUMNS = ("trial", "state", "epochs", "value", "parameters", "settings")
"""Columns of a table of trials, on a terminal and in a notebook."""


def cells_of(row: TrialRow, images: int | None) -> tuple[str, ...]:
    """Return a trial's cells of a table, one for each of `COLUMNS`; `images` determines the rounding of scores."""
    settings = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in row["params"].items()
    )
    state = row["state"] if row["state"] != "fail" else f"fail: {row['reason']}"
    return (
        str(row["trial"]),
        state,
        str(row["epochs"]),
        pairs(row["values"], images),
        f"{row['sizes']['params']:,.0f}" if "params" in row["sizes"] else "",
        settings,
    )


def family_of(trial: Trial) -> str:
    """Return the family of a trial's network."""
    return trial.candidate.config.component("model").name


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with a column for every key and every key of their mappings."""
    flat = [
        {
            **{key: value for key, value in row.items() if not isinstance(value, Mapping)},
            **{
                name: value
                for key, entry in row.items()
                if isinstance(entry, Mapping) and key != "classes"
                for name, value in entry.items()
            },
            **{
                f"{measure}:{name}": value
                for name, entry in row.get("classes", {}).items()
                for measure, value in entry.items()
            },
        }
        for row in rows
    ]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    # Names of class scores contain the name of the class.
    writer.writerow({name: shown(name) for name in names})
    writer.writerows({name: shown(v) if isinstance(v, str) else v for name, v in row.items()} for row in flat)
    return text.getvalue()


def compare(root: Path, first: str, second: str, at: Address | None = None) -> ComparedTrials | ComparedStudies:
    """Compare two trials (`study:7`) or two studies: their differences and their scores.

    From each study, take the best trial; if several are on the front, the best by the first objective that both studies
    have, or by its own first objective.

    Raises:
        UserError: one names a trial and the other a study, or there is no such trial or study.
    """
    return compare_opened((first, second), open_named(root, first, at), open_named(root, second, at))


MOST_DIGITS = 9
"""Most digits of a trial's number."""

Opened = tuple[Record, Trial | None]
"""A study, and one of its trials or None for the study itself."""


def compare_opened(names: tuple[str, str], one: Opened, other: Opened) -> ComparedTrials | ComparedStudies:
    """Compare two opened trials or studies; `names` are the names to show.

    Raises:
        UserError: one is a trial and the other a study.
    """
    (first, second), (a, trial_a), (b, trial_b) = names, one, other
    if (trial_a is None) != (trial_b is None):
        raise UserError(f"{first}, {second}: a trial and a study; compare two trials (study:7) or two studies")
    if trial_a is not None and trial_b is not None:
        return {"kind": "trials", "names": [first, second], **_compare_trials(a, trial_a, b, trial_b)}
    fronts = [best.front(record) for record in (a, b)]
    shared = next((objective for objective in a.objectives if objective in b.objectives), None)
    by = [shared or record.objectives[0] for record in (a, b)]
    bests = [_first_by(objective, front, record) for objective, front, record in zip(by, fronts, (a, b), strict=True)]
    return {
        "kind": "studies",
        "names": [first, second],
        "space": _differing(a.fact("space"), b.fact("space")),
        "facts": _differing(*map(_compared_facts, (a, b))),
        "trials": [summarise(record)["trials"] for record in (a, b)],
        "epochs": [sum(trial.epoch for trial in record.trials) for record in (a, b)],
        "chosen": {"by": [list(objective) for objective in by], "of": [len(front) for front in fronts]},
        "best": _compare_trials(a, bests[0], b, bests[1]),
    }


def _compared_facts(record: Record) -> dict[str, Any]:
    data = record.facts.get("data")
    # Earlier versions did not record this, so it is not a difference between images.
    known = data and {name: value for name, value in data.items() if name != "seen_fingerprint"}
    return {"data": known, "versions": record.facts.get("versions")}


def _first_by(objective: tuple[str, str], front: Sequence[Trial], record: Record) -> Trial:
    """Return the best trial of a front by one objective; among equal ones, the first."""
    index = list(record.objectives).index(objective)
    sign = 1 if objective[1] == "minimize" else -1
    return min(front, key=lambda trial: sign * trial.values[index] if trial.values else 0)


def open_named(root: Path, name: str, at: Address | None) -> Opened:
    """Open a study, or one of its trials, by a name such as `vit-digits` or `vit-digits:7`.

    Raises:
        UserError: there is no such study or trial.
    """
    study, colon, number = name.partition(":")
    record = load(find_study(root, study, at))
    if not colon:
        return record, None
    if not number.isdecimal() or len(number) > MOST_DIGITS:
        raise UserError(f"{name}: {number!r} is not a trial number; allowed: STUDY:NUMBER, for example vit-digits:7")
    return record, find_trial(record, int(number))


def _compare_trials(a: Record, first: Trial, b: Record, second: Trial) -> TrialComparison:
    shown = [row_of(first, a), row_of(second, b)]
    measured = [{**row["sizes"], **row["metrics"], **row["limited"], **row["values"]} for row in shown]
    return {
        "trials": [row["trial"] for row in shown],
        "states": [row["state"] for row in shown],
        "epochs": [row["epochs"] for row in shown],
        "config": _differing(first.candidate.config.to_dict(), second.candidate.config.to_dict()),
        "measured": {
            name: {"first": measured[0][name], "second": measured[1][name], "change": measured[1][name] - value}
            for name, value in measured[0].items()
            if name in measured[1] and name not in ("epoch",)
        },
        "val_images": min(counts) if all(counts := [record.val_images or 0 for record in (a, b)]) else None,
        # After different numbers of epochs, scores do not compare the configurations.
        "noise": _noise(a, b, measured) if first.epoch == second.epoch else None,
    }


def _noise(a: Record, b: Record, measured: Sequence[Mapping[str, float]]) -> float | None:
    """Return how much two shares of right images may differ just from sampling the validation images (95 %).

    None if one is unknown, or no share.
    """
    counts = [record.val_images or 0 for record in (a, b)]
    name = share_of_images(measured[0])
    if not all(counts) or not all(name in values for values in measured):
        return None
    shares = [values[name] for values in measured]
    if not all(0 <= share <= 1 for share in shares):
        return None
    return 1.96 * math.sqrt(sum(share * (1 - share) / count for share, count in zip(shares, counts, strict=True)))


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [difference.side_by_side() for difference in differences(first, second)]


def _best_first(record: Record) -> list[Trial]:
    """Return finished trials within the limits, then the others by last scored epoch and score."""
    done = best.ranked(record)
    numbers = {trial.number for trial in done}
    rest = [trial for trial in record.trials if trial.number not in numbers]
    sign = sign_of(record.objectives[0][1])
    rest.sort(
        key=lambda trial: (-trial.last_shown, -sign * trial.value_at(trial.last_shown) if trial.last_shown else 0)
    )
    return [*done, *rest]


def row_of(trial: Trial, record: Record) -> TrialRow:
    """Return a trial's row of a table."""
    row = describe(trial, record)
    last = trial.last_shown
    shown = {trial.metric: trial.value_at(last)} if last else {}
    return {**row, "family": family_of(trial), "values": row["values"] or shown}
