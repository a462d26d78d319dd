"""The report on bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search.errors import UserError
from imgcls_search.study.files import StudyFiles
from imgcls_search.views.report import write_report

from tests.conftest import Answer
from tests.views.test_dashboard import TWO, study_with


def test_report_of_a_study_that_is_not_there_is_one_line(imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("report", "nothing", "-o", "x.html")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert "no such study" in answer.err


@pytest.mark.slow
def test_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0), ([0.75], 0.0)])
    record.set_fact("data", {"images": {"train": 800, "val": 200}, "classes": ["cat", "dog"], "fingerprint": "0123"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"^\S*folder: cannot be written \([^\n]*\)$"):
        write_report(files, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []
