"""Texts in pictures that can be read: in a font that has them, without formulas, and none on top of another."""

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
    """Labels a logarithmic axis with numbers instead of formulas, at the places that matplotlib chooses."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _short(x) if super().__call__(x, pos) else ""


def _short(number: float) -> str:
    """Return a number for an axis, where six digits side by side would run into each other: 300k, 2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size and abs(number) >= 10_000:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


class _Written(ticker.Formatter):
    """Writes in backslash form what no font has in the labels of another formatter."""

    def __init__(self, inner: ticker.Formatter, files: Sequence[str] | None) -> None:
        self.inner, self.files = inner, files

    def __call__(self, x: float, pos: int | None = None) -> str:
        return fonts.written(self.inner(x, pos), self.files)

    def format_ticks(self, values: Any) -> list[str]:
        return [fonts.written(label, self.files) for label in self.inner.format_ticks(values)]

    def get_offset(self) -> str:
        return self.inner.get_offset()


def make_legible(figure: Figure, files: Sequence[str] | None = None) -> None:
    """Let each text of a figure be drawn: by a font that has it, of these files or the system's, without formulas."""
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
            axis.set_major_formatter(_Written(axis.get_major_formatter(), files))
        if extra:
            axis.set_tick_params(labelfontfamily=["sans-serif", *extra])
    for text in texts:
        text.set_text(fonts.written(text.get_text(), files))
        if extra:
            text.set_fontfamily(["sans-serif", *extra])


def thin_ticks(axes: Any) -> None:
    """Hide the labels of an axis of numbers that would run into others; those of whole decades come first."""
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
"""The label of an annotation that may move to where it collides with nothing, or vanish; legends leave it out."""


def place_names(axes: Any) -> None:
    """Move the names of points to where they cover no other name and no named point, and hide those without room."""
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
"""Where the name of a point may stand: the shift in points of print, and how it is aligned."""
