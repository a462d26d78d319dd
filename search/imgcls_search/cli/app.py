"""The command line: its commands, and the exit codes and messages of their errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

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

# Import nothing slow here, directly or indirectly, so that `--help` is fast; each command imports what it needs.

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Typer's error for an invalid command line; its module depends on Typer's version."""

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
"""Commands that end when the reader of their output is gone; all others continue without output."""

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "From photos to a model": {
        "auto": automatic.auto,
        "init": drafting.init,
    },
    "Search": {
        "check": spaces.check,
        "plan": searches.plan,
        "run": searches.run,
        "try": searches.try_configuration,
        "pretrain": trainings.pretrain,
        "replay": searches.replay,
    },
    "Results": {
        "status": results.status,
        "best": results.best,
        "trials": results.trials,
        "front": results.front,
        "compare": results.compare,
        "report": reporting.report,
        "dashboard": reporting.dashboard,
    },
    "The final model": {
        "confirm": trainings.confirm,
        "reproduce": trainings.reproduce,
        "train": trainings.train,
        "ensemble": ensembles.ensemble,
        "evaluate": trainings.evaluate,
        "export": delivery.export,
        "predict": delivery.predict,
        "serve": delivery.serve,
    },
    "Images and weights": {
        "inspect": images.inspect,
        "augment-preview": spaces.augment_preview,
        "backbones": images.backbones,
        "weights": spaces.weights,
    },
    "Space files": {
        "spaces": shipped.spaces,
        "options": spaces.options,
        "families": spaces.families,
        "schema": spaces.schema,
    },
    "Kept studies": {
        "list": results.list_studies,
        "copy": housekeeping.copy,
        "merge": housekeeping.merge,
        "clean": housekeeping.clean,
    },
}
"""All commands by their section in `--help`, in order."""


class _Sections(TyperGroup):
    """Shows the commands in sections, each with the whole first sentence of its help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections below the options."""
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=500)) for name in section])


class _Command(TyperCommand):
    """Refuses empty arguments: an empty path is the working folder, and mostly comes from an unset shell variable."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments of a command."""
        before = ""
        for given in args:
            name, equals, value = given.partition("=") if given.startswith("-") else (before, "", given)
            if not value and (equals or not given):
                raise USAGE_ERROR(
                    f"{name or 'an argument'}: is empty; allowed: a value (is a shell variable unset?)", ctx=ctx
                )
            before = given if given.startswith("-") else ""
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="imgcls-search",
    cls=_Sections,
    help="Search hyperparameters and architectures for image classification.",
    epilog="Start with: imgcls-search auto PHOTOS --time 10m",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _section in COMMANDS.values():
    for _name, _command in _section.items():
        app.command(_name, cls=_Command)(_command)


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


def _command_of(error: Any) -> str:
    """Return the command that an error is about; one without its value has no context."""
    if error.ctx is not None:
        return str(error.ctx.command_path)
    known = {name for section in COMMANDS.values() for name in section}
    return " ".join(["imgcls-search", *(name for name in sys.argv[1:2] if name in known)])


def main() -> None:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    try:
        _hide_password()
        _must_be_somewhere()
        logging.getLogger("imgcls_search").handlers = [_NOTES]
        if set(sys.argv[1:2]) & ONLY_PRINT:
            terminal.end_with_reader()
        # A command that ends normally returns its exit code, or nothing.
        code = app(prog_name="imgcls-search", standalone_mode=False)
        sys.stdout.flush()
        if (trouble := terminal.output_trouble()) is not None:
            raise UserError(trouble)
        sys.exit(code)
    except USAGE_ERROR as error:
        if error.ctx is not None and not sys.argv[1:]:
            print(error.ctx.get_help())  # noqa: T201 - has several lines, `echo` prints one
        else:
            _fail(f"{error.format_message().rstrip('.')} (see {_command_of(error)} --help)")
        sys.exit(UserError.exit_code)
    except ModuleNotFoundError as error:
        # `predict` and `serve` work without most of the packages that the others need.
        package = (error.name or "").partition(".")[0]
        if package in ("", "imgcls_search"):
            raise
        _fail(
            f"this command needs the Python package {package}, which is not installed; pip install imgcls-search "
            "installs all that it needs"
        )
        sys.exit(UserError.exit_code)
    except SearchError as error:
        _fail(*error.lines())
        sys.exit(error.exit_code)
    except (BrokenPipeError, terminal.ReaderLeftError):
        # The reader closed the pipe, as `| head` does.
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
    """Prints log messages of the other packages, each line once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message unless it was printed before; a dashboard loads its study repeatedly."""
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
    """Restart with an address's password in the environment, because all users can read a process's arguments."""
    if not any("postgres" in argument for argument in sys.argv[1:]):
        return
    from imgcls_search.study.address import without_passwords

    arguments, variables = without_passwords(sys.argv[1:])
    count = len(arguments)
    # The process list does not show these arguments if the process was started in another way.
    if variables and os.name == "posix" and sys.orig_argv[-count:] == sys.argv[1:]:
        os.execve(sys.executable, [*sys.orig_argv[:-count], *arguments], {**os.environ, **variables})  # noqa: S606
