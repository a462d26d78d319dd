"""Commands that draft a space from a data set: init."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search import durations
from imgcls_search.api.options import images_of, seconds_of
from imgcls_search.cli.images import note_ambiguous
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Group,
    SkipUnreadable,
    Studies,
    WeightsDir,
    override,
)
from imgcls_search.cli.output import echo, make_screens, print_json
from imgcls_search.errors import UserError
from imgcls_search.words import argument, in_folder

if TYPE_CHECKING:
    from imgcls_search.api.drafting import FlipsName
    from imgcls_search.jobs.init.draft import Draft


class Flips(str, Enum):
    """Which mirrored pictures keep their class."""

    none = "none"
    horizontal = "horizontal"
    both = "both"


Images = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A folder, a table, or a data set as for run --data: digits, table:labels.csv."
    ),
]

SafeFlips = Annotated[
    Flips | None,
    typer.Option("--flips", help="Set which mirrored images keep their class; default: ask on a terminal, else none."),
]

DraftOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set one value of the drafted space; may be repeated."),
]


def init(
    data: Images,
    time: Annotated[
        str,
        typer.Option(
            "--time", metavar="DURATION", help=f"Time for search and confirmation: seconds, or {durations.EXAMPLES}."
        ),
    ] = "1h",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="YAML", help="Write this file; default: NAME.yaml.")
    ] = None,
    flips: SafeFlips = None,
    group: Group = None,
    overrides: DraftOverrides = None,
    skip_unreadable: SkipUnreadable = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask questions.")] = False,
    weights_dir: WeightsDir = None,
    studies: Studies = STUDIES,
    as_json: AsJson = False,
) -> None:
    """Draft a search space for a folder of photos, this machine and the given time.

    \b
    imgcls-search init photos --time 1h
    imgcls-search init table:labels.csv --time 30m -o birds.yaml
    imgcls-search init photos --flips horizontal --set study.workers=1 --yes --json

    Reads the images, finds pretrained weights on this machine, measures how fast networks train, and writes a space
    in which a comment gives the reason for every choice.
    """
    from imgcls_search.api.drafting import draft_space, split

    of_data, changes = split([override(entry) for entry in overrides or []])
    note_ambiguous(data)
    found, target = draft_space(
        images_of(data, group, of_data, skip_unreadable=skip_unreadable),
        seconds=seconds_of(time, "--time"),
        output=output,
        ask_flips=safe_flips(flips, changes, yes=yes or as_json),
        changes=changes,
        force=force,
        studies=studies,
        screens=make_screens(error=as_json),
    )
    if as_json:
        print_json({**found.to_dict(), "path": str(target)})
        return
    _show(found, target, studies)


def safe_flips(flips: Flips | None, changes: Sequence[tuple[str, str]], *, yes: bool) -> Callable[[], FlipsName | None]:
    """Return a function that tells which flips are safe, None if `--set` does; without an option, it asks the user.

    Raises:
        UserError: both say it.
    """
    from imgcls_search.api.drafting import sets_flips

    if sets_flips(changes, None if flips is None else flips.value):
        return lambda: None
    return lambda: (flips or _ask(yes=yes)).value


def _ask(*, yes: bool) -> Flips:
    """Ask which flips are safe; with `yes` or without a terminal, return none."""
    if yes or not sys.stdin.isatty() or not sys.stdout.isatty():
        return Flips.none
    echo("Does a mirrored picture keep its class? Letters, digits and left or right hands do not; most photographs do.")
    answer = typer.prompt("none, horizontal (left to right), both (upside down too)", default="none").strip().lower()
    found = [flip for flip in Flips if answer and flip.value.startswith(answer)]
    if not found:
        raise UserError(f"{answer}: is not an answer; allowed: {', '.join(flip.value for flip in Flips)}")
    return found[0]


def _show(found: Draft, target: Path, studies: Path) -> None:
    for one in found.decisions:
        echo(str(one))
    for note in found.notes:
        echo(f"note: {note}")
    echo(f"wrote {target}; next: imgcls-search run {argument(target)}{in_folder(studies)}")
