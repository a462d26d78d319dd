"""Which configuration to try next: the samplers that a space may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from imgcls_search.errors import BuildError
from imgcls_search.signature import Arg, build
from imgcls_search.space import Space
from imgcls_search.strategy.curves import CurveSampler
from imgcls_search.strategy.draws import ask, draw_evenly, draw_random, draw_unseen
from imgcls_search.strategy.earlier import EarlierStudy, Knowledge
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.rungs import expected_epochs
from imgcls_search.strategy.view import View
from imgcls_search.trial import Candidate

if TYPE_CHECKING:
    import optuna

Startup = Annotated[int, Arg("trials drawn at random first", ge=1)]


class Sampler(Protocol):
    """Draws candidates."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return the candidate for a trial number; a later attempt gives another. None: the space is exhausted."""


class OptunaSampler:
    """Draws with one of Optuna's samplers, created for each draw with its own seed."""

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], *, keeps_state: bool = False) -> None:
        """`make` takes a seed; `keeps_state` is for samplers that store state with trials for later draws."""
        self.make = make
        self.keeps_state = keeps_state

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Ask the sampler, which sees the view as a study."""
        study = view.study(self.make(view.derive(number, attempt)))
        return ask(study, view.space, keeps_state=self.keeps_state)


class Random:
    """Draws every parameter independently of all trials, and so needs no study."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return a random candidate."""
        return draw_random(view, number, attempt)


class Grid:
    """Draws every combination of a finite space once, in an order shuffled by the study's seed."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return a combination that was not tried yet."""
        return draw_unseen(view, number)


class Sobol:
    """Draws points of a scrambled Sobol sequence."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return the next point, counted by trials, rejections and repeats."""
        return draw_evenly(view, number, attempt)


def _same_names() -> optuna.search_space.IntersectionSearchSpace:
    """Return an object that finds the parameters that all trials share, by name only.

    Optuna also compares the ranges, which takes two fifths of a draw with 1,000 trials; in our studies a name has one
    range. A test compares the draws with those of unmodified Optuna.
    """
    from optuna.search_space import IntersectionSearchSpace
    from optuna.trial import TrialState

    class SameNames(IntersectionSearchSpace):
        def calculate(self, study: optuna.Study, use_cache: bool = False) -> dict[str, Any]:
            ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if not ended:
                return {}
            names = set(ended[0].distributions).intersection(*(trial.distributions for trial in ended[1:]))
            return {name: ended[0].distributions[name] for name in sorted(names)}

    return SameNames(include_pruned=True)


def auto(*, space: Space) -> Sampler:
    """Use `curves` for one objective and `tpe` for several."""
    return curves(space=space) if len(space.objectives) == 1 else tpe(space=space)


def random(*, space: Space) -> Sampler:
    """Draw every parameter independently."""
    return Random()


