"""Check the style of pages and help texts: plain words, a short README, no targets of a plan."""

from __future__ import annotations

import inspect
import re
import tokenize
from collections.abc import Iterator

import imgcls_search
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.space.reference import settings

from tests.docs.pages import ROOT, known_commands, pages

NOT_OURS = (
    r"\banew\b",
    r"\bfor good\b",
    r"\bwithout end\b",
    r"\bwhom\b",
    r"\bit is told\b",
    r"\bis told\b",
    r"\bgo(es)? on\b",
    r"\bgo on with\b",
    r"\bat work\b",
    r"\blies? (in|on|beside|under|there)\b",
    r"\bwhere studies lie\b",
    r"\bof those that rest\b",
    r"\btrials? rests?\b",
    r"\blearned by heart\b",
    r"\bthis issue\b",
    r"\basked for\b",
    r"\(asked\)",
    r"\baimed at\b",
    r"\bstated: at most\b",
    r"\bone of both\b",
    r"\bfit for it\b",
    r"\bat hand\b",
    r"\bafford(s|ed)?\b",
    r"\bwhose labels nobody\b",
    r"\bsome twenty\b",
    r"\b(images|decay) a step\b",
    r"\blooks? first\b",
    r"\bstands? as (it|they)\b",
)
"""Words and phrases that modern readers stumble over, and targets of a plan."""


INSIDE = (
    r"\banew\b",
    r"\bfor good\b",
    r"\blies\b",
    r"\blie (in|on|beside|there)\b",
    r"\b(is|are) told\b",
    r"\bgoes on\b(?! with \{)",
    r"\basked for\b",
    r"\bat work\b",
    r"\bwhom\b",
    r"\bof (its|their) own accord\b",
    r"\b[Tt]akes? notice\b",
    r"\bcame to (its|their) ends?\b",
    r"\bwithout end\b",
    r"\bhence\b",
)
"""The same for the package's docstrings and comments and for the decision records."""


def notes() -> Iterator[tuple[str, str]]:
    """Yield the place and text of each docstring and comment of the package; other strings and names are ignored."""
    for path in sorted((ROOT / "search").rglob("*.py")):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                text = token.string
                if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and text.startswith('"""')):
                    yield f"{path.relative_to(ROOT)}:{token.start[0]}", " ".join(text.split())


@pytest.mark.parametrize("words", INSIDE)
def test_decisions_are_plain(words: str) -> None:
    found = {
        page.name: at.group(0)
        for page in pages()
        if page.name.startswith("docs/decisions/") and (at := re.search(words, page.path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize("words", INSIDE)
def test_docstrings_and_comments_are_plain(words: str) -> None:
    if not NOTES:
        NOTES.extend(notes())
    assert len(NOTES) > 5000
    found = {place: at.group(0) for place, text in NOTES if (at := re.search(words, text))}
    assert found == {}


NOTES: list[tuple[str, str]] = []
"""Cache of `notes`."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield the place and text of everything that users read."""
    for page in pages():
        if not page.name.startswith("docs/decisions/"):
            yield page.name, page.path.read_text()
    for name, command in known_commands().items():
        yield f"{name} --help", command.help or ""
        for parameter in command.params:
            yield f"{name} {parameter.opts[0]}", parameter.help or ""
    for one in settings(catalog()):
        yield one["path"], one["doc"]
    for name in imgcls_search.__all__:
        value = getattr(imgcls_search, name)
        yield f"ic.{name}", inspect.getdoc(value) or ""
        ours = (
            [kind for kind in inspect.getmro(value) if kind.__module__.startswith("imgcls_search")]
            if inspect.isclass(value)
            else []
        )
        for below, each in (entry for kind in ours for entry in vars(kind).items()):
            if not below.startswith("_"):
                yield f"ic.{name}.{below}", getattr(each, "__doc__", None) or ""


@pytest.mark.parametrize("words", NOT_OURS)
def test_words_that_readers_stumble_over(words: str) -> None:
    found = {place: at.group(0) for place, text in texts() if (at := re.search(words, text, re.IGNORECASE))}
    assert found == {}


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120


def test_help_is_imperative() -> None:
    for name, command in known_commands().items():
        first = command.help.split()[0]
        assert first[0].isupper(), name
        assert not first.endswith(("ed", "ing")), (name, first)
        assert re.fullmatch(r"[A-Z][a-z]+", first), (name, first)
        assert not first.endswith("s") or first.endswith("ss"), (name, first)


def test_pictures_of_the_readme_load_nothing() -> None:
    for path in sorted((ROOT / "docs").glob("*.svg")):
        text = path.read_text()
        assert not re.search(r"@import|@font-face|href=\"http|url\((?!#)", text), path
