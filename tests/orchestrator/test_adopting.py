"""Open trials that an earlier run left: adopted, or ended because their record is damaged."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.orchestrator.adopting import adopt
from imgcls_search.orchestrator.context import SearchContext, study_settings
from imgcls_search.space import parse
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load

from scripts.bench import simulation

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    """A study of a complete, a running and a paused trial."""
    record = simulation.new_record(tmp_path, SPACE, "s")
    for trial in simulation.make_trials(SPACE, 3):
        epochs, values = trial.epochs, trial.values
        trial.epochs, trial.values, trial.state, trial.until = [], None, "running", len(epochs)
        record.add(trial)
        record.add_epoch(trial, epochs[0])
        if trial.number == 0:
            record.complete(trial, values or ())
        if trial.number == 2:
            record.set_plan(trial, until=1, paused=True)
    assert record.rows.engine is not None
    record.rows.engine.dispose()
    return StudyFiles(tmp_path, "s")


def adopted(files: StudyFiles, record: Record) -> tuple[list[int], list[str]]:
    said: list[str] = []
    context = SearchContext(space=SPACE, files=files, record=record, settings=study_settings(SPACE), say=said.append)
    return [trial.number for trial in adopt(context)], said


def test_running_trials_are_adopted_with_a_milestone_that_they_can_reach(files: StudyFiles) -> None:
    record = load(files)
    record.by_number[1].until = 10**6
    assert adopted(files, record) == ([1], [])
    assert record.by_number[1].until == simulation.EPOCHS
    assert [trial.state for trial in record.trials] == ["complete", "running", "paused"]


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "training.epochs": lambda config: {**config, "training": {**config["training"], "epochs": 9}},
    "training.batch_size": lambda config: {**config, "training": {**config["training"], "batch_size": 7}},
    "training": lambda config: {name: part for name, part in config.items() if name != "training"},
    "data.digits.val": lambda config: {**config, "data": {"digits": {**config["data"]["digits"], "val": "x"}}},
    "data.digits": lambda config: {**config, "data": {"other": {}}},
    "model.vit.depth": lambda config: {**config, "model": {"vit": {**config["model"]["vit"], "depth": None}}},
    "optimizer.adamw.lr": lambda config: {**config, "optimizer": {"adamw": {**config["optimizer"]["adamw"], "lr": 9}}},
}


@pytest.mark.parametrize("path", DAMAGE)
def test_open_trial_whose_configuration_is_damaged_ends_as_failed(path: str, files: StudyFiles) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        where = "WHERE key = 'config' AND trial_id = ?"
        for trial in (1, 2, 3):
            row = connection.execute(f"SELECT value_json FROM trial_user_attributes {where}", (trial,))  # noqa: S608
            text = json.dumps(DAMAGE[path](json.loads(row.fetchone()[0])))
            connection.execute(f"UPDATE trial_user_attributes SET value_json = ? {where}", (text, trial))  # noqa: S608
    record = load(files)
    running, said = adopted(files, record)
    assert running == []
    assert len(said) == 2
    # Nobody trains the complete one again.
    for trials in (record.trials, load(files).trials):
        assert [trial.state for trial in trials] == ["complete", "fail", "fail"]
        reasons = [trial.reason or "" for trial in trials[1:]]
        assert all(f"its configuration is not that of its parameters: {path}" in reason for reason in reasons), reasons


def test_free_settings_and_the_place_of_the_images_may_differ(files: StudyFiles) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = json_set(value_json, '$.training.device', 'cuda') "
            "WHERE key = 'config'"
        )
    assert adopted(files, load(files)) == ([1], [])


def test_trial_goes_on_after_its_range_lost_its_steps(tmp_path: Path) -> None:
    text = simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS)
    stepped = parse(text.replace("[0.0, 0.3]", "[0.1, 0.5], step: 0.1"), catalog(), source="test")
    wider = parse(text.replace("[0.0, 0.3]", "[0.0, 0.5]"), catalog(), source="test")
    record = simulation.new_record(tmp_path, stepped, "s")
    for trial in simulation.make_trials(stepped, 20):
        trial.epochs, trial.values, trial.state = [], None, "running"
        record.add(trial)
    path = "optimizer.adamw.weight_decay"
    assert any(trial.candidate.params[path] == 0.1 + 2 * 0.1 for trial in record.trials)
    context = SearchContext(
        space=wider, files=StudyFiles(tmp_path, "s"), record=record, settings=study_settings(wider), say=print
    )
    assert [trial.number for trial in adopt(context)] == list(range(20))
