"""What a search writes reads to Optuna as if Optuna had written it."""

from __future__ import annotations

import json
import math
import multiprocessing
import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from imgcls_search.errors import StudyError
from imgcls_search.study.database import FileAccess, Step, T, writing
from imgcls_search.study.rows import EndedError, NumberTakenError, Rows
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.conftest import linux_only

PARAMS: dict[str, Any] = {"model": "vit", "model.vit.depth": 3, "optimizer.adamw.lr": 1e-3, "flag": True, "none": None}
DISTRIBUTIONS = {
    "model": CategoricalDistribution(["vit", "resnet"]),
    "model.vit.depth": IntDistribution(1, 9, step=2),
    "optimizer.adamw.lr": FloatDistribution(1e-5, 1.0, log=True),
    "flag": CategoricalDistribution([True, False]),
    "none": CategoricalDistribution([None, 1.5]),
}


def open_study(path: Path, **kwargs: Any) -> tuple[optuna.Study, Rows]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    study = optuna.create_study(storage=storage, study_name="s", **kwargs)
    return study, Rows(storage.engine, study._study_id)


def shown(trial: FrozenTrial) -> dict[str, Any]:
    facts = ("number", "state", "params", "distributions", "user_attrs", "system_attrs", "constraints")
    times = {"started": trial.datetime_start is not None, "ended": trial.datetime_complete is not None}
    values = {"values": trial.values, "steps": repr(trial.intermediate_values)}
    return {**{fact: getattr(trial, fact) for fact in facts}, **times, **values}


@pytest.mark.parametrize(
    ("state", "values", "steps"),
    [
        (TrialState.COMPLETE, [0.75], [0.5, 0.75]),
        (TrialState.COMPLETE, [math.inf], [-math.inf, math.inf]),
        (TrialState.PRUNED, [], [math.nan, math.inf, 0.25]),
        (TrialState.PRUNED, [], []),
        (TrialState.FAIL, [], [0.5]),
    ],
)
def test_trial_is_what_optuna_would_have_written(
    state: TrialState, values: list[float], steps: list[float], tmp_path: Path
) -> None:
    theirs, _ = open_study(tmp_path / "theirs.db", direction="maximize")
    attributes = {"config": {"model": {"vit": {"depth": 3}}}, "seed": 7}
    theirs.add_trial(
        create_trial(state=TrialState.RUNNING, params=PARAMS, distributions=DISTRIBUTIONS, user_attrs=attributes)
    )
    live = optuna.trial.Trial(theirs, theirs.trials[-1]._trial_id)
    for step, value in enumerate(steps, start=1):
        live.set_user_attr("epochs", step)
        live.report(value, step)
    live.set_user_attr("seconds", 1.5)
    live.set_constraint("limits.latency_ms", 0.5)
    theirs.tell(live, values or None, state)

    ours, rows = open_study(tmp_path / "ours.db", direction="maximize")
    trial_id = rows.add(0, PARAMS, DISTRIBUTIONS, attributes)
    assert ours.trials[0].state is TrialState.RUNNING
    for step, value in enumerate(steps, start=1):
        rows.update(trial_id, {"epochs": step}, value=(step, value))
    last = steps[-1:] if state is TrialState.PRUNED else values
    rows.end(trial_id, state, last, {"seconds": 1.5}, {"constraints:limits.latency_ms": 0.5})

    assert shown(ours.trials[0]) == shown(theirs.trials[0])
    assert abs((ours.trials[0].datetime_start - theirs.trials[0].datetime_start).total_seconds()) < 60  # type: ignore[operator]
    assert ours.trials[0].duration is not None

    # And our own reading is Optuna's, but for the values that dashboards draw.
    (read,) = rows.read()
    drawn = ours.trials[0]
    drawn.intermediate_values = {}
    assert read == drawn


