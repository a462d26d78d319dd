"""Whatever a file or a command line says, the parser answers with a space or with problems, never with a traceback."""

from __future__ import annotations

import json
from typing import Any

import optuna
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imgcls_search.errors import SpaceError
from imgcls_search.space import Space, dump, parse

from tests.space.test_space import CATALOG, FINITE, FULL, SMALL

QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

WORDS = [
    "study",
    "limits",
    "start",
    "data",
    "image",
    "augment",
    "model",
    "optimizer",
    "training",
    "trials",
    "objectives",
    "sampler",
    "pruner",
    "name",
    "accuracy",
    "maximize",
    "digits",
    "folder",
    "root",
    "size",
    "flip",
    "mixup",
    "policy",
    "none",
    "rand",
    "num_ops",
    "vit",
    "resnet",
    "mix",
    "depth",
    "width",
    "depths",
    "ratios",
    "stem",
    "conv",
    "kernel",
    "adamw",
    "sgd",
    "lr",
    "epochs",
    "batch_size",
    "choice",
    "int",
    "float",
    "log",
    "step",
    "off",
    "tpe",
    "params",
    "model.vit.depth",
]
NUMBERS = st.one_of(
    st.integers(), st.integers(0, 12), st.floats(), st.floats(0, 1), st.sampled_from([1e308, 2**53, 2**70])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(WORDS), st.text(max_size=8))
RANGES = st.one_of(
    st.fixed_dictionaries(
        {"int": st.lists(NUMBERS, min_size=2, max_size=2)}, optional={"step": NUMBERS, "log": st.booleans()}
    ),
    st.fixed_dictionaries(
        {"float": st.lists(NUMBERS, min_size=2, max_size=2)}, optional={"step": NUMBERS, "log": st.booleans()}
    ),
    st.fixed_dictionaries({"choice": st.lists(st.one_of(SCALARS, st.lists(NUMBERS, max_size=3)), max_size=4)}),
)
KEYS = st.one_of(st.sampled_from(WORDS), st.text(max_size=4), NUMBERS.map(str))
NODES = st.recursive(
    st.one_of(SCALARS, RANGES),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(KEYS, below, max_size=4)),
    max_leaves=12,
)
MARKS = ["{", "}", "[", "]", ": ", ", ", "\n", "\n  ", "- ", "? ", "&a ", "*a", "!x ", "!!int ", "|\n", ">\n", "'", '"']
TRAPS = [
    "#",
    "%",
    "@",
    "\t",
    "---\n",
    "...\n",
    "<<: ",
    "~",
    "\x00",
    "\x85",
    "\ufeff",
    "\\U",
    "1e-4",
    "0x",
    ".inf",
    "-",
    "_",
]
SYNTAX = st.sampled_from(MARKS + TRAPS)


def check(text: str, **more: Any) -> None:
    """Parse; a space must hold together, and problems must be one line each."""
    match attempt(text, **more):
        case SpaceError() as error:
            assert error.problems
            assert len(str(error).split("\n")) == len(error.problems)
            assert all(problem.message for problem in error.problems)
        case space:
            holds_together(space)


def attempt(text: str, **more: Any) -> Space | SpaceError:
    try:
        return parse(text, CATALOG, source="spaces/some.yaml", **more)
    except SpaceError as error:
        return error


def holds_together(space: Space) -> None:
    document = space.document
    assert json.loads(json.dumps(document)) == document
    config = space.first()
    assert parse(dump(config), CATALOG, source="best.yaml").config() == config
    count = space.num_combinations()
    if count is not None and count <= 500:
        combinations = list(space.combinations())
        assert len(combinations) == count
        assert len({space.config_of(params) for params in combinations}) == count
    paths = {parameter.path for parameter in space.parameters()}
    assert all(set(entry) <= paths for entry in space.start)


