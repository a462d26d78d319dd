"""The record: every trial in an Optuna study that people, optuna-dashboard and plain Optuna can read.

Only the run process writes it. What is in the database and what is in `Record.trials` are the same at all times; the
run decides by the latter and never reads the former back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config import TrialConfig
from search.errors import StudyError
from search.study.files import StudyFiles
from search.trial import SIZES, Candidate, Rejection, State, Trial

_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


class Record:
    """The trials of one study and the facts that it was started with."""

    def __init__(self, study: optuna.Study) -> None:
        """Read everything once."""
        self.study = study
        self.facts: dict[str, Any] = dict(study.user_attrs)
        self.objectives = _objectives(self.facts)
        self.ids: dict[int, int] = {}
        self.live: dict[int, optuna.Trial] = {}
        self.trials: list[Trial] = []
        for frozen in study.get_trials(deepcopy=False):
            self.ids[frozen.number] = frozen._trial_id
            self.trials.append(self._thaw(frozen))

    def add(self, trial: Trial) -> None:
        """Record a new trial, whole, in one write."""
        attributes = {
            "config": trial.candidate.config.to_dict(),
            "seed": trial.seed,
            "plan": _plan(trial),
            "sampler_state": dict(trial.candidate.sampler_state),
            "rejected_before": [_freeze_rejection(rejection) for rejection in trial.rejected_before],
            **trial.sizes,
        }
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(trial.candidate.params),
                distributions=dict(trial.candidate.distributions),
                user_attrs={key: value for key, value in attributes.items() if value not in ({}, [])},
            )
        )
        frozen = self.study.get_trials(deepcopy=False)[-1]
        assert frozen.number == trial.number, "somebody else writes this study"
        self.ids[trial.number] = frozen._trial_id
        self.trials.append(trial)

    def add_epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        """Record an epoch: its metrics, and the value that dashboards draw."""
        trial.epochs.append(dict(metrics))
        with self._accepting_an_end(trial) as live:
            live.set_user_attr("epochs", trial.epochs)
            # Optuna refuses intermediate values in a study with several objectives.
            if len(self.objectives) == 1 and trial.metric in metrics:
                live.report(metrics[trial.metric], step=len(trial.epochs))

    def mend(self) -> None:
        """Write the values of open trials that a kill between the two writes of an epoch left out."""
        known = self.study.get_trials(deepcopy=False)
        for trial in self.trials:
            for step, metrics in enumerate(trial.epochs, start=1):
                is_missing = step not in known[trial.number].intermediate_values
                if trial.is_open and is_missing and len(self.objectives) == 1 and trial.metric in metrics:
                    with self._accepting_an_end(trial) as live:
                        live.report(metrics[trial.metric], step=step)

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Record something about an open trial."""
        with self._accepting_an_end(trial) as live:
            for name, value in attributes.items():
                live.set_user_attr(name, value)

    def set_plan(self, trial: Trial, *, until: int, paused: bool) -> None:
        """Record in one write what was decided about a trial at its last epoch: how far it may go, or that it rests."""
        if trial.is_open:
            trial.judged, trial.until = trial.epoch, until
            trial.state = "paused" if paused else "running"
            self.note(trial, plan=_plan(trial))

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        """End a trial with its values."""
        trial.values = tuple(values)
        self._end(trial, "complete", TrialState.COMPLETE, list(values))

    def prune(self, trial: Trial, reason: str) -> None:
        """End a trial early; its last epoch stays its value for the sampler."""
        self._end(trial, "pruned", TrialState.PRUNED, None, reason)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial that came to nothing."""
        self._end(trial, "fail", TrialState.FAIL, None, reason)

    def set_fact(self, name: str, value: Any) -> None:
        """Record a fact about the study as a whole."""
        self.facts[name] = value
        self.study.set_user_attr(name, value)

    def _end(
        self, trial: Trial, state: State, told: TrialState, values: list[float] | None, reason: str | None = None
    ) -> None:
        # Optuna freezes a trial when it is told; everything else must be written before.
        trial.reason = reason
        self.note(trial, seconds=round(sum(epoch["seconds"] for epoch in trial.epochs), 3))
        if reason is not None:
            self.note(trial, reason=reason)
        if trial.is_open:
            trial.state = state
            self.study.tell(trial.number, values, told, skip_if_finished=True)
            self.live.pop(trial.number, None)

    @contextmanager
    def _accepting_an_end(self, trial: Trial) -> Iterator[optuna.Trial]:
        """Give the live trial; if somebody ended it from outside, as the dashboard can, take that as its end."""
        if not trial.is_open:
            # Already found ended: what is still said about it has no place in the database.
            yield _Nobody()  # type: ignore[misc]
            return
        try:
            # Attaching reads the whole trial from the database; once is enough.
            if trial.number not in self.live:
                self.live[trial.number] = optuna.trial.Trial(self.study, self.ids[trial.number])
            yield self.live[trial.number]
        except UpdateFinishedTrialError:
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            trial.state = _STATES[frozen.state]
            trial.values = tuple(frozen.values) if frozen.values is not None else None
            trial.reason = trial.reason or "ended from outside"

    def _thaw(self, frozen: FrozenTrial) -> Trial:
        attributes = frozen.user_attrs
        if "config" not in attributes:
            raise StudyError(f"trial {frozen.number} of study {self.study.study_name!r} was not made by imgcls-search")
        state = _STATES[frozen.state]
        plan = attributes["plan"]
        return Trial(
            number=frozen.number,
            candidate=Candidate(
                params=frozen.params,
                distributions=frozen.distributions,
                config=TrialConfig.from_dict(attributes["config"]),
                sampler_state=attributes.get("sampler_state", {}),
            ),
            seed=attributes["seed"],
            sizes={name: attributes[name] for name in SIZES},
            metric=self.objectives[0][0],
            state="paused" if state == "running" and plan["paused"] else state,
            epochs=list(attributes.get("epochs", [])),
            judged=plan["judged"],
            until=plan["until"],
            values=tuple(frozen.values) if frozen.values is not None else None,
            reason=attributes.get("reason"),
            deaths=attributes.get("deaths", 0),
            rejected_before=tuple(_thaw_rejection(entry) for entry in attributes.get("rejected_before", [])),
        )


class _Nobody:
    """Stands for a live trial that is live no more."""

    def set_user_attr(self, name: str, value: Any) -> None:
        pass

    def report(self, value: float, step: int) -> None:
        pass


def create(files: StudyFiles, objectives: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> Record:
    """Create a study with its facts.

    It is made in a file of another name and moved into place when whole: whoever finds a study finds all of it, and
    nobody who looks too early makes tables in it.

    Raises:
        StudyError: the database cannot be created.
    """
    with _new_database(files) as storage:
        study = optuna.create_study(
            storage=storage,
            study_name=files.name,
            directions=[StudyDirection[direction.upper()] for _, direction in objectives],
        )
        if len(objectives) > 1:
            study.set_metric_names([metric for metric, _ in objectives])
        for name, value in {**facts, "objectives": [list(objective) for objective in objectives]}.items():
            study.set_user_attr(name, value)
    return load(files)


@contextmanager
def _new_database(files: StudyFiles) -> Iterator[RDBStorage]:
    draft = files.folder / "new.db"
    for leftover in files.folder.glob("new.db*"):
        leftover.unlink()
    storage = _open(draft)
    try:
        yield storage
    finally:
        # The last connection to close writes the log into the database and deletes it.
        storage.engine.dispose()
    draft.replace(files.database)


def load(files: StudyFiles) -> Record:
    """Open a study that exists.

    Raises:
        StudyError: there is no such study, or its database is damaged or not ours.
    """
    files.must_exist()
    try:
        study = optuna.load_study(storage=open_storage(files), study_name=files.name)
    except KeyError:
        raise StudyError(f"{files.database}: holds no study of the name {files.name!r}") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StudyError(f"{files.database}: cannot be read as a study ({type(error).__name__})") from error
    if "objectives" not in study.user_attrs:
        raise StudyError(f"{files.database}: this study was not made by imgcls-search")
    return Record(study)


def open_storage(files: StudyFiles) -> RDBStorage:
    """Open the database of a study that exists.

    Raises:
        StudyError: it cannot be opened.
    """
    return _open(files.database)


def _open(database: Path) -> RDBStorage:
    # Optuna otherwise announces every study it makes, in-memory views included.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _use_write_ahead_log(database)
    storage = RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": 60}})
    sqlalchemy.event.listen(storage.engine, "connect", _relax)
    # Connections made before the listener are dropped.
    storage.engine.dispose()
    return storage


def _use_write_ahead_log(database: Path) -> None:
    # Readers such as a polling dashboard then never block the writer, nor it them. The mode stays with the file.
    try:
        connection = sqlite3.connect(database, timeout=60)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StudyError(f"{database}: cannot be opened as a study ({error})") from error
    if mode != "wal":
        raise StudyError(f"{database}: this file system cannot hold a study (SQLite's journal mode stays {mode!r})")


def _relax(connection: Any, _: Any) -> None:
    # A commit then reaches the log at once and the disk soon; a crash of any process loses nothing.
    connection.execute("PRAGMA synchronous=NORMAL")


def _objectives(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((metric, direction) for metric, direction in facts["objectives"])


def _plan(trial: Trial) -> dict[str, Any]:
    return {"judged": trial.judged, "until": trial.until, "paused": trial.state == "paused"}


def _freeze_rejection(rejection: Rejection) -> dict[str, Any]:
    distributions = {name: distribution_to_json(found) for name, found in rejection.distributions.items()}
    return {"params": dict(rejection.params), "distributions": distributions, "reason": rejection.reason}


def _thaw_rejection(entry: Mapping[str, Any]) -> Rejection:
    distributions = {name: json_to_distribution(text) for name, text in entry["distributions"].items()}
    return Rejection(params=entry["params"], distributions=distributions, reason=entry["reason"])


def to_json(value: Any) -> Any:
    """Return a value as it comes back from the database, for comparisons with one that was there."""
    return json.loads(json.dumps(value))
