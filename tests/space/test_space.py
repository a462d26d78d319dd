# ruff: noqa: E501 - problems are compared as whole lines
"""The space language, rule by rule, against a small catalog made by hand."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.errors import SpaceError
from imgcls_search.signature import REQUIRED, Arg, Catalog, Fields, Leaf, OneOf
from imgcls_search.space import MISSING, Difference, Space, differences, dump, parse, read_space


def leaf(*types: type, default: Any = REQUIRED, literals: Any = (), items: Any = (), **bounds: Any) -> Leaf:
    return Leaf(arg=Arg("what it is", **bounds), types=types, default=default, literals=literals, items=items)


def fields(**entries: Any) -> Fields:
    return Fields(fields=entries)


CATALOG = Catalog(
    config=fields(
        data=OneOf(
            options={"digits": fields(), "folder": fields(root=leaf(str), val=leaf(float, default=0.2, gt=0, lt=1))},
            fixed=True,
        ),
        image=fields(size=leaf(int, literals=(None,), default=None, ge=4), channels=leaf(int, default=1, ge=1)),
        augment=fields(
            flip=leaf(literals=("none", "off", "horizontal"), default="none"),
            mixup=leaf(float, default=0.0, ge=0, le=1),
            policy=OneOf(
                options={"none": fields(), "rand": fields(num_ops=leaf(int, default=2, ge=1, le=8))}, default="none"
            ),
        ),
        model=OneOf(
            options={
                "vit": fields(
                    depth=leaf(int, default=4, ge=1, le=12),
                    width=leaf(int, default=64, ge=8),
                    bias=leaf(bool, default=True),
                ),
                "resnet": fields(depths=leaf(items=(int,), default=(1, 1, 1), ge=1), width=leaf(int, default=16, ge=1)),
                "mix": fields(
                    ratios=leaf(float, items=(float,), default=0.5, gt=0),
                    stem=OneOf(
                        options={"conv": fields(kernel=leaf(int, default=3)), "patch": fields()}, default="conv"
                    ),
                ),
            }
        ),
        optimizer=OneOf(
            options={
                "adamw": fields(lr=leaf(float, default=1e-3, gt=0), decay=leaf(float, default=0.0, ge=0)),
                "sgd": fields(lr=leaf(float, gt=0), momentum=leaf(float, default=0.9)),
            },
            default="adamw",
        ),
        training=fields(
            epochs=leaf(int, default=10, ge=1, fixed=True),
            batch_size=leaf(int, default=32, ge=1),
            precision=leaf(literals=("auto", "float32"), default="auto"),
        ),
    ),
    study=fields(
        trials=leaf(int, default=20, ge=1),
        seed=leaf(int, default=0, ge=0),
        timeout=leaf(float, literals=(None,), default=None, gt=0),
        sampler=OneOf(
            options={"tpe": fields(n_startup_trials=leaf(int, default=8, ge=1)), "random": fields()}, default="tpe"
        ),
        pruner=OneOf(options={"none": fields(), "halving": fields(factor=leaf(int, default=3, ge=2))}, default="none"),
    ),
    limits=fields(params=leaf(int, ge=1), latency_ms=leaf(float, literals=(None,), default=None, gt=0)),
    metrics={"accuracy": "share of right answers", "macro_f1": "mean F1", "latency_ms": "time for one image"},
)

MINIMAL = "data: digits\nmodel: vit\n"


def space(text: str, **more: Any) -> Space:
    return parse(text, CATALOG, source="spaces/vit.yaml", **more)


def with_model(args: str) -> str:
    return f"data: digits\nmodel:\n  vit: {args}\n"


def problems(text: str, **more: Any) -> list[str]:
    """Return the rendered problems, without the file's name and the space around it."""
    with pytest.raises(SpaceError) as caught:
        space(text, **more)
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.problems), "a problem is one line"
    return [line.removeprefix("spaces/vit.yaml:").strip() for line in lines]


def problem(text: str, **more: Any) -> str:
    (only,) = problems(text, **more)
    return only


def domain(text: str, path: str) -> str:
    return next(parameter.domain for parameter in space(text).parameters() if parameter.path == path)


FULL = """\
study:
  trials: 40
  objectives: {accuracy: maximize, latency_ms: minimize}
  sampler: {tpe: {n_startup_trials: 4}}
  pruner: halving
data: {folder: {root: photos}}
image: {size: {choice: [8, 16]}}
augment:
  flip: {choice: [none, horizontal]}
  mixup: {float: [0.0, 0.4], step: 0.1}
  policy:
    none:
    rand: {num_ops: {int: [1, 3]}}
model:
  resnet:
    depths: {choice: [[1, 1, 1], [2, 2, 2]]}
  vit:
    depth: {int: [2, 6], step: 2}
    width: {int: [32, 96], log: true}
optimizer:
  adamw: {lr: {float: [1e-4, 1e-2], log: true}}
  sgd: {lr: 0.1}
limits: {params: 500_000}
start:
  - {model: vit, model.vit.depth: 4, optimizer: adamw, optimizer.adamw.lr: 1e-3}
"""

FINITE = FULL.replace("{float: [1e-4, 1e-2], log: true}", "{choice: [1e-3, 1e-2]}")


# What a file says


def test_a_minimal_file_is_a_configuration_with_all_defaults() -> None:
    read = space(MINIMAL)
    assert read.is_config
    assert read.config().to_dict() == {
        "data": {"digits": {}},
        "image": {"size": None, "channels": 1},
        "augment": {"flip": "none", "mixup": 0.0, "policy": {"none": {}}},
        "model": {"vit": {"depth": 4, "width": 64, "bias": True}},
        "optimizer": {"adamw": {"lr": 1e-3, "decay": 0.0}},
        "training": {"epochs": 10, "batch_size": 32, "precision": "auto"},
    }
    assert read.name == "vit-digits"
    assert read.objectives == (("accuracy", "maximize"),)
    assert read.limits == {}
    assert read.start == ()
    assert read.study["trials"] == 20


def test_study_limits_and_objectives_are_read() -> None:
    read = space(FULL)
    assert read.name == "vit-photos"
    assert read.study["trials"] == 40
    assert read.objectives == (("accuracy", "maximize"), ("latency_ms", "minimize"))
    assert read.limits == {"params": 500_000}
    assert (read.sampler.path, read.sampler.name, read.sampler.args) == (
        "study.sampler.tpe",
        "tpe",
        {"n_startup_trials": 4},
    )
    assert (read.pruner.path, read.pruner.args) == ("study.pruner.halving", {"factor": 3})


def test_parameters_are_listed_with_conditions_and_domains() -> None:
    listed = {parameter.path: parameter for parameter in space(FULL).parameters()}
    assert {path: parameter.domain for path, parameter in listed.items()} == {
        "image.size": "one of 8, 16",
        "augment.flip": "one of none, horizontal",
        "augment.mixup": "float 0.0..0.4 step 0.1",
        "augment.policy": "one of none, rand",
        "augment.policy.rand.num_ops": "int 1..3",
        "model": "one of vit, resnet",
        "model.vit.depth": "int 2..6 step 2",
        "model.vit.width": "int 32..96 log",
        "model.resnet.depths": "one of [1, 1, 1], [2, 2, 2]",
        "optimizer": "one of adamw, sgd",
        "optimizer.adamw.lr": "float 0.0001..0.01 log",
    }
    assert listed["model.resnet.depths"].choices == ("[1, 1, 1]", "[2, 2, 2]")
    assert listed["model.vit.depth"].when == (("model", "vit"),)
    assert listed["augment.policy.rand.num_ops"].when == (("augment.policy", "rand"),)
    assert listed["image.size"].when == ()
    assert [listed[p].num_values for p in ("model.vit.depth", "augment.mixup", "optimizer.adamw.lr")] == [3, 5, None]
    assert [listed[p].kind for p in ("model", "model.vit.depth", "augment.mixup")] == ["choice", "int", "float"]


