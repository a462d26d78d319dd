"""Which configuration to try next: samplers read an in-memory view, never the record.

In the view every trial stands with what its rungs taught: a trial that rests or is under way stands as pruned at its
last rung, since samplers take a row that stays RUNNING for a bad one (TPE then falls back to random search).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from imgcls_search.config import Scalar
from imgcls_search.errors import BuildError
from imgcls_search.signature import Arg, build
from imgcls_search.space import Parameter, Space
from imgcls_search.strategy.pruners import PRUNERS, expected_epochs
from imgcls_search.trial import Candidate, Rejection, Trial

if TYPE_CHECKING:
    import optuna

Ended = dict[tuple[Any, ...], "optuna.trial.FrozenTrial"]
"""Trials that change no more as Optuna sees them, by number, state, epochs and values."""

Startup = Annotated[int, Arg("trials drawn at random first", ge=1)]


class Sampler(Protocol):
    """Draws candidates."""

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return the candidate for a trial number; a later attempt gives another. None: the space is used up."""


class View:
    """What a sampler may know: the space, the objectives, and what every trial so far has shown."""

    def __init__(
        self,
        space: Space,
        trials: Sequence[Trial],
        rejections: Sequence[Rejection],
        seed: int,
        ended: Ended | None = None,
    ) -> None:
        """Rejections are those since the last trial; earlier ones stand with the trials.

        `ended` keeps, from view to view, what samplers see of trials that change no more.
        """
        self.space = space
        self.trials = trials
        self.rejections = rejections
        self.seed = seed
        self.ended: Ended = {} if ended is None else ended

    def derive(self, *parts: int) -> int:
        """Return a seed for a moment of the search: the same question is asked again after a restart."""
        import numpy as np

        return int(np.random.SeedSequence([self.seed, *parts]).generate_state(1)[0])

    def all_rejections(self) -> Iterator[Rejection]:
        """Yield every candidate that never became a trial."""
        for trial in self.trials:
            yield from trial.rejected_before
        yield from self.rejections

    def study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """Return the view as an Optuna study in memory."""
        import optuna

        directions = [optuna.study.StudyDirection[direction.upper()] for _, direction in self.space.objectives]
        study = optuna.create_study(directions=directions, sampler=sampler)
        # Past the study, which would check every trial again: `_past_trial` did that once.
        for rejection in self.all_rejections():
            study._storage.create_new_trial(study._study_id, template_trial=_frozen_rejection(rejection))
        for trial in self.trials:
            study._storage.create_new_trial(study._study_id, template_trial=self._frozen(trial))
        return study

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        if trial.is_open:
            return _frozen_trial(trial, len(self.space.objectives))
        key = (trial.number, trial.state, trial.epoch, trial.values)
        if key not in self.ended:
            self.ended[key] = _frozen_trial(trial, len(self.space.objectives))
        return self.ended[key]


class OptunaSampler:
    """Draws through one of Optuna's samplers, made anew for each draw with a seed of its own."""

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], *, keeps_state: bool = False) -> None:
        """`make` takes a seed; `keeps_state` is for samplers that leave notes on trials for later draws."""
        self.make = make
        self.keeps_state = keeps_state

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Ask the sampler, with the view before its eyes."""
        study = view.study(self.make(view.derive(number, attempt)))
        return _ask(study, view.space, keeps_state=self.keeps_state)


class Random:
    """Draws every parameter independently of all trials, and so needs no study that shows them."""

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


def draw_start(view: View, params: Mapping[str, Scalar], number: int) -> Candidate:
    """Return a known-good setting as a candidate; what it leaves out is drawn at random."""
    study = _blank_study(view.derive(number, 0))
    study.enqueue_trial(dict(params))
    return _ask(study, view.space)


def draw_random(view: View, number: int, attempt: int) -> Candidate:
    """Return a random candidate, whatever the sampler; the way out when that repeats itself."""
    return _ask(_blank_study(view.derive(number, attempt)), view.space)


def draw_evenly(view: View, number: int, attempt: int) -> Candidate:
    """Return a point of a scrambled Sobol sequence (Sobol 1967); each parameter of each branch is a dimension."""
    from scipy.stats import qmc

    parameters = view.space.parameters()
    engine = qmc.Sobol(d=max(1, len(parameters)), rng=view.seed)
    # Each attempt so far was a rejection or a repeat.
    if index := number + attempt + sum(len(trial.rejected_before) for trial in view.trials):
        engine.fast_forward(index)
    point = engine.random(1)[0]
    return fixed_candidate(view, {p.path: value_at(p, float(u)) for p, u in zip(parameters, point, strict=False)})


def draw_unseen(view: View, number: int) -> Candidate | None:
    """Return a random combination of a finite space that was neither tried nor rejected; None when there is none."""
    import numpy as np

    seen = {_key(trial.candidate.params) for trial in view.trials}
    seen |= {_key(rejection.params) for rejection in view.all_rejections()}
    left = [params for params in view.space.combinations() if _key(params) not in seen]
    if not left:
        return None
    return fixed_candidate(view, left[np.random.default_rng(view.derive(number)).integers(len(left))])


def _blank_study(seed: int) -> optuna.Study:
    """Return a study that draws at random; such draws need no view, which takes time to build."""
    import optuna

    # Optuna otherwise announces every study it makes.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def _ask(study: optuna.Study, space: Space, *, keeps_state: bool = False) -> Candidate:
    trial = study.ask()
    config = space.sample(trial)
    frozen = study.get_trials(deepcopy=False)[-1]
    state = frozen.system_attrs if keeps_state else {}
    return Candidate(params=frozen.params, distributions=frozen.distributions, config=config, sampler_state=state)


def fixed_candidate(view: View, params: Mapping[str, Scalar]) -> Candidate:
    """Return parameters as a candidate; those that no branch reaches are left out."""
    import optuna

    # Unlike an enqueued trial, this needs no study and warns of nothing; reachable parameters only are looked at.
    trial = optuna.trial.FixedTrial(dict(params))
    config = view.space.sample(trial)
    return Candidate(params=trial.params, distributions=trial.distributions, config=config)


def _frozen_trial(trial: Trial, num_objectives: int) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState

    state, values, steps = TrialState.PRUNED, None, {}
    if trial.state == "complete":
        state, values = TrialState.COMPLETE, list(trial.values or ())
    elif trial.state == "running" and trial.judged == 0:
        state = TrialState.RUNNING
    elif num_objectives == 1 and (epoch := trial.judged if trial.is_open else trial.last_shown) > 0:
        steps = {epoch: trial.value_at(epoch)}
    return _past_trial(
        trial.candidate,
        state=state,
        values=values,
        system_attrs=dict(trial.candidate.sampler_state),
        intermediate_values=steps,
        constraints=dict(trial.constraints) or None,
    )


def _frozen_rejection(rejection: Rejection) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState

    # Pruned without a value ranks last; as FAIL the sampler would learn nothing from it.
    return _past_trial(rejection, state=TrialState.PRUNED)


def _past_trial(drawn: Candidate | Rejection, **shown: Any) -> optuna.trial.FrozenTrial:
    """Return what samplers see of something that was drawn."""
    from optuna.trial import create_trial

    frozen = create_trial(params=dict(drawn.params), distributions=dict(drawn.distributions), **shown)
    # Optuna copies a trial with all that it holds whenever it takes or shows one. No sampler changes a trial of the
    # past, so that a copy may share, which halves the time of a draw that sees 1,000 trials.
    frozen.__class__ = _sharing_class()
    return frozen


@cache
def _sharing_class() -> type[optuna.trial.FrozenTrial]:
    from optuna.trial import FrozenTrial

    class PastTrial(FrozenTrial):
        def __deepcopy__(self, memo: object) -> FrozenTrial:
            # As copy.copy does, in a quarter of the time.
            shared = object.__new__(type(self))
            shared.__dict__ |= self.__dict__
            return shared

    return PastTrial


def _same_names() -> optuna.search_space.IntersectionSearchSpace:
    """Return what finds the parameters that all trials share, by name alone.

    Optuna compares the ranges too, which takes two fifths of a draw among 1,000 trials; in a study of ours a name has
    one range. A test holds the draws to those of Optuna as it is.
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


