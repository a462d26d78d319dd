"""What is written in pictures: names in any script, and numbers on logarithmic axes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search import fonts
from imgcls_search.jobs import preview
from imgcls_search.worker import drawing, figures, legible

STRANGE = ["cat", "猫", "🦊", "قطة", "e\u0301\u0302", "\U000f1234"]


@pytest.fixture
def only_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no fonts but the one that comes with matplotlib."""
    monkeypatch.setattr(fonts, "_system_fonts", tuple)


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a font file of a family of its own that has 猫 and nothing else."""
    builder = pytest.importorskip("fontTools.fontBuilder")
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    for move, place in (("moveTo", (0, 0)), ("lineTo", (0, 900)), ("lineTo", (900, 900)), ("lineTo", (900, 0))):
        getattr(pen, move)(place)
    pen.closePath()
    glyph = pen.glyph()
    font = builder.FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "cat"])
    font.setupCharacterMap({ord("猫"): "cat"})
    font.setupGlyf({".notdef": glyph, "cat": glyph})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Only Cats", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path = tmp_path_factory.mktemp("fonts") / "cats.ttf"
    font.save(path)
    return str(path)


def drawn(svg: str) -> list[str]:
    """Return the texts of a picture, in order."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.usefixtures("only_usual")
def test_names_that_no_font_has_are_escaped() -> None:
    escaped = ["cat", "\\u732b", "\\U0001f98a", "قطة", "e\u0301\u0302", "\\U000f1234"]
    count = len(STRANGE)
    confusion = figures.confusion(np.eye(count, dtype=int), STRANGE)
    # A glyph that is missing is a warning, and warnings are errors here.
    assert drawing.to_png(confusion).startswith(b"\x89PNG")
    texts = drawn(drawing.to_svg(confusion, "c"))
    assert [text for text in texts if text in {*escaped, *STRANGE}] == escaped * 2
    images = [(np.zeros((1, 4, 4), dtype=np.uint8), f"{name} 99%,\nis {name}") for name in STRANGE]
    mistakes = figures.mistakes(images)
    assert drawing.to_png(mistakes).startswith(b"\x89PNG")
    assert [axes.get_title() for axes in mistakes.axes if axes.get_title()] == [
        f"{name} 99%,\nis {name}" for name in escaped
    ]
    for figure in (
        figures.bars(dict.fromkeys(STRANGE, 1.0), "猫"),
        figures.scatter({name: ([1.0], [2.0]) for name in STRANGE}, "猫", "y", log=True),
        figures.slices({"猫": figures.Slice(STRANGE, [0.5] * count, False)}, "y"),
        figures.curves([(name, [0.1, 0.2]) for name in STRANGE], [], "猫"),
    ):
        drawing.to_png(figure)
        texts = drawn(drawing.to_svg(figure, "f"))
        assert any("\\u732b" in text for text in texts)
        assert not any("猫" in text for text in texts)


def test_names_that_another_font_has_are_drawn_with_it(special: str) -> None:
    figure = figures.confusion(np.eye(2, dtype=int), ["猫", "🦊"])
    legible.make_legible(figure, [special])
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["猫", "\\U0001f98a"]
    assert "Only Cats" in labels[0].get_fontfamily()
    assert fonts.file_for("猫", [special]) == ("猫", special)
    assert fonts.file_for("猫 cat", [special]) == ("\\u732b cat", fonts.USUAL)


def test_fonts_of_the_system_are_found(special: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts.font_manager.fontManager, "ttflist", list(fonts.font_manager.fontManager.ttflist))
    fonts.font_manager.fontManager.addfont(special)
    monkeypatch.setattr(fonts, "_system_fonts", fonts._system_fonts.__wrapped__)
    figure = figures.confusion(np.eye(2, dtype=int), ["猫", "dog"])
    assert drawing.to_png(figure)
    svg = drawing.to_svg(figure, "c")
    assert drawn(svg).count("猫") == 2
    assert "Only Cats" in svg


@pytest.mark.usefixtures("only_usual")
def test_captions_of_the_sheet_are_legible(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    draw = preview.ImageDraw.ImageDraw.text

    def note(self: Any, place: Any, text: str, **settings: Any) -> None:
        seen.append(text)
        draw(self, place, text, **settings)

    monkeypatch.setattr(preview.ImageDraw.ImageDraw, "text", note)
    image = torch.zeros(1, 3, 200, 200, dtype=torch.uint8)
    preview._sheet(image, ["猫"], [(image, ["60% 🦊\n40% é"])], ())
    assert "\\u732b" in seen
    assert "60% \\U0001f98a" in seen
    assert "40% é" in seen


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        ([1e-5, 1e-2, 0.5], {"1e-05", "0.01"}),
        ([2e-3, 4e-3], {"0.002", "0.003", "0.004"}),
        ([1.0, 5e1], {"1", "10"}),
        ([2e5, 5e6], {"1M"}),
    ],
)
def test_logarithmic_axes_show_numbers(places: Sequence[float], labels: set[str]) -> None:
    scores = [0.5] * len(places)
    columns = {"lr": figures.Slice(places, scores, True), "a$b$": figures.Slice(places, scores, False)}
    for figure in (
        figures.scatter({"a": (places, [0.5] * len(places))}, "latency", "accuracy", log=True),
        figures.slices(columns, "accuracy"),
    ):
        texts = drawn(drawing.to_svg(figure, "f"))
        assert not any("$\\" in text or "{" in text for text in texts), texts
        assert labels <= set(texts)


def test_matplotlib_reads_no_settings_of_the_user(tmp_path: Path) -> None:
    damaged = "font.size: nonsense\nno such line\naxes.facecolor: red\n\x00"
    (tmp_path / "matplotlibrc").write_text(damaged)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "matplotlibrc").write_text(damaged)
    code = "from imgcls_search.worker import drawing, figures; import matplotlib as mpl"
    code += "; print(mpl.rcParams['axes.facecolor']); drawing.to_png(figures.bars({'a': 1.0}, 'x'))"
    code += "; import os; print(os.environ['MPLBACKEND'])"
    variables = {
        "PYTHONPATH": str(Path(__file__).parent.parent / "search"),
        "MPLBACKEND": "nonsense",
        "MATPLOTLIBRC": str(tmp_path / "home"),
        "MPLCONFIGDIR": str(tmp_path / "home"),
    }
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "white\nnonsense\n", "")