def test_conditions_of_nested_branches_add_up() -> None:
    read = space("data: digits\nmodel: {vit: , mix: {stem: {conv: {kernel: {int: [1, 3]}}, patch: }}}\n")
    (kernel,) = (parameter for parameter in read.parameters() if parameter.path == "model.mix.stem.conv.kernel")
    assert kernel.when == (("model", "mix"), ("model.mix.stem", "conv"))


def test_a_component_with_one_key_makes_no_parameter() -> None:
    read = space("data: digits\nmodel: {vit: {depth: {int: [2, 3]}}}\n")
    assert [(parameter.path, parameter.when) for parameter in read.parameters()] == [("model.vit.depth", ())]


@pytest.mark.parametrize("text", ["model: vit", "model: {vit: {}}", "model: {vit: }", "model:\n  vit:\n"])
def test_ways_to_name_a_component_are_equal(text: str) -> None:
    assert space(f"data: digits\n{text}\n") == space(MINIMAL)


@pytest.mark.parametrize(
    "text", ["study:", "limits:", "start:", "augment:", "optimizer:", "optimizer: null", "study: {objectives: }"]
)
def test_a_section_without_a_value_is_a_section_left_out(text: str) -> None:
    assert space(f"{MINIMAL}{text}\n").document == space(MINIMAL).document


def test_the_order_of_keys_means_nothing() -> None:
    text = "model: {resnet: , vit: {width: {int: [8, 9]}, depth: {int: [1, 2]}}}\ndata: digits\n"
    other = "data: digits\nmodel: {vit: {depth: {int: [1, 2]}, width: {int: [8, 9]}}, resnet: }\n"
    assert space(text) == space(other)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("500_000", 500_000.0),
        ("+2.", 2.0),
        ("0x10", 16.0),
        ("010", 10.0),
        ("1", 1.0),
    ],
)
def test_numbers_are_numbers(written: str, value: float) -> None:
    read = space(f"{MINIMAL}optimizer: {{adamw: {{lr: {written}}}}}\n").config().component("optimizer").args["lr"]
    assert read == value
    assert isinstance(read, float)


@pytest.mark.parametrize(
    "written", ["2020-01-01", "12:30", "1_", "_1", "1e", ".", "-", "0b1", "1.2.3", "=", "none", "inf"]
)
def test_what_is_no_number_is_a_string(written: str) -> None:
    read = space(f"data: {{folder: {{root: {written}}}}}\nmodel: vit\n")
    assert read.config().component("data").args["root"] == written


def test_whole_numbers_are_floats_where_floats_are_taken() -> None:
    text = "data: digits\nmodel: {mix: {ratios: {choice: [1, [1, 2]]}}}\noptimizer: {adamw: {lr: {int: [1, 2]}}}\n"
    read = space(text)
    config = read.config_of({"model.mix.ratios": "[1.0, 2.0]", "optimizer.adamw.lr": 2})
    assert json.dumps(config.to_dict()["model"]["mix"]["ratios"]) == "[1.0, 2.0]"
    assert json.dumps(config.to_dict()["optimizer"]["adamw"]["lr"]) == "2.0"


def test_anchors_aliases_and_merge_keys_work() -> None:
    text = """
data: digits
model:
  vit: &small {depth: 2, width: 16}
  resnet: {width: 8}
optimizer:
  adamw: &rate {lr: {float: [0.1, 1]}}
  sgd: {<<: *rate, momentum: 0.5}
"""
    read = space(text)
    assert domain(text, "optimizer.sgd.lr") == "float 0.1..1.0"
    assert "model.vit.depth" not in [parameter.path for parameter in read.parameters()]


def test_a_key_of_its_own_wins_over_a_merged_one_and_the_first_merged_over_later_ones() -> None:
    text = "data: digits\nmodel: {vit: {<<: [{depth: 2, width: 8}, {depth: 3, bias: false}], width: 9}}\n"
    assert dict(space(text).config().component("model").args) == {"depth": 2, "width": 9, "bias": False}


# What a leaf refuses


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("{dept: 3}", "3:9: model.vit.dept: unknown key; allowed: depth, width, bias (did you mean 'depth'?)"),
        ("{depth: 0}", "3:16: model.vit.depth: 0 is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: 2.5}", "3:16: model.vit.depth: 2.5 is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: }", "3:15: model.vit.depth: null is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: true}", "3:16: model.vit.depth: true is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: [2, 3]}", "3:16: model.vit.depth: [2, 3] is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: {choice: []}}", "3:25: model.vit.depth: an empty choice; allowed: int >= 1 and <= 12"),
        (
            "{depth: {choice: 3}}",
            "3:25: model.vit.depth: `choice` takes a list, as in {choice: [a, b]}; allowed: int >= 1 and <= 12",
        ),
        ("{depth: {choice: [2, 13]}}", "3:29: model.vit.depth: 13 is not allowed; allowed: int >= 1 and <= 12"),
        (
            "{depth: {choice: [2, 3, 2]}}",
            "3:32: model.vit.depth: 2 is twice in the choice; Optuna needs different values",
        ),
        (
            "{depth: {choice: [{a: 1}]}}",
            "3:26: model.vit.depth: a value or a list of values is needed, but got a mapping",
        ),
        ("{depth: {choice: [2], log: true}}", "3:16: model.vit.depth: 'log': unknown key; allowed: choice"),
        ("{depth: {int: [6, 2]}}", "3:22: model.vit.depth: low <= high must hold, but got low=6, high=2"),
        ("{depth: {int: [2, 13]}}", "3:26: model.vit.depth: 13 is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: {int: [0, 12]}}", "3:23: model.vit.depth: 0 is not allowed; allowed: int >= 1 and <= 12"),
        ("{depth: {int: [2, 3.5]}}", "3:26: model.vit.depth: a whole number is needed for a range of int, but got 3.5"),
        ("{depth: {int: [2, x]}}", "3:26: model.vit.depth: a number is needed, but got 'x'"),
        ("{depth: {int: [2, true]}}", "3:26: model.vit.depth: a number is needed, but got true"),
        ("{depth: {int: [2]}}", "3:22: model.vit.depth: `int` takes a list of two numbers, as in {int: [low, high]}"),
        ("{depth: {int: 2}}", "3:22: model.vit.depth: `int` takes a list of two numbers, as in {int: [low, high]}"),
        ("{depth: {int: [1, 4], step: 0}}", "3:36: model.vit.depth: step > 0 must hold, but got step=0"),
        (
            "{depth: {int: [1, 4], step: 1.5}}",
            "3:36: model.vit.depth: a whole number is needed for a range of int, but got 1.5",
        ),
        (
            "{width: {int: [32, 100], step: 32}}",
            "3:39: model.vit.width: high - low must be a multiple of step, but got low=32, high=100, step=32; "
            "the nearest high that fits: 96",
        ),
        (
            "{depth: {int: [2, 12], step: 8, log: true}}",
            "3:37: model.vit.depth: `log` and `step` exclude each other; leave one out",
        ),
        ("{depth: {int: [2, 12], log: 1}}", "3:36: model.vit.depth: `log` is true or false, but got 1"),
        ("{depth: {float: [2, 3]}}", "3:16: model.vit.depth: takes no range of float; allowed: int >= 1 and <= 12"),
        ("{bias: {int: [0, 1]}}", "3:15: model.vit.bias: takes no range of int; allowed: bool"),
        (
            "{depth: {int: [2, 3], setp: 1}}",
            "3:16: model.vit.depth: 'setp': unknown key; allowed: int, log, step (did you mean 'step'?)",
        ),
        (
            "{depth: {int: [2, 3], choice: [1]}}",
            "3:16: model.vit.depth: a mapping here must be one of {choice: [a, b]}, {int: [low, high]} or "
            "{float: [low, high]}, but got 'int', 'choice'; allowed: int >= 1 and <= 12",
        ),
        (
            "{depth: {}}",
            "3:16: model.vit.depth: a mapping here must be one of {choice: [a, b]}, {int: [low, high]} or "
            "{float: [low, high]}, but got no key; allowed: int >= 1 and <= 12",
        ),
        (
            "{width: {int: [8, 99999999999999999]}}",
            "3:26: model.vit.width: a number up to 2**53 is needed, but got 99999999999999999; larger ones cannot be told apart",
        ),
        ("[1]", "3:8: model.vit: takes a mapping, but got a list; allowed: depth, width, bias"),
        ("7", "3:8: model.vit: takes a mapping, but got 7; allowed: depth, width, bias"),
    ],
)
def test_an_argument_says_what_is_wrong_with_it(args: str, expected: str) -> None:
    assert problem(with_model(args)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{float: [0.1, 0.01]}", "low <= high must hold, but got low=0.1, high=0.01"),
        ("{float: [0.0, 1.0], log: true}", "low > 0 must hold with `log`, but got low=0.0"),
        ("{float: [0.0, .inf]}", "a finite number is needed, but got inf"),
        ("{float: [.nan, 1]}", "a finite number is needed, but got nan"),
        ("{float: [0, 1e999]}", "a finite number is needed, but got inf"),
        ("{float: [0, 1], step: .inf}", "a finite number is needed, but got inf"),
        ("{float: [0, 1], step: -0.1}", "step > 0 must hold, but got step=-0.1"),
        (
            "{float: [0, 1], step: 0.3}",
            "high - low must be a multiple of step, but got low=0.0, high=1.0, step=0.3; the nearest high that fits: 0.9",
        ),
        ("{float: [0, 1], step: 1e-300}", "step=1e-300 is too small for a range from 0.0 to 1.0"),
        (".inf", "inf is not allowed; allowed: float >= 0"),
        ("{choice: [0.1, .nan]}", "nan is not allowed; allowed: float >= 0"),
        ("x", "'x' is not allowed; allowed: float >= 0"),
    ],
)
def test_floats_say_what_is_wrong_with_them(value: str, expected: str) -> None:
    text = f"{MINIMAL}optimizer: {{adamw: {{decay: {value}}}}}\n"
    assert problem(text).split(": ", 2)[1:] == ["optimizer.adamw.decay", expected]


