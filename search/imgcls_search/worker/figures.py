"""Pictures of trials and of what a network gets wrong, drawn by matplotlib."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search import atomic, fonts
from imgcls_search.measures import LEAST_SPREAD

# isort: split
import matplotlib as mpl
from cycler import cycler
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.text import Text

INK = "#123456"
"""Stands for the colour of text; in a page it becomes the page's own, dark or light."""

COLOURS = ("#3b82c4", "#e0792b", "#2f9e63", "#b5539c", "#8a6fd1", "#c9a227", "#d1495b", "#5b8c9b", "#7a7a7a")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imgcls-search",
    "font.size": 9,
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
    # Names of classes and settings come from anybody, and a $ in one is no formula.
    "text.parse_math": False,
}


def new_figure(width: float = 5.0, height: float = 3.2) -> tuple[Figure, Any]:
    """Return a figure of so many inches and its axes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def row_of_axes(count: int) -> tuple[Figure, Any]:
    """Return a figure and its axes side by side, for a file of its own."""
    # Without pyplot it needs no display and leaves nothing behind; on white its texts are black.
    with mpl.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(1 + 4.5 * count, 4.2), layout="constrained")
        return figure, figure.subplots(1, count, squeeze=False)[0]


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


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, as the kind of file that its name ends in, on white.

    Raises:
        OSError: it cannot be written.
    """
    make_legible(figure)
    with mpl.rc_context({"text.parse_math": False}), atomic.replacing(path) as draft:
        figure.savefig(draft, dpi=150, format=path.suffix[1:].lower())


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an element of a page, in the page's colour of text; its ids start with a name."""
    make_legible(figure)
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="plot" role="img"', svg, count=1)


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file on white, for viewers that know no page."""
    make_legible(figure)
    buffer = io.BytesIO()
    with mpl.rc_context({**STYLE, "savefig.transparent": False}):
        figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _add_legend(axes: Any) -> None:
    """Put a legend beside the axes: on them it may hide lines, and to find a place for it takes long."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


@mpl.rc_context(STYLE)
def curves(lines: Sequence[tuple[str, Sequence[float]]], faint: Sequence[Sequence[float]], metric: str) -> Figure:
    """Draw a metric by epoch: named lines above faint ones."""
    figure, axes = new_figure()
    for values in faint:
        axes.plot(range(1, len(values) + 1), values, color="#888888", lw=0.7, alpha=0.45, rasterized=len(faint) > 100)
        if len(values) == 1:
            axes.plot([1], values, ".", color="#888888", ms=3, alpha=0.45)
    for label, values in lines:
        axes.plot(range(1, len(values) + 1), values, lw=1.8, label=label, marker=".", ms=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if lines:
        _add_legend(axes)
    return figure


@mpl.rc_context(STYLE)
def confusion(matrix: np.ndarray[Any, Any], classes: Sequence[str]) -> Figure:
    """Draw how many images [true, predicted] of each class went where."""
    side = min(8.0, max(3.4, 0.38 * len(classes) + 1.2))
    figure, axes = new_figure(side, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "#222222"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    shown = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), shown, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), shown, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


