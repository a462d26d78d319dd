"""The Pareto front of a study: what it holds, and a picture of it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.errors import UserError, writing
from imgcls_search.study import best
from imgcls_search.study.record import Record
from imgcls_search.study.summary import describe
from imgcls_search.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".png", ".svg", ".pdf")
"""What a picture may be written as."""


def describe_front(record: Record) -> dict[str, Any]:
    """Return the front, best first objective first, and how many complete trials it was chosen from, as plain values.

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
    """Draw all complete trials by every pair of objectives, the front and what is over a limit marked.

    Raises:
        NoResultError: no trial is complete and within the limits.
        UserError: the file is of no kind that can be drawn, cannot be written, or there is one objective only.
    """
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: cannot be drawn; allowed: a name that ends in {', '.join(KINDS)}")
    if len(record.objectives) < 2:
        raise UserError(f"study {record.study.study_name!r} has one objective, so that there is no front to draw")
    members = best.front(record)
    from imgcls_search.worker import figures

    pairs = list(combinations(range(len(record.objectives)), 2))
    figure, panels = figures.row_of_axes(len(pairs))
    for panel, pair in zip(panels, pairs, strict=True):
        _draw(panel, record, members, pair)
    # Not on the axes, where a place for it would have to be searched for, and may hide trials.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle(f"{record.study.study_name}: {len(members)} trial(s) on the front")
    with writing(path):
        figures.save(figure, path)


def _draw(panel: Axes, record: Record, members: list[Trial], pair: tuple[int, int]) -> None:
    """Draw trials by two objectives, the first upwards."""
    y, x = pair
    numbers = {trial.number for trial in members}
    done = [trial for trial in record.trials if trial.state == "complete"]
    groups: dict[str, tuple[list[Trial], dict[str, Any]]] = {
        "over a limit": ([trial for trial in done if not trial.is_feasible], {"marker": "x", "color": "tab:gray"}),
        "complete": (
            [trial for trial in done if trial.is_feasible and trial.number not in numbers],
            {"marker": "o", "color": "tab:blue", "alpha": 0.5},
        ),
        "front": (members, {"marker": "D", "color": "tab:red"}),
    }
    for label, (trials, style) in groups.items():
        if trials:
            points = [trial.values or () for trial in trials]
            panel.scatter([each[x] for each in points], [each[y] for each in points], label=label, **style)
    for trial in members:
        values = trial.values or ()
        panel.annotate(str(trial.number), (values[x], values[y]), textcoords="offset points", xytext=(5, 5))
    if len(record.objectives) == 2:
        line = sorted(((trial.values or ())[x], (trial.values or ())[y]) for trial in members)
        panel.plot([each[0] for each in line], [each[1] for each in line], color="tab:red", linewidth=0.8)
    for axis, place in ((panel.set_xlabel, x), (panel.set_ylabel, y)):
        metric, direction = record.objectives[place]
        axis(f"{metric} ({direction})")
    panel.grid(alpha=0.3)
