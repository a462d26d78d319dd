"""Whatever was done to its files, a command works or says in one line what is wrong."""

# ruff: noqa: S311, S608 - nothing here is secret, and no text comes from outside
from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from imgcls_search import digests
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.data.store import prepare
from imgcls_search.errors import SearchError
from imgcls_search.executors.counts import Counts
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.note import write_note
from imgcls_search.study.record import load
from imgcls_search.views.dashboard import Latest

from tests.conftest import TINY, Answer, begin_command, is_one_line
from tests.damage import damage_bytes, damage_row
from tests.warm import Warm

COPIES = int(os.environ.get("IMGCLS_TEST_COPIES", "100"))
"""How many damaged copies the slow tests look at; thousands find what is rare, in hours."""

VIEWS: tuple[tuple[str, ...], ...] = (
    ("status", "tiny-digits"),
    ("status", "tiny-digits", "--json"),
    ("best", "tiny-digits"),
    ("best", "tiny-digits", "--json"),
    ("trials", "tiny-digits"),
    ("trials", "tiny-digits", "--json"),
    ("list",),
    ("list", "--json"),
    ("front", "tiny-digits"),
    ("front", "tiny-digits", "--json"),
    ("compare", "tiny-digits", "whole"),
    ("compare", "whole", "tiny-digits", "--json"),
    ("replay", "tiny-digits"),
    ("replay", "tiny-digits", "--pruner", "asha", "--json"),
    ("export", "tiny-digits", "-o", "best.yaml"),
    ("export", "tiny-digits", "--trial", "1", "-o", "best.yaml"),
    ("report", "tiny-digits", "-o", "report.html"),
    ("copy", "tiny-digits", "--to", "copy.db"),
)


_SCORE = {"mean": 0.8, "std": 0.01, "ci95": 0.02}
LATER_FACTS = {
    "confirmed": {
        "at": "2026-11-29T00:00:00+00:00",
        "metric": "accuracy",
        "seeds": {"choosing": [11, 12], "fresh": [13, 14]},
        "ranking": [{"trial": 0, "searched": 0.8, "scores": [0.8, 0.8], "is_tied": False, **_SCORE}],
        "chosen": 0,
        "scores": [0.8, 0.8],
        "confirmed": _SCORE,
        "searched": 0.8,
        "optimism": {"mean": 0.0, "ci95": 0.02},
        "test": {**_SCORE, "scores": [0.8, 0.8], "images": 100},
    },
    "ablation": {
        "at": "2026-11-29T00:00:00+00:00",
        "metric": "accuracy",
        "direction": "maximize",
        "first": 1,
        "winner": 0,
        "seeds": [11, 12],
        "steps": [{"changes": ["optimizer.adamw.lr: 0.1 -> 0.2"], "scores": [0.8, 0.8], **_SCORE}] * 2,
    },
    "test_openings": [{"by": "confirm", "at": "2026-11-29T00:00:00+00:00", "seeds": [13, 14], "trial": 0}],
}
"""What `confirm` and `report --ablation` note in a study, which would take minutes of training here."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Path:
    """A folder with the database of a real study that has complete, pruned and paused trials."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "tiny.yaml").write_text(TINY)
    short = ("run", "tiny.yaml", "--workers", "1")
    for settings in (("study.trials=3",), ("study.trials=9", "study.max_epochs=15")):
        options = [part for setting in settings for part in ("--set", setting)]
        process = begin_command([*short, *options], folder, os.environ, warm)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    database = folder / "studies/tiny-digits.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (last,) = connection.execute("SELECT max(trial_id) FROM trials").fetchone()
        where = "WHERE key = ? AND trial_id = ?"
        # As it is in the database while it waits to be promoted: a worker that is ahead of the budget's end may have
        # taken it to its first decision.
        connection.execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id = ?", (last,))
        connection.execute("DELETE FROM trial_values WHERE trial_id = ?", (last,))
        connection.execute(f"DELETE FROM trial_user_attributes {where}", ("reason", last))
        states = {state for (state,) in connection.execute("SELECT state FROM trials")}
        (epochs,) = connection.execute(
            f"SELECT value_json FROM trial_user_attributes {where}", ("epochs", last)
        ).fetchone()
        count = len(json.loads(epochs))
        plan = json.dumps({"judged": count, "until": count, "paused": True})
        connection.execute(f"UPDATE trial_user_attributes SET value_json = ? {where}", (plan, "plan", last))
        study = "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)"
        connection.executemany(study, [(name, json.dumps(value)) for name, value in LATER_FACTS.items()])
        connection.commit()
    assert states == {"COMPLETE", "PRUNED", "RUNNING"}
    return folder


