"""Spaces and changes as Python's values: the same space as from YAML, the same messages."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import imgcls_search as ic
import numpy as np
import pytest
import yaml
from imgcls_search.api.options import changes_of, read_space_of

SPACE: dict[str, Any] = {
    "study": {"name": "tiny", "trials": 3},
    "data": {"digits": {"max_train": 200}},
    "model": {"lenet5": {"width": {"choice": [0.5, 1]}, "activation": "relu"}},
    "optimizer": {"adamw": {"lr": {"float": [1e-4, 1e-2], "log": True}}},
    "training": {"epochs": 5, "batch_size": 50},
}


def test_a_dictionary_is_the_space_of_its_yaml(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE))
    ours, theirs = read_space_of(SPACE), read_space_of(path)
    assert ours.document == theirs.document
    assert ours.parameters() == theirs.parameters()
    assert (ours.name, ours.study) == (theirs.name, theirs.study)
    assert read_space_of({**SPACE, "study": {}}).name == "space-digits"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.lenet5.widht", 1),
        ("model.lenet", {}),
        ("training.epochs", 0),
        ("training.epochs", "many"),
        ("training.epochs", {"int": [5, 1]}),
        ("study.objectives", {"accurasy": "maximize"}),
        ("study.objectives", {"accuracy": "up"}),
        ("optimizer", ["adamw"]),
        ("limits", {"params": -1}),
        ("modle", {}),
    ],
)
def test_what_is_wrong_is_said_as_of_a_file(path: str, value: Any, tmp_path: Path) -> None:
    wrong = copy.deepcopy(SPACE)
    *above, last = path.split(".")
    node = wrong
    for key in above:
        node = node[key]
    node[last] = value
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ic.SpaceError) as of_file:
        read_space_of(file)
    with pytest.raises(ic.SpaceError) as of_dictionary:
        read_space_of(wrong)
    plain = [": ".join(filter(None, ("space", each.path, each.message))) for each in of_file.value.problems]
    assert sorted(of_dictionary.value.lines()) == sorted(plain)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({**SPACE, "model": lambda: None}, "write it as 'module:name'"),
        ({**SPACE, "study": {"objectives": {max: "maximize"}}}, "write it as 'module:name'"),
        ({**SPACE, 3: {}}, "a key must be a name, but got 3"),
        ({**SPACE, "training": {"epochs": float("nan")}}, "not a finite number"),
        ({**SPACE, "optimizer": {"adamw": {"lr": 10**400}}}, "not a finite number"),
        ({**SPACE, "optimizer": {"adamw": {"lr": 10**5000}}}, "not a finite number"),
        ({**SPACE, "training": {"epochs": object()}}, "not a plain value"),
    ],
)
def test_what_is_no_plain_value_is_refused_in_one_line(space: Any, said: str) -> None:
    with pytest.raises(ic.SpaceError) as caught:
        read_space_of(space)
    (line,) = [line for line in caught.value.lines() if said in line]
    assert line.startswith("space: ")
    assert "\n" not in line


def test_a_space_that_holds_itself_is_refused() -> None:
    own: dict[str, Any] = {**SPACE}
    own["model"] = own
    with pytest.raises(ic.SpaceError, match="too deep or too large"):
        read_space_of(own)


def test_changes_are_values_of_python() -> None:
    changes = {"study.trials": np.int64(7), "training.batch_size": {"choice": (32, 64)}, "augment.flip": "horizontal"}
    space = read_space_of(SPACE, changes_of(changes))
    assert space.study["trials"] == 7
    assert [each.path for each in space.parameters() if each.path.startswith("training")] == ["training.batch_size"]
    with pytest.raises(ic.SpaceError, match=r"augment.flip: .*module:name"):
        changes_of({"augment.flip": len})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ic.run(3), "space: got a int"),  # type: ignore[arg-type]
        (lambda: ic.run("nowhere.yaml"), "nowhere.yaml: no such file"),
        (lambda: ic.run(SPACE, timeout="soon"), "--timeout soon: is not a duration"),
        (lambda: ic.run(SPACE, data=[1]), "data: got a list"),  # type: ignore[arg-type]
        (lambda: ic.run(SPACE, data="no-folder"), "does not exist"),
        (lambda: ic.run({**SPACE, "model": "lenet5", "optimizer": "adamw"}), "nothing is searched"),
        (lambda: ic.run(SPACE, weights_dir="no-folder"), "no such folder"),
        (lambda: ic.auto("no-folder"), "does not exist"),
        (lambda: ic.auto("digits", time=-1), "is not a duration"),
        (lambda: ic.auto("digits", flips="up"), "flips: 'up' is not allowed"),  # type: ignore[arg-type]
        (lambda: ic.init("no-folder"), "does not exist"),
        (lambda: ic.train(SPACE, seeds=0), "seeds: 0 is not allowed"),
        (lambda: ic.evaluate("no.pt"), "no.pt"),
        (lambda: ic.open_study("nothing"), "no such study"),
        (lambda: ic.open_study("../up"), "study name"),
        (lambda: ic.load_model("."), "bundle.json: missing"),
        (lambda: ic.load_model("no-folder"), "no-folder"),
        (lambda: ic.add_code("no-folder"), "no such folder"),
        (lambda: ic.inspect(), "needs DATA"),
    ],
)
def test_a_mistake_is_one_line(
    call: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ic.UserError) as caught:
        call()
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.rglob("*.db"))


def test_checking_returns_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = ic.check(SPACE, changes={"study.trials": 9}, samples=0)
    assert (found["name"], found["is_config"], found["survey"]) == ("tiny", False, None)
    assert [each["path"] for each in found["parameters"]] == ["model.lenet5.width", "optimizer.adamw.lr"]
    assert found["space"]["study"]["trials"] == 9
    assert ic.studies() == []
