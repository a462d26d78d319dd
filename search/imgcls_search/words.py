"""Numbers with their words, and the words of commands that messages show."""

import shlex
from collections.abc import Sequence
from pathlib import Path

STUDIES = Path("studies")
"""The default folder of the studies."""


def argument(path: Path) -> str:
    """Return a path as an argument of a command that a message shows."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def in_folder(studies: Path) -> str:
    """Return the option that a shown command needs to find a study; empty for the default folder."""
    return "" if studies == STUDIES else f" --studies {argument(studies)}"


def counted(word: str, count: int) -> str:
    """Return a number with its word: `1 image`, `2 classes`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}{'es' if word.endswith('s') else 's'}"


def times(count: int) -> str:
    """Return how often something happened: `once`, `2 times`."""
    return "once" if count == 1 else f"{count:,} times"


MOST_LISTED = 10
"""Things that a line or a message lists; with more, it says how many are left out."""


def some(texts: Sequence[str], most: int = MOST_LISTED) -> str:
    """Return the first texts, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
