"""The record: every trial in an Optuna study that people, optuna-dashboard and plain Optuna can read.

Only the run process writes it. What is in the database and what is in `Record.trials` are the same at all times; the
run decides by the latter and never reads the former back.
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
from imgcls_search.words import counted

_LOG = logging.getLogger(__name__)

PLACE: Final = "place"
"""Attribute of a trial that had waited: how many had begun before it, which its number does not tell."""


class Record(StoredFacts):
    """The trials of one study, and its facts."""

    def __init__(self, study: optuna.Study, rows: Writes) -> None:
        """Read everything once."""
        super().__init__(study, rows)
        self.files: StudyFiles | None = None
        """Where the study is, if it has a place of its own."""
        self.ids: dict[int, int] = {}
        self.trials: list[Trial] = []
        """The trials of searches, in the order in which they began; others may have numbers in between."""
        self.by_number: dict[int, Trial] = {}
        self.foreign_trials: dict[int, ForeignTrial] = {}
        """Trials that no search made, by number."""
        self.last_id = -1
        self.num_requested = 0
        """Trials that people requested, beyond those that the search draws."""
        self.placed: dict[int, int] = {}
        """How many had begun before trials that had waited, by number."""
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
    def next_number(self) -> int:
        """The number that Optuna gives to the next trial of the study."""
        return len(self.by_number) + len(self.foreign_trials)

    @property
    def num_drawn(self) -> int:
        """How many of its trials count for `study.trials`: all but the requested ones."""
        return len(self.trials) - self.num_requested

    def look_again(self) -> None:
        """Take note of trials and requests that others have added since."""
        self.read_requests()
        for frozen in self.rows.read(self.last_id):
            self.last_id = frozen._trial_id
            if frozen.number not in self.by_number:
                self.foreign_trials[frozen.number] = foreign_trial_of(frozen)

    def note_about_foreign_trials(self) -> str | None:
        """Return a line about trials that no search made, None where there are none."""
        if not self.foreign_trials:
            return None
        shown = ", ".join(f"{other.number} ({other.state})" for other in list(self.foreign_trials.values())[:5])
        more = f" and {len(self.foreign_trials) - 5} more" if len(self.foreign_trials) > 5 else ""
        waits = any(other.state == "waiting" for other in self.foreign_trials.values())
        return (
            f"study {self.study.study_name}: left out {counted('trial', len(self.foreign_trials))} that imgcls-search "
            f"did not make: {shown}{more}" + ("; run tries those that wait" if waits else "")
        )

    def claim(self, foreign: ForeignTrial, trial: Trial) -> bool:
        """Record a waiting trial as one of ours that has begun; False where it waits no more."""
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
        """End a waiting trial that cannot be tried as failed."""
        with suppress(EndedError):
            self.rows.refuse(foreign.id, reason)
        self.foreign_trials[foreign.number] = replace(foreign, state="fail")

    def add(self, trial: Trial) -> None:
        """Record a new trial, whole, in one write; where others took its number meanwhile, it gets the next one."""
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
        # Optuna refuses intermediate values in a study with several objectives. What a network shows before it is
        # compressed is no value to compare by.
        is_drawn = len(self.objectives) == 1 and trial.metric in metrics and not trial.compresses
        value = (len(trial.epochs), metrics[trial.metric]) if is_drawn else None
        with self._accepting_an_end(trial):
            self.rows.update(self.ids[trial.number], {"epochs": trial.epochs}, value=value)

    def add_score(
        self, trial: Trial, epoch: int, metrics: Mapping[str, float], notes: Mapping[str, str] | None = None
    ) -> None:
        """Record in one write what the network as it would be deployed showed after an epoch."""
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
        """Record in one write what was decided about a trial at its last epoch: how far it may go, or that it rests."""
        if trial.is_open:
            trial.judged, trial.until = trial.epoch, until
            trial.state = "paused" if paused else "running"
            self.note(trial, plan=plan_of(trial))

    def complete(self, trial: Trial, values: Sequence[float], constraints: Mapping[str, float] | None = None) -> None:
        """End a trial with its values, and by how much it is over each measured limit."""
        trial.values = tuple(values)
        trial.constraints = dict(constraints or {})
        self._end(trial, "complete", TrialState.COMPLETE, values)

    def prune(self, trial: Trial, reason: str) -> None:
        """End a trial early; the last value that it showed stays its value for the sampler."""
        # Optuna gives a pruned trial the last value that it showed.
        shown = [trial.value_at(trial.last_shown)] if len(self.objectives) == 1 and trial.last_shown else []
        self._end(trial, "pruned", TrialState.PRUNED, [v for v in shown if not math.isnan(v)], reason)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial that came to nothing."""
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
            # In one transaction with the end of the trial.
            told_by_name |= artifact_attributes(trial)
            self.rows.end(self.ids[trial.number], told, values, said, told_by_name)
            trial.state = state

    @contextmanager
    def _accepting_an_end(self, trial: Trial) -> Iterator[None]:
        """Let a trial be written to; if somebody ended it from outside, as the dashboard can, take that as its end."""
        try:
            yield
        except EndedError:
            state, trial.values = self.rows.read_end(self.ids[trial.number])
            trial.state = STATES[state]
            trial.reason = trial.reason or "ended from outside"


def create(files: StudyFiles, objectives: Sequence[tuple[str, str]], facts: StudyFacts) -> Record:
    """Create a study with its facts.

    It is made in a file or under a name of its own and moved into place when whole: a process that finds a study finds
    all of it, and one that looks too early makes no tables in it.

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
            # Optuna may yet change it; what a study loses without it is the objectives' names in the dashboard.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric for metric, _ in objectives])
        for name, value in {**facts, "objectives": [list(objective) for objective in objectives]}.items():
            study.set_user_attr(name, value)
    return load(files)


def load(files: StudyFiles) -> Record:
    """Open a study that exists.

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
            # A search writes through a connection of its own; this one would lie idle until somebody drops it.
            storage.engine.dispose()


def load_again(files: StudyFiles, record: Record) -> Record:
    """Return a record as it stands now, read through the connection of an earlier one.

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
    """Return a value as it comes back from the database, for comparisons with one that was there."""
    return json.loads(json.dumps(value))
