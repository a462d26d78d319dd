"""The JSON schema of space files: shipped, generated, of one mind with the parser, read by editors."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imgcls_search
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from imgcls_search.catalog import catalog
from imgcls_search.errors import SpaceError
from imgcls_search.signature import REQUIRED, Arg, Catalog, Fields, Leaf, OneOf
from imgcls_search.space import dump, parse, parse_values
from imgcls_search.space.problems import Report
from imgcls_search.space.schema import render, schema
from imgcls_search.space.yaml_nodes import ListNode, MapNode, Node, read
from jsonschema import Draft7Validator

from tests.conftest import PATIENCE, TINY, Answer, is_one_line
from tests.space.test_space import CATALOG, FINITE, FULL
from tests.space.test_space_properties import NODES, QUICK, VALID, WORDS

ROOT = Path(__file__).parents[2]
SHIPPED = Path(imgcls_search.__file__).parent / "space" / "schema.json"
BUILT_IN = catalog()
BUILT_IN_SCHEMA = Draft7Validator(schema(BUILT_IN))
SMALL_SCHEMA = Draft7Validator(schema(CATALOG))


def plain(node: Node | None) -> Any:
    """Return what an editor sees of a file."""
    match node:
        case MapNode():
            return {key: plain(below) for key, below in node.values.items()}
        case ListNode():
            return [plain(item) for item in node.items]
        case None:
            raise AssertionError("not readable as YAML")
        case _:
            return node.value


def document(text: str) -> Any:
    return plain(read(text, Report("some.yaml")))


def is_parsed(text: str, known: Catalog = BUILT_IN) -> bool:
    try:
        parse(text, known, source="some.yaml")
    except SpaceError:
        return False
    return True


def is_valid(text: str) -> bool:
    return bool(BUILT_IN_SCHEMA.is_valid(document(text)))


# The file


def test_shipped_schema_is_the_generated_one() -> None:
    advice = (
        "the catalog has changed; write the file again: imgcls-search schema > search/imgcls_search/space/schema.json"
    )
    assert SHIPPED.read_text() == render(schema(catalog())), advice


@pytest.mark.parametrize("known", [BUILT_IN, CATALOG])
def test_schema_is_a_schema(known: Catalog) -> None:
    made = schema(known)
    Draft7Validator.check_schema(made)
    referred = set(re.findall(r'"#/definitions/([^"]+)"', render(made)))
    assert referred == set(made["definitions"])


@pytest.mark.parametrize("path", sorted((ROOT / "spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_space_names_the_schema_and_obeys_it(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(.+)\n", text)
    assert named is not None
    assert (path.parent / named[1]).resolve() == SHIPPED.resolve()
    assert not list(BUILT_IN_SCHEMA.iter_errors(document(text)))


# Of one mind with the parser

GOOD = [
    TINY,
    "model: vit",
    "{model: {vit: }, data: , image: , augment: {policy: }, training: , limits: , study: {objectives: }, start: }",
    "{model: vit, data: {folder: {root: photos}}, study: {sampler: {gp: {n_startup_trials: 5}}, pruner: none}}",
    "{model: vit, augment: {flip: horizontal, policy: {none: {}, rand: {num_ops: {int: [1, 3]}}}}}",
    "{model: vit, study: {objectives: {accuracy: maximize, params: minimize}, name: a-b.c, timeout: 60}}",
    "{model: vit, optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}, weight_decay: 0}}}",
    "{model: {vit: {mlp_ratio: {int: [2, 4]}}}, optimizer: {adamw: {weight_decay: {float: [0, 0.3], step: 0.1}}}}",
    "{model: {vit: {depth: {int: [2, 6], step: 2, log: false}}}, limits: {params: 500_000}}",
    "{model: {resnet: {depths: {choice: [[1, 1], [2, 2]]}}}, start: [{model.resnet.depths: '[1, 1]'}, {}]}",
    "{model: {vit: {depth: {int: [2, 6]}}, lenet5: {}}, start: [{model: vit, model.vit.depth: 4, image.size: null}]}",
]

BAD = [
    "[]",
    "data: digits",
    "{model: vit, modle: 1}",
    "model: vitt",
    "model: {}",
    "model: ",
    "model: [vit]",
    "model: {choice: [vit, resnet]}",
    "model: {vitt: {}}",
    "model: {vit: {widht: 3}}",
    "model: {vit: 3}",
    "model: {vit: {depth: 0}}",
    "model: {vit: {depth: two}}",
    "model: {vit: {depth: 2.5}}",
    "model: {vit: {depth: [2]}}",
    "model: {vit: {depth: null}}",
    "model: {vit: {depth: {}}}",
    "model: {vit: {depth: {choice: []}}}",
    "model: {vit: {depth: {choice: 2}}}",
    "model: {vit: {depth: {choice: [2, 0]}}}",
    "model: {vit: {depth: {choice: [2, 2]}}}",
    "model: {vit: {depth: {choice: [1, 2], int: [1, 2]}}}",
    "model: {vit: {depth: {choice: [1, 2], log: true}}}",
    "model: {vit: {depth: {int: [0, 3]}}}",
    "model: {vit: {depth: {int: [1, 2, 3]}}}",
    "model: {vit: {depth: {int: [1, 3], log: true, step: 1}}}",
    "model: {vit: {depth: {int: [1, 3], step: 0}}}",
    "model: {vit: {depth: {int: [1, 3], base: 2}}}",
    "model: {vit: {depth: {float: [1, 3]}}}",
    "model: {vit: {dropout: 1.0}}",
    "model: {vit: {dropout: {float: [0.5, 1.0]}}}",
    "model: {resnet: {depths: []}}",
    "model: {resnet: {depths: [1, 0]}}",
    "{model: vit, data: {digits: {}, folder: {root: photos}}}",
    "{model: vit, data: folder}",
    "{model: vit, data: {folder: {}}}",
    "{model: vit, data: {folder: {root: {choice: [a, b]}}}}",
    "{model: vit, augment: {flip: sideways}}",
    "{model: vit, augment: {flip: {choice: [none, sideways]}}}",
    "{model: vit, augment: {flip: {int: [0, 1]}}}",
    "{model: vit, training: {epochs: {int: [5, 10]}}}",
    "{model: vit, training: {epochs: 0}}",
    "{model: vit, study: {trials: 0}}",
    "{model: vit, study: {trials: {choice: [1, 2]}}}",
    "{model: vit, study: {sampler: tpf}}",
    "{model: vit, study: {sampler: {tpe: {}, random: {}}}}",
    "{model: vit, study: {pruner: {halving: {eta: 1}}}}",
    "{model: vit, study: {objectives: {}}}",
    "{model: vit, study: {objectives: {accuracy: largest}}}",
    "{model: vit, study: {objectives: {speed: maximize}}}",
    "{model: vit, study: {name: ../out}}",
    "{model: vit, study: {name: a..b}}",
    "{model: vit, limits: {params: 0}}",
    "{model: vit, limits: {parms: 3}}",
    "{model: vit, start: {model: vit}}",
    "{model: vit, start: [{model.vit.depht: 3}]}",
    "{model: vit, start: [{model: rensnet}]}",
    "{model: vit, start: [{model.vit.depth: 0}]}",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_space_is_accepted_by_both(text: str) -> None:
    parse(text, BUILT_IN, source="some.yaml")
    assert not list(BUILT_IN_SCHEMA.iter_errors(document(text)))


@pytest.mark.parametrize("text", BAD)
def test_bad_space_is_refused_by_both(text: str) -> None:
    assert not is_parsed(text)
    assert not is_valid(text)


def arguments(fields: Fields, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Leaf, dict[str, Any]]]:
    """Yield every argument with its path and a value for each neighbour that the file must give."""
    leaves = {key: entry for key, entry in fields.fields.items() if isinstance(entry, Leaf)}
    given = {key: next(iter(leaf.literals), "some") for key, leaf in leaves.items() if needs(leaf)}
    for key, entry in fields.fields.items():
        below = (*path, key)
        match entry:
            case Leaf():
                yield below, entry, {other: value for other, value in given.items() if other != key}
            case OneOf():
                for name, option in entry.options.items():
                    yield from arguments(option, (*below, name))
            case Fields():
                yield from arguments(entry, below)


def needs(leaf: Leaf) -> bool:
    return leaf.default is REQUIRED


SECTIONS = [
    *arguments(BUILT_IN.config),
    *arguments(BUILT_IN.study, ("study",)),
]
VALUES = [-1, 0, 0.5, 1, 1.5, 2, 3, 31, 2000, 1e-6, True, False, None, "none", "relu", [], [1], [2, 2, 2], [0.5], ["a"]]
FORMS: list[Any] = [
    *VALUES,
    *({"choice": [value]} for value in VALUES),
    *({kind: [low, low], **more} for kind in ("int", "float") for low in VALUES[:10] for more in ({}, {"step": 1})),
]


def space_with(path: tuple[str, ...], value: Any, neighbours: dict[str, Any]) -> dict[str, Any]:
    """Return a space that gives one argument."""
    *above, name = path
    node: Any = {**neighbours, name: value}
    for key in reversed(above):
        node = {key: node}
    return {"model": "lenet5", **node}


def are_parsed(values: dict[str, Any]) -> bool:
    try:
        parse_values(values, BUILT_IN, source="some.yaml")
    except SpaceError:
        return False
    return True


@pytest.mark.parametrize(("path", "leaf", "neighbours"), SECTIONS, ids=[".".join(entry[0]) for entry in SECTIONS])
def test_every_argument_takes_the_same_in_both(path: tuple[str, ...], leaf: Leaf, neighbours: dict[str, Any]) -> None:
    for form in FORMS:
        # Without YAML, which takes longer than both; other tests read texts.
        values = space_with(path, form, neighbours)
        assert BUILT_IN_SCHEMA.is_valid(values) == are_parsed(values), values


@pytest.mark.parametrize(("path", "leaf", "neighbours"), SECTIONS, ids=[".".join(entry[0]) for entry in SECTIONS])
def test_defaults_and_ranges_that_make_sense_are_allowed(
    path: tuple[str, ...], leaf: Leaf, neighbours: dict[str, Any]
) -> None:
    told = [] if needs(leaf) else [leaf.default]
    told += [document(leaf.arg.search)] if leaf.arg.search else []
    for value in told:
        # JSON is YAML too.
        text = json.dumps(space_with(path, value, neighbours))
        parse(text, BUILT_IN, source="some.yaml")
        assert is_valid(text), text


def is_json(node: Any) -> bool:
    match node:
        case float():
            return math.isfinite(node)
        case list():
            return all(map(is_json, node))
        case dict():
            return all(map(is_json, node.values()))
        case _:
            return True


@given(st.dictionaries(st.sampled_from(WORDS[:9]), NODES, max_size=4))
@QUICK
def test_whatever_the_parser_accepts_is_valid(sections: dict[str, Any]) -> None:
    text = yaml.safe_dump({"data": "digits", "model": "vit", **sections}, allow_unicode=True)
    if is_parsed(text, CATALOG) and is_json(document(text)):
        assert not list(SMALL_SCHEMA.iter_errors(document(text)))


@given(VALID)
@QUICK
def test_any_good_file_and_its_configuration_are_valid(good: dict[str, Any]) -> None:
    text = yaml.safe_dump(good)
    config = parse(text, CATALOG, source="spaces/good.yaml").first()
    assert not list(SMALL_SCHEMA.iter_errors(document(text)))
    assert not list(SMALL_SCHEMA.iter_errors(document(dump(config))))


def test_arguments_of_any_name_are_valid_where_a_builder_takes_them() -> None:
    more = Leaf(arg=Arg("passed on", ge=1), types=(int,))
    options = {"any": Fields(others=more), "none": Fields()}
    config = Fields(fields={"model": OneOf(options=options)})
    known = Catalog(config=config, study=Fields(), limits=Fields(), metrics={"accuracy": "share of right answers"})
    made = Draft7Validator(schema(known))
    for text, fits in [
        ("{model: {any: {depth: 2, width: {int: [1, 3]}}}, start: [{model.any.depth: 2}]}", True),
        ("{model: any}", True),
        ("{model: {any: {depth: 0}}}", False),
        ("{model: {any: {depth: {int: [0, 3]}}}}", False),
        ("{model: {any: {depth: 2}}, start: [{model.any.depth: 0}]}", False),
        ("{model: {none: {depth: 2}}}", False),
    ]:
        assert is_parsed(text, known) == fits, text
        assert made.is_valid(document(text)) == fits, text


@pytest.mark.parametrize("text", [FULL, FINITE])
def test_every_rule_of_the_language_is_valid(text: str) -> None:
    assert not list(SMALL_SCHEMA.iter_errors(document(text)))


# What editors make of it


def test_hover_text_comes_from_the_builders() -> None:
    made = schema(BUILT_IN)
    (keys,) = (form for form in made["properties"]["model"]["anyOf"] if "properties" in form)
    vit = keys["properties"]["vit"]
    assert vit["description"].startswith("Build a vision transformer")
    depth = vit["properties"]["depth"]
    assert depth["description"] == "transformer blocks\nallowed: int >= 1\ndefault: 6\nworth searching: {int: [2, 8]}"
    assert depth["default"] == 6
    assert depth["defaultSnippets"] == [{"label": "{int: [2, 8]}", "body": "{int: [2, 8]}"}]


class Editor:
    """An editor as far as yaml-language-server can tell: it opens files, and asks what they mean."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            ["yaml-language-server", "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        # A server that says nothing ends the reading, and with it the test, instead of waiting forever.
        self.watchdog = threading.Timer(PATIENCE, self.server.kill)
        self.watchdog.start()
        self.ask("initialize", {"processId": None, "rootUri": None, "capabilities": {}})
        self.tell("initialized", {})

    def close(self) -> None:
        self.watchdog.cancel()
        self.server.kill()
        self.server.communicate()

    def tell(self, method: str, params: Any, **more: Any) -> None:
        assert self.server.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **more}).encode()
        self.server.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.server.stdin.flush()

    def ask(self, method: str, params: Any) -> Any:
        self.tell(method, params, id=1)
        return self.wait(lambda message: "method" not in message and message.get("id") == 1)["result"]

    def wait(self, is_it: Callable[[Any], bool]) -> Any:
        assert self.server.stdout is not None
        while header := self.server.stdout.readline():
            length = int(header.split(b":")[1])
            while self.server.stdout.readline().strip():
                pass
            message = json.loads(self.server.stdout.read(length))
            if is_it(message):
                return message
        raise AssertionError("yaml-language-server ended")

    def problems(self, path: Path, text: str) -> list[str]:
        """Open a file and return what is underlined in it."""
        path.write_text(text)
        document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self.tell("textDocument/didOpen", {"textDocument": document})
        answer = self.wait(lambda message: message.get("method") == "textDocument/publishDiagnostics")
        assert answer["params"]["uri"] == path.as_uri()
        return [problem["message"] for problem in answer["params"]["diagnostics"]]

    def look(self, method: str, path: Path, line: int, character: int) -> Any:
        position = {"line": line, "character": character}
        return self.ask(f"textDocument/{method}", {"textDocument": {"uri": path.as_uri()}, "position": position})


