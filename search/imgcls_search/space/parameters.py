"""The leaves of a space: fixed values, and the three kinds of searched values.

A node does not store its path but receives it, so that YAML, Optuna and the configuration share one name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

from imgcls_search.config import Scalar, Value
from imgcls_search.space.problems import canonical, plain, show
from imgcls_search.words import some

When = tuple[tuple[str, str], ...]
"""The branches that must be chosen, for example `(("model", "vit"),)`."""

MAX_STEPS = 2**53
"""Optuna stores parameters as floats, which cannot represent all whole numbers beyond this."""


MOST_CHOICES = 20
"""Choices of one parameter that a line lists."""


class Suggests(Protocol):
    """The interface for sampling a space: Optuna's `Trial`, its `FixedTrial`, or anything compatible."""

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        """Return one of the choices."""

    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int:
        """Return a whole number, both ends included."""

    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number, both ends included."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched setting."""

    path: str
    kind: Literal["choice", "int", "float"]
    choices: tuple[Scalar, ...] = ()
    """The choices in Optuna: lists become strings such as `[1, 1, 1]`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    when: When = ()
    """The branches that must be chosen for it to exist; empty if it always does."""

    num_values: int | None
    """None if it is continuous."""

    domain: str
    """In words, for example `int 2..6` or `one of [1, 1, 1], [2, 2, 2]`."""


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A fixed value."""

    value: Value

    def sample(self, path: str, trial: Suggests) -> Value:
        """Return the value without asking the trial."""
        return self.value

    def num_combinations(self) -> int | None:
        """Return 1."""
        return 1

    def combinations(self, path: str) -> Iterator[dict[str, Scalar]]:
        """Yield an empty set of parameters, once."""
        yield {}

    def document(self) -> Any:
        """Return the value as plain JSON."""
        return plain(self.value)


