"""The record: every trial in an Optuna study that people, optuna-dashboard and plain Optuna can read.

Only the run process writes it. The database and `Record.trials` agree at all times; the run decides by `Record.trials`
and never reads the database back.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from imgcls_search.errors import StudyError
from imgcls_search.study import database
from imgcls_search.study.facts import StudyFacts
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.foreign_trials import ForeignTrial, foreign_trial_of, is_ours
from imgcls_search.study.rows import EndedError, NumberTakenError, Rows
from imgcls_search.study.shape import refuse_misshapen
from imgcls_search.study.stored_facts import StoredFacts
from imgcls_search.study.trial_attributes import (
    STATES,
    artifact_attributes,
    attributes_of,
    freeze_scores,
    plan_of,
    read_trial,
)
from imgcls_search.study.writes import Writes
from imgcls_search.trial import State, Trial
from imgcls_search.words import counted, some

_LOG = logging.getLogger(__name__)

PLACE: Final = "place"
"""Attribute of a trial that was enqueued: how many trials began before it, which its number does not show."""


class Record(StoredFacts):
    """The trials of one study, and its facts."""

    def __init__(self, study: optuna.Study, rows: Writes) -> None:
        """Read everything once."""
        super().__init__(study, rows)
        self.files: StudyFiles | None = None
        """Where the study is stored, if it is."""
        self.ids: dict[int, int] = {}
        self.trials: list[Trial] = []
        """Trials of searches, in the order in which they began; foreign trials may have numbers in between."""
        self.by_number: dict[int, Trial] = {}
        self.foreign_trials: dict[int, ForeignTrial] = {}
        """Trials that no search made, by number."""
        self.last_id = -1
        self.num_requested = 0
        """Number of trials that people requested, in addition to those that the search draws."""
        self.placed: dict[int, int] = {}
        """How many trials began before each trial that was enqueued, by number."""
        for frozen in rows.read():
            self.last_id = max(self.last_id, frozen._trial_id)
            if not is_ours(frozen):
                self.foreign_trials[frozen.number] = foreign_trial_of(frozen)
                continue
            self.ids[frozen.number] = frozen._trial_id
            trial = self.by_number[frozen.number] = read_trial(frozen, self.objectives[0][0])
            self.num_requested += trial.request is not None
            if (place := frozen.user_attrs.get(PLACE)) is None:
                self.trials.append(trial)
            else:
                self.placed[trial.number] = place
        for number, place in sorted(self.placed.items(), key=lambda entry: entry[::-1]):
            self.trials.insert(place, self.by_number[number])

    @property
    def argument(self) -> str:
        """The study as arguments of a shown command."""
        return self.study.study_name if self.files is None else self.files.argument

    @property
    def next_number(self) -> int:
        """The number that Optuna gives to the next trial of the study."""
        return len(self.by_number) + len(self.foreign_trials)

    @property
    def num_drawn(self) -> int:
        """How many of its trials count for `study.trials`: all but the requested ones."""
        return len(self.trials) - self.num_requested

    def look_again(self) -> None:
        """Read the trials and requests that others have added since."""
        self.read_requests()
        for frozen in self.rows.read(self.last_id):
            self.last_id = frozen._trial_id
            if frozen.number not in self.by_number:
                self.foreign_trials[frozen.number] = foreign_trial_of(frozen)

    def note_about_foreign_trials(self) -> str | None:
        """Return a line about trials that no search made, or None if there are none."""
        if not self.foreign_trials:
            return None
        shown = some([f"{other.number} ({other.state})" for other in self.foreign_trials.values()], 5)
        waits = any(other.state == "waiting" for other in self.foreign_trials.values())
        return (
            f"study {self.study.study_name}: left out {counted('trial', len(self.foreign_trials))} that imgcls-search "
            f"did not make: {shown}" + ("; run tries those that wait" if waits else "")
        )

    def claim(self, foreign: ForeignTrial, trial: Trial) -> bool:
        """Record a waiting trial as one of ours that has begun; return False if it no longer waits."""
        attributes = {**attributes_of(trial), PLACE: len(self.trials)}
        try:
            self.rows.claim(foreign.id, trial.candidate.params, trial.candidate.distributions, attributes)
        except EndedError:
            self.foreign_trials[foreign.number] = replace(foreign, state="no longer waiting")
            return False
        del self.foreign_trials[foreign.number]
        self.ids[trial.number] = foreign.id
        self._take(trial)
        return True

    def refuse(self, foreign: ForeignTrial, reason: str) -> None:
        """End a waiting trial that cannot be tried; it counts as failed."""
        with suppress(EndedError):
            self.rows.refuse(foreign.id, reason)
        self.foreign_trials[foreign.number] = replace(foreign, state="fail")

    def add(self, trial: Trial) -> None:
        """Record a new trial in one write; if others have taken its number meanwhile, use the next one."""
        while True:
            try:
                self.ids[trial.number] = self.rows.add(
                    trial.number, trial.candidate.params, trial.candidate.distributions, attributes_of(trial)
                )
                break
            except NumberTakenError:
                self.look_again()
                trial.number = self.next_number
        self.last_id = max(self.last_id, self.ids[trial.number])
        self._take(trial)

    def _take(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.by_number[trial.number] = trial
        self.num_requested += trial.request is not None

    def add_epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Record an epoch in one write: its metrics, and the value that dashboards draw."""
        trial.epochs.append(dict(metrics))
        # Optuna refuses intermediate values in a study with several objectives. Metrics of a network before its
        # compression are not comparable.
        is_drawn = len(self.objectives) == 1 and trial.metric in metrics and not trial.compresses
        value = (len(trial.epochs), metrics[trial.metric]) if is_drawn else None
        with self._accepting_an_end(trial):
            self.rows.update(self.ids[trial.number], {"epochs": trial.epochs}, value=value)

    def add_score(
        self, trial: Trial, epoch: int, metrics: Mapping[str, float], notes: Mapping[str, str] | None = None
    ) -> None:
        """Record in one write the metrics of the network as it would be deployed after an epoch."""
        is_first = epoch not in trial.scores
        trial.scores[epoch] = {**trial.scores.get(epoch, {}), **metrics}
        is_drawn = len(self.objectives) == 1 and trial.compresses and is_first and trial.metric in metrics
        value = (epoch, metrics[trial.metric]) if is_drawn else None
        with self._accepting_an_end(trial):
            said = {"scores": freeze_scores(trial.scores), **(notes or {})}
            self.rows.update(self.ids[trial.number], said, value=value)

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Record something about an open trial in one write."""
        with self._accepting_an_end(trial):
            self.rows.update(self.ids[trial.number], attributes)

    def set_plan(self, trial: Trial, *, until: int, paused: bool) -> None:
        """Record in one write the decision about a trial at its last epoch: how far it may train, or that it pauses."""
        if trial.is_open:
            trial.judged, trial.until = trial.epoch, until
            trial.state = "paused" if paused else "running"
            self.note(trial, plan=plan_of(trial))

    def complete(self, trial: Trial, values: Sequence[float], constraints: Mapping[str, float] | None = None) -> None:
        """End a trial with its values and its excess over each measured limit."""
        trial.values = tuple(values)
        trial.constraints = dict(constraints or {})
        self._end(trial, "complete", TrialState.COMPLETE, values)

    def prune(self, trial: Trial, reason: str) -> None:
        """End a trial early; its last value remains its value for the sampler."""
        # Optuna gives a pruned trial its last intermediate value.
        shown = [trial.value_at(trial.last_shown)] if len(self.objectives) == 1 and trial.last_shown else []
        self._end(trial, "pruned", TrialState.PRUNED, [v for v in shown if not math.isnan(v)], reason)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial as failed."""
        self._end(trial, "fail", TrialState.FAIL, [], reason)

    def _end(
        self, trial: Trial, state: State, told: TrialState, values: Sequence[float], reason: str | None = None
    ) -> None:
        trial.reason = reason
        said: dict[str, Any] = {"seconds": round(sum(epoch["seconds"] for epoch in trial.epochs), 3)}
        if reason is not None:
            said["reason"] = reason
        with self._accepting_an_end(trial):
            told_by_name: dict[str, Any] = {f"constraints:{name}": over for name, over in trial.constraints.items()}
            # In the same transaction as the end of the trial.
            told_by_name |= artifact_attributes(trial)
            self.rows.end(self.ids[trial.number], told, values, said, told_by_name)
            trial.state = state

    @contextmanager
    def _accepting_an_end(self, trial: Trial) -> Iterator[None]:
        """Let a trial be written to; if someone ended it from outside, as the dashboard can, accept that as its end."""
        try:
            yield
        except EndedError:
            state, trial.values = self.rows.read_end(self.ids[trial.number])
            trial.state = STATES[state]
            trial.reason = trial.reason or "ended from outside"