def tpe(
    *,
    space: Space,
    n_startup_trials: Startup = 10,
    n_ei_candidates: Annotated[int, Arg("candidates drawn for each choice", ge=1)] = 24,
) -> Sampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's: models good and bad trials separately."""

    def make(seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        sampler = optuna.samplers.TPESampler(
            n_startup_trials=n_startup_trials, n_ei_candidates=n_ei_candidates, seed=seed
        )
        sampler._search_space = _same_names()
        return sampler

    return OptunaSampler(make)


def gp(*, space: Space, n_startup_trials: Startup = 10) -> Sampler:
    """Gaussian process with expected improvement, Optuna's; for few trials without pruning.

    Raises:
        BuildError: the space has conditional parameters, which the process does not model.
    """
    _refuse_conditions(space)

    def make(seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.GPSampler(n_startup_trials=n_startup_trials, seed=seed)

    return OptunaSampler(make)


def cmaes(*, space: Space, n_startup_trials: Startup = 1) -> Sampler:
    """Covariance matrix adaptation (Hansen 2016), Optuna's; for numbers only.

    Raises:
        BuildError: its package is missing, or the space has conditional parameters, choices, or several objectives.
    """
    from importlib.util import find_spec

    if find_spec("cmaes") is None:
        raise BuildError("", "needs a package that is not installed; pip install 'imgcls-search[cmaes]'")
    _refuse_conditions(space)
    choices = [parameter.path for parameter in space.parameters() if parameter.kind == "choice"]
    if choices:
        raise BuildError("", f"handles numbers only, got choices: {', '.join(choices)}; allowed: random, tpe, qmc")
    if len(space.objectives) > 1:
        raise BuildError("", "handles one objective only; allowed: random, tpe, nsga2, qmc, grid")

    def make(seed: int) -> optuna.samplers.BaseSampler:
        from imgcls_search.strategy.cmaes_state import CheckedCmaEs

        return CheckedCmaEs(n_startup_trials=n_startup_trials, seed=seed, consider_pruned_trials=True)

    return OptunaSampler(make, keeps_state=True)


def nsga2(*, space: Space, population_size: Annotated[int, Arg("trials of a generation", ge=2)] = 50) -> Sampler:
    """Non-dominated sorting genetic algorithm II (Deb et al. 2002), Optuna's; for several objectives."""

    def make(seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.NSGAIISampler(population_size=population_size, seed=seed)

    return OptunaSampler(make, keeps_state=True)


def grid(*, space: Space) -> Sampler:
    """Try every combination of a finite space once, in an order shuffled by the seed.

    Raises:
        BuildError: the space is not finite.
    """
    if space.num_combinations() is None:
        endless = [p.path for p in space.parameters() if p.num_values is None]
        raise BuildError(
            "", f"needs a finite space; without an end: {', '.join(endless)}; give them a step or a choice"
        )
    return Grid()


def qmc(*, space: Space) -> Sampler:
    """Scrambled Sobol points (Sobol 1967), which fill the space more evenly than random draws."""
    return Sobol()


def curves(
    *,
    space: Space,
    n_startup_trials: Annotated[
        int | None,
        Arg(
            "trials spread evenly over the space first; default: a third of those that fit into the study, 5 to 20",
            ge=1,
        ),
    ] = None,
    random_share: Annotated[float, Arg("share of the later trials that are spread evenly too", ge=0, le=1)] = 0.33,
) -> Sampler:
    """Learns from partial curves: a Gaussian process over (configuration, epoch), expected improvement at the end.

    Raises:
        BuildError: there are several objectives.
    """
    if len(space.objectives) > 1:
        raise BuildError("", "handles one objective only; allowed: random, tpe, nsga2, qmc, grid")
    epochs = space.first().epochs
    startup = n_startup_trials or min(20, max(5, _affordable(space, epochs) // 3))
    return CurveSampler(space, epochs=epochs, n_startup_trials=startup, random_share=random_share)


def _affordable(space: Space, epochs: int) -> int:
    """Return how many trials a study allows, or how many its epochs are likely to be enough for."""
    trials: int = space.study["trials"]
    most: int | None = space.study["max_epochs"]
    if most is None:
        return trials
    pruner = build(PRUNERS, space.pruner, epochs=epochs, sign=1)
    return min(trials, int(most / expected_epochs(pruner, epochs)))


SAMPLERS: Mapping[str, Callable[..., Sampler]] = {
    "auto": auto,
    "random": random,
    "tpe": tpe,
    "gp": gp,
    "cmaes": cmaes,
    "nsga2": nsga2,
    "grid": grid,
    "qmc": qmc,
    "curves": curves,
}
"""Builders take the `space`."""


def learns_from_others(space: Space) -> bool:
    """Tell whether the sampler of a space learns from earlier studies."""
    return space.sampler.name in ("auto", "curves") and len(space.objectives) == 1


def teach(sampler: Sampler, space: Space, studies: Sequence[EarlierStudy]) -> int:
    """Teach a sampler what earlier studies know; return the size of the race, including start configurations.

    That is 0 if they know nothing about the space, or the sampler does not learn from others.
    """
    # A sampler that draws from a pool has the one that decides.
    sampler = getattr(sampler, "sampler", sampler)
    if not isinstance(sampler, CurveSampler) or not studies:
        return 0
    knowledge = Knowledge(space, studies, space.study["seed"])
    if not knowledge.predictors:
        return 0
    sampler.knowledge = knowledge
    return len(space.start) + sampler.num_racers


def _refuse_conditions(space: Space) -> None:
    conditional = [parameter.path for parameter in space.parameters() if parameter.when]
    if conditional:
        shown = ", ".join(conditional[:3])
        raise BuildError(
            "", f"does not model conditional parameters, got {shown}; allowed: random, tpe, nsga2, qmc, grid"
        )