def test_a_range_too_wide_for_a_float_is_refused() -> None:
    text = f"{MINIMAL}optimizer: {{sgd: {{lr: 1, momentum: {{float: [-1.7e+308, 1.7e+308]}}}}}}\n"
    assert "too wide a range" in problem(text)


def test_the_nearest_high_stays_within_the_bounds_of_the_builder() -> None:
    assert problem(with_model("{depth: {int: [2, 12], step: 7}}")).endswith("the nearest high that fits: 9")


@pytest.mark.parametrize("step", ["0.1", "0.05", "0.3", "3e-1"])
def test_steps_divide_as_they_are_written(step: str) -> None:
    text = f"{MINIMAL}augment: {{mixup: {{float: [0.0, 0.3], step: {step}}}}}\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        space(text).sample(study.ask())
    assert caught == []


@pytest.mark.parametrize("value", ["{float: [1e+16, 10000000000000010.0], step: 0.5}", "{float: [1, 2], step: 1e-15}"])
def test_steps_that_floats_cannot_tell_apart_are_refused(value: str) -> None:
    text = f"{MINIMAL}optimizer: {{sgd: {{lr: 1, momentum: {value}}}}}\n"
    assert "is too small for a range from" in problem(text)


def test_a_range_of_one_value_is_a_parameter() -> None:
    read = space(
        with_model("{depth: {int: [3, 3]}}").replace("digits", "digits\naugment: {mixup: {float: [0.5, 0.5]}}")
    )
    assert [parameter.num_values for parameter in read.parameters()] == [1, 1]
    assert not read.is_config
    assert list(read.combinations()) == [{"augment.mixup": 0.5, "model.vit.depth": 3}]


def test_all_wrong_elements_of_a_choice_are_named() -> None:
    assert problems(with_model("{depth: {choice: [0, 5, 13]}}")) == [
        "3:26: model.vit.depth: 0 is not allowed; allowed: int >= 1 and <= 12",
        "3:32: model.vit.depth: 13 is not allowed; allowed: int >= 1 and <= 12",
    ]


@pytest.mark.parametrize("choice", ["[1, 1.0]", "[true, true]", "[[1, 2], [1, 2]]", "[[1, 2], [1.0, 2.0]]"])
def test_values_that_optuna_takes_for_the_same_are_duplicates(choice: str) -> None:
    key = "bias" if "true" in choice else "ratios"
    family = "vit" if key == "bias" else "mix"
    assert "is twice" in problem(f"data: digits\nmodel: {{{family}: {{{key}: {{choice: {choice}}}}}}}\n")


@pytest.mark.parametrize("written", ["off", "no", "Off", "OFF", "on", "yes"])
@pytest.mark.parametrize("form", ["{}", "{{choice: [none, {}]}}"])
def test_a_switch_where_a_name_is_expected_is_answered_with_advice(written: str, form: str) -> None:
    truth = "true" if written in ("on", "yes") else "false"
    expected = f'got {truth}; YAML reads {written} as {truth}; write "{written}" in quotes; allowed: '
    assert expected in problem(f"{MINIMAL}augment: {{flip: {form.format(written)}}}\n")


def test_a_switch_in_quotes_is_a_name_and_elsewhere_a_truth_value() -> None:
    assert space(f'{MINIMAL}augment: {{flip: "off"}}\n').config().section("augment")["flip"] == "off"
    assert space(with_model("{bias: off}")).config().component("model").args["bias"] is False


def test_a_number_where_a_string_is_expected_is_answered_with_advice() -> None:
    text = "data: {folder: {root: 2024}}\nmodel: vit\n"
    assert problem(text) == '1:23: data.folder.root: got 2024; write "2024" in quotes; allowed: str'


# What is given, not searched


@pytest.mark.parametrize("value", ["{int: [1, 3]}", "{choice: [1, 2]}"])
def test_epochs_are_given_not_searched(value: str) -> None:
    expected = "3:20: training.epochs: is given, not searched; allowed: int >= 1"
    assert problem(f"{MINIMAL}training: {{epochs: {value}}}\n") == expected


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ("study: {trials: {int: [1, 2]}}", "study.trials"),
        ("study: {sampler: {tpe: {n_startup_trials: {choice: [1, 2]}}}}", "study.sampler.tpe.n_startup_trials"),
        ("study: {sampler: {tpe: , random: }}", "study.sampler"),
        ("limits: {params: {int: [1, 2]}}", "limits.params"),
    ],
)
def test_study_and_limits_are_given_not_searched(section: str, path: str) -> None:
    assert f"{path}: is given, not searched" in problem(f"{MINIMAL}{section}\n")


def test_data_holds_exactly_one_key_and_no_choices() -> None:
    assert problem("data: {digits: , folder: {root: x}}\nmodel: vit\n") == (
        "1:7: data: is given, not searched: exactly one of digits, folder, but got digits, folder"
    )
    assert "data.folder.val: is given, not searched" in problem(
        "data: {folder: {root: x, val: {float: [0.1, 0.2]}}}\nmodel: vit\n"
    )
    assert "a mapping" in problem("data: digits\nmodel: vit\ntraining: {epochs: {lo: 1}}\n")


