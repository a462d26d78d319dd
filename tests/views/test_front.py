"""The picture of a Pareto front: a line, logarithmic axes, names that can be read."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.study import best
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.views import front
from imgcls_search.worker import drawing
from imgcls_search.worker.legible import NAME

from tests.views.test_dashboard import study_with

THREE = (("accuracy", "maximize"), ("latency_ms", "minimize"), ("size_kb", "minimize"))


def crowded(folder: Path, count: int) -> Record:
    """Make a study with a front of many trials that are close to each other."""
    chance, ends = random.Random(0), []  # noqa: S311
    for number in range(count):
        latency = 10 ** chance.uniform(-0.5, 2)
        accuracy = 0.6 + 0.15 * math.log10(latency + 1) + chance.gauss(0, 0.01)
        over = 0.5 if number % 9 == 0 else 0.0
        ends.append(((accuracy, latency, 1000 * latency * chance.uniform(0.8, 1.2)), over))
    return study_with(StudyFiles(folder, "s"), THREE, ends)


def panel_of(record: Record, pair: tuple[int, int]) -> Any:
    figure, axes = drawing.row_of_axes(1)
    front.draw_pair(axes[0], record, best.front(record), pair)
    drawing.to_png(figure)
    return axes[0]


def boxes(panel: Any) -> dict[str, Any]:
    renderer = panel.figure._get_renderer()
    names = [text for text in panel.texts if text.get_label() == NAME and text.get_visible()]
    return {text.get_text(): text.get_window_extent(renderer) for text in names}


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_names_on_a_crowded_front_cover_neither_each_other_nor_the_edge(pair: tuple[int, int], tmp_path: Path) -> None:
    panel = panel_of(crowded(tmp_path, 60), pair)
    found = boxes(panel)
    assert len(found) >= 5
    inside = panel.get_window_extent()
    for name, box in found.items():
        assert box.count_overlaps([other for key, other in found.items() if key != name]) == 0, name
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1


def test_a_small_front_has_every_name(tmp_path: Path) -> None:
    ends = [((0.5, 1.0), 0.0), ((0.7, 2.0), 0.0), ((0.9, 30.0), 0.0), ((0.4, 3.0), 0.0)]
    record = study_with(StudyFiles(tmp_path, "s"), THREE[:2], ends)
    assert set(boxes(panel_of(record, (0, 1)))) == {"0", "1", "2"}


def test_costs_have_logarithmic_axes_and_shares_have_not(tmp_path: Path) -> None:
    record = crowded(tmp_path, 30)
    assert [panel_of(record, (0, 1)).get_xscale(), panel_of(record, (0, 1)).get_yscale()] == ["log", "linear"]
    assert panel_of(record, (1, 2)).get_yscale() == "log"
    assert not front.is_log("accuracy", [0.01, 0.9])
    assert not front.is_log("latency_ms", [1.0, 3.9])
    assert not front.is_log("latency_ms", [0.0, 3.9])
    assert not front.is_log("mcc", [-0.1, 0.9])
    assert front.is_log("params", [1e4, 1e6])


@pytest.mark.parametrize(
    ("directions", "values", "expected"),
    [
        # The score between two trials is that of the cheaper one, whichever way is better.
        (("maximize", "minimize"), [(0.5, 1.0), (0.7, 2.0), (0.6, 3.0)], [(1.0, 0.5), (2.0, 0.7)]),
        (("minimize", "minimize"), [(0.5, 1.0), (0.3, 2.0), (0.4, 3.0)], [(1.0, 0.5), (2.0, 0.3)]),
        (("maximize", "maximize"), [(0.5, 3.0), (0.7, 2.0), (0.4, 1.0)], [(2.0, 0.7), (3.0, 0.5)]),
    ],
)
def test_line_goes_through_what_nothing_beats(
    directions: tuple[str, str], values: list[Any], expected: list[Any], tmp_path: Path
) -> None:
    objectives = (("accuracy", directions[0]), ("latency_ms", directions[1]))
    record = study_with(StudyFiles(tmp_path, "s"), objectives, [(value, 0.0) for value in values])
    (line,) = [each for each in panel_of(record, (0, 1)).lines if each.get_drawstyle() != "default"]
    assert list(zip(*line.get_data(), strict=True)) == expected
    assert line.get_drawstyle() == ("steps-pre" if directions[1] == "maximize" else "steps-post")


def test_each_pair_of_objectives_has_a_line(tmp_path: Path) -> None:
    record = crowded(tmp_path, 20)
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert [line.get_drawstyle() for line in panel_of(record, pair).lines].count("steps-post") == 1
