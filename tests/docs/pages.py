"""Read the code blocks of the documentation's pages, and how tests run them.

README.md and every page below docs/ are found automatically. In shell blocks, lines that begin with `imgcls-search`
are run in order, in a separate folder for each page. The folder has `photos/` (classes cat, dog and owl),
`more-photos/`, `many-photos/`, `folder-of-scans/`, `scan.png`, `weights/`, `spaces/`, the studies `vit-digits` and
`vit-photos`, `best.yaml` and `trained/best/seed-1.pt`. Each command must exit with 0 and print something. Other lines
(pip, curl, scripts) are not run. YAML blocks must parse as a space (a model is added if they have none), and one that
begins with a comment such as `# space.yaml` becomes that file for the commands below it. TOML blocks must parse, and
Python blocks must compile; a comment can have them run. Text blocks show output of programs.

Comments in a page, which readers do not see, tell a test what else it needs:

    <!-- test: skip, REASON -->                   the next block is not run; its options are still checked
    <!-- test: run -->                            the next block is Python and is run, in an empty folder
    <!-- test: fails 2 -->                        the commands of the next block end with this exit code
    <!-- test: add "run vit" --set study.trials=2 -->
                                                  options for the page's commands that begin so, to make them quick
    <!-- test: prepare                            shell lines to run first; they may call imgcls-search
    ...
    -->
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgcls_search.cli.app import app
from typer.main import get_command

ROOT = Path(__file__).parents[2]
SHELL = ("", "bash", "sh", "shell", "console")

TOKENS = re.compile(
    r"^[ \t]*<!-- test: (?P<comment>.*?)-->"
    r"|^(?P<indent>[ \t]*)```(?P<language>[a-z]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    language: str
    text: str
    skipped: str | None = None
    """Why it is not run."""

    code: int = 0
    """The exit code of its commands."""

    is_run: bool = False
    """Whether it is Python code that the test runs."""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each `imgcls-search` command in it, including redirections."""
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = [line.strip().removeprefix("$ ") for line in lines]
        return [shlex.split(line, comments=True)[1:] for line in bare if line.startswith("imgcls-search ")]


@dataclass
class Page:
    """A page with its blocks and the additions from its comments."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    prepare: list[str] = field(default_factory=list)
    added: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path relative to the top of the repository."""
        return str(self.path.relative_to(ROOT))

    def options(self, words: list[str]) -> list[str] | None:
        """Return the options that comments add to a command; None if no comment is about it."""
        line = " ".join(words)
        fitting = [options for begin, options in self.added if line.startswith(begin)]
        return [word for options in fitting for word in options] if fitting else None


def read(path: Path) -> Page:
    """Read a page of the documentation."""
    page = Page(path)
    skipped, code, is_run = None, 0, False
    for token in TOKENS.finditer(path.read_text()):
        if (comment := token["comment"]) is None:
            page.blocks.append(Block(token["language"], token["text"], skipped, code, is_run))
            skipped, code, is_run = None, 0, False
            continue
        kind, _, rest = comment.strip().partition("\n" if comment.startswith("prepare") else " ")
        match kind.strip(",").strip():
            case "skip":
                assert rest.strip(), f"{path}: a block that is skipped needs a reason"
                skipped = rest.strip()
            case "run":
                is_run = True
            case "fails":
                code = int(rest)
            case "add":
                begin, *options = shlex.split(rest)
                page.added.append((begin, options))
            case "prepare":
                page.prepare.append(rest)
            case other:
                raise AssertionError(f"{path}: test: {other}: unknown; allowed: skip, run, fails, add, prepare")
    return page


def pages() -> list[Page]:
    """Return all pages, the README first."""
    return [read(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]


def known_commands() -> dict[str, Any]:
    """Return every command by name, subcommands included: `spaces`, `spaces copy`."""
    found: dict[str, Any] = {}
    waiting = list(get_command(app).commands.items())  # type: ignore[attr-defined]
    while waiting:
        name, command = waiting.pop(0)
        found[name] = command
        waiting += [(f"{name} {below}", each) for below, each in getattr(command, "commands", {}).items()]
    return found


def commands() -> list[list[str]]:
    """Return the words of every command on every page, including those that are not run."""
    return [words for page in pages() for block in page.blocks for words in block.commands]