# Components and sections


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: vitt", "2:8: model: 'vitt' is not allowed; allowed: vit, resnet, mix (did you mean 'vit'?)"),
        ("model: {vitt: {}}", "2:9: model.vitt: unknown key; allowed: vit, resnet, mix (did you mean 'vit'?)"),
        ("model: {}", "2:8: model: empty; one of vit, resnet, mix is needed"),
        ("model:", "2:7: model: required; one of vit, resnet, mix"),
        ("image: {}", "1:1: model: required; one of vit, resnet, mix"),
        (
            "model: off",
            '2:8: model: a name is needed, but got false; YAML reads off as false; write "off" in quotes; allowed: vit, resnet, mix',
        ),
        ("model: 3", '2:8: model: a name is needed, but got 3; write "3" in quotes; allowed: vit, resnet, mix'),
        (
            "model: [vit, resnet]",
            "2:8: model: a component, not a list; write the options as keys, as in {vit: {}, resnet: {}}; allowed: vit, resnet, mix",
        ),
        (
            "model: {choice: [vit, mix]}",
            "2:9: model: a component takes no `choice`; write the options as keys, as in {vit: {}, mix: {}}; allowed: vit, resnet, mix",
        ),
        (
            "model: vit\nmodle: vit",
            "3:1: modle: unknown key; allowed: study, limits, start, data, image, augment, model, optimizer, training (did you mean 'model'?)",
        ),
        ("model: vit\nimage: 3", "3:8: image: takes a mapping, but got 3; allowed: size, channels"),
        ("model: vit\noptimizer:\n  sgd: {momentum: 0.5}", "4:3: optimizer.sgd.lr: required; allowed: float > 0"),
        ("model: vit\noptimizer: sgd", "3:12: optimizer.sgd.lr: required; allowed: float > 0"),
        (
            "model: {vit: , off: }",
            '2:16: model.off: a key must be a name, but got false; YAML reads off as false; write "off" in quotes',
        ),
        ("model: vit\n3: x", '3:1: 3: a key must be a name, but got 3; write "3" in quotes'),
        (
            'model: vit\n"": 1',
            "3:1: '': unknown key; allowed: study, limits, start, data, image, augment, model, optimizer, training",
        ),
        ("model: vit\n? [a]\n: x", "3:3: a key must be a name, but got a list or a mapping"),
    ],
)
def test_sections_and_components_say_what_is_wrong_with_them(text: str, expected: str) -> None:
    assert problem(f"data: digits\n{text}\n") == expected


def test_all_problems_of_a_file_are_reported_together_in_the_order_of_the_file() -> None:
    text = """\
study: {trials: 0}
data: digitz
model:
  vit:
    dept: 3
    width: {int: [9, 8]}
training: {epochs: {int: [1, 2]}}
limits: {parms: 3}
start: [{augment.mixup: 2}]
"""
    assert [line.split(" ")[0] for line in problems(text)] == [
        "1:17:",
        "2:7:",
        "5:5:",
        "6:18:",
        "7:20:",
        "8:10:",
        "9:25:",
    ]


def test_a_problem_stays_on_one_short_line_whatever_the_file_holds() -> None:
    text = f'{MINIMAL}"a\\nb": 1\n{"k" * 5000}: 1\naugment: {{flip: "{"x" * 5000}\\n"}}\n'
    assert all(len(line) < 400 for line in problems(text))


# Study


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (
            "{acuracy: maximize}",
            "study.objectives.acuracy: unknown metric; allowed: accuracy, macro_f1, latency_ms (did you mean 'accuracy'?)",
        ),
        (
            "{accuracy: maximise}",
            "study.objectives.accuracy: 'maximise' is not allowed; allowed: maximize, minimize (did you mean 'maximize'?)",
        ),
        (
            "{accuracy: [1]}",
            "study.objectives.accuracy: a list or a mapping is not allowed; allowed: maximize, minimize",
        ),
        (
            "{}",
            "study.objectives: takes metrics with a direction, as in {accuracy: maximize}; metrics: accuracy, macro_f1, latency_ms",
        ),
        (
            "accuracy",
            "study.objectives: takes metrics with a direction, as in {accuracy: maximize}; metrics: accuracy, macro_f1, latency_ms",
        ),
    ],
)
def test_objectives_say_what_is_wrong_with_them(objectives: str, expected: str) -> None:
    assert problem(f"{MINIMAL}study: {{objectives: {objectives}}}\n").split(": ", 1)[1] == expected


def test_objectives_are_required_where_there_is_no_accuracy() -> None:
    replay = dataclasses.replace(CATALOG, metrics={"loss": "the loss"})
    with pytest.raises(SpaceError, match=r"study\.objectives: required; metrics: loss"):
        parse(MINIMAL, replay, source="f.yaml")
    assert parse(f"{MINIMAL}study: {{objectives: {{loss: minimize}}}}", replay, source="f.yaml").objectives == (
        ("loss", "minimize"),
    )


def test_a_catalog_without_data_names_studies_after_the_file() -> None:
    config = fields(**{key: entry for key, entry in CATALOG.config.fields.items() if key != "data"})
    assert parse("model: vit", dataclasses.replace(CATALOG, config=config), source="a/nas.yaml").name == "nas"


@pytest.mark.parametrize("name", ["a", "0.b_C-d", "x" * 100])
def test_a_study_can_be_named(name: str) -> None:
    read = space(f'{MINIMAL}study: {{name: "{name}"}}\n')
    assert read.name == name
    assert read.document["study"]["name"] == name


@pytest.mark.parametrize("name", ["", ".a", "a..b", "a/b", "a b", "x" * 101, "é", "a\\n", "-a", "../a", ".."])
def test_other_names_are_refused(name: str) -> None:
    line = problem(f'{MINIMAL}study: {{name: "{name}"}}\n')
    assert line.startswith("3:15: study.name: ")
    assert line.endswith("a letter or digit, then up to 99 letters, digits, '.', '_' or '-', without '..'")


def test_a_file_whose_own_name_makes_no_study_name_says_so() -> None:
    with pytest.raises(SpaceError, match=r"^my space\.yaml: study\.name: 'my space-digits', made of the file's name"):
        parse(MINIMAL, CATALOG, source="my space.yaml")


@pytest.mark.parametrize(
    ("text", "path"), [("study: {sampler: tpee}", "study.sampler"), ("limits: {params: 0}", "limits.params")]
)
def test_study_and_limits_are_validated(text: str, path: str) -> None:
    assert f"{path}: " in problem(f"{MINIMAL}{text}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{trials: 0}", "3:17: study.trials: 0 is not allowed; allowed: int >= 1"),
        ("{trials: -3}", "3:17: study.trials: -3 is not allowed; allowed: int >= 1"),
        ("{trails: 3}", "3:9: study.trails: unknown key; allowed: objectives, name, trials, seed, timeout, sampler, pruner (did you mean 'trials'?)"),
        ("{sampler: tpee}", "3:18: study.sampler: 'tpee' is not allowed; allowed: tpe, random (did you mean 'tpe'?)"),
        ("{sampler: {randm: }}", "3:19: study.sampler.randm: unknown key; allowed: tpe, random (did you mean 'random'?)"),
        ("{pruner: halvin}", "3:17: study.pruner: 'halvin' is not allowed; allowed: none, halving (did you mean 'halving'?)"),
    ],
)  # fmt: skip
def test_what_the_study_section_refuses_has_a_place_and_a_close_match(text: str, expected: str) -> None:
    assert problem(f"{MINIMAL}study: {text}\n") == expected


def test_an_unknown_optimizer_is_answered_with_the_nearest() -> None:
    assert problem(f"{MINIMAL}optimizer:\n  adamW: {{lr: 0.1}}\n") == (
        "4:3: optimizer.adamW: unknown key; allowed: adamw, sgd (did you mean 'adamw'?)"
    )


# YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; a space needs at least its data and its model"),
        ("# only a comment\n", "is empty; a space needs at least its data and its model"),
        ("- a\n", "1:1: a space is a mapping of sections such as data and model, but got a list"),
        ("vit\n", "1:1: a space is a mapping of sections such as data and model, but got a single value"),
        (
            "a: [1,\n",
            "2:1: not readable as YAML: while parsing a flow node: expected the node content, but found the end of the text",
        ),
        ("a: b\n---\na: c\n", "2:1: one file holds one document, but another begins here"),
        ("a:\n\tb: c\n", "2:1: a tab; YAML is indented with spaces"),
        ("a: b: c\n", "1:5: a colon where YAML expects none; quote the text or fix its indentation"),
        ("a: b\x00\n", "1:5: the character 0x0000 cannot stand in YAML; remove it"),
        ("a: b\nc: \x1b\n", "2:4: the character 0x001b cannot stand in YAML; remove it"),
        ("a: *b\n", "1:4: not readable as YAML: found undefined alias 'b'"),
        ("a: &x [*x]\n", "1:4: an alias stands inside its own anchor"),
        ("&x {a: *x}\n", "1:1: an alias stands inside its own anchor"),
        ("[" * 5000, "1:51: nested more than 50 deep"),
        ("- " * 5000, "1:101: nested more than 50 deep"),
        ("? " * 5000, "1:101: nested more than 50 deep"),
        ("{a: " * 5000, "1:198: nested more than 50 deep"),
        ("[" + "1, " * 20_000 + "]", "1:29999: more than 10,000 values, aliases included"),
    ],
)
def test_text_that_is_no_space_is_one_problem_with_its_place(text: str, expected: str) -> None:
    assert problem(text).removeprefix("spaces/vit.yaml: ") == expected


def test_aliases_cannot_grow_without_bound() -> None:
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "more than 10,000 values, aliases included" in problem(bomb)


def test_aliases_cannot_nest_without_bound() -> None:
    chain = "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(60))
    assert "nested more than 50 deep" in problem(chain)


@pytest.mark.parametrize(
    "text", ['a: "\\UFFFFFFFF"', f"%YAML 1.{'9' * 5000}\n---\na: b", f"%YAML {'9' * 5000}.1\n---\na: b"]
)
def test_what_yaml_itself_stumbles_over_is_a_problem(text: str) -> None:
    assert "not readable as YAML" in problem(text)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!foo", "!!str", "!!int", "!"])
def test_tags_are_refused(tag: str) -> None:
    assert "3:20: the tag" in "\n".join(problems(f"{MINIMAL}training: {{epochs: {tag} [3]}}\n"))


def test_half_a_surrogate_pair_is_refused() -> None:
    text = 'data: {folder: {root: "\\ud800"}}\nmodel: vit\n'
    assert (
        problem(text) == "1:23: data.folder.root: half a surrogate pair, which is not a character; write the whole one"
    )


@pytest.mark.parametrize("digits", ["9" * 30, "9" * 5000, "0x" + "f" * 5000])
def test_very_long_numbers_are_refused_in_words(digits: str) -> None:
    assert "is not allowed; allowed: int >= 1" in problem(f"{MINIMAL}training: {{epochs: {digits}}}\n")


def test_a_key_given_twice_names_the_line_of_the_first() -> None:
    text = "data: digits\nmodel:\n  vit: {depth: 2}\n  vit: {depth: 3}\n"
    assert problem(text) == "4:3: model.vit: the same key twice (first on line 3); keep one of them"


def test_merge_keys_take_mappings_only() -> None:
    assert problem(with_model("{<<: 3}")) == "3:13: model.vit: `<<` merges mappings; it takes one or a list of them"


@pytest.mark.parametrize(
    ("write", "count", "has_problems"),
    [
        (lambda n: with_model(f"{{depth: {{choice: [{', '.join(['x'] * n)}]}}}}"), 9000, True),
        (lambda n: with_model(f"{{{', '.join(f'k{each}: 1' for each in range(n))}}}"), 4900, True),
        (lambda n: with_model(f"{{width: {{choice: [{', '.join(map(str, range(9, n + 9)))}]}}}}"), 9000, False),
        (
            lambda n: "data: digits\nmodel: vit\nstart: [{" + ", ".join(f"k{each}: 1" for each in range(n)) + "}]",
            4900,
            True,
        ),
    ],
    ids=["choices", "keys", "no problem", "start"],
)
def test_the_time_for_a_file_grows_with_its_values_and_not_with_their_pairs(
    write: Callable[[int], str], count: int, has_problems: bool
) -> None:
    def seconds(number: int) -> float:
        # Processor time, so that other work on the machine does not matter.
        begin = time.process_time()
        try:
            found = len(space(write(number)).parameters()) - 1
        except SpaceError as error:
            found = len(error.problems)
        assert found == (number if has_problems else 0)
        return time.process_time() - begin

    few = min(seconds(count // 4), seconds(count // 4))
    # Comparing each with all others would take 16 times as long.
    assert seconds(count) < 10 * max(few, 0.02)


# Names of studies


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("photos", "vit-photos"),
        ("/data/photos/", "vit-photos"),
        ("elsewhere/../My Photos (2024)", "vit-my-photos-2024"),
        ("Größe_é.v2", "vit-grosse_e.v2"),
        ("a..b", "vit-a.b"),
        (".hidden", "vit-hidden"),
        ("/", "vit-folder"),
        ("写真", "vit-folder-9c3250"),
        ("猫", "vit-folder-a810bf"),
        ("x" * 255, f"vit-{'x' * 96}"),
    ],
)
def test_a_study_is_named_after_its_folder(root: str, name: str) -> None:
    read = space(MINIMAL, data=f"folder:{root}")
    assert (read.name, read.former_name) == (name, None if name == "vit-folder" else "vit-folder")


def test_a_study_of_the_working_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Pets").mkdir()
    monkeypatch.chdir(tmp_path / "Pets")
    monkeypatch.setenv("HOME", str(tmp_path / "Pets"))
    assert [space(MINIMAL, data=f"folder:{root}").name for root in (".", "~", "${HOME}")] == ["vit-pets"] * 3


def test_a_given_name_and_other_data_sets_stand_as_they_are() -> None:
    given = space(MINIMAL, data="folder:photos", overrides=[("study.name", "mine")])
    assert (given.name, given.former_name) == ("mine", None)
    assert (space(MINIMAL).name, space(MINIMAL).former_name) == ("vit-digits", None)


# Files


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / "mine.yaml"
        path.write_text(MINIMAL, encoding=encoding)
        assert read_space(path, CATALOG, overrides=[("study.trials", "3")]).study["trials"] == 3
        assert read_space(path, CATALOG, data="folder:x").name == "mine-x"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "is empty; a space needs at least its data and its model"),
        (b"a: \xff", "is not UTF-8 text (byte 3 is 0xff)"),
        (b"#" * 1_000_001, "larger than 1,000,000 bytes, which no space needs"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "space.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpaceError) as caught:
        read_space(path, CATALOG)
    assert str(caught.value) == f"{path}: {expected}"


def test_a_directory_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="is a directory"):
        read_space(tmp_path, CATALOG)


# --set and --data


def test_set_replaces_a_value_and_makes_the_mappings_on_its_way() -> None:
    read = space(
        MINIMAL, overrides=[("training.epochs", "3"), ("model.vit.depth", "{int: [2, 4]}"), ("study.trials", "7")]
    )
    assert read.study["trials"] == 7
    assert [parameter.domain for parameter in read.parameters()] == ["int 2..4"]
    assert read.config_of({"model.vit.depth": 2}).section("training")["epochs"] == 3


