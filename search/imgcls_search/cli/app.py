"""The command line: which commands there are, and how their errors end. The only place that catches SearchError."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from imgcls_search import __version__, terminal
from imgcls_search.cli import (
    automatic,
    delivery,
    drafting,
    ensembles,
    housekeeping,
    images,
    reporting,
    results,
    searches,
    shipped,
    spaces,
    trainings,
)
from imgcls_search.cli.output import echo
from imgcls_search.errors import SearchError, UserError, disk_trouble, path_trouble

# Nothing heavy is imported here and in what is imported here: `--help` answers at once, and each command imports what
# it needs.

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""What Typer raises for a command line that it cannot read; where the class is to be had depends on its version."""

ONLY_PRINT = frozenset(
    {
        "best",
        "check",
        "compare",
        "families",
        "front",
        "list",
        "options",
        "plan",
        "predict",
        "serve",
        "spaces",
        "replay",
        "schema",
        "status",
        "trials",
        "weights",
    }
)
"""Commands that end when nobody reads what they print; all others go on without output."""

app = typer.Typer(
    name="imgcls-search",
    help="Search hyperparameters and architectures for image classification.",
    epilog="Start with: imgcls-search run vit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("auto", automatic.auto),
    ("init", drafting.init),
    ("run", searches.run),
    ("plan", searches.plan),
    ("check", spaces.check),
    ("inspect", images.inspect),
    ("status", results.status),
    ("best", results.best),
    ("front", results.front),
    ("export", delivery.export),
    ("predict", delivery.predict),
    ("serve", delivery.serve),
    ("train", trainings.train),
    ("pretrain", trainings.pretrain),
    ("evaluate", trainings.evaluate),
    ("augment-preview", spaces.augment_preview),
    ("families", spaces.families),
    ("options", spaces.options),
    ("backbones", images.backbones),
    ("weights", spaces.weights),
    ("schema", spaces.schema),
    ("spaces", shipped.spaces),
    ("replay", searches.replay),
    ("try", searches.try_setting),
    ("merge", housekeeping.merge),
    ("dashboard", reporting.dashboard),
    ("copy", housekeeping.copy),
    ("clean", housekeeping.clean),
    ("confirm", trainings.confirm),
    ("ensemble", ensembles.ensemble),
    ("reproduce", trainings.reproduce),
    ("list", results.list_studies),
    ("trials", results.trials),
    ("compare", results.compare),
    ("report", reporting.report),
)
"""Every command, in the order of `--help`."""

for _name, _command in COMMANDS:
    app.command(_name)(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"imgcls-search {__version__}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Search hyperparameters and architectures for image classification."""


def main() -> None:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    try:
        _hide_password()
        _must_be_somewhere()
        logging.getLogger("imgcls_search").handlers = [_NOTES]
        if set(sys.argv[1:2]) & ONLY_PRINT:
            terminal.end_with_reader()
        # A command that ends by itself returns its exit code, or nothing.
        code = app(prog_name="imgcls-search", standalone_mode=False)
        sys.stdout.flush()
        if (trouble := terminal.output_trouble()) is not None:
            raise UserError(trouble)
        sys.exit(code)
    except USAGE_ERROR as error:
        if error.ctx is not None and not sys.argv[1:]:
            print(error.ctx.get_help())  # noqa: T201 - of several lines, and of nobody else
        else:
            name = "imgcls-search" if error.ctx is None else error.ctx.command_path
            _fail(f"{error.format_message().rstrip('.')} (see {name} --help)")
        sys.exit(UserError.exit_code)
    except SearchError as error:
        _fail(*error.lines())
        sys.exit(error.exit_code)
    except (BrokenPipeError, terminal.ReaderLeftError):
        # Somebody closed the pipe, as `| head` does.
        sys.exit(0)
    except OSError as error:
        trouble = disk_trouble(error) or path_trouble(error)
        if trouble is None:
            raise
        _fail(trouble)
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        echo("stopped; run the same command again to resume from the last checkpoints", error=True)
        sys.exit(130)


class _Notes(logging.Handler):
    """Prints what the floors below note, each line once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a note that was not printed yet; a dashboard loads its study again and again."""
        if (text := record.getMessage()) not in self.said:
            self.said.add(text)
            echo(text, error=True)


_NOTES = _Notes()


def _fail(*problems: str) -> None:
    for problem in problems:
        echo(f"error: {problem}", error=True)


def _must_be_somewhere() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        if sys.argv[1:] and "--help" not in sys.argv:
            folder = os.environ.get("PWD", "the working folder")
            raise UserError(f"{folder}: this folder, in which the command was started, was deleted") from None


def _hide_password() -> None:
    """Restart with the password of an address in the environment; all users can read the arguments of a process."""
    if not any("postgres" in argument for argument in sys.argv[1:]):
        return
    from imgcls_search.study.address import without_passwords

    arguments, variables = without_passwords(sys.argv[1:])
    count = len(arguments)
    # In a process that was started otherwise, the list does not show these arguments.
    if variables and os.name == "posix" and sys.orig_argv[-count:] == sys.argv[1:]:
        os.execve(sys.executable, [*sys.orig_argv[:-count], *arguments], {**os.environ, **variables})  # noqa: S606