def value_at(parameter: Parameter, u: float) -> Scalar:
    """Return the value of a parameter at a point in [0, 1)."""
    if parameter.kind == "choice":
        return parameter.choices[int(u * len(parameter.choices))]
    low, high = parameter.low, parameter.high
    assert low is not None
    assert high is not None
    if parameter.log:
        # A whole number k stands for the stretch from k to k + 1.
        top = high + 1 if parameter.kind == "int" else high
        # exp(log(low)) may fall short of low by a hair.
        value = max(low, min(high, math.exp(math.log(low) + u * (math.log(top) - math.log(low)))))
    elif parameter.num_values is not None:
        value = min(high, low + (parameter.step or 1) * int(u * parameter.num_values))
    else:
        value = low + u * (high - low)
    return int(value) if parameter.kind == "int" else value


def _key(params: Mapping[str, Scalar]) -> str:
    return repr(sorted(params.items()))


def auto(*, space: Space) -> Sampler:
    """As `curves` does where there is one objective, as `tpe` does where there are several."""
    return curves(space=space) if len(space.objectives) == 1 else tpe(space=space)


def random(*, space: Space) -> Sampler:
    """Draw every parameter independently."""
    return Random()


def tpe(
    *,
    space: Space,
    n_startup_trials: Startup = 10,
    n_ei_candidates: Annotated[int, Arg("draws that each choice is made from", ge=1)] = 24,
) -> Sampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's: models good and bad trials apart."""

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
    _refuse_conditions("gp", space)

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
    _refuse_conditions("cmaes", space)
    choices = [parameter.path for parameter in space.parameters() if parameter.kind == "choice"]
    if choices:
        raise BuildError("", f"handles numbers only, got choices: {', '.join(choices)}; allowed: random, tpe, qmc")
    if len(space.objectives) > 1:
        raise BuildError("", "handles one objective only; allowed: random, tpe, nsga2, qmc, grid")

    def make(seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.CmaEsSampler(n_startup_trials=n_startup_trials, seed=seed, consider_pruned_trials=True)

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
            "trials spread evenly over the space first; default: a third of those that the study affords, 5 to 20", ge=1
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
    from imgcls_search.strategy.curves import CurveSampler

    epochs: int = space.first().section("training")["epochs"]
    startup = n_startup_trials or min(20, max(5, _affordable(space, epochs) // 3))
    return CurveSampler(space, epochs=epochs, n_startup_trials=startup, random_share=random_share)


def _affordable(space: Space, epochs: int) -> int:
    """Return how many trials a study allows, or its epochs are likely to be enough for."""
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


def _refuse_conditions(name: str, space: Space) -> None:
    conditional = [parameter.path for parameter in space.parameters() if parameter.when]
    if conditional:
        shown = ", ".join(conditional[:3])
        raise BuildError(
            "", f"does not model conditional parameters, got {shown}; allowed: random, tpe, nsga2, qmc, grid"
        )