def test_the_last_set_of_a_path_wins_and_the_file_is_otherwise_kept() -> None:
    read = space(FINITE, overrides=[("augment.mixup", "0.1"), ("augment.mixup", "0.2"), ("start", "[]")])
    assert read.document["augment"] == {**space(FINITE).document["augment"], "mixup": 0.2}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("training.epochs", "0", "training.epochs: 0 is not allowed; allowed: int >= 1"),
        (
            "training.epoch",
            "3",
            "training.epoch: unknown key; allowed: epochs, batch_size, precision (did you mean 'epochs'?)",
        ),
        ("optimizer.sgd.momentum", "0.1", "optimizer.sgd.lr: required; allowed: float > 0"),
        (
            "augment.flip",
            "off",
            "augment.flip: got false; YAML reads off as false; write \"off\" in quotes; allowed: 'none', 'off', 'horizontal'",
        ),
        (
            "augment.flip",
            "[a",
            "augment.flip: not readable as YAML: while parsing a flow sequence: expected ',' or ']', but got the end of the text",
        ),
        ("augment.flip", "!x none", "augment.flip: the tag !x is not allowed; a space holds plain values only"),
        ("augment.flip", "", "augment.flip: null is not allowed; allowed: 'none', 'off', 'horizontal'"),
        ("a..b", "1", "a..b: a path is names joined by single dots, as in model.vit.depth"),
        ("", "1", "a path is names joined by single dots, as in model.vit.depth"),
        ("data.root", "1", "data.root: data is a single value, not a mapping; nothing can be set below it"),
        ("start.0", "1", "start.0: start is a list, not a mapping; nothing can be set below it"),
        (".".join("a" * 60), "1", None),
    ],
)
def test_a_problem_of_set_names_what_was_set(path: str, value: str, expected: str | None) -> None:
    line = problem(f"{MINIMAL}start: []\n", overrides=[(path, value)])
    if expected is not None:
        assert line == f"spaces/vit.yaml: {expected}".replace("spaces/vit.yaml", f"--set {path}={value}")


def test_an_override_keeps_the_places_of_what_it_does_not_touch() -> None:
    lines = problems("data: digits\nmodel: {vit: {depth: 0}}\n", overrides=[("model.vit.width", "0")])
    assert lines == [
        "--set model.vit.width=0: model.vit.width: 0 is not allowed; allowed: int >= 8",
        "2:22: model.vit.depth: 0 is not allowed; allowed: int >= 1 and <= 12",
    ]


def test_a_key_that_is_set_is_blamed_on_the_command_line_even_if_the_file_has_it_too() -> None:
    text = "data: digits\nmodel: {vit: {dept: 3}}\n"
    line = "model.vit.dept: unknown key; allowed: depth, width, bias (did you mean 'depth'?)"
    assert problem(text) == f"2:15: {line}"
    assert problem(text, overrides=[("model.vit.dept", "4")]) == f"--set model.vit.dept=4: {line}"


def test_data_replaces_the_data_section() -> None:
    assert space(FULL, data="digits").name == "vit-digits"
    read = space(MINIMAL, data="folder:C:/my photos/1e5", overrides=[("data.folder.val", "0.5")])
    assert read.config().component("data").args == {"root": "C:/my photos/1e5", "val": 0.5}
    assert space(MINIMAL, data="folder:123").config().component("data").args["root"] == "123"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("foldr:x", "data.foldr: unknown key; allowed: digits, folder (did you mean 'folder'?)"),
        ("digits:x", "data.digits.root: unknown key; allowed: nothing"),
        ("folder", "data.folder.root: required; allowed: str"),
        ("folder:", "data: takes a name, or a name and a place, as in digits or folder:photos"),
        ("", "data: takes a name, or a name and a place, as in digits or folder:photos"),
    ],
)
def test_a_problem_of_data_names_what_was_given(data: str, expected: str) -> None:
    assert problem(MINIMAL, data=data) == f"--data {data}: {expected}"


# start


def start_of(entries: str) -> tuple[Any, ...]:
    text = FULL.split("start:")[0] + f"start: {entries}\n"
    return space(text).start


def test_start_gives_parameters_as_optuna_records_them() -> None:
    assert space(FULL).start == (
        {"model": "vit", "model.vit.depth": 4, "optimizer": "adamw", "optimizer.adamw.lr": 1e-3},
    )
    assert start_of("[{model.resnet.depths: [2, 2, 2]}]") == ({"model": "resnet", "model.resnet.depths": "[2, 2, 2]"},)
    assert start_of('[{model.resnet.depths: "[2, 2, 2]"}]') == (
        {"model": "resnet", "model.resnet.depths": "[2, 2, 2]"},
    )


def test_start_implies_the_branch_and_drops_what_is_fixed() -> None:
    entry = "{model.vit.depth: 2, data: folder, data.folder.root: photos, training.epochs: 10, optimizer.sgd.lr: 0.1}"
    assert start_of(f"[{entry}]") == ({"model": "vit", "optimizer": "sgd", "model.vit.depth": 2},)


def test_start_is_tolerant_of_whole_numbers() -> None:
    ((entry),) = start_of("[{augment.mixup: 0, model.vit.depth: 4.0}]")
    assert json.dumps(entry) == '{"augment.mixup": 0.0, "model": "vit", "model.vit.depth": 4}'


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "{model: resnet, model.vit.depth: 4}",
            "model.vit.depth: needs model: vit, but the entry has model: resnet",
        ),
        (
            "{model.vit.depth: 4, model: resnet}",
            "model.vit.depth: needs model: vit, but the entry has model: resnet",
        ),
        (
            "{model.vit.depth: 4, model.resnet.depths: [1, 1, 1]}",
            "model.resnet.depths: needs model: resnet, but the entry has model: vit (for model.vit.depth)",
        ),
        ("{model.vit.depth: 3}", "model.vit.depth: 3 is not allowed; allowed: int 2..6 step 2"),
        ("{model.vit.depth: true}", "model.vit.depth: true is not allowed; allowed: int 2..6 step 2"),
        ("{model.vit.depth: '4'}", "model.vit.depth: '4' is not allowed; allowed: int 2..6 step 2"),
        ("{optimizer.adamw.lr: 0.1}", "optimizer.adamw.lr: 0.1 is not allowed; allowed: float 0.0001..0.01 log"),
        ("{augment.mixup: 0.15}", "augment.mixup: 0.15 is not allowed; allowed: float 0.0..0.4 step 0.1"),
        (
            "{augment.flip: off}",
            'augment.flip: got false; YAML reads off as false; write "off" in quotes; allowed: one of none, horizontal',
        ),
        ("{model: mix}", "model: 'mix' is not allowed; allowed: one of vit, resnet"),
        (
            "{model.resnet.depths: [1, 2, 3]}",
            "model.resnet.depths: [1, 2, 3] is not allowed; allowed: one of [1, 1, 1], [2, 2, 2]",
        ),
        ("{training.epochs: 3}", "training.epochs: 3 is not allowed; the space fixes it to 10"),
        ("{data: digits}", "data: 'digits' is not allowed; allowed: one of folder"),
        ("{model.vit.dept: 3}", "model.vit.dept: the space has no such path (did you mean 'model.vit.depth'?)"),
        (
            "{model: {vit: 3}}",
            "model: got a mapping; write dotted paths, as in model.vit.depth; allowed: one of vit, resnet",
        ),
        ("{augment: 3}", "augment: takes no value; name the parameters below it"),
        ("{study.trials: 3}", "study.trials: the space has no such path"),
    ],
)
def test_a_start_that_does_not_fit_says_why(entry: str, expected: str) -> None:
    with pytest.raises(SpaceError) as caught:
        start_of(f"[{entry}]")
    (only,) = caught.value.problems
    assert f"{only.path}: {only.message}" == f"start[0].{expected}"
    assert only.line == 24


@pytest.mark.parametrize("entry", ["{model: vit, model.mix.stem: patch}", "{model.mix.stem: patch, model: vit}"])
def test_a_start_cannot_contradict_itself_over_nested_components(entry: str) -> None:
    text = "data: digits\nmodel: {vit: , mix: {stem: {conv: {kernel: {int: [1, 3]}}, patch: }}}\nstart: "
    assert problem(f"{text}[{entry}]\n").endswith(
        "start[0].model.mix.stem: needs model: mix, but the entry has model: vit"
    )
    (implied,) = space(f"{text}[{{model.mix.stem.conv.kernel: 2}}]\n").start
    assert implied == {"model": "mix", "model.mix.stem": "conv", "model.mix.stem.conv.kernel": 2}