def is_plain(answer: Answer) -> bool:
    """Tell whether a command worked, or said in one line why not."""
    if "Traceback" in answer.err or answer.code not in (0, 1, 2):
        return False
    # Notes about a study come before; a space has all its problems told together.
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    return bool(errors) == (answer.code != 0) and (len(errors) <= 1 or all(": " in line for line in errors))


def copy_as(database: Path, name: str) -> None:
    """Copy a study that nobody damaged to one of another name."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(f"studies/{name}.db")) as target:
        source.backup(target)
        target.execute("UPDATE studies SET study_name = ?", (name,))
        target.commit()


def escapes(
    seeds: range, study: Path, here: Callable[..., Answer], damage: Callable[[Path, random.Random], str], most: int
) -> list[str]:
    """Damage copies of a study and return what any of some commands then did that a user should not see."""
    found = []
    studies = Path("studies")
    studies.mkdir(exist_ok=True)
    whole = study / "studies/tiny-digits.db"
    copy_as(whole, "whole")
    for seed in seeds:
        rng = random.Random(seed)
        for leftover in (*studies.glob("tiny-digits.db*"), Path("copy.db")):
            leftover.unlink(missing_ok=True)
        shutil.copyfile(whole, studies / "tiny-digits.db")
        how = damage(studies / "tiny-digits.db", rng)
        commands = [VIEWS[1], *rng.sample(VIEWS, k=min(most, len(VIEWS)))]
        for place, command in enumerate(commands):
            try:
                answer = here(*command)
                fault = None if is_plain(answer) else f"{answer.code} {answer.err}"
            except Exception as error:
                answer = None
                fault = f"{type(error).__name__}: {error}"
            if fault is not None:
                found.append(f"seed {seed}, {how}: {' '.join(command)}: {fault}")
            if place == 1 and answer is not None and answer.code == 2:
                # The others would say the same.
                break
        try:
            Latest(StudyFiles(studies, "tiny-digits"), print)
        except SearchError:
            pass
        except Exception as error:
            found.append(f"seed {seed}, {how}: dashboard: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("damage", [damage_bytes, damage_row])
def test_damaged_database_is_one_line(
    damage: Callable[[Path, random.Random], str], study: Path, here: Callable[..., Answer]
) -> None:
    assert escapes(range(8), study, here, damage, 1) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage_bytes, damage_row])
def test_any_damaged_database_is_one_line(
    damage: Callable[[Path, random.Random], str], study: Path, here: Callable[..., Answer]
) -> None:
    # Each copy is looked at by some of the commands, each command looks at dozens of copies.
    assert escapes(range(1000, 1000 + COPIES), study, here, damage, 4) == []


LONGER = ("--workers", "1", "--set", "study.trials=10", "--set", "study.max_epochs=25")
WORK: tuple[tuple[str, ...], ...] = (
    ("run", "tiny.yaml", *LONGER),
    ("run", "tiny.yaml", "--workers", "1", "--set", "study.trials=9", "--set", "study.max_epochs=15"),
    ("run", "wider.yaml", "--extend", *LONGER),
    ("run", "beside.yaml", "--workers", "1"),
    ("confirm", "tiny-digits", "--top", "1", "--seeds", "2", "--again"),
    ("reproduce", "tiny-digits", "--trial", "0"),
    ("export", "tiny-digits", "--bundle", "model"),
    ("ensemble", "tiny-digits", "-o", "combined"),
    ("merge", "tiny-digits", "whole", "-o", "both"),
    ("merge", "whole", "tiny-digits", "-o", "both"),
    ("try", "tiny-digits", "--set", "optimizer.adamw.lr=3e-3"),
    ("try", "tiny-digits", "--set", "model.lenet5.width=1", "--json"),
)
"""Commands that open a study to work with it; the one on `beside.yaml` learns from it."""


def worked_with(
    study: Path, here: Callable[..., Answer], damage: Callable[[Path, random.Random], str], seed: int
) -> str:
    """Let a command work with a damaged copy of a study; return what it did that a user should not see."""
    rng = random.Random(seed)
    for folder in map(Path, ("studies", "model")):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("studies", "tiny.yaml"):
        source = study / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, name)
    Path("wider.yaml").write_text(
        TINY.replace("study: {", "study: {name: tiny-digits, ").replace("[0.5, 1]", "[0.5, 1, 2]")
    )
    Path("beside.yaml").write_text(TINY.replace("study: {trials: 4", "study: {name: beside, trials: 1"))
    copy_as(study / "studies/tiny-digits.db", "whole")
    how = damage(Path("studies/tiny-digits.db"), rng)
    command = rng.choice(WORK)
    try:
        answer = here(*command)
        fault = "" if is_plain(answer) else f"{answer.code} {answer.err}"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    return fault and f"seed {seed}, {how}: {' '.join(command)}: {fault}"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage_bytes, damage_row])
def test_work_on_a_damaged_study_goes_on_or_is_one_line(
    damage: Callable[[Path, random.Random], str], study: Path, here: Callable[..., Answer]
) -> None:
    found = [worked_with(study, here, damage, seed) for seed in range(2000, 2000 + COPIES // 20)]
    assert [fault for fault in found if fault] == []


def test_open_trial_with_a_damaged_configuration_fails_alone(study: Path, here: Callable[..., Answer]) -> None:
    shutil.copytree(study / "studies", "studies")
    shutil.copyfile(study / "tiny.yaml", "tiny.yaml")
    with closing(sqlite3.connect("studies/tiny-digits.db")) as connection, connection:
        (last,) = connection.execute("SELECT max(trial_id) FROM trials").fetchone()
        change = "SET value_json = json_set(value_json, '$.data.digits.val', 'x') WHERE key = 'config'"
        connection.execute(f"UPDATE trial_user_attributes {change} AND trial_id = ?", (last,))
    answer = here(*WORK[1])
    assert answer.code == 0, answer.err
    said = 'its configuration is not that of its parameters: data.digits.val: was 0.15, is now "x"'
    assert f"failed: its record is damaged: {said}" in " ".join((answer.out + answer.err).split())
    trial = load(StudyFiles(Path("studies"), "tiny-digits")).by_number[last - 1]
    assert (trial.state, trial.reason) == ("fail", f"its record is damaged: {said}")


# Each of these ended in a traceback.
DAMAGED = {
    "objectives": [[{}, "maximize"]],
    "confirmed": {"chosen": 0},
    "ablation": {"winner": 0},
    "versions": {"torch": []},
    "data": {"images": {"train": "many"}, "classes": [], "fingerprint": "x"},
    "space": {"study": {}},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_fact_of_another_shape_is_one_line(name: str, study: Path, here: Callable[..., Answer]) -> None:
    Path("studies").mkdir()
    shutil.copyfile(study / "studies/tiny-digits.db", "studies/tiny-digits.db")
    with closing(sqlite3.connect("studies/tiny-digits.db")) as connection, connection:
        text = json.dumps(DAMAGED[name])
        connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = ?", (text, name))
    answer = here("status", "tiny-digits", "--json")
    assert is_one_line(answer), answer.err
    assert "tiny-digits.db: is damaged (" in answer.err


@pytest.mark.parametrize("choice", [[[]], {}, [1]])
def test_choices_that_are_no_values_warn_nobody(choice: Any, study: Path, here: Callable[..., Answer]) -> None:
    Path("studies").mkdir()
    shutil.copyfile(study / "studies/tiny-digits.db", "studies/tiny-digits.db")
    with closing(sqlite3.connect("studies/tiny-digits.db")) as connection, connection:
        text = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": [0.5, choice]}})
        row = connection.execute("SELECT min(rowid) FROM trial_params WHERE param_name = 'model.lenet5.width'")
        connection.execute("UPDATE trial_params SET distribution_json = ? WHERE rowid = ?", (text, *row.fetchone()))
    for command in (("try", "--set", "model.lenet5.width=1"), ("best",), ("trials",), ("status",)):
        answer = here(command[0], "tiny-digits", *command[1:])
        assert is_plain(answer)
        assert "Choices for" not in answer.err


@pytest.mark.parametrize("key", ["note_str:0", "note_ver"])
@pytest.mark.parametrize("text", ["[1]", "7.5", "{}"])
def test_note_of_another_shape_does_not_end_a_run(key: str, text: str, study: Path, tmp_path: Path) -> None:
    shutil.copyfile(study / "studies/tiny-digits.db", tmp_path / "tiny-digits.db")
    with closing(sqlite3.connect(tmp_path / "tiny-digits.db")) as connection, connection:
        which = f"dashboard:{key}"
        assert connection.execute(
            "UPDATE study_system_attributes SET value_json = ? WHERE key = ?", (text, which)
        ).rowcount
    write_note(load(StudyFiles(tmp_path, "tiny-digits")))


def test_key_that_is_no_text_does_not_end_a_run(study: Path, tmp_path: Path) -> None:
    shutil.copyfile(study / "studies/tiny-digits.db", tmp_path / "tiny-digits.db")
    with closing(sqlite3.connect(tmp_path / "tiny-digits.db")) as connection, connection:
        connection.execute("UPDATE study_system_attributes SET key = NULL WHERE key = 'dashboard:note_str:0'")
        assert connection.total_changes == 1
    write_note(load(StudyFiles(tmp_path, "tiny-digits")))


def test_dashboard_keeps_what_it_read_when_a_study_is_damaged(study: Path, tmp_path: Path) -> None:
    shutil.copyfile(study / "studies/tiny-digits.db", tmp_path / "tiny-digits.db")
    said: list[str] = []
    latest = Latest(StudyFiles(tmp_path, "tiny-digits"), said.append)
    before = latest.read()
    with closing(sqlite3.connect(tmp_path / "tiny-digits.db")) as connection, connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '[' WHERE key = 'epochs'")
    assert latest.read() is before
    assert len(said) == 1
    assert "is damaged" in said[0]


@pytest.mark.parametrize(
    "text",
    [
        *("[", "[]", "7", "null", "{}", '{"answer": null}', '{"error": 1}', '{"error": [1, 2]}', b"\xff", "[" * 5000),
        *('{"answer": {"params": 3}}', digests.sealed({"answer": {"params": 3}}).replace("3", "5", 1)),
    ],
)
def test_remembered_count_of_another_shape_is_asked_again(text: str | bytes, tmp_path: Path) -> None:
    counts = Counts(tmp_path / "counts.sqlite")
    assert counts.ask({"a": 1}, lambda: {"params": 3}) == {"params": 3}
    assert counts.file is not None
    counts.file.execute("UPDATE counts SET answer = ?", (text,))
    counts.file.close()
    again = Counts(tmp_path / "counts.sqlite")
    assert again.ask({"a": 1}, lambda: {"params": 4}) == {"params": 4}
    assert again.file is not None
    again.file.close()


@pytest.mark.parametrize(
    "change",
    [
        {"mean": []},
        {"mean": ["x"]},
        {"std": [0.0]},
        {"std": None},
        {"repeated": "many"},
        {"repeated": 2, "repeated_for_example": []},
        {"twins": "many"},
        {"twins": 1, "twins_for_example": []},
        {"blank_for_example": 3},
        {"unreadable": [3]},
        {"class_counts": 3},
        {"count": -1},
    ],
)
def test_facts_of_decoded_images_that_are_wrong_are_made_again(change: dict[str, object], tmp_path: Path) -> None:
    source = describe(Component(path="data.digits", name="digits", args={"max_train": 50}))
    first = prepare(source, image_size=8, channels=1, cache=tmp_path)
    meta = Path(first.folder) / "meta.json"
    whole = json.loads(meta.read_text())
    for facts in (
        *({**whole["facts"], split: {**whole["facts"][split], **change}} for split in ("train", "val")),
        [],
        {},
    ):
        # Those of earlier versions have no digest.
        for known in ({**whole, "facts": facts}, {"files": whole["files"], "facts": facts}):
            meta.write_text(json.dumps(known))
            assert prepare(source, image_size=8, channels=1, cache=tmp_path) == first
            assert json.loads(meta.read_text()) == whole


def test_description_of_decoded_images_that_is_too_deep_is_made_again(tmp_path: Path) -> None:
    source = describe(Component(path="data.digits", name="digits", args={"max_train": 50}))
    first = prepare(source, image_size=8, channels=1, cache=tmp_path)
    (Path(first.folder) / "meta.json").write_text("[" * 5000)
    assert prepare(source, image_size=8, channels=1, cache=tmp_path) == first
