"""What the commands share: the options that many take, and how values are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from imgcls_search.terminal import shown

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The name of a study, for example vit-digits.")]
Studies = Annotated[Path, typer.Option("--studies", metavar="DIR", help="Where studies lie.")]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="A PostgreSQL database of studies; default: $IMGCLS_STORAGE, else SQLite files.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
STUDIES = Path("studies")

Cell = str | tuple[str, ...]
"""A cell of a table: a line, or several."""

WIDE = 100_000
"""Columns of what is no terminal: a program that reads a table needs whole numbers in whole lines."""


def pairs(values: dict[str, float]) -> str:
    """Return names and numbers in one line."""
    return ", ".join(
        f"{name} {value:.4f}" if value < 1000 else f"{name} {value:,.0f}" for name, value in values.items()
    )


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


def _cell(cell: Cell) -> str:
    return shown(cell) if isinstance(cell, str) else "\n".join(map(shown, cell))


def print_json(value: Any) -> None:
    """Print a value for scripts."""
    # As ASCII: an escape sequence or half a pair in a name can do no harm there, and comes back as it was.
    print(json.dumps(value, indent=2))
