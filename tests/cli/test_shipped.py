"""The shipped spaces: every command that takes a space takes their names; `spaces` lists them and writes them out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search.cli.app import app
from imgcls_search.space import shipped
from typer.main import get_command

from tests.conftest import Answer, is_one_line

SPACES = Path(__file__).parents[2] / "spaces"
NAMES = sorted(path.stem for path in SPACES.glob("*.yaml"))
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]

SMALL = ("--set", "data.digits.max_train=100", "--set", "training.epochs=1")

BY_NAME = {
    "check": ("lenet5", "--samples", "0"),
    "run": ("lenet5", *SMALL, "--set", "study.trials=1", "--set", "study.pictures=false", "--workers", "1"),
    "plan": ("lenet5", *SMALL, "--epochs", "1", "--workers", "1"),
    "augment-preview": ("lenet5", "-o", "sheet.png", "--rows", "1"),
    "pretrain": (
        *("pretrain", "--data", "digits", "-o", "backbone.pt", "--set", "pretrain=simclr", "--set", "image.size=16"),
        *("--set", "pretrain.simclr.epochs=1", "--set", "pretrain.simclr.batch_size=64"),
        *("--set", "model={resnet: {width: 4}}", "--set", "start=[]", "--set", "data.digits.max_train=100"),
    ),
}
"""A call of each command by the name of a shipped space."""

ALL = ", ".join(NAMES)


def test_every_command_that_takes_a_space_is_here() -> None:
    takes = {
        name
        for name, command in COMMANDS.items()
        if any(parameter.metavar == "SPACE" for parameter in command.params if parameter.param_type_name == "argument")
    }
    assert takes == BY_NAME.keys()


@pytest.mark.parametrize("command", BY_NAME)
def test_command_takes_the_name_of_a_shipped_space(command: str, tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    # A folder is no such file.
    name = BY_NAME[command][0]
    (tmp_path / name).mkdir()
    answer = imgcls(command, *BY_NAME[command])
    assert answer.code == 0, answer.err
    if command == "run":
        assert "study lenet5-digits in" in answer.out
        assert (tmp_path / "studies" / "lenet5-digits").is_dir()


@pytest.mark.parametrize("command", [*BY_NAME, "train"])
def test_unknown_name_is_answered_with_the_known_ones(command: str, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls(command, "lenet", *(("-o", "sheet.png") if command == "augment-preview" else ()))
    assert answer.code == 2
    assert is_one_line(answer)
    said = f"lenet: no such file, and no shipped space has this name (did you mean 'lenet5'?); shipped: {ALL}"
    assert answer.err == f"error: {said}\n"


def test_train_says_what_is_searched_in_a_shipped_space(imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("train", "lenet5")
    assert answer.code == 2
    assert "error: lenet5: optimizer.adamw.lr: is still searched" in answer.err


def test_name_and_file_are_the_same_space(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    found = [
        json.loads(imgcls("check", space, "--samples", "0", "--json").out) for space in ("vit", SPACES / "vit.yaml")
    ]
    assert found[0] == found[1]
    assert found[0]["name"] == "vit-digits"
    # A file of this name is the user's own space.
    (tmp_path / "vit").write_text("data: {digits: {}}\nmodel: {lenet5: {width: {choice: [1, 2]}}}\n")
    own = json.loads(imgcls("check", "vit", "--samples", "0", "--json").out)
    assert own["name"] == "vit-digits"
    assert list(own["space"]["model"]) == ["lenet5"]


@pytest.mark.parametrize("path", ["spaces/vit.yaml", "vit.yaml", "vit.yml", "mine/vit"])
def test_missing_file_like_a_shipped_space_names_it(path: str, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("check", path)
    assert answer.code == 2
    assert answer.err == f"error: {path}: no such file; the shipped space of this name is called 'vit'\n"


def test_spaces_are_listed(imgcls: Callable[..., Answer]) -> None:
    listed = json.loads(imgcls("spaces", "--json").out)
    assert list(listed) == NAMES
    assert all(sentence and sentence[0].isupper() for sentence in listed.values())
    assert listed["vit"] == "Small vision transformers"
    lines = imgcls("spaces").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES


def test_space_is_copied_and_never_over_another_file(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    whole = (SPACES / "vit.yaml").read_bytes()
    answer = imgcls("spaces", "copy", "vit")
    assert (answer.code, answer.out) == (0, "wrote vit.yaml; change it and run it with: imgcls-search run vit.yaml\n")
    assert (tmp_path / "vit.yaml").read_bytes() == whole
    (tmp_path / "vit.yaml").write_text("mine")
    for output in ((), ("-o", "vit.yaml"), ("-o", ".")):
        refused = imgcls("spaces", "copy", "vit", *output)
        assert refused.code == 2
        assert refused.err == (
            "error: vit.yaml: exists already; add --force to replace it, or choose another file with --output\n"
        )
        assert (tmp_path / "vit.yaml").read_text() == "mine"
    assert imgcls("spaces", "copy", "vit", "--force").code == 0
    assert (tmp_path / "vit.yaml").read_bytes() == whole


def test_space_is_copied_to_a_file_or_a_folder(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "mine").mkdir()
    assert json.loads(imgcls("spaces", "copy", "vit", "--output", "mine", "--json").out) == {
        "space": "vit",
        "file": "mine/vit.yaml",
    }
    assert imgcls("spaces", "copy", "resnet", "-o", "mine/own.yaml").code == 0
    assert (tmp_path / "mine/own.yaml").read_bytes() == (SPACES / "resnet.yaml").read_bytes()
    lost = imgcls("spaces", "copy", "resnet", "-o", "nowhere/own.yaml")
    assert lost.code == 2
    assert is_one_line(lost)
    assert "nowhere/own.yaml: cannot be written" in lost.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("copy",), f"spaces copy: needs the name of a space; allowed: {ALL}"),
        (("copy", "vitt"), f"vitt: no shipped space has this name (did you mean 'vit'?); allowed: {ALL}"),
        (("copy", "spaces/vit.yaml"), f"spaces/vit.yaml: no shipped space has this name; allowed: {ALL}"),
        (("copy", "../vit"), f"../vit: no shipped space has this name (did you mean 'vit'?); allowed: {ALL}"),
    ],
)
def test_wrong_words_are_one_line(words: tuple[str, ...], said: str, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("spaces", *words)
    assert (answer.code, answer.err) == (2, f"error: {said}\n")
    unknown = imgcls("spaces", "kopy", "vit")
    assert unknown.code == 2
    assert is_one_line(unknown)


def test_shipped_spaces_are_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a wheel put them: `imgcls_search/spaces`, beside no source."""
    package = tmp_path / "site-packages" / "imgcls_search"
    (package / "space").mkdir(parents=True)
    monkeypatch.setattr(shipped, "__file__", str(package / "space" / "shipped.py"))
    assert shipped.names() == ()
    shutil.copytree(SPACES, package / "spaces")
    assert list(shipped.names()) == NAMES
    assert shipped.find(Path("vit")) == package / "spaces" / "vit.yaml"
