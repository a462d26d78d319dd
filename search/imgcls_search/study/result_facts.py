"""Facts that confirm, ablation and auto store in a study."""

from __future__ import annotations

from typing import TypedDict

from imgcls_search.study.fact_kinds import Finite, Interval, Whole


class Spread(TypedDict):
    """A mean and the half-width of its 95 % interval."""

    mean: Finite
    ci95: Finite


class SpreadOfSeeds(Spread):
    """A spread with the standard deviation of a single training."""

    std: Finite


class SeedsOfConfirmation(TypedDict):
    """Seeds that chose a trial, and new seeds that scored it."""

    choosing: list[Whole]
    fresh: list[Whole]


class RankedTrial(SpreadOfSeeds):
    """A trial that could be chosen, with its results on the choosing seeds."""

    trial: Whole
    searched: Finite
    scores: list[Finite]
    is_tied: bool


class _TestScores(SpreadOfSeeds):
    scores: list[Finite]
    images: Whole


class TestScores(_TestScores, total=False):
    """Scores on the test split, by seed."""

    images_interval: Interval


class ChoiceBySeeds(TypedDict):
    """The trial that the choosing seeds selected, before the test split is opened."""

    at: str
    metric: str
    seeds: SeedsOfConfirmation
    ranking: list[RankedTrial]
    chosen: Whole
    scores: list[Finite]
    """Of the fresh seeds."""

    confirmed: SpreadOfSeeds
    searched: Finite
    optimism: Spread


class _Confirmation(ChoiceBySeeds):
    test: TestScores


class Confirmation(_Confirmation, total=False):
    """The result of `confirm`."""

    pretrains: bool
    """Whether each seed had its own pretrained network."""


class ConfirmedStudy(Confirmation):
    """A confirmation with the name of its study."""

    study: str


class AblationStep(TypedDict):
    """A configuration between the first and the winner."""

    changes: list[str]
    scores: list[Finite]
    mean: Finite
    std: Finite | None
    ci95: Finite | None
    """None for a single seed."""


class Ablation(TypedDict):
    """The effect of each change from the first configuration to the winner."""

    at: str
    metric: str
    direction: str
    first: Whole
    winner: Whole
    seeds: list[Whole]
    steps: list[AblationStep]


class EarlyScore(TypedDict):
    """The first trial whose score `auto` reports."""

    trial: Whole
    seconds: Finite
    """Time of `auto` until the score was known."""


class ConfirmPlan(TypedDict):
    """The trials and seeds to confirm in the remaining time."""

    trials: list[Whole]
    seeds: Whole


class SingleScore(TypedDict):
    """A score of one network, with the interval due to the choice of images."""

    score: Finite
    low: Finite
    high: Finite
    images: Whole


class SingleTest(TypedDict):
    """Scores of one trial's network, if there was no time to confirm it."""

    trial: Whole
    metric: str
    validation: SingleScore
    test: SingleScore


class WrittenReport(TypedDict):
    """The report that `auto` wrote last."""

    trial: Whole
    confirmed: str | None
    """When the confirmation that it shows began; None without one."""

    sha256: str


class AutoFact(TypedDict, total=False):
    """The progress of `auto` on a study, over all its calls."""

    given: Finite
    """Total time, in seconds."""

    spent: dict[str, Finite]
    """Seconds, by step."""

    out: str
    """The folder that it writes into, as an absolute path."""

    flips: str
    workers: Whole
    baseline: EarlyScore
    searched: Finite
    """The total time for which its search is done."""

    confirming: ConfirmPlan
    test: SingleTest
    bundled: Whole
    """The trial whose network is in the folder."""

    reported: Finite
    """The total time for which the page is written."""

    report: WrittenReport

    measured: dict[str, Finite]
    """Seconds that a step took, used to plan its time, and `mac`: seconds per multiply-accumulate of a prediction."""
