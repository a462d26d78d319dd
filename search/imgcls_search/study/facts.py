"""What a study says of itself as a whole: the values in its database, by name, each with the shape that it has there.

`shape` compares what is loaded with these declarations, so that whoever reads a fact need not look again.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, TypedDict


class Kind(Enum):
    """What a number may be."""

    FINITE = "a finite number"
    MEASURED = "what a training measured, which may be infinite, or no number where nothing could be measured"
    WHOLE = "a whole number that is not negative"


Finite = Annotated[float, Kind.FINITE]
Measured = Annotated[float, Kind.MEASURED]
Whole = Annotated[int, Kind.WHOLE]


class _Rules(TypedDict):
    sampler: dict[str, Any]
    pruner: dict[str, Any]


class Rules(_Rules, total=False):
    """How a study searches, as its space says."""

    name: str
    seed: int
    trials: Whole


class SpaceFact(TypedDict, total=False):
    """What of a space file is read without parsing it; its other sections are there too."""

    study: Rules
    limits: dict[str, Any]
    start: Any
    data: dict[str, Any]


class _DataFact(TypedDict, total=False):
    seen_fingerprint: str
    """Without a test split that the data comes with; earlier versions noted none."""

    folds: list[Whole]
    """How many images are in each fold, where there are folds; the last is `val` among the images."""


class DataFact(_DataFact):
    """The images that a study was started with."""

    fingerprint: str
    classes: list[str]
    images: dict[str, Whole]
    """How many, by split."""


class TeacherFact(TypedDict, total=False):
    """Weights that trials learn from."""

    file: str
    study: str
    trial: Whole
    timm: str
    """The name of a network of timm."""

    weights: str
    """Its weights: `imagenet`, or the path of a file."""


class KnownTeacher(TeacherFact):
    """The same, with the digest under which the study keeps them."""

    sha256: str


class WeightsFact(TypedDict):
    """A file of pretrained weights."""

    file: str
    """Its name, without the folder."""

    sha256: str


class CodeFact(TypedDict):
    """A person's own function."""

    sha256: str
    """Of its source, as the study began with it."""

    changed: list[str]
    """The digests of later sources, in their order."""


class LearnedFact(TypedDict):
    """What was copied of an earlier study before the first trial."""

    study: str
    sha256: str
    """Of the rows."""

    settings: list[str]
    """The paths whose values a row begins with."""

    rows: list[list[Any]]
    """Of a trial each: its settings, null where it had none; the share of its training that it came to; the value."""


class Extension(TypedDict):
    """One time that the space of a study grew."""

    at: str
    added: list[str]
    """In words."""

    novel: list[list[Any]]
    """Paths and new values of choices, families among them."""

    kept: str
    """The name of the study as it was before."""

    trials: Whole
    """How many it had by then."""


class _Request(TypedDict):
    id: str
    at: str
    by: str
    """`try`, or `start` for a start setting that was added later."""

    params: dict[str, Any]


class Request(_Request, total=False):
    """A setting that somebody asks the run to try."""

    refused: str
    """Why it cannot be tried."""


class MergedFrom(TypedDict, total=False):
    """A study whose trials are in this one."""

    study: str
    trials: Whole
    first: Whole
    """The number of its first trial here."""

    seed: Whole
    hardware: str


class KnownBackbone(TypedDict, total=False):
    """A pretrained network that trials start from, or one that is being made."""

    model: str
    pretrain: str
    fold: Whole
    seed: Whole
    epochs: Whole
    epoch: Whole
    """How far it is."""

    state: str
    """`making`, `made` or `failed`."""

    seconds: Finite
    """That its epochs took."""

    reason: str
    """Why it failed."""

    sha256: str
    """Of its file."""


class UsageFact(TypedDict):
    """What all calls of `run` together have cost."""

    devices: dict[str, Finite]
    """Seconds in use, by device."""

    workers: dict[str, Finite]
    """Seconds of all workers, by what they went to."""


class Run(TypedDict, total=False):
    """One call of `run`."""

    seconds: Finite
    writer_seconds: Finite
    """What the run process itself computed."""

    ending: str
    trials: Whole
    epochs: Whole
    """Of all trials together, as they stood at its end."""


class ChangedTest(TypedDict):
    """How many images a test split had, and has."""

    then: Whole
    now: Whole


class Opening(TypedDict, total=False):
    """Somebody looked at the test split."""

    by: str
    at: str
    seeds: list[Whole]
    portion: str
    trial: Whole
    test_changed: ChangedTest
    """Where the test split is not the one of the beginning."""


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


class AblationStep(TypedDict):
    """A setting between the first and the winner."""

    changes: list[str]
    scores: list[Finite]
    mean: Finite
    std: Finite | None
    ci95: Finite | None
    """None where there was one seed."""


class Ablation(TypedDict):
    """What each change from the first setting to the winner brought."""

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
    """Seconds that a step took, by which its time is planned."""


class StudyFacts(TypedDict, total=False):
    """All of them; older studies lack some."""

    imgcls_search: str
    known_as: str
    """The name of the study to trackers, where it has any."""

    objectives: list[list[str]]
    space: SpaceFact
    data: DataFact
    versions: dict[str, str]
    hardware: str
    teachers: dict[str, KnownTeacher]
    """By the setting that names them."""

    learned: list[LearnedFact]
    """From earlier studies, before the first trial; earlier versions noted none."""

    extended: list[Extension]
    """Each time that its space grew; earlier versions noted none."""

    placed_start: list[dict[str, Any]]
    """The start settings that are its first trials, where more were added after them."""

    requests: list[Request]
    """Settings that people asked for, to which other processes may add."""

    merged: list[MergedFrom]
    """The studies that it was made of."""

    weights: dict[str, WeightsFact]
    """The files that trials started from, by what their model says of itself, as in `timm tf_efficientnet_lite0`."""

    code: dict[str, CodeFact]
    """A person's own functions that its space names, by `module:name`."""

    backbones: dict[str, KnownBackbone]
    """The pretrained networks that trials start from, by the name of the file."""

    unlabeled: dict[str, str]
    """What the images to pretrain on are recognised by, by their shape and the fold that is held out."""

    data_root: str
    """The folder in which its images were last found; earlier versions noted none."""

    data_file: str
    """The table in which they were last found."""

    unlabeled_root: str
    """The folder in which the images to pretrain on were last found; earlier versions noted none."""

    usage: UsageFact
    """Earlier versions measured none."""

    runs: list[Run]
    test_openings: list[Opening]
    confirmed: Confirmation
    ablation: Ablation
    auto: AutoFact
