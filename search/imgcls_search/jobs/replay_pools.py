"""Replay several strategies on the same parts of a study, to get intervals of their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imgcls_search.errors import StudyError
from imgcls_search.jobs.pools import Estimate, PoolSearch, difference, end_of, expected_best, speed_of
from imgcls_search.jobs.replay import FromPool, Recorded, refuse_measured, replay
from imgcls_search.measures import sign_of
from imgcls_search.signature import build
from imgcls_search.space import Space
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial
from imgcls_search.words import counted

FEWEST = 4
"""Fewest curves in a part: with fewer, all strategies find the same."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Results of a strategy over all parts; figures are None if a search has no complete trial."""

    strategy: str
    over_random: Estimate | None
    """How far it ends above the exact expectation of random search with as many epochs."""

    times_as_fast: Estimate | None
    """Epochs of random search divided by its own to the same value; 0 if it does not reach that value."""

    over_first: Estimate | None
    """How far it ends above the first strategy, part by part; None for the first itself."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Strategies on the same parts of a study."""

    seeds: int
    configurations: int
    """Configurations in each part."""

    max_epochs: int
    """Epochs that each search trains."""

    trainings: int
    """Full trainings that random search can afford with these epochs."""

    strategies: tuple[Compared, ...]


def compare(
    record: Record, spaces: Sequence[Space], *, seeds: int, share: float, max_epochs: int | None, workers: int = 1
) -> Comparison:
    """Run each strategy once per seed, on a random part of the study's configurations drawn with the seed.

    By default, `max_epochs` is a third of the epochs that complete trainings of a whole part take.

    Raises:
        StudyError: the study has too few curves, or a budget is too small for one training.
    """
    refuse_measured(record)
    trials = [
        trial for trial in record.trials if trial.epoch and not trial.compresses and not trial.candidate.is_fitted
    ]
    each = list({trial.candidate.config: trial for trial in trials}.values())
    count, epochs = round(share * len(each)), spaces[0].first().epochs
    if count < FEWEST or not any(trial.state == "complete" for trial in each):
        raise StudyError(
            f"study {record.study.study_name!r} has {counted('configuration', len(each))} with curves, and a part of "
            f"them {count}; intervals need at least {FEWEST} in a part, and a complete trial"
        )
    budget = max_epochs or max(epochs, count * epochs // 3)
    if not epochs <= budget <= count * epochs:
        raise StudyError(
            f"max_epochs: {budget} epochs for each search; allowed: {epochs}, of one full training, to "
            f"{count * epochs}, of all in a part"
        )
    curves = Recorded(each)
    found = [[_search(curves, space, each, seed, count, budget, workers) for seed in range(seeds)] for space in spaces]
    sign = sign_of(record.objectives[0][1])
    compared = (_compared(space, ours, found[0], budget, sign) for space, ours in zip(spaces, found, strict=True))
    return Comparison(
        seeds=seeds, configurations=count, max_epochs=budget, trainings=budget // epochs, strategies=tuple(compared)
    )


def _search(
    curves: Recorded, space: Space, trials: Sequence[Trial], seed: int, count: int, budget: int, workers: int
) -> PoolSearch:
    import numpy as np

    # Depends only on the seed, so that all strategies search the same part.
    part = [trials[place] for place in np.random.default_rng(seed).permutation(len(trials))[:count]]
    changes: Mapping[str, object] = {"seed": seed, "trials": count, "max_epochs": budget, "timeout": None}
    space = replace(space, study={**space.study, **changes}, start=())
    candidates = [trial.candidate for trial in part]
    sampler = FromPool(build(SAMPLERS, space.sampler, space=space), candidates, space)
    _, steps = replay(
        space, curves, workers=workers, sampler=sampler, sizes={trial.candidate.config: trial.sizes for trial in part}
    )
    epochs, (metric, direction) = space.first().epochs, space.objectives[0]
    shown = [{**trial.sizes, **curves.at(trial.candidate.config, epochs)} for trial in part]
    ends = [each.get(metric, math.nan) for each in shown]
    if all(map(math.isnan, ends)):
        raise StudyError(f"no curve of a part has {metric} at its end")
    sign = sign_of(direction)
    return PoolSearch(bests=steps.bests, expected=expected_best(ends, budget // epochs, sign))


def _compared(
    space: Space, ours: Sequence[PoolSearch], first: Sequence[PoolSearch], budget: int, sign: int
) -> Compared:
    has_ends = all(search.bests for search in ours)
    has_both = has_ends and ours is not first and all(search.bests for search in first)
    return Compared(
        strategy=f"{space.sampler.name} + {space.pruner.name}",
        over_random=end_of(ours, budget, sign) if has_ends else None,
        times_as_fast=speed_of(ours, budget, sign) if has_ends else None,
        over_first=difference(ours, first, budget, sign) if has_both else None,
    )
