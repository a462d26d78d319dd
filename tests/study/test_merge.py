"""Studies that are merged, where they are empty, related, or written meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.errors import StudyError
from imgcls_search.study import merge as merging
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.holder import marking
from imgcls_search.study.merge import merge

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
    pour = merging.pour

    def adds_a_trial(files: StudyFiles, *given: Any, **named: Any) -> None:
        records.load(files).study.enqueue_trial({"model.lenet5.width": 1.0})
        pour(files, *given, **named)

    monkeypatch.setattr(merging, "pour", adds_a_trial)
    with pytest.raises(StudyError, match=r"trials were added .*merge again"):
        merge(sources, target)
    assert not target.database.exists()
    monkeypatch.setattr(merging, "pour", pour)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def lets_a_run_begin(files: StudyFiles, *given: Any, **named: Any) -> None:
            pour(files, *given, **named)
            if files.name == "b":
                stack.enter_context(marking(sources[0].folder / "lock.pid", "run"))

        patch.setattr(merging, "pour", lets_a_run_begin)
        with pytest.raises(StudyError, match=r"is working on this study \(run\)"):
            merge(sources, target)
    assert not target.database.exists()
    assert [part["first"] for part in merge(sources, target)] == [0, 3]