def test_problems_of_start_have_places() -> None:
    text = f"{MINIMAL}start:\n  - {{image.size: 8}}\n  - 3\n"
    assert problems(text) == [
        "4:18: start[0].image.size: 8 is not allowed; the space fixes it to null",
        "5:5: start[1]: start takes a list of configurations, as in [{model: vit, model.vit.depth: 4}]",
    ]
    assert problem(f"{MINIMAL}start: 3\n") == (
        "3:8: start: start takes a list of configurations, as in [{model: vit, model.vit.depth: 4}]"
    )


def test_a_section_with_problems_is_not_blamed_on_start_again() -> None:
    text = "data: digits\nmodel: {vit: {depth: {int: [1, 99]}}}\nstart: [{model.vit.depth: 3}]\n"
    assert len(problems(text)) == 1


def test_every_start_can_be_enqueued() -> None:
    read = space(FULL)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for entry in read.start:
        study.enqueue_trial(dict(entry))
    config = read.sample(study.ask())
    assert config.component("model").args["depth"] == 4
    assert config.component("optimizer").args["lr"] == 1e-3


# Sampling


@pytest.mark.parametrize(
    "sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0, n_startup_trials=5)]
)
def test_a_real_study_samples_configurations_that_can_be_recalled(sampler: optuna.samplers.BaseSampler) -> None:
    read = space(FULL)
    study = optuna.create_study(sampler=sampler)
    for number in range(30):
        trial = study.ask()
        config = read.sample(trial)
        study.tell(trial, float(number))
        assert read.config_of(study.trials[-1].params) == config
        assert parse(dump(config), CATALOG, source="best.yaml").config() == config
    assert len({config.digest() for config in (read.config_of(trial.params) for trial in study.trials)}) > 20


def test_lists_are_recorded_as_strings_and_built_as_tuples() -> None:
    params = {"model": "resnet", "model.resnet.depths": "[2, 2, 2]"}
    read = space("data: digits\nmodel: {vit: , resnet: {depths: {choice: [[1, 1, 1], [2, 2, 2]]}}}\n")
    assert read.sample(optuna.trial.FixedTrial(params)).component("model").args["depths"] == (2, 2, 2)


def test_a_fixed_trial_asks_for_reachable_parameters_only() -> None:
    read = space("data: digits\nmodel: {vit: {depth: {int: [1, 3]}}, resnet: {width: {int: [1, 3]}}}\n")
    trial = optuna.trial.FixedTrial({"model": "vit", "model.vit.depth": 2})
    assert read.sample(trial).to_dict()["model"] == {"vit": {"depth": 2, "width": 64, "bias": True}}
    assert trial.params == {"model": "vit", "model.vit.depth": 2}


def test_samples_of_a_stepped_float_stand_on_their_steps_exactly() -> None:
    read = space(f"{MINIMAL}augment: {{mixup: {{float: [0.1, 0.7], step: 0.2}}}}\n")
    assert read.config_of({"augment.mixup": 0.1 + 2 * 0.2}).section("augment")["mixup"] == 0.5
    assert read.config_of({"augment.mixup": 0.1 + 3 * 0.2}).section("augment")["mixup"] == 0.7
    assert [params["augment.mixup"] for params in read.combinations()] == [0.1, 0.3, 0.5, 0.7]


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({}, KeyError),
        ({"model": "vit"}, KeyError),
        ({"model": "mix", "model.vit.depth": 2}, ValueError),
        ({"model": "vit", "model.vit.depth": 9}, ValueError),
        ({"model": "vit", "model.vit.depth": 2.0}, ValueError),
        ({"model": "vit", "model.vit.depth": True}, ValueError),
        ({"model": "vit", "model.vit.depth": 2, "model.resnet.width": 2}, ValueError),
        ({"model": "resnet", "model.resnet.width": 2}, ValueError),
        ({"model": ["vit"]}, ValueError),
        ({"model": None}, ValueError),
    ],
)
def test_recorded_parameters_that_do_not_fit_are_an_error(params: dict[str, Any], error: type[Exception]) -> None:
    read = space("data: digits\nmodel: {vit: {depth: {int: [1, 3]}}, resnet: {width: {choice: [4]}}}\n")
    with pytest.raises(error):
        read.config_of(params)


@pytest.mark.parametrize(
    "value",
    ["{float: [0, 1], step: 1e-9}", "{float: [1, 1.0000001], step: 1e-10}", "{float: [-1000, -999.999], step: 1e-6}"],
)
def test_fine_steps_admit_what_a_real_study_draws_and_nothing_between(value: str) -> None:
    read = space(f"{MINIMAL}optimizer: {{sgd: {{lr: 1, momentum: {value}}}}}\n")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [read.sample(study.ask()) for _ in range(100)]
    assert len(set(drawn)) > 80
    (parameter,) = read.parameters()
    assert parameter.low is not None
    assert parameter.high is not None
    assert parameter.step is not None
    middle = (parameter.low + parameter.high) / 2 + parameter.step / 2
    for outside in (parameter.low + parameter.step / 2, middle, parameter.high + parameter.step, float("nan")):
        with pytest.raises(ValueError, match=r"momentum: .* is not in float"):
            read.config_of({parameter.path: outside})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1e-6, 0.4001, 10**400, True, "0.1"], ids=lambda value: str(value)[:8]
)
def test_a_recorded_number_outside_its_range_is_refused(value: Any) -> None:
    for step in ("", ", step: 0.1"):
        read = space(f"{MINIMAL}augment: {{mixup: {{float: [0.0, 0.4]{step}}}}}\n")
        with pytest.raises(ValueError, match=r"augment\.mixup: .* is not in float"):
            read.config_of({"augment.mixup": value})


def test_negative_zero_is_the_same_setting_as_zero() -> None:
    digest = space(f"{MINIMAL}augment: {{mixup: 0.0}}\n").config().digest()
    assert space(f"{MINIMAL}augment: {{mixup: -0.0}}\n").config().digest() == digest
    read = space(f"{MINIMAL}augment: {{mixup: {{float: [-0.0, 0.4]}}}}\n")
    assert read.config_of({"augment.mixup": -0.0}).digest() == digest


def test_true_is_not_one() -> None:
    read = space(with_model("{bias: {choice: [true, false]}}"))
    assert read.config_of({"model.vit.bias": False}).component("model").args["bias"] is False
    with pytest.raises(ValueError, match=r"model\.vit\.bias: 1 is not in one of true, false"):
        read.config_of({"model.vit.bias": 1})


def test_the_first_configuration_takes_the_lowest_of_everything() -> None:
    first = space(FULL).first().to_dict()
    assert first["image"] == {"size": 8, "channels": 1}
    assert first["augment"] == {"flip": "none", "mixup": 0.0, "policy": {"none": {}}}
    assert first["model"] == {"vit": {"depth": 2, "width": 32, "bias": True}}
    assert first["optimizer"] == {"adamw": {"lr": 1e-4, "decay": 0.0}}


# Counting


def test_independent_parameters_multiply_and_branches_add() -> None:
    read = space(FINITE)
    # size * flip * mixup * (none + rand) * (vit depth * width + resnet) * (adamw + sgd)
    assert read.num_combinations() == 2 * 2 * 5 * (1 + 3) * (3 * 65 + 2) * (2 + 1)
    assert read.num_combinations() == sum(1 for _ in read.combinations())


def test_a_reachable_continuous_parameter_cannot_be_counted() -> None:
    read = space(FULL)
    assert read.num_combinations() is None
    with pytest.raises(ValueError, match="continuous"):
        list(read.combinations())


