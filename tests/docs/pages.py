"""What the pages of the documentation hold for a test: their blocks of code, and how to run them.

Every page below docs/, and README.md, is found by itself. Lines of a block of shell that begin with `imgcls-search`
are run in their order, in a folder of the page's own that has `photos/` (classes cat, dog and owl), `more-photos/`,
`many-photos/`, `folder-of-scans/`, `scan.png`, `weights/`, `spaces/`, the studies `vit-digits` and `vit-photos`,
`best.yaml` and `trained/best/seed-1.pt`; each must end with 0 and print something. Other lines (pip, curl, scripts)
are not run. Blocks of yaml must parse as a space, with a model if they have none; blocks of toml must parse; blocks of
python must compile, and are run where a comment says so. Blocks of text are what a program prints.

Comments in the page, which readers do not see, say what else a test needs:

    <!-- test: skip, REASON -->                   the next block is not run; its options are checked all the same
    <!-- test: run -->                            the next block is Python and is run, in an empty folder
    <!-- test: fails 2 -->                        the commands of the next block end with this exit code
    <!-- test: add "run vit" --set study.trials=2 -->
                                                  options for the commands of the page that begin so, to make them quick
    <!-- test: prepare                            lines of shell before everything else; imgcls-search may be among them
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
    """Whether it is Python that is run."""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of ours in it, with what redirects its output."""
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = [line.strip().removeprefix("$ ") for line in lines]
        return [shlex.split(line, comments=True)[1:] for line in bare if line.startswith("imgcls-search ")]


@dataclass
class Page:
    """A page with its blocks, and what its comments add."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    prepare: list[str] = field(default_factory=list)
    added: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path from the top of the repository."""
        return str(self.path.relative_to(ROOT))

    def options(self, words: list[str]) -> list[str] | None:
        """Return the options that a comment adds to a command; None where none speaks of it."""
        line = " ".join(words)
        fitting = [options for begin, options in self.added if line.startswith(begin)]
        return [word for options in fitting for word in options] if fitting else None


def read(path: Path) -> Page:
    """Return a page of the documentation."""
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
    """Return every command by its words, those below another one too: `spaces`, `spaces copy`."""
    found: dict[str, Any] = {}
    waiting = list(get_command(app).commands.items())  # type: ignore[attr-defined]
    while waiting:
        name, command = waiting.pop(0)
        found[name] = command
        waiting += [(f"{name} {below}", each) for below, each in getattr(command, "commands", {}).items()]
    return found


def commands() -> list[list[str]]:
    """Return the words of every command on every page, those that are not run included."""
    return [words for page in pages() for block in page.blocks for words in block.commands]
