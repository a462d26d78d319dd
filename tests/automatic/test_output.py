"""The space file of `auto`, which people may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from imgcls_search.api.options import read_space_of
from imgcls_search.automatic.output import OutputFolder, read
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


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ("{accuracy: maximize, params: minimize}", "accuracy, params: auto delivers one model"),
        ("{latency_ms: minimize}", "latency_ms: auto delivers one model"),
    ],
)
def test_objectives_by_which_no_one_model_is_best_are_refused_before_the_search(
    objectives: str, said: str, tmp_path: Path
) -> None:
    output = OutputFolder(out=tmp_path, space_file=tmp_path / "digits.yaml")
    output.space_file.write_text("data: {digits: {}}\nmodel: {lenet5: {width: {choice: [0.5, 1]}}}\n")
    with pytest.raises(UserError) as refused:
        read(output, Component(path="data.digits", name="digits", args={}), [("study.objectives", objectives)])
    assert said in str(refused.value)
    assert len(refused.value.lines()) == 1