def test_a_continuous_parameter_in_a_later_branch_is_told_before_the_first_combination() -> None:
    read = space(f"{MINIMAL}optimizer: {{adamw: , sgd: {{lr: {{float: [0.1, 1]}}}}}}\n")
    assert read.num_combinations() is None
    with pytest.raises(ValueError, match="continuous"):
        next(read.combinations())


SMALL = """
data: digits
augment: {mixup: {float: [0, 0.2], step: 0.1}, policy: {none: , rand: {num_ops: {choice: [1, 3]}}}}
model:
  mix: {ratios: {choice: [0.5, [0.5, 1]]}, stem: {conv: {kernel: {int: [1, 5], step: 2}}, patch: }}
  vit: {bias: {choice: [true, false]}}
"""


def test_combinations_are_complete_distinct_and_reachable() -> None:
    read = space(SMALL)
    combinations = list(read.combinations())
    assert len(combinations) == read.num_combinations() == 3 * 3 * (2 + 2 * 4)
    assert combinations == list(space(SMALL).combinations())
    configs = {read.config_of(params) for params in combinations}
    assert len(configs) == len(combinations)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert {read.sample(drawn.ask()) for _ in range(300)} <= configs


def test_every_combination_can_be_a_start_and_comes_back_the_same() -> None:
    combinations = list(space(SMALL).combinations())
    assert list(space(f"{SMALL}start: {json.dumps(combinations)}\n").start) == combinations


def test_a_configuration_has_one_combination() -> None:
    read = space(MINIMAL)
    assert read.num_combinations() == 1
    assert list(read.combinations()) == [{}]


# config, fill, dump, document


def test_a_space_that_is_searched_is_no_configuration() -> None:
    read = space("data: digits\nmodel: {vit: {depth: {int: [2, 3]}}, resnet: }\n")
    with pytest.raises(SpaceError) as caught:
        read.config()
    assert str(caught.value).split("\n") == [
        "spaces/vit.yaml: model: is still searched (one of vit, resnet), but a single configuration is needed; give one value, such as vit",
        "spaces/vit.yaml: model.vit.depth: is still searched (int 2..3), but a single configuration is needed; give one value, such as 2",
    ]


def test_fill_replaces_what_is_fixed_to_none_only() -> None:
    read = space(MINIMAL).fill({"image.size": 8, "image.channels": 3})
    assert read.config().section("image") == {"size": 8, "channels": 1}
    searched = space(f"{MINIMAL}image: {{size: {{choice: [8, 16]}}}}\n")
    assert searched.fill({"image.size": 32}) == searched
    with pytest.raises(KeyError):
        read.fill({"image.sise": 8})


def test_dump_writes_blocks_with_comments_and_lists_in_a_line() -> None:
    config = TrialConfig.from_dict({"model": {"resnet": {"depths": (1, 2), "width": 1e-5}}, "data": {"digits": {}}})
    assert dump(config, comments=["from study a\nmodel: vit", "b\x00\x1b"]) == (
        "# from study a\n# model: vit\n# b\\x00\\x1b\n"
        "model:\n  resnet:\n    depths: [1, 2]\n    width: 1.0e-05\ndata:\n  digits: {}\n"
    )


@pytest.mark.parametrize(
    "root",
    [
        "1e-4",
        "off",
        "null",
        "~",
        "",
        "true",
        "500_000",
        "a: b",
        "# x",
        "é 漢 🙂",
        " x ",
        "a\nb",
        "\x85\u2028",
        "<<",
        "2020-01-01",
        "'",
        '"',
        "-",
        "x" * 500,
        "\x07",
        "!tag",
        "0x1F",
        ".5",
        "{a}",
        "*a",
        "a\\b",
    ],
)
def test_any_string_survives_being_written_and_read(root: str) -> None:
    config = TrialConfig.from_dict(
        {**space(MINIMAL).config().to_dict(), "data": {"folder": {"root": root, "val": 0.5}}}
    )
    read = parse(dump(config, comments=[root]), CATALOG, source="best.yaml")
    assert read.config() == config
    assert read.config().digest() == config.digest()


def test_the_document_is_plain_json_and_complete() -> None:
    document = space(FULL).document
    assert json.loads(json.dumps(document)) == document
    assert document["model"] == {
        "vit": {"depth": {"int": [2, 6], "step": 2}, "width": {"int": [32, 96], "log": True}, "bias": True},
        "resnet": {"depths": {"choice": [[1, 1, 1], [2, 2, 2]]}, "width": 16},
    }
    assert document["study"]["objectives"] == [["accuracy", "maximize"], ["latency_ms", "minimize"]]
    assert document["limits"] == {"params": 500_000}
    assert document["start"][0]["model"] == "vit"
    assert document["optimizer"]["adamw"]["decay"] == 0.0


def test_differences_name_what_changed_key_by_key() -> None:
    old = space(FULL).document
    changed = (
        FULL.replace("[2, 6]", "[2, 8]").replace("  sgd: {lr: 0.1}\n", "").replace("size: {choice: [8, 16]}", "size: 8")
    )
    changed = changed.replace("accuracy: maximize, latency_ms: minimize", "latency_ms: minimize, accuracy: maximize")
    assert differences(old, json.loads(json.dumps(old))) == []
    assert differences(old, space(changed).document) == [
        Difference(
            path="study.objectives",
            old=[["accuracy", "maximize"], ["latency_ms", "minimize"]],
            new=[["latency_ms", "minimize"], ["accuracy", "maximize"]],
        ),
        Difference(
            path="start",
            old=[{"model": "vit", "model.vit.depth": 4, "optimizer": "adamw", "optimizer.adamw.lr": 0.001}],
            new=[{"model": "vit", "model.vit.depth": 4, "optimizer.adamw.lr": 0.001}],
        ),
        Difference(path="image.size", old={"choice": [8, 16]}, new=8),
        Difference(path="model.vit.depth", old={"int": [2, 6], "step": 2}, new={"int": [2, 8], "step": 2}),
        Difference(path="optimizer.sgd", old={"lr": 0.1, "momentum": 0.9}, new=MISSING),
    ]


def test_differences_tell_true_from_one_and_name_what_is_new_last() -> None:
    assert differences({"a": 1, "b": {}}, {"c": 2, "a": True, "b": {"d": 1}}) == [
        Difference(path="a", old=1, new=True),
        Difference(path="b.d", old=MISSING, new=1),
        Difference(path="c", old=MISSING, new=2),
    ]
    assert repr(MISSING) == "MISSING"


def test_the_space_package_imports_no_heavy_library() -> None:
    code = "import sys, imgcls_search.space; print([m for m in ('torch', 'optuna', 'sklearn', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The shipped spaces, against the real catalog

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "spaces").glob("*.yaml"))


def test_there_are_shipped_spaces() -> None:
    assert "vit.yaml" in {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_space_is_read_sampled_and_written_back(path: Path) -> None:
    read = read_space(path, catalog())
    assert read.parameters()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for entry in read.start:
        study.enqueue_trial(dict(entry))
    for _ in range(len(read.start) + 5):
        trial = study.ask()
        config = read.sample(trial)
        assert read_space(path, catalog()).config_of(trial.params) == config
        assert parse(dump(config), catalog(), source="best.yaml").config() == config


def test_reading_a_shipped_space_imports_no_heavy_library() -> None:
    code = (
        "import sys; from pathlib import Path; from imgcls_search.catalog import catalog; from imgcls_search.space import read_space; "
        "print(len(read_space(Path('spaces/vit.yaml'), catalog()).parameters()) > 3, "
        "[name for name in ('torch', 'torchvision', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "True []"


def test_errors_are_read_whole_by_another_process() -> None:
    with pytest.raises(SpaceError) as caught:
        parse("model: {vit: {widht: 3}}\nstudy: {trials: none}\n", catalog(), source="x.yaml")
    # Copies are made as pickles are.
    copied = copy.copy(caught.value)
    assert (str(copied), copied.problems) == (str(caught.value), caught.value.problems)