@pytest.fixture
def editor() -> Iterator[Editor]:
    if shutil.which("yaml-language-server") is None:
        pytest.skip("yaml-language-server is not installed; npm install -g yaml-language-server")
    editor = Editor()
    yield editor
    editor.close()


@pytest.mark.slow
def test_yaml_language_server_completes_explains_and_refuses(editor: Editor, tmp_path: Path) -> None:
    head = f"# yaml-language-server: $schema={SHIPPED.as_uri()}\n"
    for path in sorted((ROOT / "spaces").glob("*.yaml")):
        assert editor.problems(tmp_path / path.name, head + path.read_text()) == []
    assert editor.problems(tmp_path / "range.yaml", f"{head}model: {{vit: {{depth: 0}}}}\n") == [
        "Value is below the minimum of 1."
    ]
    assert editor.problems(tmp_path / "key.yaml", f"{head}model: {{vit: {{widht: 3}}}}\n") == [
        "Property widht is not allowed."
    ]
    assert editor.problems(tmp_path / "form.yaml", f"{head}model: {{vit: {{depth: two}}}}\n") == ["allowed: int >= 1"]
    page = tmp_path / "page.yaml"
    editor.problems(page, f"{head}model:\n  vit:\n    patch_size: 4\n    depth: \n")
    explained = editor.look("hover", page, 3, 6)["contents"]
    assert "side of a square patch" in json.dumps(explained)
    offered = [item["label"] for item in editor.look("completion", page, 4, 11)["items"]]
    assert {"6", "{int: [2, 8]}", "{choice: [a, b]}"} <= set(offered)
    menu = tmp_path / "menu.yaml"
    editor.problems(menu, f"{head}model:\n  \n")
    offered = [item["label"] for item in editor.look("completion", menu, 2, 2)["items"]]
    model = BUILT_IN.config.fields["model"]
    assert isinstance(model, OneOf)
    assert set(model.options) <= set(offered)


