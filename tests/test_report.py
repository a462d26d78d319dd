"""The report on bad input."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import Answer


def test_report_of_a_study_that_is_not_there_is_one_line(imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("report", "nothing", "-o", "x.html")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert "no such study" in answer.err
