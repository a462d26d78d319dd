"""The style of all pictures, and how they are written: as a file, as part of a page, as a PNG for study viewers."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from imgcls_search import atomic
from imgcls_search.worker.legible import make_legible, place_names, thin_ticks

# isort: split
import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

INK = "#123456"
"""Placeholder for the text colour; in a page it becomes the page's own, dark or light."""

COLOURS = ("#3b82c4", "#e0792b", "#2f9e63", "#b5539c", "#8a6fd1", "#c9a227", "#d1495b", "#5b8c9b", "#7a7a7a")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imgcls-search",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "savefig.transparent": True,
    # Users choose the names of classes and settings; a $ in a name does not start a formula.
    "text.parse_math": False,
}


def in_style() -> Any:
    """Return a context in which artists use the colours of a page, dark or light."""
    return mpl.rc_context(STYLE)


WIDTH = 4.8
"""Width of a standard picture, inches: on a phone of 400 pixels, texts keep the size at which they were drawn."""

HEIGHT = 3.2


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Any]:
    """Return a figure of a size in inches, and its axes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def row_of_axes(count: int) -> tuple[Figure, Any]:
    """Return a figure with axes next to each other, for a separate file."""
    # Without pyplot it needs no display and leaves no state; texts are black on white.
    with mpl.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(1 + 4.5 * count, 4.2), layout="constrained")
        return figure, figure.subplots(1, count, squeeze=False)[0]


def _finish(figure: Figure) -> None:
    """Prepare a figure for writing: make texts legible, compute the layout, and place the names of points.

    The layout engine is then removed, because `savefig` would otherwise draw the whole figure once more for it.
    """
    make_legible(figure)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    for axes in figure.axes:
        thin_ticks(axes)
        place_names(axes)


def save(figure: Figure, path: Path) -> None:
    """Write a figure on white in the format of its file extension; the file is complete or not written at all.

    Raises:
        OSError: it cannot be written.
    """
    _finish(figure)
    with mpl.rc_context({"text.parse_math": False}), atomic.replacing(path) as draft:
        figure.savefig(draft, dpi=150, format=path.suffix[1:].lower())


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element for a page, in the page's text colour; its ids start with `name`."""
    _finish(figure)
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    # Below this width the texts would be unreadable: the page scrolls instead.
    least = f'style="min-width:{min(0.95 * 72 * figure.get_figwidth(), 1200):.0f}px"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'class="plot" role="img" {least}', svg, count=1)


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file on white, for viewers outside of a page."""
    _finish(figure)
    buffer = io.BytesIO()
    with mpl.rc_context({**STYLE, "savefig.transparent": False}):
        figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()