def local_time() -> datetime:
    """Return the time as Optuna's trials show it: local, without a zone."""
    return datetime.now(timezone.utc).astimezone().replace(tzinfo=None)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_times_are_those_that_optuna_shows_in_any_zone(
    zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        study, rows = open_study(tmp_path / "s.db")
        before = local_time() - timedelta(seconds=1)
        rows.end(rows.add(0, {}, {}, {}), TrialState.COMPLETE, [0.5], {}, {})
        study.tell(study.ask(), 0.5)
        ours, theirs = study.trials
        read = rows.read()
        times = [(trial.datetime_start, trial.datetime_complete) for trial in (ours, theirs, *read)]
        assert times[:2] == times[2:]
        assert all(moment is not None and before <= moment <= local_time() for pair in times for moment in pair)
    time.tzset()


def test_several_objectives(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db", directions=["maximize", "minimize"])
    rows.end(rows.add(0, {}, {}, {}), TrialState.COMPLETE, [0.5, 2.0], {}, {})
    assert study.best_trials[0].values == [0.5, 2.0]


def test_ended_trial_takes_no_more_and_keeps_what_it_has(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db")
    trial_id = rows.add(0, {}, {}, {"seed": 1})
    study.tell(0, state=TrialState.FAIL)
    with pytest.raises(EndedError):
        rows.update(trial_id, {"seed": 2}, value=(1, 0.5))
    with pytest.raises(EndedError):
        rows.end(trial_id, TrialState.COMPLETE, [1.0], {}, {})
    (trial,) = study.trials
    assert (trial.state, trial.values, trial.user_attrs, trial.intermediate_values) == (
        TrialState.FAIL,
        None,
        {"seed": 1},
        {},
    )


def test_somebody_elses_trial_is_noticed(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db")
    study.ask()
    with pytest.raises(NumberTakenError):
        rows.add(0, {}, {}, {})
    assert len(study.trials) == 1
    rows.add(1, {}, {}, {})
    assert [trial.number for trial in study.trials] == [0, 1]


class UncertainAccess(FileAccess):
    """Does every step as a server's second attempt: the commit of the first may have succeeded."""

    def transact(self, engine: sqlalchemy.Engine, study_id: int, step: Step[T], *, durable: bool = False) -> T:
        with writing(engine, durable=durable) as connection:
            return step(connection, True)


def test_second_attempt_finds_its_own_trial_but_takes_nobody_elses(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db")
    uncertain = Rows(rows.engine, rows.study_id, UncertainAccess())
    own = rows.add(0, {}, {}, {"seed": 7})
    assert uncertain.add(0, {}, {}, {"seed": 7}) == own
    study.ask()
    with pytest.raises(NumberTakenError):
        uncertain.add(1, {}, {}, {"seed": 8})
    assert uncertain.add(2, {}, {}, {"seed": 8}) != own
    assert [trial.user_attrs for trial in study.trials] == [{"seed": 7}, {}, {"seed": 8}]


def test_waiting_trial_is_taken_once(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db")
    study.enqueue_trial({"model": "vit"}, user_attrs={"by": "me"})
    waiting = study.trials[0]._trial_id
    rows.claim(waiting, PARAMS, DISTRIBUTIONS, {"seed": 7})
    (found,) = study.trials
    assert (found.state, found.params, found.user_attrs) == (TrialState.RUNNING, PARAMS, {"by": "me", "seed": 7})
    assert found.datetime_start is not None
    with pytest.raises(EndedError):
        rows.claim(waiting, PARAMS, DISTRIBUTIONS, {"seed": 8})
    with pytest.raises(EndedError):
        rows.refuse(waiting, "no")
    study.enqueue_trial({"model": "other"})
    rows.refuse(study.trials[1]._trial_id, "the space has no such model")
    assert study.trials[1].state is TrialState.FAIL
    assert study.trials[1].user_attrs["reason"] == "the space has no such model"


@linux_only
def test_entries_added_at_once_are_all_kept(tmp_path: Path) -> None:
    _, rows = open_study(tmp_path / "s.db")
    rows.set_fact("openings", [{"number": -1}])
    rows.engine.dispose()
    with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(add_entry, [tmp_path / "s.db"] * 80, range(80)))
    found = json.loads(
        sqlite3.connect(tmp_path / "s.db").execute("SELECT value_json FROM study_user_attributes").fetchone()[0]
    )
    assert sorted(entry["number"] for entry in found) == list(range(-1, 80))


def add_entry(path: Path, number: int) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})
    Rows(engine, 1).append_fact("openings", {"number": number})


def test_step_that_is_refused_in_its_middle_leaves_nothing(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db")
    trial_id = rows.add(0, {}, {}, {"epochs": 0})
    rows.update(trial_id, {"epochs": 1}, value=(1, 0.5))
    # The value is written after the attributes, and an epoch has one.
    with pytest.raises(StudyError, match="cannot be written"):
        rows.update(trial_id, {"epochs": 2, "more": 2}, value=(1, 0.75))
    assert study.trials[0].user_attrs == {"epochs": 1}
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_database_that_cannot_be_written_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    study, rows = open_study(tmp_path / "s.db")
    trial_id = rows.add(0, {}, {}, {})
    rows.engine.dispose()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()

    # As a full disk does: SQLite may take no page more.
    def limit(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    from sqlalchemy import event

    event.listen(rows.engine, "connect", limit)
    with pytest.raises(StudyError, match=r"cannot be written.*full"):
        rows.update(trial_id, {"epochs": ["x" * 100_000]}, value=(1, 0.5))
    assert study.trials[0].intermediate_values == {}
    rows.engine.dispose()
