"""How the commands print: lines, tables, JSON, and sentences that several of them say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from imgcls_search.rounding import measured, pairs, share
from imgcls_search.terminal import shown

if TYPE_CHECKING:
    from rich.console import Console

    from imgcls_search.study.summary import Expected, TrialSummary
    from imgcls_search.views.screens import ConsoleScreens

Cell = str | tuple[str, ...]
"""A cell of a table: a line, or several."""

MOST_CLASSES = 20
"""Classes whose scores are printed."""

CLASS_SCORES = ("precision", "recall", "f1")

WIDE = 100_000
"""Columns of what is no terminal: a program that reads a table needs whole numbers in whole lines."""


def echo(text: str, *, error: bool = False) -> None:
    """Print one line, whatever characters the names in it have; the commands print nothing in another way."""
    print(shown(text), file=sys.stderr if error else sys.stdout, flush=True)


def print_table(headings: tuple[Cell, ...], rows: Iterable[tuple[Cell, ...]]) -> None:
    """Print a table without lines, as wide as its cells where it is not for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(_cell(heading), overflow="fold")
    for row in rows:
        # As text, since rich takes [2, 4] for markup.
        table.add_row(*(Text(_cell(cell)) for cell in row))
    console.print(table)


def print_classes(classes: Mapping[str, Mapping[str, float]]) -> None:
    """Print the scores of each class; of many classes those with the lowest F1 score."""
    seen = {name: scores for name, scores in classes.items() if "f1" in scores}
    if not seen:
        return
    worst = sorted(seen, key=lambda name: seen[name]["f1"])[:MOST_CLASSES]
    names = [name for name in seen if name in worst]
    if len(names) < len(classes):
        echo(f"{len(names)} of {len(classes)} classes, those with images and the lowest F1 score:")
    rows = [
        (
            name,
            *(measured(f"{key}:{name}", seen[name][key], int(seen[name]["support"])) for key in CLASS_SCORES),
            f"{seen[name]['support']:,.0f}",
        )
        for name in names
    ]
    if any("threshold" in seen[name] for name in names):
        # Of several labels: the figures hold at the thresholds.
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
    """Print a value for scripts."""
    # As ASCII: an escape sequence or half a pair in a name can do no harm there, and comes back as it was.
    print(json.dumps(value, indent=2))


def warn(text: str) -> None:
    """Print one line of warning to standard error."""
    echo(f"warning: {text}", error=True)


def make_console(*, error: bool = False) -> Console:
    """Return what a screen draws on; with `error` beside the JSON of a command, on standard error."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, stderr=error)


def make_screens(*, error: bool = False) -> ConsoleScreens:
    """Return what shows the work of a command; with `error` all of it beside JSON, on standard error."""
    from imgcls_search.views.screens import ConsoleScreens

    return ConsoleScreens(lambda: make_console(error=error), lambda: make_console(error=True))


def as_yaml(value: Any) -> str:
    """Return a value on one line as a space file has it; nothing is an empty text."""
    import yaml

    return (
        ""
        if value is None
        else str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)).strip()
    )


def plain(number: float) -> str:
    """Return a limit as people write it: no decimals where there are none."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,}"


def best_lines(best: list[TrialSummary], images: int | None) -> Iterable[str]:
    """Return a line for the best trial, or for each of the first trials of a front, on `images` images."""
    what = "on the front" if len(best) > 1 else "best"
    return (f"{what}: trial {trial['trial']}, {pairs(trial['values'], images)}" for trial in best[:5])


def going_on(outlook: Expected) -> str:
    """Return what more trials are likely to bring."""
    return (
        f"outlook: doubling the {outlook['trials']} trials is likely to gain at most {outlook['gain']:.2g} "
        f"{outlook['metric']}"
    )
