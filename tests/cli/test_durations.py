"""Durations as people write them, in the space, on the command line and in what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search import durations
from imgcls_search.catalog import catalog
from imgcls_search.errors import SpaceError
from imgcls_search.space import parse, read_space

from tests.conftest import Answer, is_one_line

SETTINGS = ("timeout", "epoch_timeout", "trial_timeout")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90m", 5400),
        ("90min", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("1 h 30 min", 5400),
        ("90 s", 90),
        ("2 d 7 h 33 min 20 s", 200_000),
        ("2d", 172_800),
        ("1d2h3m4s", 93_784),
        ("3600", 3600),
        ("0.5", 0.5),
    ],
)
def test_parse(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "m", "90x", "1m1h", "1h1h", "-5s", "1:30", "1h30", "h1", "nan", "inf", "1e3s", "90 ", "1  h"]
)
def test_what_is_no_duration(text: str) -> None:
    assert durations.parse(text) is None


@pytest.mark.parametrize(
    ("seconds", "shown", "exactly"),
    [
        (0.1234, "0.12 s", "0.1234 s"),
        (9.96, "10 s", "9.96 s"),
        (45.4, "45 s", "45.4 s"),
        (59.7, "1 min", "59.7 s"),
        (95, "1 min 35 s", "1 min 35 s"),
        (3599, "1 h", "59 min 59 s"),
        (5400, "1 h 30 min", "1 h 30 min"),
        (7201.5, "2 h", "2 h 1.5 s"),
        (200_000, "2 d 8 h", "2 d 7 h 33 min 20 s"),
    ],
)
def test_show(seconds: float, shown: str, exactly: str) -> None:
    assert durations.show(seconds) == shown
    assert durations.show(seconds, exact=True) == exactly


@pytest.mark.parametrize("seconds", [0.25, 1, 59, 60, 61, 3599, 3600, 86_399, 86_400, 90_061, 1e6])
def test_what_is_shown_exactly_reads_as_the_same(seconds: float) -> None:
    assert durations.parse(durations.show(seconds, exact=True)) == seconds


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("text", "seconds"), [("1h30m", 5400.0), ("90m", 5400.0), ("'2d'", 172_800.0), ("75", 75.0)])
def test_study_takes_durations(name: str, text: str, seconds: float, tiny: Path) -> None:
    shown = f"study: {{{name}: {text}}}\ndata: digits\nmodel: {{lenet5: {{width: {{choice: [0.5, 1]}}}}}}\n"
    assert parse(shown, catalog(), source="x.yaml").study[name] == seconds
    assert read_space(tiny, catalog(), overrides=[(f"study.{name}", text)]).study[name] == seconds


@pytest.mark.parametrize("text", ["90x", "0s", "1h30", "[1h]", "1:30", "''"])
@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_durations_are_refused_with_what_is_allowed(name: str, text: str) -> None:
    shown = f"study: {{{name}: {text}}}\ndata: digits\nmodel: lenet5\n"
    with pytest.raises(SpaceError, match=rf"x\.yaml:1:\d+: study\.{name}: .*allowed: seconds > 0, .*1h30m") as wrong:
        parse(shown, catalog(), source="x.yaml")
    assert len(str(wrong.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["0", "90x", "-1", "1h30", "nan", "9" * 400])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_wrong_timeout_option_is_one_line(command: str, text: str, tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here(command, tiny, "--timeout", text)
    assert is_one_line(answer)
    assert f"--timeout {text}: " in answer.err
    assert "1h30m" in answer.err


@pytest.mark.slow
def test_timeout_limits_one_call(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    for calls in (1, 2):
        answer = imgcls(
            "run", tiny, "--set", "training.epochs=2000", "--set", "study.pruner=none", "--timeout", "0.05m"
        )
        assert answer.code in (0, 1)
        assert "timeout: " in answer.out
        status = json.loads(imgcls("status", "tiny-digits", "--json").out)
        assert len(status["runs"]) == calls
        # Three seconds, and as many again for the second call: not 0.05 s, not minutes or hours, and not in all.
        assert 3 <= status["runs"][-1]["seconds"] < 170
        assert status["stands"].startswith("stopped by study.timeout, ")
        assert status["trials"]["complete"] == 0


@pytest.mark.slow
def test_plan_says_durations_as_people_do(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("plan", tiny, "--timeout", "1h30m", "--epochs", "2")
    assert answer.code == 0, answer.err
    assert "study.timeout: 1 h 30 min is enough for about" in answer.out
    assert re.search(r"study.trials: 4 take about [\d.]+ (s|min)", answer.out)
