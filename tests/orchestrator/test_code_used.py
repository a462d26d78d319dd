"""A user's own functions: which a space names, and what a study says when their sources change."""

from __future__ import annotations

from pathlib import Path

import pytest
from imgcls_search import own_code
from imgcls_search.errors import UserError
from imgcls_search.orchestrator import code_used
from imgcls_search.space import Space, parse

from tests.orchestrator.test_endings import CATALOG, in_memory

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


def test_references_are_found_wherever_a_choice_may_name_them() -> None:
    document = {
        "model": {"custom": {"function": {"choice": ["nets:small", "nets:large"]}, "width": 3}},
        "data": {"custom": {"function": "loading:load", "root": "photos"}},
    }
    assert code_used.references(document, ("accuracy", "scores:own")) == {
        "nets:small": "model.custom.function",
        "nets:large": "model.custom.function",
        "loading:load": "data.custom.function",
        "scores:own": "study.objectives",
    }
    assert code_used.references({"model": {"vit": {}}}, ["accuracy"]) == {}


def test_each_change_of_a_source_is_said_once_and_kept_in_order(tmp_path: Path) -> None:
    record = in_memory(tmp_path, "trials: 1").record
    assert list(code_used.note(record, {"nets:small": ONE})) == []
    assert record.facts["code"] == {"nets:small": {"sha256": ONE, "changed": []}}
    (line,) = code_used.note(record, {"nets:small": TWO, "nets:large": ONE})
    assert line == (
        "nets:small: its source has changed since it was last used (sha256 111111111111, is now 222222222222); scores "
        "from before and after may not be comparable"
    )
    assert list(code_used.note(record, {"nets:small": TWO})) == []
    assert len(list(code_used.note(record, {"nets:small": THREE}))) == 1
    assert record.facts["code"] == {
        "nets:small": {"sha256": ONE, "changed": [TWO, THREE]},
        "nets:large": {"sha256": ONE, "changed": []},
    }
    (back,) = code_used.differing(record.facts["code"], {"nets:small": ONE})
    assert "(sha256 333333333333, is now 111111111111)" in back


NETS = """
def small(*, image_size, channels, classes, width=8):
    raise AssertionError("nothing is built here")

def deep(*, image_size, channels, classes, depth, width=8):
    raise AssertionError("nothing is built here")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a module of a user, which stays imported."""
    found = tmp_path_factory.mktemp("code")
    (found / "bite_nets.py").write_text(NETS)
    return found


@pytest.fixture
def nets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the reference of a function in that module."""
    monkeypatch.setenv(own_code.VARIABLE, str(folder))
    return "bite_nets:small"


def space(custom: str) -> Space:
    return parse(f"model: {{custom: {{{custom}}}}}\ntraining: {{epochs: 1}}\n", CATALOG, source="s.yaml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", None),
        (", width: 4", None),
        (", width: {int: [2, 4]}", None),
        (", depth: 4", r"s\.yaml:1:\d+: model\.custom\.depth: unknown key"),
        (", depth: {int: [2, 4]}", r"s\.yaml:1:\d+: model\.custom\.depth: unknown key"),
    ],
)
def test_arguments_that_a_function_does_not_accept_are_refused_with_their_place(
    more: str, said: str | None, nets: str
) -> None:
    named = space(f"function: {nets}{more}")
    if said is None:
        code_used.refuse_unfit(named)
        assert set(code_used.sources(named)) == {nets}
        assert len(code_used.sources(named)[nets]) == 64
    else:
        with pytest.raises(UserError, match=said):
            code_used.refuse_unfit(named)


def test_argument_without_a_default_must_be_given(nets: str) -> None:
    with pytest.raises(UserError, match=r"s\.yaml:1:\d+: model\.custom\.depth: required"):
        code_used.refuse_unfit(space("function: bite_nets:deep"))
    with pytest.raises(UserError, match=r"s\.yaml:1:\d+: model\.custom\.height: unknown key"):
        code_used.refuse_unfit(space("function: bite_nets:deep, depth: {int: [1, 2]}, height: 3"))
    # Which values of searched ones fit shows when they are drawn.
    code_used.refuse_unfit(space("function: bite_nets:deep, depth: {int: [1, 2]}"))


def test_function_that_is_gone_is_one_line(nets: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s\.yaml:1:\d+: model\.custom\.function: .*nowhere"):
        code_used.refuse_unfit(space("function: nowhere_at_all:small"))
    record = in_memory(tmp_path, "trials: 1").record
    assert code_used.of_record(record) == []
    list(code_used.note(record, {nets: ONE, "nowhere_at_all:small": ONE}))
    changed, gone = code_used.of_record(record)
    assert changed.startswith(f"{nets}: its source has changed")
    assert "nowhere_at_all" in gone
