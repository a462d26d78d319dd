"""Searches that learn from earlier studies: what is found, copied, left out, and said."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from imgcls_search import __version__
from imgcls_search.catalog import catalog
from imgcls_search.errors import UserError
from imgcls_search.orchestrator.learning import MOST_ROWS, MOST_STUDIES, MOST_TRIALS, earlier_studies, learn
from imgcls_search.space import Space, parse
from imgcls_search.study.facts import LearnedFact
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import load

from scripts.bench import simulation
from tests.conftest import PATIENCE, Answer, begin_command, linux_only
from tests.orchestrator.test_run import is_alive, offspring_of, table, wait_for, wait_for_epochs
from tests.warm import Warm

LENET = """
study: {trials: 6, pictures: false}
data: {digits: {max_train: 150}}
model:
  lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 9, batch_size: 50}
"""
WIDER = LENET.replace("[1e-4, 1e-2]", "[1e-5, 1e-1]").replace("max_train: 150", "max_train: 151")
"""Another range, and other images."""

TEXT = simulation.SPACE.format(sampler="auto", epochs=simulation.EPOCHS)
SPACE = parse(TEXT, catalog(), source="s.yaml")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder in which `one` was searched to its end on real images."""
    folder = tmp_path_factory.mktemp("earlier")
    (folder / "one.yaml").write_text(LENET)
    process = begin_command(["run", "one.yaml", "--workers", "1", "--name", "one"], folder, os.environ, warm)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def there(earlier: Path, tmp_path: Path) -> Path:
    """A space for a second search, beside the first study."""
    shutil.copytree(earlier / "studies", tmp_path / "studies")
    (tmp_path / "two.yaml").write_text(WIDER)
    return tmp_path


TWO = ("run", "two.yaml", "--workers", "1", "--name", "two")


def facts(folder: Path, name: str = "two") -> list[LearnedFact]:
    return load(StudyFiles(folder / "studies", name)).facts.get("learned", [])


def test_a_second_search_learns_from_the_first_and_says_so_in_one_line(
    there: Path, imgcls: Callable[..., Answer]
) -> None:
    answer = imgcls(*TWO)
    assert answer.code == 0, answer.err
    assert [line for line in answer.out.splitlines() if "learn" in line] == [
        "learns from 1 earlier study: one (6 trials)"
    ]
    (fact,) = facts(there)
    assert fact["study"] == "one"
    assert len(fact["sha256"]) == 64
    assert sorted(fact["settings"]) == ["model.lenet5.activation", "model.lenet5.width", "optimizer.adamw.lr"]
    first = load(StudyFiles(there / "studies", "one")).trials
    values = {(trial.epoch / 9, trial.value_at(trial.epoch)) for trial in first}
    assert {(row[-2], row[-1]) for row in fact["rows"]} == values
    lrs = {trial.candidate.params["optimizer.adamw.lr"] for trial in first}
    assert {row[fact["settings"].index("optimizer.adamw.lr")] for row in fact["rows"]} == lrs
    # One that learns from none draws other trials.
    alone = imgcls(*TWO[:-1], "alone", "--set", "study.learn_from=none")
    assert "learn" not in alone.out
    assert facts(there, "alone") == []
    ours, theirs = (load(StudyFiles(there / "studies", name)).trials[0] for name in ("two", "alone"))
    assert ours.candidate.params != theirs.candidate.params


@linux_only
def test_killed_while_it_learns_it_ends_the_same_though_its_source_is_gone(
    there: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    # The name that the tests of runs look for.
    slow = (*TWO[:-1], "tiny-digits", "--set", "data.digits.max_train=1000")
    shutil.copytree(there / "studies", there / "other")
    assert imgcls(*slow, "--studies", "other").code == 0
    for epochs in (1, 9):
        process = start(*slow)
        wait_for_epochs(process, epochs, there / "studies")
        offspring = offspring_of(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda offspring=offspring: not any(is_alive(child) for child in offspring))
        for path in (there / "studies").glob("one*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    answer = imgcls(*slow)
    assert answer.code == 0, answer.err
    assert table(there / "studies") == table(there / "other")


def test_a_study_that_has_begun_learns_nothing_more_and_says_so_where_that_is_asked(
    there: Path, imgcls: Callable[..., Answer]
) -> None:
    assert imgcls(*TWO, "--set", "study.learn_from=none", "--set", "study.trials=1").code == 0
    again = imgcls(*TWO, "--set", "study.trials=2")
    assert again.code == 0, again.err
    assert (
        "study.learn_from: decides at the beginning of a study; this one learned nothing, and learns nothing now"
        in again.out
    )
    assert facts(there) == []
    # A study of a version without the setting resumes, and nothing is said.
    with closing(sqlite3.connect(there / "studies" / "one.db")) as connection, connection:
        (text,) = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = 'space'").fetchone()
        space = json.loads(text)
        del space["study"]["learn_from"]
        connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'space'", (json.dumps(space),))
    (there / "one.yaml").write_text(LENET)
    answer = imgcls("run", "one.yaml", "--workers", "1", "--name", "one", "--set", "study.trials=7")
    assert answer.code == 0, answer.err
    assert "learn" not in answer.out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("[oen]", "no such study (did you mean 'one'?)"),
        ("[two]", "a study does not learn from itself"),
        ("[../one]", "allowed: letters, digits"),
        ("one", "allowed: a list of str or 'auto', 'none'"),
        ("[]", "allowed"),
        ("null", "allowed"),
    ],
)
def test_studies_that_cannot_be_named_are_one_line(
    asked: str, said: str, there: Path, imgcls: Callable[..., Answer]
) -> None:
    answer = imgcls(*TWO, "--set", f"study.learn_from={asked}")
    assert answer.code == 2
    assert said in answer.err.splitlines()[-1]
    assert "study.learn_from" in answer.err.splitlines()[-1]
    assert not (there / "studies" / "two.db").exists()


