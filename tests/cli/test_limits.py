"""Many trials, classes, labels and options on a terminal: the most telling ones, and how many are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.cli.output import MOST_CLASSES, MOST_FRONT, MOST_LINES, print_classes
from imgcls_search.data.summary import Summary
from imgcls_search.space import parse
from imgcls_search.study.files import StudyFiles
from imgcls_search.words import some
from PIL import Image

from scripts.bench import simulation
from tests.conftest import Answer
from tests.views.test_browse import SPACE
from tests.views.test_dashboard import study_with


def test_many_failed_trials_are_ten_lines_and_their_number(tmp_path: Path, here: Callable[..., Answer]) -> None:
    space = parse(SPACE, catalog(), source="s")
    made = simulation.new_record(tmp_path / "studies", space, "s")
    for trial in simulation.make_trials(space, 25):
        trial.values, trial.state, trial.epochs = None, "running", []
        made.add(trial)
        made.fail(trial, f"out of memory: {trial.number} bytes")
    out = here("status", "s").out
    assert out.count(" failed: out of memory") == MOST_LINES
    assert "\nand 15 more of these lines; --json has all\n" in out
    assert len(json.loads(here("status", "s", "--json").out)["failures"]) == 25


def test_many_trials_on_a_front_are_shown_in_part(tmp_path: Path, here: Callable[..., Answer]) -> None:
    ends = [((0.5 + number / 100, 1.0 + number), 0.0) for number in range(20)]
    objectives = (("accuracy", "maximize"), ("latency_ms", "minimize"))
    study_with(StudyFiles(tmp_path / "studies", "s"), objectives, ends)
    out = here("best", "s").out
    assert sum(line.startswith("trial ") for line in out.splitlines()) == MOST_FRONT
    assert "\nand 15 more on the front; --json and imgcls-search front s have all\n" in out
    assert len(json.loads(here("best", "s", "--json").out)["best"]) == 20


@pytest.mark.parametrize("extra", [{}, {"threshold": 0.5, "average_precision": 0.5}])
def test_of_many_classes_those_with_the_lowest_f1_are_printed(
    extra: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"precision": 0.5, "recall": 0.5, "support": 4.0, **extra}
    print_classes({f"class {number}": {**scores, "f1": 1 - number / 1500} for number in range(1500)})
    lines = capsys.readouterr().out.splitlines()
    kinds = "labels" if extra else "classes"
    assert lines[0] == f"20 of 1,500 {kinds}, those with images and the lowest F1 score; --json has all:"
    assert [line.split()[1] for line in lines[2:]] == [str(number) for number in range(1500 - MOST_CLASSES, 1500)]


def test_of_many_classes_inspect_shows_the_largest_and_the_smallest(
    tmp_path: Path, here: Callable[..., Answer]
) -> None:
    random = np.random.default_rng(0)
    for number in range(1, 101):
        folder = tmp_path / "photos" / f"class-{number:03}"
        folder.mkdir(parents=True)
        for image in range(2 + (number % 3 == 0)):
            pixels = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.png")
    done = here("inspect", "photos", "--no-labels", "-o", "page.html")
    assert done.code == 0, done.err
    assert "40 of 100 classes, the largest and the smallest; --json has all:" in done.out
    rows = [line.split()[:2] for line in done.out.splitlines() if line.startswith("class-")]
    assert sorted(count for _, count in rows) == ["2"] * 20 + ["3"] * 20
    assert len(json.loads(here("inspect", "photos", "--no-labels", "--no-page", "--json").out)["classes"]) == 100


def test_many_options_of_a_parameter_are_not_one_endless_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    widths = ", ".join(str(number / 100) for number in range(50, 250))
    (tmp_path / "wide.yaml").write_text(SPACE.replace("[0.5, 1]", f"[{widths}]"))
    out = here("check", "wide.yaml", "--samples", "1").out
    assert "one of 0.5, 0.51, 0.52" in out
    assert " and 180 more" in out
    space = json.loads(here("check", "wide.yaml", "--samples", "1", "--json").out)["space"]
    assert len(space["model"]["lenet5"]["width"]["choice"]) == 200


def test_a_line_lists_some_and_says_how_many_more() -> None:
    assert some(["a", "b"], 2) == "a, b"
    assert some([str(number) for number in range(1500)], 3) == "0, 1, 2 and 1,497 more"
    assert some([]) == ""


def test_many_notes_about_images_are_ten_and_their_number() -> None:
    summary = Summary(
        name="photos",
        classes=1500,
        images={"train": 3000, "val": 1500},
        smallest_class=("a", 3),
        largest_class=("b", 3),
        sizes=None,
        unreadable=(),
        left_out=(),
        notes=tuple(f"classes 'a{number}' and 'A{number}' differ in case only" for number in range(750)),
    )
    line = summary.lines()[-1]
    assert line.count("differ in case only") == 10
    assert line.endswith("; 740 more notes")
