"""What confirm, ablation and auto note in a study."""

from __future__ import annotations

from typing import TypedDict

from imgcls_search.study.fact_kinds import Finite, Whole


class Spread(TypedDict):
    """A mean and the half-width of its 95 % interval."""

    mean: Finite
    ci95: Finite


class SpreadOfSeeds(Spread):
    """The same, with the standard deviation of a single training."""

    std: Finite


class SeedsOfConfirmation(TypedDict):
    """Those by which a trial was chosen, and those that had no part in it."""

    choosing: list[Whole]
    fresh: list[Whole]


class RankedTrial(SpreadOfSeeds):
    """A trial that could be chosen, with what the choosing seeds made of it."""

    trial: Whole
    searched: Finite
    scores: list[Finite]
    is_tied: bool


class _TestScores(SpreadOfSeeds):
    scores: list[Finite]
    images: Whole


class TestScores(_TestScores, total=False):
    """What the test split showed, by seed."""

    images_interval: list[Finite]


class Choice(TypedDict):
    """The trial that new seeds chose, before the test split is opened."""

    at: str
    metric: str
    seeds: SeedsOfConfirmation
    ranking: list[RankedTrial]
    chosen: Whole
    scores: list[Finite]
    """Of the new seeds."""

    confirmed: SpreadOfSeeds
    searched: Finite
    optimism: Spread


class _Confirmation(Choice):
    test: TestScores


class Confirmation(_Confirmation, total=False):
    """What `confirm` found."""

    pretrains: bool
    """Whether each seed had a pretrained network of its own."""


class ConfirmedStudy(Confirmation):
    """The same under the name of its study."""

    study: str


class AblationStep(TypedDict):
    """A configuration between the first and the winner."""

    changes: list[str]
    scores: list[Finite]
    mean: Finite
    std: Finite | None
    ci95: Finite | None
    """None where there was one seed."""


class Ablation(TypedDict):
    """What each change from the first configuration to the winner brought."""

    at: str
    metric: str
    direction: str
    first: Whole
    winner: Whole
    seeds: list[Whole]
    steps: list[AblationStep]


class EarlyScore(TypedDict):
    """The first trial that `auto` says a score of."""

    trial: Whole
    seconds: Finite
    """Of its time, until the score was there."""


class ConfirmPlan(TypedDict):
    """What of a search is confirmed in the time that is left."""

    trials: list[Whole]
    seeds: Whole


class SingleScore(TypedDict):
    """A score of one network, with the interval that comes of the choice of images."""

    score: Finite
    low: Finite
    high: Finite
    images: Whole


class SingleTest(TypedDict):
    """What the network of one trial showed, where there was no time to confirm it."""

    trial: Whole
    metric: str
    validation: SingleScore
    test: SingleScore


class AutoFact(TypedDict, total=False):
    """How far `auto` is with a study, over all its calls."""

    given: Finite
    """Seconds in all."""

    spent: dict[str, Finite]
    """Seconds, by step."""

    out: str
    """The folder that it writes into, as an absolute path."""

    flips: str
    workers: Whole
    baseline: EarlyScore
    searched: Finite
    """The time in all for which its search is done."""

    confirming: ConfirmPlan
    test: SingleTest
    bundled: Whole
    """The trial whose network is in the folder."""

    reported: Finite
    """The time in all for which the page is written."""

    measured: dict[str, Finite]
    """Seconds that a step took, by which its time is planned, and `mac`: of a multiply-accumulate of a prediction."""
