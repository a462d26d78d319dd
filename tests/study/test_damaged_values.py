"""Values that no search writes: one line names them where they matter, and what does not need them does without."""

# ruff: noqa: S608 - the names of columns come from here
from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.cli.output import print_classes
from imgcls_search.cli.results import _as_deployed
from imgcls_search.errors import SpaceError, StudyError
from imgcls_search.orchestrator.reopening import reopen, with_placed_start
from imgcls_search.space import parse
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.memory import record_in_memory
from imgcls_search.study.record import load

from scripts.bench import simulation
from tests.conftest import Answer, is_one_line
from tests.study.test_damage import is_plain

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")
DATA = {"fingerprint": "2-abc", "classes": ["0", "1"], "images": {"train": 100, "val": 50, "test": 50}}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The database of a study of complete trials."""
    record = simulation.new_record(tmp_path / "studies", SPACE, "s")
    record.study.set_user_attr("data", DATA)
    for trial in simulation.make_trials(SPACE, 3):
        epochs, values = trial.epochs, trial.values
        trial.epochs, trial.values, trial.state = [], None, "running"
        record.add(trial)
        for metrics in epochs:
            record.add_epoch(trial, metrics)
        record.complete(trial, values or ())
    assert record.rows.engine is not None
    record.rows.engine.dispose()
    return tmp_path / "studies/s.db"


def execute(database: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        assert connection.execute(statement, values).rowcount


def change_attribute(database: Path, key: str, change: Callable[[Any], Any]) -> None:
    """Change an attribute of all trials."""
    with closing(sqlite3.connect(database)) as connection, connection:
        rows = connection.execute(
            "SELECT rowid, value_json FROM trial_user_attributes WHERE key = ?", (key,)
        ).fetchall()
        for row, text in rows:
            new = json.dumps(change(json.loads(text)))
            connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE rowid = ?", (new, row))
        assert rows


def set_fact(database: Path, name: str, value: Any) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (name,))
        insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)"
        connection.execute(insert, (name, json.dumps(value)))


def names_damage(answer: Answer) -> bool:
    return is_one_line(answer) and "s.db: is damaged (" in answer.err


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("param_value", b"\xff\xfe"),
        ("param_value", "x"),
        ("param_value", None),
        ("param_value", 2.0**62),
        ("param_name", b"\xff\xfe"),
        ("param_name", None),
    ],
)
def test_parameter_that_no_program_writes_is_one_line(
    column: str, cell: Any, database: Path, here: Callable[..., Answer]
) -> None:
    where = "WHERE param_name = 'optimizer.adamw.lr' AND trial_id = 1"
    execute(database, f"UPDATE trial_params SET {column} = ? {where}", cell)
    for command in ("trials", "status", "best"):
        assert names_damage(here(command, "s", "--json"))


def test_choice_is_not_counted_from_the_end(database: Path, here: Callable[..., Answer]) -> None:
    execute(database, "UPDATE trial_params SET param_value = -1 WHERE param_name = 'model.vit.patch_size'")
    assert names_damage(here("trials", "s"))


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no model": lambda config: {name: part for name, part in config.items() if name != "model"},
    "no data set": lambda config: {**config, "data": {}},
    "a number for a data set": lambda config: {**config, "data": {"digits": 3}},
    "a text for folds": lambda config: {**config, "data": {"digits": {"folds": "x"}}},
    "no epoch": lambda config: {**config, "training": {**config["training"], "epochs": 0}},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration_that_is_none_is_one_line(case: str, database: Path, here: Callable[..., Answer]) -> None:
    change_attribute(database, "config", CONFIGS[case])
    for command in (("best", "s"), ("trials", "s"), ("export", "s", "-o", "best.yaml")):
        assert names_damage(here(*command))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


RULES = {"sampler": {"auto": {}}, "pruner": {"asha": {}}}
FACTS: dict[str, tuple[str, Any]] = {
    "space without rules": ("space", {"data": {"digits": {}}}),
    "no sampler": ("space", {"study": {**RULES, "sampler": {}}}),
    "negative seed": ("space", {"study": {**RULES, "seed": -1}}),
    "deep space": ("space", {"study": RULES, "start": nested(300)}),
    "merged from nothing": ("merged", [{}]),
    "pretraining of nothing": ("backbones", {"x": {"state": "making"}}),
    "short row": ("learned", [{"study": "a", "sha256": "0", "settings": ["x"], "rows": [[0.5]]}]),
    "value of a row": ("learned", [{"study": "a", "sha256": "0", "settings": ["x"], "rows": [[0.5, 1, "y"]]}]),
    "novel value without a path": ("extended", [{"at": "", "added": [], "novel": [[]], "kept": "s@1", "trials": 3}]),
    "more seconds than there are": ("usage", {"devices": {"cpu": 1e308}, "workers": {"training": 1.0}}),
}


@pytest.mark.parametrize("case", FACTS)
def test_fact_that_lacks_what_all_have_is_one_line(case: str, database: Path, here: Callable[..., Answer]) -> None:
    set_fact(database, *FACTS[case])
    assert names_damage(here("status", "s"))


@pytest.mark.parametrize("text", ["[", '["x"]', '[{"id": 1}]', "3"])
def test_requests_that_were_damaged_during_a_run_are_one_line(text: str, database: Path) -> None:
    record = load(StudyFiles(database.parent, "s"))
    insert = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'requests', ?)"
    execute(database, insert, text)
    with pytest.raises(StudyError, match=r"s\.db: is damaged"):
        record.read_requests()
    if text == "[":
        with pytest.raises(StudyError, match=r"s\.db: is damaged"):
            record.refuse_request("0", "no")


def without_accuracy(epochs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "accuracy"} for epoch in epochs]


EPOCHS: dict[str, Callable[[list[dict[str, float]]], list[dict[str, float]]]] = {
    "last one is gone": lambda epochs: epochs[:-1],
    "first one without a score": lambda epochs: [*without_accuracy(epochs[:1]), *epochs[1:]],
    "no score": without_accuracy,
    "more than all are right": lambda epochs: [*epochs[:-1], {**epochs[-1], "accuracy": 3}],
}


@pytest.mark.parametrize("case", EPOCHS)
def test_views_do_without_what_epochs_lack(case: str, database: Path, here: Callable[..., Answer]) -> None:
    change_attribute(database, "epochs", EPOCHS[case])
    for command in (("status", "s"), ("best", "s"), ("compare", "s", "s"), ("report", "s", "-o", "report.html")):
        answer = here(*command)
        assert answer.code == 0, answer.err
    replayed = here("replay", "s", "--pruner", "asha")
    assert is_plain(replayed), replayed.err


def test_score_beyond_all_images_has_no_noise(database: Path, here: Callable[..., Answer]) -> None:
    execute(database, "UPDATE trial_values SET value = 1e300 WHERE trial_id = 2")
    for command in (("compare", "s", "s"), ("status", "s"), ("best", "s")):
        answer = here(*command)
        assert answer.code == 0, answer.err


def test_class_or_cost_without_all_its_figures_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    whole = {"f1": 0.5, "precision": 0.5, "recall": 0.5, "support": 20.0}
    print_classes({"a": {"f1": 0.5}, "b": {**whole, "support": math.nan}})
    assert capsys.readouterr().out == ""
    print_classes({"a": {"f1": 0.5}, "b": whole})
    shown = capsys.readouterr().out
    assert "1 of 2 classes" in shown
    assert not list(_as_deployed({"size_kb": 10.0, "latency_ms": 1.0}))


def test_stored_space_that_is_none_is_one_line(database: Path, tmp_path: Path) -> None:
    for section, value in (("image", 3), ("optimizer", {"adamw": {"lr": {"float": [[], 0.01]}}})):
        set_fact(database, "space", {**json.loads(json.dumps(SPACE.document)), section: value})
        with pytest.raises(StudyError, match="is damaged"):
            reopen(StudyFiles(tmp_path / "studies", "s"), SPACE, print, extends=False)


def test_placed_start_of_another_space_is_named() -> None:
    record = record_in_memory("s", SPACE.objectives)
    record.facts["placed_start"] = [{"model.vit.depth": 3}]
    assert with_placed_start(SPACE, record).start == ({"model.vit.depth": 3},)
    record.facts["placed_start"] = [{"model.vit.depth": "deep"}]
    with pytest.raises(SpaceError, match="placed_start is damaged"):
        with_placed_start(SPACE, record)
