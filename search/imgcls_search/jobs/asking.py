"""Request a trial of a configuration: fill in missing values, and let the study's run train it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls_search.catalog import catalog
from imgcls_search.config import Scalar
from imgcls_search.errors import StudyError, UserError
from imgcls_search.jobs.replay import space_of
from imgcls_search.measures import sign_of
from imgcls_search.space import Parameter, Space, start_of
from imgcls_search.space.overrides import plain_value, refuse_unreadable
from imgcls_search.strategy.encoding import value_at
from imgcls_search.study import best, requests
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load
from imgcls_search.trial import Trial

MIDDLE = 0.5
"""Position in its range of a number that no trial has."""


@dataclass(frozen=True, kw_only=True)
class RequestedConfiguration:
    """A configuration requested from a study."""

    study: str
    request: str
    """The id of the request."""

    named: dict[str, Scalar]
    """The named values and the branches that they imply."""

    params: dict[str, Scalar]
    """All values of the configuration."""

    sources: dict[str, int | None]
    """The trial that each unnamed value comes from; None: no trial has it."""

    same_as: int | None
    """A trial with the same configuration."""

    taken_by: str | None
    """The current run that takes the request; None: the next run takes it."""


def ask(files: StudyFiles, changes: Sequence[tuple[str, str]]) -> RequestedConfiguration:
    """Add a request to a study.

    Raises:
        StudyError: there is no such study, it cannot be written, or it is an earlier state of one.
        SpaceError: the study's space has no such setting.
        UserError: nothing is named.
    """
    if not changes:
        raise UserError("nothing to try; name at least one value: --set PATH=VALUE")
    if files.kept is not None:
        raise StudyError(f"{files.recorded_as} is an earlier state of the study; use {files.name}")
    record = load(files)
    space = space_of(record, catalog(), [])
    named = _named(changes, space)
    params, sources = complete(named, record, space)
    same = next((trial.number for trial in record.trials if dict(trial.candidate.params) == params), None)
    request = requests.make_request(params, "try")
    record.append_fact("requests", request)
    # Read this after writing: a run sets the fact to False before it looks for requests for the last time.
    takes = record.rows.read_fact("takes_requests") is not False
    holder = files.holder() if takes else None
    return RequestedConfiguration(
        study=record.study.study_name,
        request=request["id"],
        named=named,
        params=params,
        sources=sources,
        same_as=same,
        taken_by=holder.process if holder is not None and holder.task == "run" else None,
    )


def _named(changes: Sequence[tuple[str, str]], space: Space) -> dict[str, Scalar]:
    """Return the values of `--set` as parameters.

    Raises:
        SpaceError: the space has no such setting.
    """
    given: dict[str, Any] = {}
    for path, text in changes:
        refuse_unreadable(path, text)
        given[path] = plain_value(text)
    return start_of(given, space.root, source="--set")


def complete(
    named: Mapping[str, Scalar], record: Record, space: Space
) -> tuple[dict[str, Scalar], dict[str, int | None]]:
    """Return a complete configuration, and the source of each value that was not named.

    The source is the best trial that has the setting. If no trial has it, the value is the middle of its range or the
    first choice.
    """
    order = _by_merit(record)
    params: dict[str, Scalar] = {}
    sources: dict[str, int | None] = {}
    for parameter in space.parameters():
        if any(params.get(component) != name for component, name in parameter.when):
            continue
        if parameter.path in named:
            params[parameter.path] = named[parameter.path]
            continue
        source = next((trial for trial in order if parameter.path in trial.candidate.params), None)
        sources[parameter.path] = None if source is None else source.number
        params[parameter.path] = _default(parameter) if source is None else source.candidate.params[parameter.path]
    return params, sources


def _by_merit(record: Record) -> list[Trial]:
    """Return the ranked trials, then the others by last reported epoch and score; leave out trials without a score."""
    first = best.ranked(record)
    known = {trial.number for trial in first}
    sign = sign_of(record.objectives[0][1])
    others = [
        (trial.last_shown, sign * trial.value_at(trial.last_shown), -trial.number, trial)
        for trial in record.trials
        if trial.number not in known and trial.last_shown and math.isfinite(trial.value_at(trial.last_shown))
    ]
    return [*first, *(trial for *_, trial in sorted(others, key=lambda each: each[:3], reverse=True))]


def _default(parameter: Parameter) -> Scalar:
    return parameter.choices[0] if parameter.choices else value_at(parameter, MIDDLE)
