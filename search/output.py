"""What the commands share: the options that many take, and how values are printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

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


def pairs(values: dict[str, float]) -> str:
    """Return names and numbers in one line."""
    return ", ".join(
        f"{name} {value:.4f}" if value < 1000 else f"{name} {value:,.0f}" for name, value in values.items()
    )


def print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table without lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # As text, since rich takes [2, 4] for markup.
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def print_json(value: Any) -> None:
    """Print a value for scripts."""
    print(json.dumps(value, indent=2))