class Searched(ABC):
    """A searched leaf; subclasses define suggestions, membership and decoding."""

    @abstractmethod
    def suggest(self, path: str, trial: Suggests) -> Scalar:
        """Return the trial's suggestion, as the study records it."""

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Tell whether a recorded value belongs to the domain."""

    @abstractmethod
    def decode(self, value: Any) -> Value:
        """Return the configuration value of a recorded value."""

    @abstractmethod
    def values(self) -> Iterator[Scalar]:
        """Yield every value as the study records it; raise ValueError if there are infinitely many."""

    @abstractmethod
    def parameter(self, path: str, when: When = ()) -> Parameter:
        """Return the parameter of this leaf."""

    @abstractmethod
    def document(self) -> Any:
        """Return the leaf as in a file, as plain JSON."""

    def sample(self, path: str, trial: Suggests) -> Value:
        """Return the value that the trial suggests.

        Raises:
            ValueError: the suggestion is outside the domain.
        """
        value = self.suggest(path, trial)
        if not self.contains(value):
            raise ValueError(f"{path}: {show(value)} is not in {self.parameter(path).domain}")
        return self.decode(value)

    def num_combinations(self) -> int | None:
        """Return the number of values, None if infinite."""
        return self.parameter("").num_values

    def combinations(self, path: str) -> Iterator[dict[str, Scalar]]:
        """Yield each value under its path."""
        return ({path: value} for value in self.values())


@dataclass(frozen=True, kw_only=True)
class Choice(Searched):
    """One of several values, which may be lists."""

    options: tuple[Value, ...]

    def suggest(self, path: str, trial: Suggests) -> Scalar:
        """Return one of the options; a list as a string."""
        chosen: Scalar = trial.suggest_categorical(path, tuple(self.values()))
        return chosen

    def contains(self, value: Any) -> bool:
        """Tell whether a value is one of the options."""
        return any(same(value, option) for option in self.values())

    def decode(self, value: Any) -> Value:
        """Return the option of a recorded value."""
        return next(option for option in self.options if same(canonical(option), value))

    def values(self) -> Iterator[Scalar]:
        """Yield the options, lists as strings."""
        return (canonical(option) for option in self.options)

    def parameter(self, path: str, when: When = ()) -> Parameter:
        """Return the parameter of this leaf."""
        choices = tuple(self.values())
        return Parameter(
            path=path, kind="choice", choices=choices, when=when, num_values=len(choices), domain=one_of(choices)
        )

    def document(self) -> Any:
        """Return `{"choice": [...]}`."""
        return {"choice": plain(self.options)}


@dataclass(frozen=True, kw_only=True)
class Int(Searched):
    """A whole number, both ends included."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    as_float: bool = False
    """True if the builder takes floats only: a configuration then has 2.0, as it does for a fixed 2."""

    def suggest(self, path: str, trial: Suggests) -> Scalar:
        """Return a whole number."""
        return trial.suggest_int(path, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Tell whether a value is a whole number in the range and on a step."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def decode(self, value: Any) -> Value:
        """Return the number as the builder takes it."""
        return float(value) if self.as_float else int(value)

    def values(self) -> Iterator[Scalar]:
        """Yield the numbers from low to high."""
        return iter(range(self.low, self.high + 1, self.step))

    def parameter(self, path: str, when: When = ()) -> Parameter:
        """Return the parameter of this leaf."""
        return Parameter(
            path=path,
            kind="int",
            low=self.low,
            high=self.high,
            log=self.log,
            step=self.step,
            when=when,
            num_values=(self.high - self.low) // self.step + 1,
            domain=_range("int", self.low, self.high, self.step if self.step > 1 else None, self.log),
        )

    def document(self) -> Any:
        """Return `{"int": [low, high]}`, with `step` or `log` if they differ from the default."""
        return _described("int", self.low, self.high, self.step if self.step > 1 else None, self.log)


@dataclass(frozen=True, kw_only=True)
class Float(Searched):
    """A number, both ends included; continuous, or in steps from `low`."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def suggest(self, path: str, trial: Suggests) -> Scalar:
        """Return a number."""
        return trial.suggest_float(path, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Tell whether a value is a number in the range and, within rounding, on a step."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        hair = self._hair()
        inside = self.low - hair <= value <= self.high + hair
        return inside and (self.step is None or abs(value - self._on_step(value)) <= hair)

    def decode(self, value: Any) -> Value:
        """Return the number clipped to the range, or exactly on its step: equal values have equal digests."""
        if self.step is None:
            return min(max(float(value), self.low), self.high) + 0.0  # no -0.0, whose digest differs
        return self._on_step(value)

    def values(self) -> Iterator[Scalar]:
        """Yield the numbers from low to high.

        Raises:
            ValueError: the range is continuous.
        """
        num_values = self.parameter("").num_values
        if num_values is None:
            raise ValueError("a continuous range cannot be counted out")
        return (self._at(index) for index in range(num_values))

    def parameter(self, path: str, when: When = ()) -> Parameter:
        """Return the parameter of this leaf."""
        return Parameter(
            path=path,
            kind="float",
            low=self.low,
            high=self.high,
            log=self.log,
            step=self.step,
            when=when,
            num_values=1 if self.low == self.high else self._num_steps() + 1 if self.step else None,
            domain=_range("float", self.low, self.high, self.step, self.log),
        )

    def document(self) -> Any:
        """Return `{"float": [low, high]}`, with `step` or `log` if set."""
        return _described("float", self.low, self.high, self.step, self.log)

    def _hair(self) -> float:
        largest = max(abs(self.low), abs(self.high))
        if self.step is None:
            # exp(log(low)) may be slightly below low, and Optuna clips only at the high end.
            return 1e-12 * largest
        # Samplers add up steps in floating point: 0.1 + 2 * 0.1 must count as a high of 0.3. For steps that are small
        # relative to the numbers, the rounding of the numbers dominates.
        return max(1e-8 * self.step, 8 * math.ulp(largest))

    def _on_step(self, value: float) -> float:
        assert self.step is not None
        return self._at(round((value - self.low) / self.step))

    def _num_steps(self) -> int:
        assert self.step is not None
        return round((exact(self.high) - exact(self.low)) / exact(self.step))

    def _at(self, index: int) -> float:
        return self.low if self.step is None else float(exact(self.low) + index * exact(self.step))


def exact(number: float) -> Fraction:
    """Return the decimal value of a number as written, so that 0.3 is three times 0.1."""
    return Fraction(str(number))


def finest_step(low: float, high: float) -> float:
    """Return the smallest step whose values floats can distinguish, with rounding in samplers."""
    return 64 * math.ulp(max(abs(low), abs(high)))


def same(value: Any, other: Any) -> bool:
    """Tell whether two values are equal to a user: 1 equals 1.0, but not `true`."""
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other) and all(same(*pair) for pair in zip(value, other, strict=True))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(same(below, other[name]) for name, below in value.items())
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def one_of(choices: Sequence[Scalar]) -> str:
    """Return choices in words, as in `one of none, rand`."""
    return "one of " + some([choice if isinstance(choice, str) else show(choice) for choice in choices], MOST_CHOICES)


def _range(kind: str, low: float, high: float, step: float | None, log: bool) -> str:
    return f"{kind} {low!r}..{high!r}" + (f" step {step!r}" if step is not None else "") + (" log" if log else "")


def _described(kind: str, low: float, high: float, step: float | None, log: bool) -> dict[str, Any]:
    extras = {"step": step} if step is not None else {"log": True} if log else {}
    return {kind: [low, high], **extras}
