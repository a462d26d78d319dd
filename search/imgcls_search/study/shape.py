"""Check the values in a database: JSON as a search writes it passes; anything else is named in an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Protocol, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection

from imgcls_search.config import TrialConfig
from imgcls_search.study.fact_kinds import Finite, Kind, Measured, Parts, Whole
from imgcls_search.study.facts import SpaceFact, StudyFacts
from imgcls_search.trial import Trial

MOST_NUMBER = 1e150
"""Sums and squares of many smaller numbers are finite."""

MOST_NESTED = 100
"""Most levels of lists and mappings in each other; Python cannot follow ten times as many."""

ROUNDING = 1e-8
"""How far rounding may put a parameter outside its range, as a share of the range's larger end."""


class _Epoch(TypedDict):
    """Values of every epoch besides its metrics."""

    seconds: Finite
    epoch: Finite


class _DataArguments(TypedDict, total=False):
    """The arguments of a data set that are read without reading its images."""

    root: str | None
    file: str | None
    folds: Whole | None


class _Training(TypedDict, total=False):
    """The `training` section."""

    epochs: Whole
    batch_size: Whole
    device: str


class _Pretraining(TypedDict):
    """The arguments of a pretraining."""

    epochs: Whole
    batch_size: Whole


class _Config(TypedDict, total=False):
    """The parts of a trial's configuration that are read without building it."""

    model: Mapping[str, Parts]
    data: Mapping[str, _DataArguments]
    training: _Training
    unlabeled: Mapping[str, Parts]
    pretrain: Mapping[str, Parts]


_COMPONENTS = ("model", "data", "unlabeled", "pretrain")
"""Sections of a configuration with the name of one component."""


class _Origin(TypedDict, total=False):
    """Where a trial of a merged study comes from."""

    study: str
    trial: Whole


class _Folder(TypedDict):
    """The `folder` of a data section."""

    root: str


class _Table(TypedDict):
    """The `table` of a data section."""

    file: str
    root: str | None


class Readable(Protocol):
    """The parts of a record that are checked."""

    objectives: tuple[tuple[str, str], ...]
    facts: StudyFacts
    trials: list[Trial]

    @property
    def foreign_trials(self) -> Mapping[int, Any]:
        """Trials that no search made, by number."""


def refuse_misshapen(record: Readable) -> None:
    """Check the parts of a record that commands read without further checks.

    Raises:
        TypeError, ValueError, KeyError: something is not as a search writes it.
    """
    names = [metric for metric, _ in record.objectives]
    if not names or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"objectives of the study are {names!r:.80}")
    for _, direction in record.objectives:
        StudyDirection[direction.upper()]
    _refuse_nested([*record.facts.values()], "study")
    _must_be(record.facts, StudyFacts, "study")
    _refuse_incomplete(record.facts)
    _refuse_misshapen_folder(record.facts.get("space", {}))
    numbers = [*(trial.number for trial in record.trials), *record.foreign_trials]
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(f"its {len(numbers)} trials are not numbered from 0 to {len(numbers) - 1}")
    for trial in record.trials:
        _look_at(trial, len(names))
    for foreign in record.foreign_trials.values():
        _must_be(foreign.params, Mapping[str, Any], "params")


def _refuse_incomplete(facts: StudyFacts) -> None:
    """Check what is in every fact of its kind, though not in every version of it."""
    if "space" in facts:
        _must_have(facts["space"], ("study",), "study.space")
    for name, chosen in facts.get("space", {}).get("study", {}).items():
        if name in ("sampler", "pruner") and (not isinstance(chosen, Mapping) or len(chosen) != 1):
            raise ValueError(f"study.space.study.{name} is {_shown(chosen)}")
    for part in facts.get("merged", []):
        _must_have(part, ("study",), "study.merged")
    for known in facts.get("backbones", {}).values():
        if known.get("state") == "making":
            _must_have(known, ("model", "pretrain", "epochs"), "study.backbones")
    for learned in facts.get("learned", []):
        for row in learned["rows"]:
            if len(row) != len(learned["settings"]) + 2 or not all(map(_is_finite, row[-2:])):
                raise ValueError(f"study.learned has a row {_shown(row)}")
            if not all(map(_is_scalar, row)):
                raise TypeError(f"study.learned has a row {_shown(row)}")