@given(st.lists(st.one_of(SYNTAX, st.sampled_from(WORDS), st.text(max_size=5)), max_size=40).map("".join))
@QUICK
def test_any_text(text: str) -> None:
    check(text)


@given(st.dictionaries(st.sampled_from(WORDS[:9]), NODES, max_size=6))
@QUICK
def test_any_document(document: dict[str, Any]) -> None:
    check(yaml.safe_dump({"data": "digits", "model": "vit", **document}, allow_unicode=True))


@given(
    st.sampled_from([FULL, FINITE, SMALL]),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 4), st.one_of(SYNTAX, st.just(""))), min_size=1, max_size=3),
)
@QUICK
def test_any_slip_in_a_good_file(text: str, slips: list[tuple[int, int, str]]) -> None:
    for at, cut, put in slips:
        text = text[:at] + put + text[at + cut :]
    check(text)


PATHS = [parameter.path for parameter in parse(FULL, CATALOG, source="full.yaml").parameters()] + [
    *("image.size", "model.vit", "model.vit.bias", "model.mix.ratios", "model.mix.stem", "training.epochs"),
    *("study.trials", "study.objectives", "study.sampler", "limits.params", "start"),
]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(PATHS), st.lists(KEYS, max_size=4).map(".".join)),
            st.one_of(NODES.map(lambda node: yaml.safe_dump(node, default_flow_style=True)), st.text(max_size=6)),
        ),
        max_size=3,
    ),
    st.one_of(st.none(), st.sampled_from(["digits", "folder:photos", "folder", "digits:x"]), st.text(max_size=6)),
)
@QUICK
def test_any_command_line(overrides: list[tuple[str, str]], data: str | None) -> None:
    check(FULL, overrides=overrides, data=data)


@st.composite
def valid_ranges(draw: st.DrawFn, kind: str, low: int, high: int, scale: int = 1) -> dict[str, Any]:
    """Draw a range inside the bounds, in units of `1 / scale`; its step divides it."""
    first = draw(st.integers(low, high))
    step = draw(st.integers(1, max(1, (high - first) // 2)))
    last = first + step * draw(st.integers(0, (high - first) // step))
    ends = [first, last] if kind == "int" else [first / scale, last / scale]
    if draw(st.booleans()):
        return {kind: ends, "step": step if kind == "int" else step / scale}
    return {kind: ends, "log": first > 0 and draw(st.booleans())}


VALID = st.fixed_dictionaries(
    {
        "data": st.sampled_from(["digits", {"folder": {"root": "photos"}}]),
        "model": st.fixed_dictionaries(
            {"vit": st.fixed_dictionaries({}, optional={"depth": valid_ranges("int", 1, 12), "bias": st.booleans()})},
            optional={
                "resnet": st.fixed_dictionaries({"width": valid_ranges("int", 1, 2**53)}),
                "mix": st.fixed_dictionaries({"ratios": valid_ranges("float", 1, 10**6, 10**5)}),
            },
        ),
    },
    optional={
        "augment": st.fixed_dictionaries({"mixup": valid_ranges("float", 0, 1000, 1000)}),
        "image": st.fixed_dictionaries(
            {"size": st.builds(dict, choice=st.sets(st.integers(4, 64), min_size=1).map(list))}
        ),
        "limits": st.fixed_dictionaries({"params": st.integers(1, 10**9)}),
    },
)


@given(VALID, st.integers(0, 2**32 - 1))
@QUICK
def test_any_good_file_is_sampled_by_optuna_and_recalled(document: dict[str, Any], seed: int) -> None:
    space = parse(yaml.safe_dump(document), CATALOG, source="spaces/good.yaml")
    holds_together(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(3):
        trial = study.ask()
        config = space.sample(trial)
        recalled = space.config_of(trial.params)
        assert recalled == config
        assert recalled.digest() == parse(dump(config), CATALOG, source="best.yaml").config().digest()
        assert not set(trial.params) - {parameter.path for parameter in space.parameters()}
