"""Hook of mkdocs: build the navigation from the folders, and generate pages from the program.

Every page in docs/tutorials, docs/how-to, docs/explanation, docs/benchmarks and docs/decisions is added to the
navigation under its first heading; docs/how-to gets a list of its pages by topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from imgcls_search.catalog import catalog
from imgcls_search.cli.app import app
from imgcls_search.space.reference import Setting, default, settings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

TUTORIALS = ("fine-tune", "small-data", "compress", "several-objectives", "cluster", "self-supervised")
"""Tutorials in reading order; others follow."""

PAGES = ("index.md", "start.md", "what-can-break.md")
FOLDERS = ("tutorials", "how-to", "reference", "explanation", "benchmarks", "decisions")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Build the navigation from the existing pages."""
    docs = Path(config.docs_dir)
    tutorials = sorted(_pages(docs, "tutorials"), key=_place)
    config.nav = [
        {"Home": "index.md"},
        {"Start": ["start.md"]},
        {"Tutorials": tutorials},
        {"How-to": ["how-to/index.md", *({topic: found} for topic, found in questions(docs).items())]},
        {"Reference": ["reference/space.md", "reference/commands.md", *_pages(docs, "reference")]},
        {"Explanation": _pages(docs, "explanation")},
        {"Benchmarks": _pages(docs, "benchmarks")},
        {"What can break": ["what-can-break.md"]},
        {"Decisions": ["decisions/index.md", *_pages(docs, "decisions")]},
    ]
    if others := _others(docs):
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated from the program and the folders."""
    docs = Path(config.docs_dir)
    made = {
        "reference/space.md": space_page(),
        "reference/commands.md": commands_page(),
        "how-to/index.md": questions_page(docs),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


TOPICS = {
    "Prepare and run a search": (
        *("let-auto-do-everything", "draft-a-space-from-a-folder", "write-a-space", "use-a-shipped-space"),
        *("check-a-space-before-training", "complete-spaces-in-an-editor", "plan-the-time-of-a-search"),
        *("stop-and-resume", "use-python"),
    ),
    "Images and labels": (
        *("inspect-images-before-searching", "find-wrong-labels", "read-a-table-of-labels", "keep-groups-together"),
        *("train-on-several-labels", "handle-rare-classes", "weigh-costly-mistakes", "choose-the-image-size"),
        *("preview-augmentation", "move-my-images"),
    ),
    "Networks and training": (
        *("choose-a-pretrained-network", "use-weights-offline", "search-over-timm-models", "search-over-pretraining"),
        *("choose-an-optimizer", "optimise-one-class", "combine-networks", "train-on-several-devices"),
        "train-on-small-images-first",
        "share-a-gpu-between-workers",
    ),
    "Results": (
        *("confirm-the-winner", "read-the-report", "compare-trials", "open-the-dashboard", "train-the-winner"),
        *("evaluate-on-other-images", "measure-robustness", "use-test-time-augmentation"),
    ),
    "Deploy a model": (
        "export-a-bundle",
        "predict-without-pytorch",
        "export-to-openvino",
        "export-to-executorch",
        "serve-a-model",
        "know-when-to-trust-a-prediction",
    ),
    "Strategies": (
        *("when-trials-are-paused", "learn-from-earlier-studies", "try-another-strategy", "compare-strategies"),
    ),
    "Keep studies": (
        *("grow-and-merge-studies", "back-up-a-study", "keep-studies-in-postgresql", "log-to-a-tracker"),
        *("see-what-a-search-costs", "use-less-disk-and-memory"),
    ),
    "Extend the package": ("add-a-family", "add-a-metric"),
}
"""The pages of docs/how-to by topic, in reading order."""

OTHER_TOPIC = "More questions"
"""Topic of the pages that are in no other topic."""


def questions(docs: Path) -> dict[str, list[str]]:
    """Return the pages of docs/how-to by topic."""
    there = _pages(docs, "how-to")
    by_topic = {
        topic: [page for name in names if (page := f"how-to/{name}.md") in there] for topic, names in TOPICS.items()
    }
    named = {page for found in by_topic.values() for page in found}
    by_topic[OTHER_TOPIC] = sorted((page for page in there if page not in named), key=lambda page: _title(docs / page))
    return {topic: found for topic, found in by_topic.items() if found}


def questions_page(docs: Path) -> str:
    """Return the list of questions by topic, as Markdown."""
    parts = [QUESTIONS_HEAD]
    for topic, found in questions(docs).items():
        links = [f"- [{_title(docs / page)}]({page.partition('/')[2]})" for page in found]
        parts += [f"## {topic}", "", *links, ""]
    return "\n".join(parts)


QUESTIONS_HEAD = """# How-to

