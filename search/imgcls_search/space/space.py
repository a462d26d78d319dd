"""A parsed space: searched settings, fixed settings, and the settings of the search itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imgcls_search.config import PRETRAINING, Component, Scalar, TrialConfig, Value
from imgcls_search.errors import Problem, SpaceError, UserError
from imgcls_search.measures import of_features, retraining_command
from imgcls_search.space.parameters import Parameter, Suggests
from imgcls_search.space.problems import show
from imgcls_search.space.tree import Group, fill, parameters, walk
from imgcls_search.words import argument


@dataclass(frozen=True, kw_only=True)
class Space:
    """A study as described in its file; a space without searched settings is a configuration."""

    name: str
    """The name of the study: `study.name`, or the file's and the data's names, as in `vit-digits`."""

    former_name: str | None = field(default=None, compare=False)
    """The name in earlier versions, `vit-folder` for any folder, if it differs."""

    source: str
    """The source file, for error messages."""

    study: Mapping[str, Any]
    """The `study` section with its defaults; sampler and pruner have the form `{"tpe": {...}}`."""

    objectives: tuple[tuple[str, str], ...]
    """Metrics with `maximize` or `minimize`, in the order of the file."""

    limits: Mapping[str, float]
    """The limits of sizes and costs, if set."""

    score_limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The limits of scores, if set, by metric: `{"at_least": 0.95}`, `{"at_most": 0.3}` or both."""

    start: tuple[Mapping[str, Scalar], ...]
    """Known-good configurations as Optuna parameters, lists as strings; missing parameters are sampled."""

    root: Group
    """The tree of all settings of a configuration."""

    positions: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """The position of each written path, as `file:line:column`."""

    @property
    def sampler(self) -> Component:
        """The sampler with its arguments."""
        return self._component("sampler")

    @property
    def pruner(self) -> Component:
        """The pruner with its arguments."""
        return self._component("pruner")

    @property
    def named_metrics(self) -> tuple[str, ...]:
        """The metrics in objectives and limits, each once."""
        objectives = (metric for metric, _ in self.objectives)
        return tuple(dict.fromkeys([*objectives, *self.limits, *self.score_limits]))

    def over_score_limits(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return by how much metrics exceed each score limit; positive values violate the limit."""
        return {
            name: max(
                bound - metrics[name] if side == "at_least" else metrics[name] - bound for side, bound in limit.items()
            )
            for name, limit in self.score_limits.items()
        }

    @property
    def is_of_pretraining(self) -> bool:
        """True if the search is over the pretraining itself, with metrics of features as objectives."""
        return of_features(self.objectives) is not None

    def sample(self, trial: Suggests) -> TrialConfig:
        """Return the configuration that a trial suggests.

        Raises:
            ValueError: a suggestion is outside the space.
        """
        config = TrialConfig.from_dict(self.root.sample("", trial))
        return config.pretraining() if self.is_of_pretraining else config

    def config_of(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the configuration of recorded parameters.

        Raises:
            KeyError: a parameter is missing.
            ValueError: a parameter is outside its domain, or the space has no such parameter.
        """
        recorded = _Recorded(params)
        config = self.sample(recorded)
        if strange := sorted(params.keys() - recorded.asked):
            raise ValueError(f"no parameters of this space: {', '.join(strange)}")
        return config

    def locate(self, path: str) -> str:
        """Return where a path, or its nearest parent, was written: `spaces/vit.yaml:14:5`."""
        while path and path not in self.positions:
            path = path.rpartition(".")[0]
        return self.positions.get(path, self.source)

    def gives(self, argument: str) -> bool:
        """Tell whether the space sets any builder argument of this name."""
        return any(path.rpartition(".")[2] == argument for path in self.positions)

    def first(self) -> TrialConfig:
        """Return the configuration with the first choices and the lowest values."""
        return self.sample(_First())

    @property
    def is_config(self) -> bool:
        """Whether nothing is searched."""
        return not self.parameters()

    def how_to_train(self, file: Path) -> str:
        """Return what to do with a file without searched settings: `train it with: imgcls-search train FILE`."""
        shown = argument(file)
        if self.is_of_pretraining:
            return f"pretrain it with: {retraining_command(shown, pretrains=True)}"
        return f"train it with: imgcls-search train {shown}"

    def refuse_config(self, file: Path) -> None:
        """Refuse a file in which nothing is searched.

        Raises:
            UserError: it names the command for such a file.
        """
        if self.is_config:
            raise UserError(f"{file}: nothing is searched in it; {self.how_to_train(file)}")

    def config(self) -> TrialConfig:
        """Return the configuration of a space without searched settings.

        Raises:
            SpaceError: some settings are searched; it lists their paths.
        """
        self._refuse_searched(self.parameters())
        return self.config_of({})

    def pretraining(self) -> TrialConfig:
        """Return a configuration whose pretraining settings are all fixed; other searched settings get a first choice.

        Raises:
            SpaceError: some pretraining settings are searched; it lists their paths.
        """
        self._refuse_searched([each for each in self.parameters() if each.path.partition(".")[0] in PRETRAINING])
        return self.first()

    def _refuse_searched(self, searched: Sequence[Parameter]) -> None:
        if searched:
            problems = (Problem(path=each.path, message=_still_searched(each)) for each in searched)
            raise SpaceError(self.source, problems)

    def parameters(self) -> list[Parameter]:
        """Return all searched parameters, including choices between components."""
        return parameters(self.root)

    def num_combinations(self) -> int | None:
        """Return the number of different configurations, None with a continuous parameter."""
        return self.root.num_combinations()

    def combinations(self) -> Iterator[dict[str, Scalar]]:
        """Yield the parameters of each configuration, always in the same order.

        Raises:
            ValueError: a parameter is continuous, in any branch.
        """
        if self.num_combinations() is None:
            raise ValueError("a space with a continuous range cannot be counted out")
        return self.root.combinations("")

    def fill(self, values: Mapping[str, Value]) -> Space:
        """Return a space with values at paths that are fixed to None or `auto`; other paths stay unchanged.

        Raises:
            KeyError: the space has no such path.
        """
        if strange := values.keys() - {path for path, _, _ in walk(self.root)}:
            raise KeyError(*sorted(strange))
        return replace(self, root=fill(self.root, values))

    @property
    def document(self) -> Mapping[str, Any]:
        """The whole space as plain JSON, with defaults; equal spaces have equal documents."""
        study = TrialConfig(self.study).to_dict()
        return {
            # Pairs, because the order of objectives matters and a mapping may lose it.
            "study": {**study, "name": self.name, "objectives": [list(pair) for pair in self.objectives]},
            "limits": {**self.limits, **{name: dict(limit) for name, limit in self.score_limits.items()}},
            "start": [dict(entry) for entry in self.start],
            **self.root.document(),
        }

    def _component(self, key: str) -> Component:
        return TrialConfig.from_dict({"study": self.study}).component(f"study.{key}")


class _First:
    """Suggests the first choice and the lowest value."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        return low

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        return low


class _Recorded:
    """Returns recorded parameters as suggestions; the space itself checks that they are valid."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.asked: set[str] = set()
        self._params = params

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._take(name)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        return self._take(name)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        return self._take(name)

    def _take(self, name: str) -> Any:
        self.asked.add(name)
        return self._params[name]


def _still_searched(parameter: Parameter) -> str:
    example = parameter.choices[0] if parameter.choices else parameter.low
    text = example if isinstance(example, str) else show(example)
    return (
        f"is still searched ({parameter.domain}), but a single configuration is needed; give one value, such as {text}"
    )
