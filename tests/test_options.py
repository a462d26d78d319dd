"""Every option is in a command line of some test or of the README's tour, apart from those listed here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from search.cli import app
from tests.conftest import Answer

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text()
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def command_lines() -> Iterator[list[str]]:
    """Yield the strings of every call and sequence in the tests that begins with a command, and the README's lines."""
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call():
                    parts: list[ast.expr] = node.args
                case ast.Tuple() | ast.List():
                    parts = node.elts
                case _:
                    continue
            words = [leaf.value for part in parts for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)]
            if words and words[0] in COMMANDS:
                yield [word for word in words if isinstance(word, str)]
    for line in re.findall(r"^imgcls-search (.+?)(?: +#.*)?$", README, re.MULTILINE):
        yield line.split()


UNTESTED: dict[str, str] = {
    "plan": "--studies",
    "best": "--storage",
    "front": "--studies --storage --json",
    "export": "--studies --storage",
    "train": "--set --data --studies --storage",
    "evaluate": "--studies",
    "replay": "--workers --seed --studies --storage",
    "dashboard": "--studies --host",
    "copy": "--studies --storage",
    "clean": "--studies",
    "confirm": "--again --studies --storage",
    "reproduce": "--studies --storage",
    "list": "--studies --json",
    "trials": "--studies --storage",
    "compare": "--studies --storage",
    "report": "--studies",
}
"""Options that no test runs yet; nothing may be added here."""


@cache
def words_by_command() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in COMMANDS}
    for words in command_lines():
        found[words[0]].update(words)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_run_by_a_test(name: str) -> None:
    ran = words_by_command()[name]
    options = [parameter.opts for parameter in COMMANDS[name].params if parameter.param_type_name == "option"]
    missing = {opts[0] for opts in options if not {*opts} & ran and "--help" not in opts}
    assert missing == {*UNTESTED.get(name, "").split()}


def test_check_reads_other_data_by_another_name(tiny: Path, here: Callable[..., Answer]) -> None:
    first, other = (json.loads(here("check", tiny, "--samples", "5", "--json", "--seed", seed).out) for seed in "07")
    assert json.loads(here("check", tiny, "--samples", "5", "--json").out)["survey"] == first["survey"]
    assert other["survey"]["samples"] == 5
    named = here("check", tiny, "--samples", "0", "--json", "--name", "mine", "--data", "cifar10:there")
    found = json.loads(named.out)
    assert (found["name"], found["space"]["data"]["cifar10"]["root"]) == ("mine", "there")
    assert here("check", tiny, "--samples", "1", "--studies", "elsewhere").code == 0
    assert (tiny.parent / "elsewhere" / ".counts.sqlite").is_file()


def test_sheet_of_the_first_setting_of_other_data(tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here(
        "augment-preview",
        tiny,
        "-o",
        "s.png",
        "--first",
        "--data",
        "digits",
        "--studies",
        "elsewhere",
        "--set",
        "augment.flip=horizontal",
    )
    assert answer.code == 0, answer.err
    assert (tiny.parent / "s.png").is_file()
    assert list((tiny.parent / "elsewhere" / ".images").iterdir())