# The commands


def test_schema_is_printed(here: Callable[..., Answer]) -> None:
    answer = here("schema")
    assert answer.code == 0
    assert answer.out == SHIPPED.read_text()


def test_families_are_told_in_a_sentence_each(here: Callable[..., Answer]) -> None:
    shown = here("families").out
    told = json.loads(here("families", "--json").out)
    assert "vit" in told
    for name, sentence in told.items():
        assert re.search(rf"^{name} ", shown, re.MULTILINE)
        assert sentence


def test_family_is_told_with_defaults_and_ranges(here: Callable[..., Answer]) -> None:
    shown = here("families", "vit").out
    assert re.search(
        r"^depth +transformer blocks *\n +int >= 1; default: 6; worth searching: \{int: \[2, 8\]\}", shown, re.M
    )
    told = json.loads(here("families", "vit", "--json").out)
    (depth,) = (argument for argument in told["arguments"] if argument["name"] == "depth")
    assert depth == {
        "name": "depth",
        "allowed": "int >= 1",
        "required": False,
        "default": 6,
        "search": "{int: [2, 8]}",
        "doc": "transformer blocks",
    }


def test_family_that_takes_arguments_of_any_name_says_so(here: Callable[..., Answer]) -> None:
    assert re.search(r"^any other +any keyword argument of timm's model", here("families", "timm").out, re.MULTILINE)
    assert json.loads(here("families", "timm", "--json").out)["others"]["doc"] == "any keyword argument of timm's model"
    assert json.loads(here("families", "vit", "--json").out)["others"] is None


def test_unknown_family_is_one_line_with_a_close_match(here: Callable[..., Answer]) -> None:
    answer = here("families", "resnett")
    assert is_one_line(answer)
    assert "allowed: vit, resnet" in answer.err
    assert "did you mean 'resnet'?" in answer.err


@pytest.mark.parametrize("arguments", [("schema",), ("families",), ("families", "vit")])
def test_commands_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from imgcls_search.cli.app import app; "
        f"assert CliRunner().invoke(app, {list(arguments)!r}).exit_code == 0; "
        "print(sorted({'torch', 'optuna', 'sklearn', 'sqlalchemy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