One question per page. The commands on these pages are tested.
"""


def space_page() -> str:
    """Return the page with every setting of a space, as Markdown."""
    parts = [SPACE_HEAD]
    for section, found in groupby(settings(catalog()), lambda one: one["path"].partition(".")[0]):
        parts += [f"## `{section}`", "", *_table(list(found), section), ""]
    return "\n".join(parts)


SPACE_HEAD = """# The space language

Every setting that a space file may have. The table is generated from the signatures that the parser reads.
`imgcls-search options [SECTION]` prints the same, `--json` for scripts.

Give a setting one value, or search it with one of these where the table says *searched*:

| form | what it draws |
|---|---|
| `{choice: [a, b]}` | one of the values |
| `{int: [2, 8]}`, `{int: [32, 96], step: 32}` | a whole number, both ends included |
| `{float: [0.0, 0.3]}`, `{float: [0.0, 0.3], step: 0.1}` | a number |
| `{float: [1e-4, 1e-2], log: true}` | a number, evenly over orders of magnitude |

Several keys in a section such as `model` or `optimizer` are a choice, too; each option has its own settings.
Each setting has one name everywhere, its path: in the file, in errors, in the database, in `--set`. See also
[How do I write a space?](../how-to/write-a-space.md)
"""


def _table(found: Sequence[Setting], section: str) -> Iterator[str]:
    yield from ("| setting | meaning | type and range | default | searched |", "|---|---|---|---|---|")
    for one in found:
        worth = f"`{_cell(one['search'])}`" if one["search"] else "yes" if one["searchable"] else ""
        given = default(one).removeprefix("default: ")
        yield (
            f"| `{one['path']}` | {_cell(one['doc'])} | {_cell(one['allowed'])} | "
            f"{f'`{_cell(given)}`' if given else ''} | {worth if one['kind'] == 'value' else ''} |"
        )


def commands_page() -> str:
    """Return the page with the help of every command, as Markdown."""
    parts = [COMMANDS_HEAD]
    for name, command in commands(get_command(app)):
        parts += [f"## {name}", "", *_help(command.help or ""), "", "| option | meaning |", "|---|---|"]
        context = command.context_class(command, info_name=name)
        records = [each.get_help_record(context) for each in command.get_params(context)]
        parts += [f"| `{_cell(names)}` | {_cell(_escaped(meaning))} |" for names, meaning in records]
        parts.append("")
    return "\n".join(parts)


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, subcommands included: `spaces`, `spaces copy`."""
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")


COMMANDS_HEAD = """# Commands

Every command with its options, as `imgcls-search COMMAND --help` prints them. Exit codes: 0 done; 1 no usable trial;
2 a mistake in the command line, a file or the data, in one line; 130 Ctrl-C; 143 SIGTERM or a closed terminal.
"""


def _help(text: str) -> Iterator[str]:
    """Yield the help of a command; paragraphs that begin with \\b keep their lines, as in a terminal."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ("```bash", paragraph.removeprefix("\b").strip("\n"), "```")
        else:
            yield _escaped(" ".join(paragraph.split()))
        yield ""


def _pages(docs: Path, folder: str) -> list[str]:
    return sorted(f"{folder}/{path.name}" for path in (docs / folder).glob("*.md") if path.name != "index.md")


def _others(docs: Path) -> list[str]:
    """Return the pages outside the known folders."""
    found = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    return [page for page in found if page not in PAGES and page.partition("/")[0] not in FOLDERS]


def _place(page: str) -> tuple[int, str]:
    name = Path(page).stem
    return TUTORIALS.index(name) if name in TUTORIALS else len(TUTORIALS), name


def _title(page: Path) -> str:
    found = re.search(r"^# +(.+)$", page.read_text(), re.MULTILINE)
    return found.group(1).strip() if found else page.stem


def _escaped(text: str) -> str:
    return re.sub(r"([<>*_\[\]])", r"\\\1", text)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")
