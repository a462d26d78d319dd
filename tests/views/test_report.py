"""The report: its order, what it says of few trials, and bad input."""

from __future__ import annotations

import html
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.errors import UserError
from imgcls_search.study import best
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.views.mistakes import confused_pairs
from imgcls_search.views.report import write_report

from scripts.bench import simulation
from tests.conftest import Answer
from tests.views.test_dashboard import SPACE, TWO, study_with


def test_report_of_a_study_that_is_not_there_is_one_line(imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("report", "nothing", "-o", "x.html")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert "no such study" in answer.err


@pytest.mark.slow
def test_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0), ([0.75], 0.0)])
    record.set_fact("data", {"images": {"train": 800, "val": 200}, "classes": ["cat", "dog"], "fingerprint": "0123"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"^\S*folder: cannot be written \([^\n]*\)$"):
        write_report(files, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def parted(tmp_path: Path, count: int, **changes: Any) -> tuple[Record, Path]:
    """Make a study of trials of ten settings whose learning rate decides on the score, and write its report."""
    files = StudyFiles(tmp_path, "s")
    made = simulation.make_trials(SPACE, count)
    rates = [math.log10(float(trial.candidate.params["optimizer.adamw.lr"])) for trial in made]
    by_rate = [0.9 - 0.2 * (rate + 3) ** 2 for rate in rates]
    ends = [((value,), 0.0) for value in changes.pop("scores", by_rate)]
    record = study_with(files, TWO[:1], ends)
    data = {"images": {"train": 800, "val": 200, "test": 90}, "classes": ["cat", "dog"], "fingerprint": "0123"}
    record.set_fact("data", data)  # type: ignore[call-overload]
    for name, value in changes.items():
        record.set_fact(name, value)  # type: ignore[call-overload]
    write_report(files, tmp_path / "report.html")
    return record, tmp_path / "report.html"


def text_of(page: Path) -> str:
    """Return the words of a page outside of its pictures."""
    bare = re.sub(r"<svg.*?</svg>|<style>.*?</style>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).split())


def test_verdict_comes_first_then_why_to_believe_it_then_the_search(tmp_path: Path) -> None:
    record, page = parted(tmp_path, 12)
    text = text_of(page)
    order = ["has accuracy", "Why to believe it Not confirmed", "What the best one gets wrong", "What mattered"]
    # The last time, as links to the parts stand above them.
    places = [text.rindex(part) for part in [*order, "What the winner changed", "What the search cost", "reproduce s"]]
    assert places == sorted(places)
    winner = best.front(record)[0]
    assert f"Trial {winner.number}, vit with {winner.sizes['params']:,.0f} parameters, has accuracy" in text
    assert "it has not been tested" in text
    where = f"s --studies {tmp_path}"
    assert f"90 test images are sealed: imgcls-search confirm {where} opens them once" in text
    # Every shown command finds the study.
    assert set(re.findall(r"imgcls-search (?:confirm|reproduce|export) (\S+ \S+ \S+)", text)) == {where}
    assert "accuracy of trial 0, the first trial" in text


@pytest.mark.parametrize(("trial_offset", "openings", "opened"), [(0, 1, "once"), (0, 3, "3 times"), (1, 1, "once")])
def test_test_score_is_in_the_verdict_of_the_trial_that_it_is_of(
    trial_offset: int, openings: int, opened: str, tmp_path: Path
) -> None:
    scores = [0.5, 0.75, 0.625]
    single = {"score": 0.7222, "low": 0.61, "high": 0.81, "images": 90}
    fact = {"test": {"trial": 1 + trial_offset, "metric": "macro_f1", "validation": single, "test": single}}
    opening = {"by": "auto", "at": "2026-11-30T12:00:00+00:00", "seeds": [1], "portion": "train", "trial": 1}
    _, page = parted(tmp_path, 3, scores=scores, auto=fact, test_openings=[opening] * openings)
    text = text_of(page)
    assert ("macro_f1 0.72 on test images that were not used for any choice" in text) == (trial_offset == 0)
    assert (f"95 % 0.61 to 0.81 from sampling 90 images, test split opened {opened};" in text) == (trial_offset == 0)
    assert ("not tested" in text) == (trial_offset == 1)


@pytest.mark.parametrize(("openings", "opened"), [(1, "once"), (2, "2 times")])
def test_confirmed_winner_has_its_scores_and_how_often_the_test_split_was_opened(
    openings: int, opened: str, tmp_path: Path
) -> None:
    spread = {"mean": 0.99, "ci95": 0.02, "std": 0.01}
    scores = [0.98, 0.99, 1.0]
    confirmed = {
        "at": "2026-11-30T12:00:00+00:00",
        "metric": "accuracy",
        "seeds": {"choosing": [1, 2, 3], "fresh": [4, 5, 6]},
        "ranking": [{"trial": 1, "searched": 0.75, "scores": scores, **spread, "is_tied": False}],
        "chosen": 1,
        "scores": scores,
        "confirmed": spread,
        "searched": 0.75,
        "optimism": {"mean": -0.24, "ci95": 0.02},
        "test": {"scores": scores, **spread, "images": 90},
    }
    opening = {"by": "confirm", "at": "2026-11-30T12:00:00+00:00", "seeds": [1], "portion": "train", "trial": 1}
    _, page = parted(tmp_path, 3, scores=[0.5, 0.75, 0.625], confirmed=confirmed, test_openings=[opening] * openings)
    text = text_of(page)
    assert "trial 1 reached accuracy 0.990 (0.970 to 1.000) (95 %) on 3 new seeds" in text
    assert f"On the test split, opened {opened}: 0.990 (0.970 to 1.000) over seeds, 90 images." in text


def test_importances_are_shown_where_trials_bear_them(tmp_path: Path) -> None:
    _, page = parted(tmp_path, 60)
    text = text_of(page)
    assert "From 60 complete trials; a random forest explains" in text
    assert "by fANOVA" in page.read_text()


def test_few_trials_have_no_importances(tmp_path: Path) -> None:
    _, page = parted(tmp_path, 12)
    found = re.search(r"No importances: (\d+) settings varied over 12 complete trials", text_of(page))
    assert found is not None
    assert f"about {max(20, 5 * int(found[1]))} are needed" in text_of(page)
    assert "by fANOVA" not in page.read_text()


def test_scores_that_settings_do_not_explain_have_no_importances(tmp_path: Path) -> None:
    chance = random.Random(1)  # noqa: S311
    _, page = parted(tmp_path, 60, scores=[chance.random() for _ in range(60)])
    assert "No importances: the settings explain too little of the score." in text_of(page)
    assert "by fANOVA" not in page.read_text()


def test_no_picture_says_what_another_one_says(tmp_path: Path) -> None:
    _, page = parted(tmp_path, 60)
    captions = re.findall(r'<figure aria-label="([^"]*)"', page.read_text())
    assert len(captions) == len(set(captions))
    assert sum("so far" in caption for caption in captions) == 1
    assert sum("learning" in caption.lower() or "curves" in caption for caption in captions) == 1
    # Parameters and computation grow together: one of them is enough.
    assert sum(caption.startswith(("parameters against", "MACs", "latency")) for caption in captions) <= 1


def test_device_hours_are_those_of_all_trials(tmp_path: Path) -> None:
    record, page = parted(tmp_path, 4)
    seconds = sum(epoch["seconds"] for trial in record.trials for epoch in trial.epochs)
    assert f"({seconds / 3600:.2f} device hours)" in text_of(page)
    table = page.read_text().split('id="hours"')[1].split("</table>")[0]
    assert re.findall(r"<td>(\w+)<td>(\d+)<td>(\d+)", table) == [("complete", "4", "4"), ("all", "4", "4")]


def test_confusions_in_words_are_the_most_frequent_first() -> None:
    matrix = np.array([[50, 14, 1], [3, 40, 0], [3, 0, 7]])
    assert confused_pairs(matrix, ["glass", "plastic", "tin"]) == [
        "glass taken for plastic: 14 of 65",
        "tin taken for glass: 3 of 10",
        "plastic taken for glass: 3 of 43",
        "glass taken for tin: 1 of 65",
    ]
    assert confused_pairs(np.diag([3, 4]), ["a", "b"]) == []
