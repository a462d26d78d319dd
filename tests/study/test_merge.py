"""Studies that are merged, where they are empty, related, or written meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import traceback
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from imgcls_search.errors import StudyError
from imgcls_search.study import merge as merging
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.holder import marking
from imgcls_search.study.merge import merge

from tests.conftest import linux_only
from tests.study.test_extend import contents, made_study, wider


def test_study_without_a_trial_is_merged_too(tmp_path: Path) -> None:
    for empty in ("a", "b"):
        folder = tmp_path / empty
        sources = [made_study(folder, name=name, count=0 if name == empty else 4)[0] for name in ("a", "b")]
        target = StudyFiles(folder, "both")
        parts = merge(sources, target)
        assert [part["trials"] for part in parts] == ([0, 4] if empty == "a" else [4, 0])
        full = records.load(sources[1] if empty == "a" else sources[0])
        assert contents(records.load(target)) == contents(full)


def test_costs_and_sources_of_functions_are_those_of_all(tmp_path: Path) -> None:
    sources = []
    for name, seconds, digest in (("a", 1.0, "1"), ("b", 2.0, "2"), ("c", 4.0, "1")):
        files, record = made_study(tmp_path, name=name, count=2)
        record.set_fact("usage", {"devices": {"cpu": seconds, name: 1.0}, "workers": {"training": seconds}})
        record.set_fact("code", {"own:net": {"sha256": digest, "changed": []}})
        sources.append(files)
    target = StudyFiles(tmp_path, "all")
    merge(sources, target)
    facts = records.load(target).facts
    assert facts["usage"] == {"devices": {"cpu": 7.0, "a": 1.0, "b": 1.0, "c": 1.0}, "workers": {"training": 7.0}}
    assert facts["code"] == {"own:net": {"sha256": "1", "changed": ["2"]}}


def test_no_trial_is_there_twice(tmp_path: Path) -> None:
    files, record = made_study(tmp_path, name="s", count=2)
    other, _ = made_study(tmp_path, name="t", count=2)
    both = StudyFiles(tmp_path, "both")
    merge([files, other], both)
    with pytest.raises(StudyError, match=r"both: has the trials of t already; leave that one out"):
        merge([other, both], StudyFiles(tmp_path, "more"))
    wider(files, record)
    with pytest.raises(StudyError, match=r"got s, s@1; needs two studies or more, each once"):
        merge([files, find_study(tmp_path, "s@1", None)], StudyFiles(tmp_path, "more"))
    assert not (tmp_path / "more.db").exists()


def test_study_that_is_written_while_it_is_merged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [made_study(tmp_path, name=name, count=2)[0] for name in ("a", "b")]
    target = StudyFiles(tmp_path, "both")
    copy_into = merging.copy_into

    def adds_a_trial(files: StudyFiles, *given: Any, **named: Any) -> None:
        records.load(files).study.enqueue_trial({"model.lenet5.width": 1.0})
        copy_into(files, *given, **named)

    monkeypatch.setattr(merging, "copy_into", adds_a_trial)
    with pytest.raises(StudyError, match=r"trials were added .*merge again"):
        merge(sources, target)
    assert not target.database.exists()
    monkeypatch.setattr(merging, "copy_into", copy_into)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def lets_a_run_begin(files: StudyFiles, *given: Any, **named: Any) -> None:
            copy_into(files, *given, **named)
            if files.name == "b":
                stack.enter_context(marking(sources[0].folder / "lock.pid", "run"))

        patch.setattr(merging, "copy_into", lets_a_run_begin)
        with pytest.raises(StudyError, match=r"is working on this study \(run\)"):
            merge(sources, target)
    assert not target.database.exists()
    assert [part["first"] for part in merge(sources, target)] == [0, 3]


def test_key_that_is_no_text_does_not_end_a_merge(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        files, record = made_study(tmp_path, name=name, count=1)
        record.rows.set_system_facts({"dashboard:note_ver": 1})  # type: ignore[attr-defined]
        close(record)
        with closing(sqlite3.connect(files.database)) as connection, connection:
            assert connection.execute("UPDATE study_system_attributes SET key = NULL").rowcount
        sources.append(files)
    assert [part["first"] for part in merge(sources, StudyFiles(tmp_path, "both"))] == [0, 1]


def test_value_of_a_kind_that_is_none_ends_a_merge_in_one_line(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        files, record = made_study(tmp_path, name=name, count=1)
        close(record)
        sources.append(files)
    with closing(sqlite3.connect(sources[1].database)) as connection, connection:
        assert connection.execute("UPDATE trial_intermediate_values SET intermediate_value_type = 'x'").rowcount
    with pytest.raises(StudyError, match=r"b\.db: is damaged"):
        merge(sources, StudyFiles(tmp_path, "both"))
    assert not (tmp_path / "both.db").exists()


MOMENTS = ("mkdir", "copy2", "replace", "rename", "unlink", "write_text")
"""What is done to files, of `pathlib.Path`, `os` and `shutil`; a merge may be killed before each."""


@pytest.mark.parametrize("other", [False, True])
def test_mark_that_a_killed_merge_was_writing_is_no_folder_of_somebody_else(tmp_path: Path, other: bool) -> None:
    sources = [made_study(tmp_path, name=name, count=1)[0] for name in ("a", "b")]
    target = StudyFiles(tmp_path, "both")
    target.folder.mkdir()
    (target.folder / f".{merging.MARK}.1-ab.tmp").touch()
    if other:
        (target.folder / "mine.txt").touch()
        with pytest.raises(StudyError, match="exists already"):
            merge(sources, target)
        return
    merge(sources, target)
    assert not list(target.folder.glob("*.tmp"))


@pytest.mark.slow
@linux_only
def test_kill_at_any_moment_leaves_no_merged_study_or_the_whole_one(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        files, record = made_study(tmp_path, name=name, count=1)
        (files.folder / "logs").mkdir(parents=True, exist_ok=True)
        files.log(0).write_text(name)
        files.checkpoint(0).parent.mkdir(exist_ok=True)
        files.checkpoint(0).write_text(name)
        close(record)
        sources.append(files)
    before = {path: path.read_bytes() for files in sources for path in files_of(files)}
    states = []
    # Every third one, so that it takes seconds.
    for moment in range(0, 300, 3):
        # Each merge finds what the one before it left.
        target = StudyFiles(tmp_path, "both")
        pid = os.fork()
        if pid == 0:
            merge_and_die(sources, target, moment)
        _, status = os.waitpid(pid, 0)
        assert {path: path.read_bytes() for path in before} == before
        is_there = target.store.exists()
        if is_there:
            merged = records.load(target)
            assert [trial.number for trial in merged.trials] == [0, 1]
            assert [part["first"] for part in merged.facts["merged"]] == [0, 1]
            assert [target.log(number).read_text() for number in (0, 1)] == ["a", "b"]
            assert [target.checkpoint(number).read_text() for number in (0, 1)] == ["a", "b"]
            close(merged)
        states.append((is_there, os.waitstatus_to_exitcode(status)))
        assert states[-1][1] in (0, -signal.SIGKILL)
        if status == 0:
            break
        if is_there:
            for path in (*tmp_path.glob("both.db*"), target.folder):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(states) > 20
    assert states[-1] == (True, 0)
    assert not [path.name for path in tmp_path.rglob("*") if path.name.endswith((".tmp", "-journal", merging.MARK))]
    found = {path.name for path in tmp_path.iterdir()}
    assert found <= {"a", "b", "both", "a.db", "b.db", "both.db"} | {name for name in found if name.startswith(".")}


def close(record: records.Record) -> None:
    assert record.rows.engine is not None
    record.rows.engine.dispose()


def files_of(files: StudyFiles) -> list[Path]:
    return [files.database, *(path for path in files.folder.rglob("*") if path.is_file() and "lock" not in path.name)]


def merge_and_die(sources: list[StudyFiles], target: StudyFiles, moment: int) -> None:
    """Merge in a process that dies at the so-many-th statement or change of a file."""
    try:
        left = [moment]

        def count(*_: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(change: Any) -> Any:
            def changed(*given: Any, **named: Any) -> Any:
                count()
                return change(*given, **named)

            return changed

        for owner in (Path, os, shutil):
            for name in MOMENTS:
                if hasattr(owner, name):
                    setattr(owner, name, counted(getattr(owner, name)))
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
        merge(sources, target)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def spoiled(record: records.Record, **facts: Any) -> None:
    """Change facts of a study, and close it."""
    for name, value in facts.items():
        record.study.set_user_attr(name, value)
    close(record)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"objectives": [["accuracy", "minimize"]]}, "b: its objective is to minimize accuracy, that of a to maximize"),
        ({"data": {"fingerprint": "g", "classes": ["0"], "images": {}}}, "b: has other images than a"),
        ({"data": {"fingerprint": "f", "classes": ["1"], "images": {}}}, "b: has other images than a"),
        (
            {"teachers": {"file:t": {"sha256": "2", "file": "t"}}},
            r"b: its trials learned from other weights than those of a \(file:t\)",
        ),
    ],
)
def test_study_whose_trials_do_not_compare_is_refused(facts: dict[str, Any], said: str, tmp_path: Path) -> None:
    files, first = made_study(tmp_path, name="a", count=1)
    spoiled(first, teachers={"file:t": {"sha256": "1", "file": "t"}})
    other, second = made_study(tmp_path, name="b", count=1)
    spoiled(second, **facts)
    with pytest.raises(StudyError, match=said):
        merge([files, other], StudyFiles(tmp_path, "both"))
    assert not (tmp_path / "both.db").exists()


@pytest.mark.parametrize(
    ("study", "training", "said"),
    [
        ({"seed": 9, "sampler": {"tpe": {}}, "pruner": {"none": {}}, "trials": 7}, {}, None),
        ({}, {"epochs": 5}, r"b: has another space than a: .*training\.epochs.*; where one contains"),
        ({}, {"epochs": 5, "batch_size": 3}, r"\(and 1 more\)"),
    ],
)
def test_studies_may_differ_in_how_they_search(
    study: dict[str, Any], training: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    files, first = made_study(tmp_path, name="a", count=1)
    other, second = made_study(tmp_path, name="b", count=1)
    space: Any = records.to_json(second.fact("space"))
    space["study"] |= study
    space["training"] |= training
    close(first)
    spoiled(second, space=space)
    if said is None:
        assert [part.get("seed") for part in merge([files, other], StudyFiles(tmp_path, "both"))] == [0, 9]
        return
    with pytest.raises(StudyError, match=said):
        merge([files, other], StudyFiles(tmp_path, "both"))


def test_facts_and_files_of_all_parts_are_found_under_their_new_numbers(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        files, record = made_study(tmp_path, name=name, count=2)
        record.append_fact("runs", {"seconds": 1.0, "ending": "finished", "trials": 2, "epochs": 8})
        record.append_fact("test_openings", {"trial": 1, "at": name})
        record.append_fact("test_openings", {"at": name})
        for path in (files.log(1), files.checkpoint(1), files.artifact(1), files.teacher(name * 16)):
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)
        (files.folder / "checkpoints/odd.pt").touch()
        (files.folder / "checkpoints/.trial-00000.pt.1-ab.tmp").touch()
        learned = {"study": "before", "sha256": "1", "settings": [], "rows": []}
        shared = {"weights": {"w": {"file": f"{name}.pth", "sha256": "1"}, name: {"file": "x", "sha256": "1"}}}
        spoiled(record, learned=[learned], hardware=f"a {name}", known_as=name, **shared)
        sources.append(files)
    target = StudyFiles(tmp_path, "both")
    parts = merge(sources, target)
    assert [(part["study"], part["trials"], part["first"], part.get("hardware")) for part in parts] == [
        ("a", 2, 0, "a a"),
        ("b", 2, 2, "a b"),
    ]
    for number, text in ((1, "a"), (3, "b")):
        for path in (target.log(number), target.checkpoint(number), target.artifact(number), target.teacher(text * 16)):
            assert path.read_text() == text
    assert sorted(path.name for path in target.checkpoint(0).parent.iterdir()) == [
        *("trial-00001.onnx", "trial-00001.pt", "trial-00003.onnx", "trial-00003.pt"),
    ]
    merged = records.load(target)
    facts = merged.facts
    assert [run["epochs"] for run in facts["runs"]] == [8, 8]
    assert [(each.get("trial"), each["at"]) for each in facts["test_openings"]] == [
        *((1, "a"), (None, "a"), (3, "b"), (None, "b")),
    ]
    assert len(facts["learned"]) == 1
    # Where two parts disagree, the first counts.
    assert {name: fact["file"] for name, fact in facts["weights"].items()} == {"w": "a.pth", "a": "x", "b": "x"}
    assert "known_as" not in facts
    assert facts["space"]["study"]["name"] == "both"
    assert [trial.origin for trial in merged.trials] == [
        {"study": name, "trial": number} for name in ("a", "b") for number in (0, 1)
    ]
    frozen = merged.study.trials[3].user_attrs
    assert frozen["log"] == "both/logs/trial-00003.log"
    assert next(iter(frozen["strategy"]["sampler"])) == "auto"
    close(merged)
    # A merged trial that is merged again keeps its first origin.
    third, record = made_study(tmp_path, name="c", count=1)
    close(record)
    more = StudyFiles(tmp_path, "more")
    merge([third, target], more)
    again = records.load(more)
    assert [(trial.origin["study"], trial.origin["trial"]) for trial in again.trials] == [
        *(("c", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 1)),
    ]
    close(again)


def test_states_of_two_populations_do_not_combine_and_places_of_waiting_trials_move(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        files, record = made_study(tmp_path, "nsga2", name=name, count=3)
        close(record)
        with closing(sqlite3.connect(files.database)) as connection, connection:
            insert = "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
            connection.execute("DELETE FROM trial_user_attributes WHERE key = 'sampler_state' AND trial_id = 1")
            connection.execute(insert, (1, "sampler_state", '{"nsga2:generation": 1}'))
            connection.execute(insert, (2, "place", "0"))
        sources.append(files)
    target = StudyFiles(tmp_path, "both")
    merge(sources, target)
    merged = records.load(target)
    assert [dict(trial.candidate.sampler_state) for trial in merged.trials if trial.number in (0, 3)] == [
        {"nsga2:generation": 1},
        {},
    ]
    assert merged.placed == {1: 0, 4: 3}
    assert [trial.number for trial in merged.trials] == [1, 0, 2, 4, 3, 5]
    close(merged)
