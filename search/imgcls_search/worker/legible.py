"""Make texts in pictures readable: in a font that has their characters, without formulas or overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imgcls_search import fonts

# isort: split
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox


class _PlainLog(ticker.LogFormatter):
    """Labels a logarithmic axis with numbers instead of formulas, at matplotlib's own positions."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _short(x) if super().__call__(x, pos) else ""


def _short(number: float) -> str:
    """Return a short number for an axis, where six-digit labels would overlap: 300k, 2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size and abs(number) >= 10_000:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


class _EscapedLabels(ticker.Formatter):
    """Escapes characters without a font with backslashes in another formatter's labels."""

    def __init__(self, inner: ticker.Formatter, files: Sequence[str] | None) -> None:
        self.inner, self.files = inner, files

    def __call__(self, x: float, pos: int | None = None) -> str:
        return fonts.written(self.inner(x, pos), self.files)

    def format_ticks(self, values: Any) -> list[str]:
        return [fonts.written(label, self.files) for label in self.inner.format_ticks(values)]

    def get_offset(self) -> str:
        return self.inner.get_offset()


def make_legible(figure: Figure, files: Sequence[str] | None = None) -> None:
    """Choose fonts that have the characters of a figure's texts, from `files` or the system, and avoid formulas."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    for axis in axes:
        if axis.get_scale() == "log":
            axis.set_major_formatter(_PlainLog(labelOnlyBase=False))
            axis.set_minor_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        elif (
            isinstance(axis.get_major_formatter(), ticker.ScalarFormatter)
            and max(map(abs, axis.get_view_interval())) >= 10_000
        ):
            axis.set_major_formatter(ticker.FuncFormatter(lambda x, pos: _short(x)))
    labels = [label.get_text() for axis in axes for label in axis.get_ticklabels()]
    extra = fonts.families([*(text.get_text() for text in texts), *labels], files)
    for axis in axes:
        if any(fonts.written(label.get_text(), files) != label.get_text() for label in axis.get_ticklabels()):
            axis.set_major_formatter(_EscapedLabels(axis.get_major_formatter(), files))
        if extra:
            axis.set_tick_params(labelfontfamily=["sans-serif", *extra])
    for text in texts:
        text.set_text(fonts.written(text.get_text(), files))
        if extra:
            text.set_fontfamily(["sans-serif", *extra])


def thin_ticks(axes: Any) -> None:
    """Hide overlapping labels of numeric axes; labels of whole decades have priority."""
    renderer = axes.figure._get_renderer()
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), ticker.FixedFormatter):
            continue
        taken: list[Bbox] = []
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            box = tick.label1.get_window_extent(renderer)
            if tick.label1.get_text() and box.padded(2).count_overlaps(taken):
                tick.label1.set_visible(False)
            elif tick.label1.get_text():
                taken.append(box)


NAME = "_name of a point"
"""The label of an annotation that may move or disappear to avoid collisions; legends ignore it."""


def place_names(axes: Any) -> None:
    """Move the names of points so that they cover no other name or named point, and hide those without room."""
    names = [text for text in axes.texts if isinstance(text, Annotation) and text.get_label() == NAME]
    if not names:
        return
    renderer = axes.figure._get_renderer()
    inside = axes.get_window_extent(renderer)
    points = [axes.transData.transform(name.xy) for name in names]
    half = 4 * axes.figure.dpi / 72
    taken = [Bbox.from_bounds(x - half / 2, y - half / 2, half, half) for x, y in points]
    for name in names:
        for shift, across, upright in _PLACES:
            name.set_position(shift)
            name.set_horizontalalignment(across)
            name.set_verticalalignment(upright)
            box = name.get_window_extent(renderer)
            is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if is_inside and not box.count_overlaps(taken):
                taken.append(box)
                break
        else:
            name.set_visible(False)


_PLACES: tuple[tuple[tuple[int, int], Any, Any], ...] = tuple(
    ((x * far, y * far), across, upright)
    for far in (5, 12)
    for x, across in ((1, "left"), (-1, "right"), (0, "center"))
    for y, upright in ((1, "bottom"), (-1, "top"), (0, "center"))
    if x or y
)
"""Possible places for the name of a point: the offset in typographic points, and the alignment."""
