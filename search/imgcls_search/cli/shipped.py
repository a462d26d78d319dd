"""The command that lists the shipped spaces and copies them: spaces."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from imgcls_search.cli.options import AsJson
from imgcls_search.cli.output import echo, print_json, print_table
from imgcls_search.errors import UserError, refuse_idle
from imgcls_search.words import argument


class Action(str, Enum):
    """Actions of `spaces` besides listing."""

    copy = "copy"


def spaces(
    action: Annotated[Action | None, typer.Argument(metavar="[copy]", help="Write a space out as a file.")] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of the space to copy, for example vit.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to this file or folder; default: NAME.yaml."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the shipped spaces, or copy one to a file of your own.

    \b
    imgcls-search spaces
    imgcls-search spaces copy vit
    imgcls-search spaces copy vit -o my-space.yaml

    Commands accept a shipped space by its name: if there is no file named `vit`, `imgcls-search run vit` searches it.
    """
    from imgcls_search.space import shipped

    if action is None:
        refuse_idle({"--output": output, "--force": force}, "without copy, as in: imgcls-search spaces copy vit")
        from imgcls_search.api.language import shipped_spaces

        found = shipped_spaces()
        if as_json:
            print_json(found)
            return
        print_table(("space", "what it searches"), found.items())
        return
    if name is None:
        raise UserError(f"spaces copy: needs the name of a space; allowed: {', '.join(shipped.names())}")
    target = _copy(shipped.path_of(name), output, force=force)
    if as_json:
        print_json({"space": name, "file": str(target)})
        return
    echo(f"wrote {target}; change it and run it with: imgcls-search run {argument(target)}")


def _copy(source: Path, output: Path | None, *, force: bool) -> Path:
    """Copy a shipped space and return the file; replace an existing one only with `force`."""
    from imgcls_search import atomic
    from imgcls_search.errors import writing

    target = Path(source.name) if output is None else output
    if target.is_dir():
        target /= source.name
    if target.exists() and not force:
        raise UserError(f"{target}: exists already; add --force to replace it, or choose another file with --output")
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the shipped space itself; choose another file with --output")
    with writing(target):
        atomic.copy(source, target)
    return target
