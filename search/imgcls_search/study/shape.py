"""What the values in a database must look like: JSON that nobody's hand has changed passes, and all else is named."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.study import StudyDirection

from imgcls_search.trial import Trial


class _Number:
    """A finite number."""


class _Measured:
    """What a training measured, which may be infinite, or no number where nothing could be measured."""


class _OrNone:
    """A finite number, or nothing."""


class _Whole:
    """A whole number that is not negative."""


class _Each:
    """A mapping whose values all look alike."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


_ESTIMATE = {"mean": _Number, "ci95": _Number}
_FACTS: Mapping[str, Any] = {
    "space?": {"study?": {"sampler": {}, "pruner": {}}},
    "data?": {"fingerprint": str, "classes": [str], "images": _Each(_Whole)},
    "versions?": _Each(str),
    "hardware?": str,
    "teachers?": _Each({"sha256": str}),
    "runs?": [{}],
    "test_openings?": [{}],
    "confirmed?": {
        "metric": str,
        "chosen": _Whole,
        "seeds": {"choosing": [_Whole], "fresh": [_Whole]},
        "ranking": [{"trial": _Whole, "searched": _Number, **_ESTIMATE}],
        "scores": [_Number],
        "confirmed": {**_ESTIMATE, "std": _Number},
        "optimism": _ESTIMATE,
        "test": {**_ESTIMATE, "images": _Whole},
    },
    "ablation?": {
        "metric": str,
        "winner": _Whole,
        "seeds": [_Whole],
        "steps": [{"changes": [str], "mean": _Number, "ci95": _OrNone}],
    },
}
"""Facts of a study; a key with a question mark may be missing, and others may be there."""


class Readable(Protocol):
    """What is looked at of a record."""

    objectives: tuple[tuple[str, str], ...]
    facts: dict[str, Any]
    trials: list[Trial]

    @property
    def strangers(self) -> Mapping[int, Any]:
        """Trials of others, by number."""


def refuse_misshapen(record: Readable) -> None:
    """See that a record holds what commands read without a further look.

    Raises:
        TypeError, ValueError, KeyError: something is not as a search writes it.
    """
    names = [metric for metric, _ in record.objectives]
    if not names or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"objectives of the study are {names!r:.80}")
    for _, direction in record.objectives:
        StudyDirection[direction.upper()]
    _must_be(record.facts, _FACTS, "study")
    _refuse_misshapen_folder(record.facts.get("space", {}))
    numbers = [*(trial.number for trial in record.trials), *record.strangers]
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError(f"its {len(numbers)} trials are not numbered from 0 to {len(numbers) - 1}")
    for trial in record.trials:
        _look_at(trial, len(names))
    for stranger in record.strangers.values():
        _must_be(stranger.params, _Each(object), "params")


def _refuse_misshapen_folder(space: Mapping[str, Any]) -> None:
    data = space.get("data", {})
    _must_be(data, {}, "space.data")
    if "folder" in data:
        _must_be(data["folder"], {"root": str}, "space.data.folder")


def _look_at(trial: Trial, num_objectives: int) -> None:
    try:
        _look_into(trial, num_objectives)
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(f"trial {trial.number}: {error.args[0] if error.args else error}") from error


def _look_into(trial: Trial, num_objectives: int) -> None:
    for whole in (trial.number, trial.seed, trial.judged, trial.until, trial.deaths):
        _must_be(whole, _Whole, "its plan")
    if trial.judged > trial.until or trial.micro_batches < 1 or type(trial.micro_batches) is not int:
        raise ValueError("its plan is not as it was written")
    _must_be(list(trial.values or ()), [_Measured], "values")
    if trial.state == "complete" and len(trial.values or ()) != num_objectives:
        raise ValueError("it is complete without its values")
    for place, epoch in enumerate(trial.epochs, start=1):
        _must_be(epoch, _Each(_Measured), f"epoch {place}")
        _must_be(epoch, {"seconds": _Number, "epoch": _Number}, f"epoch {place}")
        if epoch["epoch"] != place:
            raise ValueError(f"epoch {place} is missing")
    for after, metrics in trial.scores.items():
        _must_be(after, _Whole, "epoch of a score")
        _must_be(metrics, _Each(_Measured), "score")
    _must_be(trial.sizes, _Each(_Number), "sizes")
    _must_be(trial.constraints, _Each(_Measured), "constraints")
    _must_be(trial.candidate.sampler_state, {}, "sampler_state")
    for rejection in trial.rejected_before:
        _must_be(rejection.params, {}, "params of a rejection")
        _must_be(rejection.reason, str, "reason of a rejection")
    _must_be([text for text in (trial.reason, *trial.troubles) if text is not None], [str], "reason")
    _must_be(dict(trial.pictures or {}), _Each(str), "pictures")
    config = trial.candidate.config
    _must_be(config.tree, _Each({}), "config")
    _must_be(config.tree, {"model?": _Each({})}, "config")
    if len(config.tree.get("model", {"": {}})) != 1:
        raise ValueError("its config has not one model")


def _must_be(value: Any, shape: Any, what: str) -> None:
    match shape:
        case _Each():
            for key, part in _mapping(value, what).items():
                _must_be(part, shape.shape, f"{what}.{key}")
        case Mapping():
            _mapping(value, what)
            for name, inner in shape.items():
                key = name.removesuffix("?")
                if key in value:
                    _must_be(value[key], inner, f"{what}.{key}")
                elif key == name:
                    raise ValueError(f"{what}.{key} is missing")
        case [inner]:
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TypeError(f"{what} is {_shown(value)}, and not a list")
            for place, part in enumerate(value):
                _must_be(part, inner, f"{what}[{place}]")
        case _:
            if not _is(value, shape):
                raise TypeError(f"{what} is {_shown(value)}")


def _is(value: Any, kind: type[Any]) -> bool:
    if kind is _OrNone and value is None:
        return True
    if kind in (_Number, _OrNone):
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is _Measured:
        return type(value) is float or _is(value, _Number)
    if kind is _Whole:
        return type(value) is int and 0 <= value <= sys.maxsize
    return isinstance(value, kind)


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} is {_shown(value)}, and not a mapping")
    return value


def _shown(value: Any) -> str:
    return f"{value!r:.40}"
