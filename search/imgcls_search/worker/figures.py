"""Pictures of trials and of a network's mistakes, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imgcls_search.measures import LEAST_SPREAD, lowest_f1
from imgcls_search.worker.drawing import STYLE, WIDTH, new_figure

# isort: split
import matplotlib as mpl
from matplotlib import ticker
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure


def _add_legend(axes: Any) -> None:
    """Put a legend next to the axes: inside, it may hide lines, and finding a free place is slow."""
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))


@mpl.rc_context(STYLE)
def curves(lines: Sequence[tuple[str, Sequence[float]]], faint: Sequence[Sequence[float]], metric: str) -> Figure:
    """Draw a metric by epoch: named lines above faint ones."""
    figure, axes = new_figure()
    # One artist for all lines: thousands of artists take seconds per drawing.
    style: Any = {"color": "#888888", "alpha": 0.45, "rasterized": len(faint) > 100}
    ways = [np.column_stack([range(1, len(values) + 1), values]) for values in faint]
    axes.add_collection(LineCollection([way for way in ways if len(way) > 1], lw=0.7, **style))
    single = [way[0] for way in ways if len(way) == 1]
    axes.plot([x for x, _ in single], [y for _, y in single], ".", ms=3, **style)
    axes.autoscale_view()
    for label, values in lines:
        axes.plot(range(1, len(values) + 1), values, lw=1.8, label=label, marker=".", ms=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if lines:
        _add_legend(axes)
    return figure


MOST_NAMED = 24
"""Largest number of classes for a confusion matrix with readable counts and names."""


@mpl.rc_context(STYLE)
def confusion(matrix: np.ndarray[Any, Any], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: images [true, predicted].

    With more than `MOST_NAMED` classes, only colours are shown, scaled so that errors stay visible.
    """
    is_named = len(classes) <= MOST_NAMED
    side = min(9.0, max(3.4, 0.36 * len(classes) + 1.4)) if is_named else WIDTH
    figure, axes = new_figure(side, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # A power scale for many classes makes a single wrong image of a hundred visible.
    norm = mpl.colors.PowerNorm(1.0 if is_named else 0.4, 0, 1)
    axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    if is_named:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "#222222"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
        names = [cut(name, 14) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=9)
        axes.set_yticks(range(len(classes)), names, fontsize=9)
    else:
        axes.set_xlabel("predicted class, by number")
        axes.set_ylabel("true class, by number")
        return figure
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


MOST_LABELS = 40
"""Most labels with a line each in a picture or a table: more are a page of many screens."""


@mpl.rc_context(STYLE)
def label_scores(labels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw precision, recall and average precision of each label as points, the label with the most images on top.

    With more than `MOST_LABELS` labels, only those with the lowest F1 are drawn.
    """
    order = sorted(lowest_f1(labels, MOST_LABELS), key=lambda name: labels[name]["support"])
    names = [cut(name, 24) for name in order]
    figure, axes = new_figure(WIDTH, max(2.4, 0.28 * len(names) + 1.2))
    if len(order) < len(labels):
        axes.set_xlabel(f"{len(order)} of {len(labels):,} labels: those with the lowest F1")
    for measure, mark in (("precision", "o"), ("recall", "s"), ("average_precision", "|")):
        values = [labels[name][measure] for name in order]
        axes.plot(values, range(len(order)), mark, label=measure.replace("_", " "), ms=6, alpha=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="y", alpha=0.2)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure


@mpl.rc_context(STYLE)
def learning(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the metrics of each epoch of a training: scores above, losses below."""
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
    """Draw the feature metrics of a pretraining's epochs; not every epoch has all of them."""
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
    """Draw images, uint8 [C, H, W], each with its caption."""
    across = 4
    down = max(1, -(-len(images) // across))
    with mpl.rc_context(STYLE):
        # There is nothing next to the images, and automatic layout would take longer than everything else.
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


@mpl.rc_context(STYLE)
def scatter(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, *, log: bool) -> Figure:
    """Draw points by group, on a logarithmic axis if numbers span decades."""
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
    """Draw the best score so far as a step line, and complete trials as points."""
    figure, axes = new_figure()
    axes.plot(*points, "o", ms=3.5, color="#888888", alpha=0.6, rasterized=len(xs) > 300, label="complete trials")
    axes.step(xs, ys, where="post", lw=2, label="best so far")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


@mpl.rc_context(STYLE)
def bars(values: Mapping[str, float], x: str) -> Figure:
    """Draw named values, the largest first."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure, axes = new_figure(WIDTH, 0.9 + 0.28 * len(ordered))
    axes.barh([cut(name, 32) for name, _ in ordered], [value for _, value in ordered])
    axes.set_xlabel(x)
    return figure


@mpl.rc_context(STYLE)
def path(bands: Sequence[tuple[float, float]], y: str) -> Figure:
    """Draw the mean of each step on a path with the half-width of its interval."""
    figure, axes = new_figure()
    axes.errorbar(range(len(bands)), [mean for mean, _ in bands], [half for _, half in bands], fmt="o-", capsize=3)
    axes.set_xticks(range(len(bands)))
    axes.set_xlabel("changes made")
    axes.set_ylabel(y)
    return figure


@mpl.rc_context(STYLE)
class Slice(NamedTuple):
    """The values of one parameter with the scores of their trials."""

    values: Sequence[Any]
    scores: Sequence[float]
    is_log: bool


def slices(columns: Mapping[str, Slice], y: str, across: int = 3) -> Figure:
    """Draw the score against each parameter."""
    down = -(-len(columns) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * across, 2.4 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, (name, (xs, ys, log)) in zip(grid, columns.items(), strict=False):
        _draw_slice(axes, xs, ys, log=log)
        axes.set_xlabel(cut(name, 34))
    for axes in grid[::across]:
        axes.set_ylabel(y)
    for axes in grid[len(columns) :]:
        axes.remove()
    return figure


MOST_OPTIONS = 5
"""Largest number of different values with a tick each."""

MOST_WORDS = 24
"""Most options that are named below a picture; of more, every second, third and so on is named."""


def _draw_slice(axes: Any, xs: Sequence[Any], ys: Sequence[float], *, log: bool) -> None:
    style: Any = {"ms": 3.5, "alpha": 0.6, "rasterized": len(xs) > 300}
    if any(isinstance(value, str | bool) for value in xs):
        _draw_options(axes, [str(value) for value in xs], ys, style)
        return
    axes.plot(xs, ys, "o", **style)
    if log:
        axes.set_xscale("log")
    elif len(set(xs)) <= MOST_OPTIONS and all(isinstance(value, int) for value in xs):
        axes.set_xticks(sorted(set(xs)))
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=all(isinstance(value, int) for value in xs)))


def _draw_options(axes: Any, words: Sequence[str], ys: Sequence[float], style: Any) -> None:
    places = {option: place for place, option in enumerate(sorted(set(words)))}
    # Shift equal values apart, so that their number is visible.
    shifts = np.random.default_rng(0).uniform(-0.18, 0.18, len(words))
    axes.plot([places[word] + shift for word, shift in zip(words, shifts, strict=True)], ys, "o", **style)
    # Vertical if they would overlap.
    is_long = sum(map(len, places)) > 24 or len(places) > MOST_OPTIONS
    step = -(-len(places) // MOST_WORDS)
    named = [cut(word, 16) for word in list(places)[::step]]
    axes.set_xticks(range(0, len(places), step), named, rotation=90 if is_long else 0)
    axes.set_xlim(-0.5, len(places) - 0.5)


def cut(text: str, most: int) -> str:
    """Return a text truncated to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


@mpl.rc_context(STYLE)
def reliability(groups: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Draw the share right against the confidence of bins (number of images, mean confidence, share right)."""
    figure, axes = new_figure(4.6, 3.6)
    lowest = min([0.0, *(mean for rows in groups.values() for _, mean, _ in rows)])
    axes.plot([lowest, 1], [lowest, 1], color="#888888", lw=1, ls="--", label="perfectly calibrated")
    for name, rows in groups.items():
        axes.plot([mean for _, mean, _ in rows], [right for _, _, right in rows], marker="o", ms=4, label=name)
    axes.set_xlabel("confidence, mean of a bin")
    axes.set_ylabel("share right")
    _add_legend(axes)
    return figure


@mpl.rc_context(STYLE)
def risk_coverage(coverage: np.ndarray[Any, Any], risk: np.ndarray[Any, Any]) -> Figure:
    """Draw the share of wrong answers against the share of images answered, most confident first."""
    figure, axes = new_figure(4.6, 3.6)
    axes.plot(coverage, risk, drawstyle="steps-post", lw=1.8, rasterized=len(coverage) > 2000)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of images answered, the surest first")
    axes.set_ylabel("share wrong of these")
    return figure
