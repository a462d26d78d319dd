"""The space file of `auto`, which people may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from imgcls_search.api.automatically import options_of
from imgcls_search.api.options import read_space_of
from imgcls_search.automatic.output import OutputFolder, read
from imgcls_search.automatic.request import Request
from imgcls_search.config import Component
from imgcls_search.errors import UserError


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.swa", "2", "training.swa"),
        ("distill.temperature", "2", "distill"),
        ("model", "{custom: {function: 'nowhere:net'}}", "no module 'nowhere'"),
        ("study.objectives", "{mean_average_precision: maximize}", "mean_average_precision"),
    ],
)
def test_what_a_search_refuses_is_refused_in_the_same_words(path: str, value: str, said: str, tmp_path: Path) -> None:
    output = OutputFolder(out=tmp_path, space_file=tmp_path / "digits.yaml")
    output.space_file.write_text(
        "data: {digits: {}}\nmodel: {lenet5: {width: {choice: [0.5, 1]}}}\ntraining: {epochs: 4, ema: 0.9}\n"
    )
    with pytest.raises(UserError) as theirs:
        read_space_of(output.space_file, [(path, value)])
    with pytest.raises(UserError) as ours:
        read(output, Component(path="data.digits", name="digits", args={}), [(path, value)])
    assert str(ours.value) == str(theirs.value)
    assert said in str(ours.value)
    assert len(ours.value.lines()) == 1


def test_next_commands_have_the_address_without_its_password() -> None:
    plain = "postgresql://me@host/studies"
    assert options_of(Path("studies"), plain) == f" --storage {plain}"
    shown = options_of(Path("my studies"), "postgresql://me:secret@host/studies")
    assert shown == " --studies 'my studies' --storage postgresql+psycopg://me@host/studies"


def test_commands_that_are_shown_find_the_study() -> None:
    def request(studies: str) -> Request:
        return Request(
            component=Component(path="data.digits", name="digits", args={}),
            seconds=None,
            out=None,
            flips=None,
            ask_flips=lambda: "none",
            studies=Path(studies),
            storage=None,
            cluster=None,
            changes=[],
            started=0.0,
        )

    assert request("studies").in_folder == ""
    assert request("my studies").in_folder == " --studies 'my studies'"
