"""The Pareto front of a study: its trials, and a picture of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from imgcls_search.errors import UserError, writing
from imgcls_search.measures import bounds, sign_of
from imgcls_search.study import best
from imgcls_search.study.record import Record
from imgcls_search.study.summary import TrialSummary, describe
from imgcls_search.trial import Trial
from imgcls_search.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".png", ".svg", ".pdf")
"""File formats of pictures."""

LOG_FROM = 4.0
"""Values that differ by this factor get a logarithmic axis, unless they are bounded like shares."""

MOST_NAMES = 40
"""Most trials of a front that are labelled with their numbers, if there is room."""


class OverLimits(TypedDict):
    """A complete trial that is over limits."""

    trial: int
    limits: list[str]


class FrontSummary(TypedDict):
    """The front of a study, and the trials that it was chosen from."""

    study: str
    objectives: dict[str, str]
    front: list[TrialSummary]
    complete: int
    over_limits: list[OverLimits]


def describe_front(record: Record) -> FrontSummary:
    """Return the front, sorted by the first objective, and the number of complete trials, as plain values.

    Raises:
        NoResultError: no trial is complete and within the limits.
    """
    done = [trial for trial in record.trials if trial.state == "complete"]
    return {
        "study": record.study.study_name,
        "objectives": dict(record.objectives),
        "front": [describe(trial, record) for trial in best.front(record)],
        "complete": len(done),
        "over_limits": [
            {"trial": trial.number, "limits": list(best.over_limits(trial))} for trial in done if not trial.is_feasible
        ],
    }


def draw_front(record: Record, path: Path) -> None:
    """Draw all complete trials by every pair of objectives; mark the front and trials over a limit.

    Raises:
        NoResultError: no trial is complete and within the limits.
        UserError: the format is not supported, the file cannot be written, or there is only one objective.
    """
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: cannot be drawn; allowed: a name that ends in {', '.join(KINDS)}")
    if len(record.objectives) < 2:
        raise UserError(f"study {record.study.study_name!r} has one objective, so there is no front to draw")
    members = best.front(record)
    from imgcls_search.worker import drawing

    pairs = list(combinations(range(len(record.objectives)), 2))
    figure, panels = drawing.row_of_axes(len(pairs))
    for panel, pair in zip(panels, pairs, strict=True):
        draw_pair(panel, record, members, pair)
    # Outside the axes: finding a place inside takes time, and the legend might hide trials.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{record.study.study_name}: {counted('trial', len(members))} on the front")
    with writing(path):
        drawing.save(figure, path)


@dataclass(frozen=True)
class _Look:
    """How trials of one kind are drawn."""

    marker: str
    colour: str
    alpha: float = 1.0


_LOOKS: Mapping[str, _Look] = {
    "over a limit": _Look("x", "#8a8a8a", 0.8),
    "complete": _Look("o", "#3b82c4", 0.5),
    "front": _Look("D", "#d1495b"),
    "this page": _Look("*", "#c9a227"),
}


def draw_pair(
    panel: Axes, record: Record, members: Sequence[Trial], pair: tuple[int, int], about: Trial | None = None
) -> None:
    """Draw trials by two objectives, the first on the vertical axis, and the trade-off between them as a line.

    `about` is a trial to mark.
    """
    y, x = pair
    numbers = {trial.number for trial in members}
    done = [trial for trial in record.trials if trial.state == "complete"]
    groups: dict[str, Sequence[Trial]] = {
        "over a limit": [trial for trial in done if not trial.is_feasible],
        "complete": [trial for trial in done if trial.is_feasible and trial.number not in numbers],
        "front": members,
        "this page": [] if about is None else [about],
    }
    for label, trials in groups.items():
        points = [(_value(trial, x), _value(trial, y)) for trial in trials]
        look = _LOOKS[label]
        size = 11 if look.marker == "*" else 5
        style: dict[str, Any] = {"color": look.colour, "alpha": look.alpha, "ms": size, "rasterized": len(points) > 300}
        if points:
            panel.plot(*zip(*points, strict=True), look.marker, ls="", label=label, **style)
    line = sorted((_value(trial, x), _value(trial, y)) for trial in _attained(record, done, pair))
    # Between two trials, the cost is that of the more expensive and the score that of the cheaper one.
    where = "steps-pre" if record.objectives[x][1] == "maximize" else "steps-post"
    panel.plot(*zip(*line, strict=True), drawstyle=where, color=_LOOKS["front"].colour, linewidth=1, alpha=0.7)
    _set_axes(panel, record, done, pair)
    _name(panel, members, pair)


def _value(trial: Trial, objective: int) -> float:
    return (trial.values or ())[objective]


def _attained(record: Record, done: Sequence[Trial], pair: tuple[int, int]) -> list[Trial]:
    """Return the trials that no other beats in these two objectives."""
    known = [trial for trial in done if trial.is_feasible]
    signs = [sign_of(record.objectives[place][1]) for place in pair]
    scores = [[sign * _value(trial, place) for sign, place in zip(signs, pair, strict=True)] for trial in known]
    beaten = best.num_dominating(np.array(scores))
    return [trial for trial, count in zip(known, beaten, strict=True) if not count]


def _set_axes(panel: Axes, record: Record, done: Sequence[Trial], pair: tuple[int, int]) -> None:
    y, x = pair
    for place, scale, label in ((x, panel.set_xscale, panel.set_xlabel), (y, panel.set_yscale, panel.set_ylabel)):
        metric, direction = record.objectives[place]
        values = [_value(trial, place) for trial in done]
        if is_log(metric, values):
            scale("log")
        label(f"{metric} ({direction})")
    panel.grid(alpha=0.3)


def is_log(metric: str, values: Sequence[float]) -> bool:
    """Tell whether to draw a metric on a logarithmic axis: costs that differ by at least `LOG_FROM` times."""
    low, high = bounds(metric) or (0.0, math.inf)
    known = [value for value in values if math.isfinite(value)]
    return math.isinf(high) and low >= 0 and bool(known) and min(known) > 0 and max(known) >= LOG_FROM * min(known)


def _name(panel: Axes, members: Sequence[Trial], pair: tuple[int, int]) -> None:
    """Label trials with their numbers; labels without room are removed when the picture is finished."""
    from imgcls_search.worker.legible import NAME

    y, x = pair
    for trial in members[:MOST_NAMES]:
        place = (_value(trial, x), _value(trial, y))
        named = panel.annotate(
            str(trial.number), place, xytext=(5, 5), textcoords="offset points", fontsize=8.5, label=NAME
        )
        named.set_in_layout(False)