# Studies made in an instant, and asked in this process.


def make(folder: Path, name: str, count: int = 12, text: str = TEXT) -> StudyFiles:
    space = parse(text, catalog(), source="s.yaml")
    template = simulation.attributes_like_the_record(folder / f"{name}-template", space)
    record = simulation.new_record(folder, space, name)
    storage = StudyFiles(folder, name).store.open()
    simulation.fill(storage, record.study, simulation.make_trials(space, count), template)
    storage.engine.dispose()
    record.rows.engine.dispose()
    return StudyFiles(folder, name)


def asking(
    folder: Path, learn_from: str = "auto", text: str = TEXT, more: str = ""
) -> tuple[list[LearnedFact], list[str]]:
    said: list[str] = []
    overrides = [("study.learn_from", learn_from), *([("study.sampler", more)] if more else [])]
    space = parse(text, catalog(), source="s.yaml", overrides=overrides)
    return learn(space, StudyFiles(folder, "now"), said.append), said


def change_fact(files: StudyFiles, key: str, value: Any) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        sql = "INSERT OR REPLACE INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)"
        connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (key,))
        connection.execute(sql, (key, json.dumps(value)))


def damage(files: StudyFiles) -> None:
    whole = files.database.read_bytes()
    files.database.write_bytes(whole[: len(whole) // 2])


def be_of_macro_f1(files: StudyFiles) -> None:
    change_fact(files, "objectives", [["macro_f1", "maximize"]])


def be_minimized(files: StudyFiles) -> None:
    change_fact(files, "objectives", [["accuracy", "minimize"]])


def be_of_two(files: StudyFiles) -> None:
    change_fact(files, "objectives", [["accuracy", "maximize"], ["params", "minimize"]])


def be_newer(files: StudyFiles) -> None:
    change_fact(files, "imgcls_search", "99.0.0")


def be_odd_inside(files: StudyFiles) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '3' WHERE trial_id = 3 AND key = 'config'")


def lose_its_trials(files: StudyFiles) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        for name in ("trials", "trial_user_attributes", "trial_params", "trial_values", "trial_intermediate_values"):
            connection.execute(f"DELETE FROM {name}")  # noqa: S608


def be_nonsense(files: StudyFiles) -> None:
    change_fact(files, "objectives", 3)


def be_empty(files: StudyFiles) -> None:
    files.database.write_bytes(b"")


def be_of_newer_tables(files: StudyFiles) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99'")


@pytest.mark.parametrize("asked", ["auto", "[bad, good]"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damage, "cannot be read"),
        (be_empty, "cannot be read"),
        (be_nonsense, "cannot be read"),
        (be_odd_inside, "cannot be read"),
        (be_of_newer_tables, "cannot be read"),
        (be_of_macro_f1, "its objective is to maximize macro_f1, here to maximize accuracy"),
        (be_minimized, "its objective is to minimize accuracy, here to maximize accuracy"),
        (be_of_two, "its objective is to maximize accuracy, minimize params, here to"),
        (lose_its_trials, "has 0 trials with a score"),
        (be_newer, f"is from a newer version, 99.0.0; here is {__version__}"),
    ],
)
def test_a_study_that_cannot_teach_is_one_line_and_the_others_do(
    spoil: Callable[[StudyFiles], None], said: str, asked: str, tmp_path: Path
) -> None:
    make(tmp_path, "good")
    spoil(make(tmp_path, "bad"))
    found, lines = asking(tmp_path, asked)
    assert [fact["study"] for fact in found] == ["good"]
    assert lines[0] == "learns from 1 earlier study: good (12 trials)"
    assert lines[1].startswith(f"does not learn from bad: {said}")
    assert len(lines) == 2
    assert all("\n" not in line and len(line) < 300 for line in lines)


def test_a_study_of_very_many_trials_is_left_out_at_once(tmp_path: Path) -> None:
    make(tmp_path, "many", MOST_TRIALS + 1)
    found, (line,) = asking(tmp_path)
    assert found == []
    assert line == f"does not learn from many: has {MOST_TRIALS + 1:,} trials; at most {MOST_TRIALS:,} are read"


def test_of_a_large_study_a_part_is_copied_over_all_of_its_order(tmp_path: Path) -> None:
    files = make(tmp_path, "large", 3 * MOST_ROWS)
    (fact,), _ = asking(tmp_path)
    values = [row[-1] for row in fact["rows"]]
    theirs = sorted(trial.values[0] for trial in load(files).trials if trial.values)
    assert len(values) == MOST_ROWS
    assert (values[0], values[-1]) == (theirs[-1], theirs[0])
    assert values == sorted(values, reverse=True)


def test_of_many_studies_those_that_share_most_are_learned_from(tmp_path: Path) -> None:
    less = TEXT.replace("{float: [1e-4, 1e-2], log: true}", "1e-3")
    for number in range(MOST_STUDIES):
        make(tmp_path, f"same-{number:02}", 3)
    make(tmp_path, "less", 5, less)
    found, (line,) = asking(tmp_path)
    assert [fact["study"] for fact in found] == [f"same-{number:02}" for number in range(MOST_STUDIES)]
    assert (
        line
        == f"learns from {MOST_STUDIES} earlier studies: "
        + ", ".join(f"same-{number:02} (3 trials)" for number in range(5))
        + f" and {MOST_STUDIES - 5} more"
    )


def test_what_one_space_gives_and_the_other_searches_is_copied(tmp_path: Path) -> None:
    make(tmp_path, "given", 3, TEXT.replace("{choice: [32, 64]}", "32"))
    (fact,), _ = asking(tmp_path)
    assert {row[fact["settings"].index("training.batch_size")] for row in fact["rows"]} == {32}
    assert {row[fact["settings"].index("model.vit.depth")] for row in fact["rows"]} <= {2, 3, 4, 5, 6}


OTHERS = "model: {lenet5: {width: {choice: [0.5, 1]}}}\ntraining: {epochs: 5}\n"


def test_studies_of_other_spaces_are_left_alone_unless_they_are_named(tmp_path: Path) -> None:
    make(tmp_path, "vits")
    assert asking(tmp_path, text=OTHERS) == ([], [])
    _, (line,) = asking(tmp_path, "[vits]", text=OTHERS)
    assert line == "does not learn from vits: has no searched setting in common with this space"


@pytest.mark.parametrize(("sampler", "learned"), [("auto", 1), ("curves", 1), ("random", 0), ("tpe", 0), ("qmc", 0)])
def test_a_sampler_that_does_not_learn_says_so_where_studies_are_named(
    sampler: str, learned: int, tmp_path: Path
) -> None:
    make(tmp_path, "before")
    found, lines = asking(tmp_path, "[before]", more=sampler)
    assert len(found) == learned
    if not learned:
        assert lines == [
            "study.learn_from: needs one objective and the sampler auto or curves; no earlier study is used"
        ]
        assert asking(tmp_path, more=sampler) == ([], [])


def test_trials_that_failed_are_left_out_and_those_that_diverged_stand_last(tmp_path: Path) -> None:
    record = simulation.new_record(tmp_path, SPACE, "mixed")
    for trial in simulation.make_trials(SPACE, 4):
        epochs, trial.epochs, trial.state, trial.values = trial.epochs, [], "running", None
        record.add(trial)
        if trial.number < 2:
            record.add_epoch(trial, epochs[0])
            record.prune(trial, "enough")
        elif trial.number == 2:
            record.prune(trial, "diverged")
        else:
            record.fail(trial, "broken")
    record.rows.engine.dispose()
    (fact,), _ = asking(tmp_path)
    assert [row[-2] for row in fact["rows"]] == [0.1, 0.1, 0.0]


def test_what_is_read_again_is_what_was_copied(tmp_path: Path) -> None:
    make(tmp_path, "before")
    found, _ = asking(tmp_path)
    record = simulation.new_record(tmp_path, SPACE, "now")
    record.facts["learned"] = found
    (study,) = earlier_studies(record)
    assert study.name == "before"
    first = study.trials[0]
    assert (first.reached, first.value) == tuple(found[0]["rows"][0][-2:])
    assert SPACE.config_of(dict(first.settings)) is not None
    record.rows.engine.dispose()


def test_nobody_learns_from_itself(tmp_path: Path) -> None:
    make(tmp_path, "now")
    assert asking(tmp_path) == ([], [])
    with pytest.raises(UserError, match="does not learn from itself"):
        asking(tmp_path, "[now]")


def test_names_with_the_setting_come_from_the_space_file_too(tmp_path: Path) -> None:
    make(tmp_path, "before")
    text = TEXT.replace("study: {", "study: {learn_from: [before, before], ")
    space: Space = parse(text, catalog(), source="s.yaml")
    said: list[str] = []
    assert [fact["study"] for fact in learn(space, StudyFiles(tmp_path, "now"), said.append)] == ["before"]
    with pytest.raises(UserError, match=r"s\.yaml:2:\d+: study\.learn_from: .*no such study"):
        learn(
            parse(text.replace("[before, before]", "[gone]"), catalog(), source="s.yaml"),
            StudyFiles(tmp_path, "now"),
            said.append,
        )
