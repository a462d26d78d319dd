"""Where a study is stored, as shown commands say it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from imgcls_search.errors import StudyError
from imgcls_search.study.address import VARIABLE, parse
from imgcls_search.study.files import StudyFiles, find_study


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


def test_shown_commands_name_the_earlier_state_of_a_study() -> None:
    files = find_study(Path("studies"), "birds@2", None)
    assert (files.name, files.kept, files.argument) == ("birds", 2, "birds@2")


def test_an_address_from_the_environment_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://me:secret@host/studies")
    there, elsewhere = (parse(f"postgresql://me@{host}/studies", "--storage") for host in ("host", "other"))
    assert StudyFiles(Path("studies"), "birds", there).options == ""
    assert StudyFiles(Path("studies"), "birds", elsewhere).options == f" --storage {elsewhere}"


def test_command_that_copies_a_study_to_a_server_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse("postgresql://me@host/studies?sslmode=require&connect_timeout=5", "--storage")
    (tmp_path / "birds.db").touch()
    files = StudyFiles(tmp_path, "birds", address)
    command = f"imgcls-search copy birds --studies {tmp_path} --to '{address}', or name"
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StudyError, match=re.escape(f"copy that one: {command}")):
        files.make()
    # There, the study in the SQLite file would not be found.
    monkeypatch.setenv(VARIABLE, address.text)
    with pytest.raises(StudyError, match=re.escape(f"copy that one: {VARIABLE}= {command}")):
        files.make()
