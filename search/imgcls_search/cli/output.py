"""Print lines, tables and JSON, and write sentences that several commands share."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imgcls_search.measures import lowest_f1
from imgcls_search.rounding import measured, pairs, share
from imgcls_search.terminal import shown

if TYPE_CHECKING:
    from rich.console import Console

    from imgcls_search.study.summary import Expected, TrialSummary
    from imgcls_search.views.screens import ConsoleScreens

Cell = str | tuple[str, ...]
"""A cell of a table: one or several lines."""

MOST_CLASSES = 20
"""Print the scores of at most this many classes."""

MOST_LINES = 10
"""Print at most this many lines of one kind, for example of failed trials."""

MOST_FRONT = 5
"""Print at most this many trials of a front in a summary."""

CLASS_SCORES = ("precision", "recall", "f1")

WIDE = 100_000
"""Columns outside a terminal, so that programs can read tables without line breaks in rows."""


def echo(text: str, *, error: bool = False) -> None:
    """Print one line with control characters escaped; commands use this instead of `print`."""
    print(shown(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_table(headings: tuple[Cell, ...], rows: Iterable[tuple[Cell, ...]]) -> None:
    """Print a table without borders; outside a terminal, it is as wide as its cells."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    table = Table(box=None, padding=(0, 2, 0, 0))
    # As Text, because rich parses [2, 4], and class names in brackets, as markup.
    for heading in headings:
        table.add_column(Text(_cell(heading)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(cell)) for cell in row))
    console.print(table)


def print_some(lines: Sequence[str]) -> None:
    """Print lines; of many, the first ones, and how many more there are."""
    for line in lines[:MOST_LINES]:
        echo(line)
    if len(lines) > MOST_LINES:
        echo(f"and {len(lines) - MOST_LINES:,} more of these lines; --json has all")


def print_classes(classes: Mapping[str, Mapping[str, float]]) -> None:
    """Print the scores of each class; if there are many, of those with the lowest F1 score."""
    # With several labels: the scores are those at the thresholds.
    is_of_labels = any("threshold" in scores for scores in classes.values())
    needed = {*CLASS_SCORES, "support", *(("average_precision", "threshold") if is_of_labels else ())}
    seen = {
        name: scores for name, scores in classes.items() if needed <= scores.keys() and math.isfinite(scores["support"])
    }
    if not seen:
        return
    names = lowest_f1(seen, MOST_CLASSES)
    if len(names) < len(classes):
        kinds = "labels" if is_of_labels else "classes"
        echo(f"{len(names)} of {len(classes):,} {kinds}, those with images and the lowest F1 score; --json has all:")
    rows = [
        (
            name,
            *(measured(f"{key}:{name}", seen[name][key], int(seen[name]["support"])) for key in CLASS_SCORES),
            f"{seen[name]['support']:,.0f}",
        )
        for name in names
    ]
    if is_of_labels:
        more = [
            (share(seen[name]["average_precision"], int(seen[name]["support"])), f"{seen[name]['threshold']:.3f}")
            for name in names
        ]
        rows = [(*row[:-1], *cells, row[-1]) for row, cells in zip(rows, more, strict=True)]
        print_table(("label", "precision", "recall", "F1", "average precision", "threshold", "images"), rows)
        return
    print_table(("class", "precision", "recall", "F1", "images"), rows)


def _cell(cell: Cell) -> str:
    return shown(cell) if isinstance(cell, str) else "\n".join(map(shown, cell))


def print_json(value: Any) -> None:
    """Print a value as JSON for scripts."""
    # As ASCII: an escape sequence or a lone surrogate in a name does no harm and is read back unchanged.
    print(json.dumps(value, indent=2))


def warn(text: str) -> None:
    """Print one line of warning to standard error."""
    echo(f"warning: {text}", error=True)


def make_console(*, error: bool = False) -> Console:
    """Return a console for a screen; with `error`, on standard error, so that it does not mix with JSON."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, stderr=error)


def make_screens(*, error: bool = False) -> ConsoleScreens:
    """Return the screens of a command; with `error`, all on standard error, so that they do not mix with JSON."""
    from imgcls_search.views.screens import ConsoleScreens

    return ConsoleScreens(lambda: make_console(error=error), lambda: make_console(error=True))


def as_yaml(value: Any) -> str:
    """Return a value as one line of YAML, as in a space file; None becomes an empty string."""
    import yaml

    return (
        ""
        if value is None
        else str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)).strip()
    )


def plain(number: float) -> str:
    """Format a limit; whole numbers get no decimals."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,}"


def best_lines(best: list[TrialSummary], images: int | None) -> Iterable[str]:
    """Return a line for the best trial, or for each of the first trials of a front, scored on `images` images."""
    what = "on the front" if len(best) > 1 else "best"
    return (f"{what}: trial {trial['trial']}, {pairs(trial['values'], images)}" for trial in best[:MOST_FRONT])


def going_on(outlook: Expected) -> str:
    """Return a line with the likely gain of more trials."""
    return (
        f"outlook: doubling the {outlook['trials']} trials is likely to gain at most {outlook['gain']:.2g} "
        f"{outlook['metric']}"
    )
