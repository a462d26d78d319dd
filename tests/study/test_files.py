"""Where a study is stored, as shown commands say it."""

from __future__ import annotations

from pathlib import Path

import pytest
from imgcls_search.study.address import VARIABLE, parse
from imgcls_search.study.files import StudyFiles


@pytest.mark.parametrize(
    ("root", "storage", "shown"),
    [
        ("studies", None, "birds"),
        ("my studies", None, "birds --studies 'my studies'"),
        ("studies", "postgresql://me@host/studies", "birds --storage postgresql+psycopg://me@host/studies"),
        ("x", "postgresql://me:secret@host/a b", "birds --studies x --storage 'postgresql+psycopg://me@host/a b'"),
    ],
)
def test_shown_commands_find_the_study_and_show_no_password(root: str, storage: str | None, shown: str) -> None:
    address = None if storage is None else parse(storage, "--storage")
    assert StudyFiles(Path(root), "birds", address).argument == shown


def test_an_address_from_the_environment_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://me:secret@host/studies")
    there, elsewhere = (parse(f"postgresql://me@{host}/studies", "--storage") for host in ("host", "other"))
    assert StudyFiles(Path("studies"), "birds", there).options == ""
    assert StudyFiles(Path("studies"), "birds", elsewhere).options == f" --storage {elsewhere}"
