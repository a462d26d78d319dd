"""A closer look at mistakes: originals, maps, neighbours, and what is not there any more."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.study.files import StudyFiles
from imgcls_search.views import closer, mistakes
from PIL import Image

from tests.conftest import Answer
from tests.jobs.test_inspect import photo

SPACE = """
study: {trials: 1, objectives: {accuracy: maximize}, pruner: none, pictures: false}
data: {folder: {root: photos}}
image: {size: 16}
model: {resnet: {depths: [1], width: 4}}
training: {epochs: 1, batch_size: {choice: [16, 32]}}
"""


@pytest.fixture
def searched(tmp_path: Path, imgcls: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> StudyFiles:
    """Search a folder of two classes whose photographs are 60 x 40 and, one in four, 900 x 600 pixels."""
    for number in range(40):
        for label in ("ash", "oak"):
            size = (900, 600) if number % 4 == 0 else (60, 40)
            photo(tmp_path / "photos" / label / f"{number:02}.png", number, size=size)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SPACE)
    answer = imgcls("run", "s.yaml", "--workers", "1")
    assert answer.code == 0, answer.err
    return StudyFiles(tmp_path / "studies", "s-photos")


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_mistakes_are_shown_as_they_are_with_maps_and_neighbours(
    searched: StudyFiles, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    from imgcls_search.study.record import load

    record = load(searched)
    looked = mistakes.look(record.trials[0], searched)
    count = len(looked.evaluation.labels)
    every = [closer.Mistake(place=place, target=0) for place in range(count)]
    among = closer.TrainingImages(looked, 1e6)
    close = closer.look_closer(looked, every, {}, among)
    assert len(close) == count
    sizes = {each.size for each in close}
    assert sizes == {"60×40", f"900×600, shown with {closer.LONGEST} pixels"}
    for each in close:
        shape = opened(each.original).size
        assert shape == ((448, 299) if each.size.startswith("900") else (60, 40))
        assert opened(each.map).size == (192, 192)
        assert len(each.near) == closer.NEIGHBOURS
        assert {label for _, label in each.near} <= {"ash", "oak"}
    # Files that have gone, and a folder that has: the pixels that the network saw are kept.
    (tmp_path / "photos" / looked.evaluation.names[0]).unlink()
    assert closer.look_closer(looked, every[:1], {}, among)[0].size == "file not readable; shown as the network saw it"
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    gone = closer.look_closer(looked, every[1:2], {}, among)[0]
    assert gone.size == "file not readable; shown as the network saw it"
    assert opened(gone.original).size[0] % 16 == 0
    # Where the study knows the new place they are read again.
    there = closer.look_closer(looked, every[1:2], {"root": str(tmp_path / "elsewhere")}, among)[0]
    assert there.size in sizes
    answer = imgcls("report", "s-photos", "-o", "report.html")
    assert answer.code == 0, answer.err
    page = (tmp_path / "report.html").read_text()
    wrong = int((looked.evaluation.decided != looked.evaluation.labels).sum())
    assert page.count('class="item"') == min(24, wrong)
    assert page.count('class="map"') == min(24, wrong)
    assert re.search(r"<li>(ash|oak) taken for (ash|oak): \d+ of \d+</li>", page)


def test_no_mistake_and_one_image_are_no_trouble(searched: StudyFiles) -> None:
    from dataclasses import replace

    from imgcls_search.study.record import load
    from imgcls_search.views.sections import Sketchbook
    from imgcls_search.views.verdict import verdict

    record = load(searched)
    winner = record.trials[0]
    looked = mistakes.look(winner, searched)
    right = replace(looked.evaluation, decided=looked.evaluation.labels)
    found = mistakes.mistakes_of(replace(looked, evaluation=right), Sketchbook())
    assert (found.wrong, found.worst, found.confused) == (0, [], [])
    assert closer.look_closer(looked, [], {}, closer.TrainingImages(looked, 1e6)) == []
    cards = {card.name: card for card in verdict(record, winner, looked, [], None).cards}
    assert cards["confuses"].value == "nothing"
    one = replace(
        right,
        names=right.names[:1],
        labels=right.labels[:1],
        decided=1 - right.labels[:1],
        probabilities=right.probabilities[:1],
    )
    alone = replace(looked, evaluation=one, pixels=looked.pixels[np.array([0])])
    found = mistakes.mistakes_of(alone, Sketchbook())
    assert found.confused == [found.confused[0]]
    assert found.confused[0].endswith(": 1 of 1")
    mistake = closer.Mistake(place=0, target=int(one.decided[0]))
    assert len(closer.look_closer(alone, [mistake], {}, closer.TrainingImages(alone, 1e6))[0].near) == closer.NEIGHBOURS
    assert verdict(record, winner, alone, found.confused, None).sentence.startswith("Trial 0, resnet with ")
