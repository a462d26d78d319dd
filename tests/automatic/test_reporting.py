"""When `auto` writes its report again: if the one in the folder shows another choice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
from imgcls_search.automatic.bundling import trial_in
from imgcls_search.automatic.ledger import Ledger
from imgcls_search.automatic.reporting import report
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.result_facts import AutoFact, Confirmation
from imgcls_search.views.screens import SilentScreens

from tests.strategy.test_strategy import trial

CONFIRMED = cast(Confirmation, {"at": "2026-12-01T12:00:00+00:00"})


def test_report_is_written_again_once_the_choice_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    is_late = False

    def write(files: StudyFiles, page: Path, number: int, step: Any) -> None:
        if is_late:
            # Until the time ends this.
            time.sleep(60)
        written.append(number)
        page.write_text(f"page {len(written)}")

    monkeypatch.setattr("imgcls_search.views.report.write_report", write)
    page, files = tmp_path / "report.html", StudyFiles(tmp_path, "mine")
    fact: AutoFact = {"given": 100.0}

    def call(number: int, confirmed: Confirmation | None = None, *, given: float = 100.0, spent: float = 0.0) -> bool:
        nonlocal fact
        ledger = Ledger({**fact, "given": given, "spent": {}}, tmp_path / "time.json", time.monotonic() - spent)
        shown = report(page, files, trial(number, 0.5), confirmed, ledger, SilentScreens())
        fact = ledger.fact
        return shown

    assert call(0)
    assert call(0)
    assert written == [0]
    # `confirm` has scored the trial, then chosen another one: the page must not show the former choice.
    assert call(0, CONFIRMED)
    assert call(1, CONFIRMED)
    assert call(1, CONFIRMED)
    assert written == [0, 0, 1]
    # Another study has written into the folder.
    page.write_text("another study's")
    is_late = True
    assert not call(1, CONFIRMED, spent=200.0)
    is_late = False
    assert call(1, CONFIRMED)
    assert written == [0, 0, 1, 1]
    assert call(1, CONFIRMED, given=300.0)
    assert written == [0, 0, 1, 1, 1]
    # Accounts of earlier versions do not name the choice.
    del fact["report"]
    assert call(2, given=300.0)
    assert written == [0, 0, 1, 1, 1]


def test_a_bundle_of_another_study_is_none_of_this_one(tmp_path: Path) -> None:
    assert trial_in(tmp_path, "mine") is None
    for text, found in (
        ('# origin: {"study": "mine", "trial": 3}\n', 3),
        ('# origin: {"study": "other", "trial": 3}\n', None),
        ("# origin: nothing\n", None),
        ("model: lenet5\n", None),
    ):
        (tmp_path / "config.yaml").write_text(text)
        assert trial_in(tmp_path, "mine") == found