def create(files: StudyFiles, objectives: Sequence[tuple[str, str]], facts: StudyFacts) -> Record:
    """Create a study with its facts.

    Build it in a draft file, or under a draft name, and move it into place when it is complete. So no process sees a
    part of a study, and one that looks too early creates no tables in it.

    Raises:
        StudyError: the database cannot be created.
    """
    with files.store.making() as (storage, draft):
        study = optuna.create_study(
            storage=storage,
            study_name=draft,
            directions=[StudyDirection[direction.upper()] for _, direction in objectives],
        )
        with warnings.catch_warnings():
            # Experimental in Optuna: without it, a study only loses the objectives' names in the dashboard.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric for metric, _ in objectives])
        for name, value in {**facts, "objectives": [list(objective) for objective in objectives]}.items():
            study.set_user_attr(name, value)
    return load(files)


def load(files: StudyFiles) -> Record:
    """Open an existing study.

    Raises:
        StudyError: there is no such study, or its database is damaged or not ours.
    """
    files.must_exist()
    storage = files.store.open()
    try:
        with (
            database.explaining(str(files.store), "read as a study"),
            database.explaining_damage(str(files.store)),
        ):
            try:
                study = optuna.load_study(storage=storage, study_name=files.recorded_as)
            except KeyError:
                raise StudyError(f"{files.store}: holds no study of the name {files.recorded_as!r}") from None
            facts = study.user_attrs
            if "objectives" not in facts:
                raise StudyError(f"{files.store}: this study was not made by imgcls-search")
            record = _read(study, Rows(storage.engine, study._study_id, files.store.access))
            record.files = files
        if (note := record.note_about_foreign_trials()) is not None:
            _LOG.warning(note)
        return record
    finally:
        if files.address is not None:
            # A search writes through its own connection; this one would stay idle until something drops it.
            storage.engine.dispose()


def load_again(files: StudyFiles, record: Record) -> Record:
    """Read the current state of a record through the connection of an earlier one.

    Raises:
        StudyError: its database cannot be read, or was damaged since.
    """
    store = str(files.store)
    with database.explaining(store, "read as a study"), database.explaining_damage(store):
        latest = _read(record.study, record.rows)
        latest.files = files
        return latest


def _read(study: optuna.Study, rows: Writes) -> Record:
    record = Record(study, rows)
    refuse_misshapen(record)
    return record


def to_json(value: Any) -> Any:
    """Return a value as the database returns it, to compare it with a stored one."""
    return json.loads(json.dumps(value))
