"""Widen a study's space: in one transaction, keep a copy under another name and move the trials to the wider space.

Optuna allows no different choices or scales within a study, and stores the range with each value. So all values are
rewritten for the wider space. The study keeps its row and its trial ids, so a dashboard or notebook that has it open
continues to work; the copy in the same database keeps the earlier state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from imgcls_search.config import Scalar
from imgcls_search.space import Parameter, Space
from imgcls_search.space.widening import Widening, in_wider
from imgcls_search.study.copy_rows import copy_study_rows
from imgcls_search.study.facts import Extension, Request, StudyFacts
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load, to_json
from imgcls_search.study.requests import KEY, asked_by_start
from imgcls_search.study.settings import OF_POPULATION
from imgcls_search.study.tables import FACTS, PARAMS, TRIALS, USER, read_distribution
from imgcls_search.study.trial_attributes import TrialAttributes, freeze_rejections, strategy_of
from imgcls_search.trial import Rejection, Trial


def extend(files: StudyFiles, record: Record, space: Space, widening: Widening, old: Mapping[str, Any]) -> Record:
    """Widen the space of a study that this process holds from `old` to `space`, and return its new record.

    Raises:
        StudyError: the database cannot be written.
    """
    number = len(record.facts.get("extended", [])) + 1
    facts, asked = _facts(files.kept_as(number), record, space, widening, old)
    wider = _Wider(record, space, widening, old)
    study_id = record.study._study_id

    def step(connection: sqlalchemy.Connection, again: bool) -> None:
        if again and _is_done(connection, study_id, number):
            return
        copy_study_rows(connection, study_id, files.kept_as(number))
        wider.write(connection, study_id)
        upsert = record.rows.upserts[FACTS]
        # Others may have added requests since the study was read.
        if known := record.rows.read_list(connection, KEY):
            facts["requests"] = [_in_wider(request, old, space) for request in known]
        if asked:
            facts["requests"] = [*facts.get("requests", []), *asked]
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in facts.items()]
        connection.execute(upsert, rows)

    record.rows.transact(step)
    if record.rows.engine is not None:
        record.rows.engine.dispose()
    return load(files)


def _in_wider(request: Request, old: Mapping[str, Any], space: Space) -> Request:
    """Return a request for the same configuration in a wider space."""
    return request if "refused" in request else {**request, "params": in_wider(request["params"], old, space)}


def _is_done(connection: sqlalchemy.Connection, study_id: int, number: int) -> bool:
    mine = (FACTS.c.study_id == study_id) & (FACTS.c.key == "extended")
    text = connection.execute(sqlalchemy.select(FACTS.c.value_json).where(mine)).scalar()
    return text is not None and len(json.loads(text)) >= number


def _facts(
    kept: str, record: Record, space: Space, widening: Widening, old: Mapping[str, Any]
) -> tuple[StudyFacts, list[Request]]:
    """Return the study's new facts, and the requests to add."""
    known = record.facts
    done = Extension(
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        added=list(widening.added),
        novel=[list(entry) for entry in widening.novel],
        kept=kept,
        trials=len(record.trials),
    )
    facts: StudyFacts = {
        "space": to_json(space.document),
        "extended": [*known.get("extended", []), done],
    }
    placed = known.get("placed_start", old.get("start", []))
    if widening.start and len(record.trials) > len(placed):
        # Only the first ones are matched to trials by position: the new ones become requests.
        facts["placed_start"] = [dict(in_wider(entry, old, space)) for entry in placed]
        return facts, asked_by_start(widening.start)
    return facts, []


class _Wider:
    """Changes to the rows of the trials."""

    def __init__(self, record: Record, space: Space, widening: Widening, old: Mapping[str, Any]) -> None:
        self.record = record
        self.space = space
        self.old = old
        self.distributions = {each.path: distribution_of(each) for each in space.parameters()}
        self.texts = {path: distribution_to_json(found) for path, found in self.distributions.items()}
        rules = old["study"]
        self.strategy = strategy_of(rules["sampler"], rules["pruner"])
        sampler = next(iter(rules["sampler"]))
        # A change of only the pruner keeps a population valid.
        is_same = all(words.startswith("study.pruner") for words in widening.added)
        self.forgets_state = sampler in OF_POPULATION and not is_same

    def write(self, connection: sqlalchemy.Connection, study_id: int) -> None:
        """Write all changes."""
        ours = sqlalchemy.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
        for path in self.distributions:
            self._rewrite(connection, ours, path)
        new = [row for trial in self.record.trials for row in self._new_params(trial)]
        if new:
            connection.execute(PARAMS.insert(), new)
        attributes = [
            {"trial_id": self.record.ids[trial.number], "key": key, "value_json": json.dumps(value)}
            for trial in self.record.trials
            for key, value in self._attributes(trial).items()
        ]
        if attributes:
            connection.execute(self.record.rows.upserts[USER], attributes)

    def _rewrite(self, connection: sqlalchemy.Connection, ours: Any, path: str) -> None:
        """Give the values at a path the wider distribution, including those of trials that no search made."""
        here = (PARAMS.c.param_name == path) & PARAMS.c.trial_id.in_(ours)
        known = sqlalchemy.select(PARAMS.c.distribution_json).where(here).distinct()
        now, text = self.distributions[path], self.texts[path]
        for before in connection.execute(known).scalars().all():
            if before == text:
                continue
            same = here & (PARAMS.c.distribution_json == before)
            then = read_distribution(before)
            if not isinstance(then, CategoricalDistribution) and not isinstance(now, CategoricalDistribution):
                connection.execute(PARAMS.update().where(same).values(distribution_json=text))
                continue
            values = connection.execute(sqlalchemy.select(PARAMS.c.param_value).where(same).distinct())
            for value in values.scalars().all():
                if (moved := _moved(then, now, value)) is not None:
                    one = same & (PARAMS.c.param_value == value)
                    connection.execute(PARAMS.update().where(one).values(distribution_json=text, param_value=moved))

    def _new_params(self, trial: Trial) -> list[dict[str, Any]]:
        """Return rows for values of a trial that were fixed and are searched now."""
        before = trial.candidate.params
        return [
            {
                "trial_id": self.record.ids[trial.number],
                "param_name": path,
                "param_value": self.distributions[path].to_internal_repr(value),
                "distribution_json": self.texts[path],
            }
            for path, value in in_wider(before, self.old, self.space).items()
            if path not in before
        ]

    def _attributes(self, trial: Trial) -> TrialAttributes:
        found: TrialAttributes = {}
        if not trial.strategy:
            found["strategy"] = self.strategy
        if trial.rejected_before:
            found["rejected_before"] = freeze_rejections([self._rejection(each) for each in trial.rejected_before])
        if self.forgets_state and trial.candidate.sampler_state:
            found["sampler_state"] = {}
        return found

    def _rejection(self, rejection: Rejection) -> Rejection:
        params = in_wider(rejection.params, self.old, self.space)
        distributions = {path: self.distributions[path] for path in params}
        return Rejection(params=params, distributions=distributions, reason=rejection.reason)


def _moved(then: BaseDistribution, now: BaseDistribution, value: float) -> float | None:
    """Convert a stored value between distributions; return None if the new one does not contain it."""
    shown: Scalar = then.to_external_repr(value)
    try:
        kept = float(now.to_internal_repr(shown))
    except ValueError:
        return None
    return kept if now._contains(kept) else None


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution of a parameter, the same that a trial's `suggest` methods create."""
    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.kind == "int":
        return IntDistribution(int(low), int(high), log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(low, high, log=parameter.log, step=parameter.step)
