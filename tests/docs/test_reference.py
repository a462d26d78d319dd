"""Check that the reference contains every setting and every option of every command, as in the program itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.signature import Fields, Leaf, OneOf
from imgcls_search.space import parse
from imgcls_search.space.reference import settings
from imgcls_search.space.study_section import limit_fields, study_fields

from tests.conftest import Answer, is_one_line
from tests.docs.pages import ROOT, known_commands

COMMANDS = known_commands()


@cache
def page(name: str) -> str:
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import site_pages
    finally:
        sys.path.pop(0)
    made: str = getattr(site_pages, name)()
    return made


def leaves(entry: Leaf | OneOf | Fields, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield every leaf below an entry; independent of the code under test."""
    match entry:
        case Leaf():
            yield path, entry
        case OneOf():
            for name, option in entry.options.items():
                yield from leaves(option, f"{path}.{name}")
        case Fields():
            for name, below in entry.fields.items():
                yield from leaves(below, f"{path}.{name}" if path else name)


def every_leaf() -> list[tuple[str, Leaf]]:
    known = catalog()
    parts = (("", known.config), ("study", study_fields(known)), ("limits", limit_fields(known)))
    return [leaf for path, fields in parts for leaf in leaves(fields, path)]


def test_every_leaf_is_in_the_settings_and_on_the_page() -> None:
    found = {one["path"]: one for one in settings(catalog())}
    text = page("space_page").replace("\\|", "|")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    seen = every_leaf()
    assert len(seen) > 250
    for path, leaf in seen:
        assert found[path]["doc"] == leaf.arg.doc != "", path
        assert leaf.describe() in rows[path], path
        assert leaf.arg.doc in rows[path], path
    assert {*rows} - {*found} <= {"{choice: [a, b]}", "{int: [2, 8]}", "{float: [0.0, 0.3]}",
                                  "{float: [1e-4, 1e-2], log: true}"}  # fmt: skip
    named = ("study.disk_gb study.pictures training.precision training.clip training.compile data.folder.max_train "
             "schedule.cosine.warmup_epochs")  # fmt: skip
    assert {*named.split()} <= {*rows}


def test_defaults_are_those_that_a_space_gets() -> None:
    space = parse("model: {lenet5: {}}", catalog(), source="here")
    for one in settings(catalog()):
        section, _, rest = one["path"].partition(".")
        if section in ("training", "image", "predict", "finetune") and "." not in rest and one["kind"] == "value":
            assert space.document[section][rest] == one["default"], one["path"]
        if section == "study" and one["kind"] == "value" and "." not in rest and rest not in ("name", "objectives"):
            assert json.loads(json.dumps(space.study[rest])) == one["default"], one["path"]


def test_questions_are_listed_once_under_a_topic() -> None:
    page("space_page")
    import site_pages

    docs = ROOT / "docs"
    listed = [name for found in site_pages.questions(docs).values() for name in found]
    assert sorted(listed) == sorted(f"how-to/{path.name}" for path in (docs / "how-to").glob("*.md"))
    named = {f"how-to/{name}.md" for names in site_pages.TOPICS.values() for name in names}
    assert named <= {*listed}
    for name in listed:
        assert f"({name.partition('/')[2]})" in site_pages.questions_page(docs)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_on_the_page(name: str) -> None:
    (section,) = [part for part in page("commands_page").split("\n## ") if part.split("\n")[0] == name]
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option":
            assert all(option in section for option in parameter.opts), parameter.opts
        assert parameter.help.split()[0] in section


def test_options_prints_every_setting(here: Callable[..., Answer]) -> None:
    printed = here("options")
    assert printed.code == 0
    lines = printed.out.splitlines()
    begins = {line.split()[0]: at for at, line in enumerate(lines) if not line.startswith(" ")}
    for path, leaf in every_leaf():
        assert " ".join(leaf.arg.doc.split()) in " ".join(lines[begins[path]].split()), path
        assert " ".join(leaf.describe().split()) in " ".join(lines[begins[path] + 1].split()), path


@pytest.mark.parametrize("section", ["training", "model.vit", "study.pruner", "limits", "start"])
def test_options_of_a_section(section: str, here: Callable[..., Answer]) -> None:
    found = json.loads(here("options", section, "--json").out)
    assert found == settings(catalog(), section)
    assert found
    assert all(f"{one['path']}.".startswith(f"{section}.") for one in found)


@pytest.mark.parametrize(("section", "near"), [("trainng", "training"), ("model.vitt", "model.vit"), ("", "")])
def test_a_section_that_is_not_there_is_one_line(section: str, near: str, here: Callable[..., Answer]) -> None:
    answer = here("options", section)
    assert is_one_line(answer)
    assert f"did you mean '{near}'" in answer.err or not near