def _must_have(value: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    for key in keys:
        if key not in value:
            raise ValueError(f"{what}.{key} is missing")


def _refuse_nested(value: Any, what: str) -> None:
    level = [value]
    for _ in range(MOST_NESTED):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [part for inner in parts for part in inner if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"{what} has more than {MOST_NESTED} levels of values in each other")


def _refuse_misshapen_folder(space: SpaceFact) -> None:
    data = space.get("data", {})
    if "folder" in data:
        _must_be(data["folder"], _Folder, "space.data.folder")
    if "table" in data:
        _must_be(data["table"], _Table, "space.data.table")


def _look_at(trial: Trial, num_objectives: int) -> None:
    try:
        _look_into(trial, num_objectives)
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(f"trial {trial.number}: {error.args[0] if error.args else error}") from error


def _look_into(trial: Trial, num_objectives: int) -> None:
    for whole in (trial.number, trial.seed, trial.judged, trial.until, trial.deaths):
        _must_be(whole, Whole, "its plan")
    if trial.judged > trial.until or trial.micro_batches < 1 or type(trial.micro_batches) is not int:
        raise ValueError("its plan is not as it was written")
    _must_be(list(trial.values or ()), list[Measured], "values")
    if trial.state == "complete" and len(trial.values or ()) != num_objectives:
        raise ValueError("it is complete without its values")
    for number, epoch in enumerate(trial.epochs, start=1):
        _must_be(epoch, Mapping[str, Measured], f"epoch {number}")
        _must_be(epoch, _Epoch, f"epoch {number}")
        if epoch["epoch"] != number:
            raise ValueError(f"epoch {number} is missing")
    for after, metrics in trial.scores.items():
        _must_be(after, Whole, "epoch of a score")
        _must_be(metrics, Mapping[str, Measured], "score")
    _must_be(trial.sizes, Mapping[str, Finite], "sizes")
    _must_be(trial.constraints, Mapping[str, Measured], "constraints")
    _must_be(trial.candidate.sampler_state, Mapping[str, Any], "sampler_state")
    for name, value in trial.candidate.sampler_state.items():
        # Optuna's samplers compare it.
        if name.endswith(":generation"):
            _must_be(value, Whole, name)
    _look_at_params(trial.candidate.params, trial.candidate.distributions)
    for rejection in trial.rejected_before:
        _must_be(rejection.params, Mapping[str, Any], "params of a rejection")
        _look_at_params(rejection.params, rejection.distributions)
        _must_be(rejection.reason, str, "reason of a rejection")
    _must_be([text for text in (trial.reason, *trial.troubles) if text is not None], list[str], "reason")
    _must_be(dict(trial.pictures or {}), Mapping[str, str], "pictures")
    _must_be(trial.strategy, Mapping[str, Mapping[str, Any]], "strategy")
    _must_be(trial.request or "", str, "request")
    _must_be(trial.origin, _Origin, "origin")
    _look_at_config(trial.candidate.config)


def _look_at_config(config: TrialConfig) -> None:
    tree = config.tree
    _must_be(tree, Mapping[str, Parts], "config")
    _must_be(tree, _Config, "config")
    # Curves of something else than networks have a section `config` instead of a model.
    known = {"model": {}, **tree} if "config" not in tree else tree
    for name in _COMPONENTS:
        if name in known and len(known[name]) != 1:
            raise ValueError(f"its config has not one {name}")
    if tree.get("training", {}).get("epochs", 1) < 1:
        raise ValueError("its config trains for no epoch")
    if config.is_pretraining:
        _must_be(config.component("pretrain").args, _Pretraining, "config.pretrain")
    if "folder" in tree.get("unlabeled", {}):
        _must_be(tree["unlabeled"]["folder"], _Folder, "config.unlabeled.folder")


def _look_at_params(params: Mapping[str, Any], distributions: Mapping[str, Any]) -> None:
    if params.keys() != distributions.keys():
        raise ValueError("its parameters are not those with a range")
    for name, value in params.items():
        if not _is_scalar(value) or not _is_in(distributions[name], value):
            raise ValueError(f"its parameter {name} is {_shown(value)}")


def _is_in(distribution: Any, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = distribution.low, distribution.high
    hair = ROUNDING * max(abs(low), abs(high))
    return all(map(_is_finite, (low, high, value))) and low - hair <= value <= high + hair


def is_of(value: Any, shape: Any) -> bool:
    """Tell whether a value is of a declared type."""
    try:
        _must_be(value, shape, "")
    except (TypeError, ValueError):
        return False
    return True


def _must_be(value: Any, shape: Any, what: str) -> None:
    """Check a value against a declared type: a class, a `TypedDict`, a list or mapping of types, a kind."""
    if (test := _test(shape)) is not None:
        if not test(value):
            raise TypeError(f"{what} is {_shown(value)}")
    elif is_typeddict(shape):
        _mapping(value, what)
        for key, inner in _keys(shape).items():
            if key in value:
                _must_be(value[key], inner, f"{what}.{key}")
            elif key in shape.__required_keys__:
                raise ValueError(f"{what}.{key} is missing")
    elif get_origin(shape) is list:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{what} is {_shown(value)}, and not a list")
        (inner,) = get_args(shape)
        for number, part in enumerate(value):
            _must_be(part, inner, f"{what}[{number}]")
    else:
        _, inner = get_args(shape)
        test = _test(inner)
        for key, part in _mapping(value, what).items():
            # A large study has a million of them.
            if test is None or not test(part):
                _must_be(part, inner, f"{what}.{key}")


@cache
def _keys(shape: Any) -> dict[str, Any]:
    return get_type_hints(shape, include_extras=True)


@cache
def _test(shape: Any) -> Callable[[Any], bool] | None:
    """Return a check of whether a value is of a type, or None for types with parts to check."""
    origin = get_origin(shape)
    if shape is Any:
        return lambda value: True
    if origin is Annotated:
        return _TESTS[shape.__metadata__[0]]
    if origin in (Union, UnionType):
        tests = [test for part in get_args(shape) if (test := _test(part)) is not None]
        return lambda value: any(test(value) for test in tests)
    if origin is not None or is_typeddict(shape):
        return None
    return lambda value: isinstance(value, shape)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST_NUMBER


def _is_measured(value: Any) -> bool:
    return type(value) is float or _is_finite(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_finite, value))


def _is_setting(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and _is_scalar(value[1])


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= sys.maxsize


_TESTS: Mapping[Kind, Callable[[Any], bool]] = {
    Kind.FINITE: _is_finite,
    Kind.MEASURED: _is_measured,
    Kind.WHOLE: _is_whole,
    Kind.INTERVAL: _is_interval,
    Kind.SETTING: _is_setting,
    Kind.PARTS: lambda value: isinstance(value, Mapping),
}


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is {_shown(value)}, and not a mapping")
    return value


def _shown(value: Any) -> str:
    return f"{value!r:.40}"
