"""Names of classes and files that a terminal would obey, that would forge a line, or that are not UTF-8."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.cli.output import print_table
from imgcls_search.errors import SpaceError, StudyError
from imgcls_search.terminal import shown
from PIL import Image

from tests.conftest import Answer, linux_only

CLASSES = (b"caf\xe9", b"a\nerror: forged", b"\x1b[31mred\r", "猫👨‍👩‍👧".encode())

SPACE = """
study: {name: names, trials: 2}
data: {folder: {root: photos, val: 0.5}}
model: {lenet5: {width: {choice: [0.5, 1]}}}
optimizer: {adamw: {lr: 1e-3}}
training: {epochs: 2, batch_size: 8}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for number, label in enumerate(CLASSES):
        for split in (b"train", b"test"):
            folder = os.path.join(os.fsencode(tmp_path / "photos"), split, label)  # noqa: PTH118 - of bytes
            os.makedirs(folder)  # noqa: PTH103
            for image, name in enumerate((b"\xff.png", b"n\nerror: b.png", b"\x1b]0;title\x07.png", b"d.png")):
                pixels = noise.integers(0, 200, (12, 12, 3), dtype=np.uint8) // (number + 1) + np.uint8(image)
                Image.fromarray(pixels).save(os.fsdecode(os.path.join(folder, name)))  # noqa: PTH118
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path / "photos"


def is_clean(text: str) -> bool:
    """Tell whether a text moves no cursor, and has no line that a name began."""
    lines = text.split("\n")
    return not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for line in lines for c in line) and not any(
        line.startswith(("error: forged", "error: b.png")) for line in lines
    )


@linux_only
@pytest.mark.slow
def test_every_command_shows_any_name(imgcls: Callable[..., Answer], photos: Path, tmp_path: Path) -> None:
    def works(*arguments: str) -> str:
        done = imgcls(*arguments)
        assert done.code == 0, (arguments, done.err)
        assert is_clean(done.out), (arguments, done.out)
        assert is_clean(done.err), (arguments, done.err)
        assert "Traceback" not in done.err
        return done.out

    works("run", "space.yaml")
    works("best", "names")
    works("trials", "names", "--csv")
    works("export", "names", "-o", "best.yaml")
    works("train", "best.yaml")
    works("evaluate", "trained/best/seed-1.pt", "--split", "test", "--predictions", "test.csv")
    works("augment-preview", "space.yaml", "-o", "sheet.png")
    works("export", "names", "--bundle", "model")
    told = works("predict", "model", "photos/test")
    assert r"photos/test/caf\udce9/\udcff.png: " in told
    assert r"a\nerror: forged/n\nerror: b.png: " in told
    assert "猫👨‍👩‍👧/d.png: " in told
    works("report", "names", "-o", "report.html")
    assert r"caf\udce9" in (tmp_path / "report.html").read_text()
    rows = (tmp_path / "test.csv").read_text().splitlines()
    assert len(rows) == 17
    assert all(is_clean(row) for row in rows)
    labels = json.loads((tmp_path / "model" / "labels.json").read_text())
    # What a program reads is what the folders are called.
    assert sorted(map(os.fsencode, labels)) == sorted(CLASSES)


@linux_only
@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_streams_of_a_narrow_encoding_take_any_name(settings: dict[str, str]) -> None:
    code = (
        "from imgcls_search import terminal; terminal.settle_streams()\n"
        "from imgcls_search.cli.output import echo, print_table\n"
        "from rich.console import Console; from imgcls_search.views.screen import TrainingScreen\n"
        "name = '\\udce9 \\u732b \\xb1'\n"
        "echo(name); echo(name, error=True); print_table((name,), [(name,)]); TrainingScreen(Console()).say(name)\n"
        "print(name)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "search"), **settings}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(r"\udce9 ") == 5
    assert done.stderr.count(r"\udce9 ") == 1


def test_wrong_path_cannot_forge_a_line(here: Callable[..., Answer]) -> None:
    answer = here("check", "no\nerror: all is lost\x1b[2J\udce9.yaml")
    assert answer.err == "error: no\\nerror: all is lost\\x1b[2J\\udce9.yaml: no such file\n"
    answer = here("status", "no\x1b[2J\r\nerror: x")
    assert answer.err.startswith("error: ")
    assert is_clean(answer.err)
    assert len(answer.err.splitlines()) == 1


def test_wrong_option_cannot_forge_a_line(here: Callable[..., Answer]) -> None:
    answer = here("train", "best.yaml", "--seeds", "x\nerror: y\x1b[2J")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert is_clean(answer.err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, 24 °C ± 0.5", "plain, 24 °C ± 0.5"),
        ("a\tb\r\n\x00\x7f", r"a\tb\r\n\x00\x7f"),
        ("\x85\x9b31m", r"\x8531m".replace("31m", r"\x9b31m")),
        ("\u2028line\u2029", r"\u2028line\u2029"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("caf\udce9", r"caf\udce9"),
        ("猫 кот قط 👨‍👩‍👧", "猫 кот قط 👨‍👩‍👧"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_with_backslashes(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_several_problems_are_several_lines() -> None:
    assert StudyError("a", "b\nc").lines() == ["a", "b\nc"]
    assert str(StudyError("a", "b")) == "a\nb"
    assert SpaceError("s.yaml", []).lines() == []


def test_cell_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [("a\nerror: forged\x1b[2J",), (("first", "second"),)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["name", r"a\nerror: forged\x1b[2J", "first", "second"]


def test_brackets_in_a_heading_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("recall:cat [old]", "[/x]"), [("0.5", "[2, 4]")])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "recall:cat [old]"
    assert heading.split()[-1] == "[/x]"
    assert row.split() == ["0.5", "[2,", "4]"]
