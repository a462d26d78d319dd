"""A parsed space: what may be searched, what is given, and how the search goes about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imgcls_search.config import PRETRAINING, Component, Scalar, TrialConfig, Value
from imgcls_search.errors import Problem, SpaceError
from imgcls_search.measures import OF_FEATURES
from imgcls_search.space.parameters import Parameter, Suggests
from imgcls_search.space.problems import show
from imgcls_search.space.tree import Group, fill, parameters, walk


@dataclass(frozen=True, kw_only=True)
class Space:
    """One study as its file describes it; a space with nothing searched is a configuration."""

    name: str
    """The name of the study: `study.name`, or the file's and the data's, as in `vit-digits`."""

    former_name: str | None = field(default=None, compare=False)
    """The name that earlier versions gave, `vit-folder` for any folder, where that is another."""

    source: str
    """The file it came from, for errors."""

    study: Mapping[str, Any]
    """The `study` section with its defaults; the sampler is `{"tpe": {...}}`, the pruner likewise."""

    objectives: tuple[tuple[str, str], ...]
    """Metrics with `maximize` or `minimize`, in the order of the file."""

    limits: Mapping[str, float]
    """The limits of sizes and costs that are set."""

    score_limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The limits of scores that are set, by metric: `{"at_least": 0.95}`, `{"at_most": 0.3}` or both."""

    start: tuple[Mapping[str, Scalar], ...]
    """Known-good configurations as Optuna's parameters, lists as strings; what is left out is sampled."""

    root: Group
    """The tree of everything that a configuration holds."""

    positions: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each path that was written stands, as `file:line:column`."""

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
        """The metrics that objectives and limits name, each once."""
        objectives = (metric for metric, _ in self.objectives)
        return tuple(dict.fromkeys([*objectives, *self.limits, *self.score_limits]))

    def over_score_limits(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return by how much some metrics are beyond each limit of a score; above 0 it is broken."""
        return {
            name: max(
                bound - metrics[name] if side == "at_least" else metrics[name] - bound for side, bound in limit.items()
            )
            for name, limit in self.score_limits.items()
        }

    @property
    def is_of_pretraining(self) -> bool:
        """True where the pretraining itself is searched: its objectives are measures of features."""
        return any(metric in OF_FEATURES for metric, _ in self.objectives)

    def sample(self, trial: Suggests) -> TrialConfig:
        """Return the configuration that a trial suggests.

        Raises:
            ValueError: the trial suggests what is not in the space.
        """
        config = TrialConfig.from_dict(self.root.sample("", trial))
        return config.pretraining() if self.is_of_pretraining else config

    def config_of(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the configuration that recorded parameters stand for.

        Raises:
            KeyError: a parameter is missing.
            ValueError: a parameter is not in its domain, or the space has no such parameter.
        """
        recorded = _Recorded(params)
        config = self.sample(recorded)
        if strange := sorted(params.keys() - recorded.asked):
            raise ValueError(f"no parameters of this space: {', '.join(strange)}")
        return config

    def locate(self, path: str) -> str:
        """Return where a path, or the nearest one above it, was written: `spaces/vit.yaml:14:5`."""
        while path and path not in self.positions:
            path = path.rpartition(".")[0]
        return self.positions.get(path, self.source)

    def gives(self, argument: str) -> bool:
        """Tell whether the space says anything of a builder's argument of this name."""
        return any(path.rpartition(".")[2] == argument for path in self.positions)

    def first(self) -> TrialConfig:
        """Return the first choice and the lowest value of everything; what is given is the same in all."""
        return self.sample(_First())

    @property
    def is_config(self) -> bool:
        """Whether nothing is searched."""
        return not self.parameters()

    def config(self) -> TrialConfig:
        """Return the one configuration of a space in which nothing is searched.

        Raises:
            SpaceError: something is; every path is named.
        """
        self._refuse_searched(self.parameters())
        return self.config_of({})

    def pretraining(self) -> TrialConfig:
        """Return a configuration of which all that decides on its pretraining is given; the rest is some choice.

        Raises:
            SpaceError: some of that is searched; every path is named.
        """
        self._refuse_searched([each for each in self.parameters() if each.path.partition(".")[0] in PRETRAINING])
        return self.first()

    def _refuse_searched(self, searched: Sequence[Parameter]) -> None:
        if searched:
            problems = (Problem(path=each.path, message=_still_searched(each)) for each in searched)
            raise SpaceError(self.source, problems)

    def parameters(self) -> list[Parameter]:
        """Return everything that is searched, the choices between components included."""
        return parameters(self.root)

    def num_combinations(self) -> int | None:
        """Return how many different configurations there are, None with a continuous parameter."""
        return self.root.num_combinations()

    def combinations(self) -> Iterator[dict[str, Scalar]]:
        """Yield the parameters of each configuration, always in the same order.

        Raises:
            ValueError: a parameter is continuous, in whichever branch.
        """
        if self.num_combinations() is None:
            raise ValueError("a space with a continuous range cannot be counted out")
        return self.root.combinations("")

    def fill(self, values: Mapping[str, Value]) -> Space:
        """Return a space with the values at paths that are fixed to None or `auto`; other paths stay as they are.

        Raises:
            KeyError: the space has no such path.
        """
        if strange := values.keys() - {path for path, _, _ in walk(self.root)}:
            raise KeyError(*sorted(strange))
        return replace(self, root=fill(self.root, values))

    @property
    def document(self) -> Mapping[str, Any]:
        """The whole space as plain JSON, defaults included; equal spaces have equal documents."""
        study = TrialConfig(self.study).to_dict()
        return {
            # Pairs, because the order of objectives means something and that of a mapping may get lost.
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
    """Answers with recorded parameters; the space itself checks that they belong."""

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