@mpl.rc_context(STYLE)
def label_scores(labels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw precision, recall and average precision of each label as points, the label with the most images on top."""
    order = sorted(labels, key=lambda name: labels[name]["support"])
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in order]
    figure, axes = new_figure(5.0, min(12.0, max(2.4, 0.26 * len(names) + 1.2)))
    for measure, mark in (("precision", "o"), ("recall", "s"), ("average_precision", "|")):
        values = [labels[name][measure] for name in order]
        axes.plot(values, range(len(order)), mark, label=measure.replace("_", " "), ms=6, alpha=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="y", alpha=0.2)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure


@mpl.rc_context(STYLE)
def learning(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw what each epoch of a training measured: scores above, losses below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 5.0), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
    scores: tuple[str, ...] = ("accuracy", "top5_accuracy", "macro_f1")
    if "subset_accuracy" in history[-1]:
        scores = ("average_precision", "micro_f1", "macro_f1", "subset_accuracy")
    for axes, names in ((above, scores), (below, ("train_loss", "loss"))):
        for name in names:
            if name in history[-1]:
                axes.plot(range(1, len(history) + 1), [epoch[name] for epoch in history], marker=".", label=name)
        _add_legend(axes)
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return figure


@mpl.rc_context(STYLE)
def health(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw what the epochs of a pretraining measured of its features; not each epoch measures all."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True).ravel()
    shown = (("probe_accuracy", "knn_accuracy"), ("spread",), ("train_loss",), ("effective_rank",))
    for axes, names in zip(panels, shown, strict=True):
        for name in names:
            known = [(epoch["epoch"], epoch[name]) for epoch in history if name in epoch]
            if known:
                axes.plot(*zip(*known, strict=True), marker=".", label=name)
    random = next((epoch["random_probe_accuracy"] for epoch in history if "random_probe_accuracy" in epoch), None)
    if random is not None:
        panels[0].axhline(random, linestyle="--", color="0.5", label="probe of a random network")
    panels[1].axhline(LEAST_SPREAD, linestyle=":", color="0.5", label="collapsed")
    panels[1].set_ylim(bottom=0)
    for axes in panels:
        _add_legend(axes)
    for axes in panels[2:]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    return figure


@mpl.rc_context(STYLE)
def mistakes(images: Sequence[tuple[np.ndarray[Any, Any], str]]) -> Figure:
    """Draw images, uint8 [C, H, W], each with what is to be said of it."""
    across = 4
    down = max(1, -(-len(images) // across))
    with mpl.rc_context(STYLE):
        # Nothing stands beside the images: a layout that looks for it takes longer than all else.
        figure = Figure(figsize=(6.4, 1.9 * down))
        room = {
            "left": 0.01,
            "right": 0.99,
            "bottom": 0.01,
            "top": 1 - 0.3 / (1.9 * down),
            "hspace": 0.3,
            "wspace": 0.1,
        }
        grid = figure.subplots(down, across, squeeze=False, gridspec_kw=room).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (pixels, text) in zip(grid, images, strict=False):
        axes.imshow(pixels.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(text, fontsize=7)
    if not images:
        grid[0].text(0, 0.5, "no mistake on the validation split")
    return figure


def thumbnail(pixels: np.ndarray[Any, Any], side: int = 72) -> str:
    """Return an image, uint8 [C, H, W], as a data URI of a PNG file."""
    from PIL import Image

    image = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    factor = max(1, side // max(image.size))
    image = (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image
    )
    image.thumbnail((2 * side, 2 * side))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@mpl.rc_context(STYLE)
def scatter(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, *, log: bool) -> Figure:
    """Draw points by group, on a logarithmic axis where numbers span decades."""
    figure, axes = new_figure()
    for name, (xs, ys) in groups.items():
        axes.plot(xs, ys, "o", ms=4, alpha=0.75, label=name, rasterized=len(xs) > 300)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(groups) > 1:
        _add_legend(axes)
    return figure


@mpl.rc_context(STYLE)
def steps(
    xs: Sequence[float], ys: Sequence[float], points: tuple[Sequence[float], Sequence[float]], x: str, y: str
) -> Figure:
    """Draw the best so far as a staircase, and what each complete trial showed as points."""
    figure, axes = new_figure()
    axes.plot(*points, "o", ms=3.5, color="#888888", alpha=0.6, rasterized=len(xs) > 300, label="complete trials")
    axes.step(xs, ys, where="post", lw=2, label="best so far")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _add_legend(axes)
    return figure


@mpl.rc_context(STYLE)
def bars(values: Mapping[str, float], x: str) -> Figure:
    """Draw named values, the greatest first."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure, axes = new_figure(5.0, 0.9 + 0.26 * len(ordered))
    axes.barh([name for name, _ in ordered], [value for _, value in ordered])
    axes.set_xlabel(x)
    return figure


@mpl.rc_context(STYLE)
def path(bands: Sequence[tuple[float, float]], y: str) -> Figure:
    """Draw the mean of each step of a way with the half-width of its interval."""
    figure, axes = new_figure(5.0, 3.0)
    axes.errorbar(range(len(bands)), [mean for mean, _ in bands], [half for _, half in bands], fmt="o-", capsize=3)
    axes.set_xticks(range(len(bands)))
    axes.set_xlabel("changes made")
    axes.set_ylabel(y)
    return figure


@mpl.rc_context(STYLE)
def slices(columns: Mapping[str, tuple[Sequence[Any], Sequence[float], bool]], y: str) -> Figure:
    """Draw the score against each parameter: (settings, scores, whether the axis is logarithmic)."""
    across = 3
    down = -(-len(columns) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.3 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, (name, (xs, ys, log)) in zip(grid, columns.items(), strict=False):
        words = any(isinstance(value, str | bool) for value in xs)
        axes.plot([str(value) for value in xs] if words else xs, ys, "o", ms=3, alpha=0.6, rasterized=len(xs) > 300)
        if log:
            axes.set_xscale("log")
        if words:
            axes.tick_params(axis="x", labelsize=7, rotation=20)
        axes.set_title(name, fontsize=8)
    for axes in grid[::across]:
        axes.set_ylabel(y)
    for axes in grid[len(columns) :]:
        axes.remove()
    return figure


@mpl.rc_context(STYLE)
def parallel(columns: Mapping[str, Sequence[Any]], scores: Sequence[float], metric: str) -> Figure:
    """Draw every trial as a line across its settings, coloured by its score; what it did not set is a gap."""
    figure, axes = new_figure(9.6, 4.0)
    places, labels = [], []
    for values in columns.values():
        known = [value for value in values if value is not None]
        if any(isinstance(value, str | bool) for value in known):
            options = sorted({str(value) for value in known})
            spots = {option: index / max(1, len(options) - 1) for index, option in enumerate(options)}
            places.append([np.nan if value is None else spots[str(value)] for value in values])
            labels.append({spots[option]: option for option in options})
        else:
            low, high = min(known), max(known)
            log = low > 0 and high / low > 30
            scale = np.log if log else np.asarray
            numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
            span = (scale(high) - scale(low)) or 1.0
            places.append(list((scale(numbers) - scale(low)) / span))
            labels.append({0.0: f"{low:.3g}", 1.0: f"{high:.3g}"})
    table = np.array(places)
    norm = mpl.colors.Normalize(min(scores), max(scores))
    colours = mpl.colormaps["viridis"]
    for number in np.argsort(scores):
        axes.plot(
            table[:, number],
            color=colours(norm(scores[number])),
            lw=1,
            alpha=0.6,
            marker=".",
            ms=3,
            rasterized=len(scores) > 100,
        )
    for place, marks in enumerate(labels):
        axes.axvline(place, color=INK, lw=0.6, alpha=0.5)
        for height, text in marks.items():
            axes.annotate(text, (place, height), fontsize=7, xytext=(3, 2), textcoords="offset points")
    axes.set_xticks(range(len(columns)), [name.replace(".", "\n") for name in columns], fontsize=7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axes, label=metric, pad=0.01)
    return figure
