"""What a study says of itself as a whole: the values in its database, by name, each with the shape that it has there.

`shape` compares what is loaded with these declarations, so that a reader of a fact need not check it again.
"""

from __future__ import annotations

from typing import Any, TypedDict

from imgcls_search.study.fact_kinds import Finite, Whole
from imgcls_search.study.result_facts import Ablation, AutoFact, Confirmation


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
    """`try`, or `start` for a start configuration that was added later."""

    params: dict[str, Any]


class Request(_Request, total=False):
    """A configuration that somebody asks the run to try."""

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
    """The start configurations that are its first trials, where more were added after them."""

    requests: list[Request]
    """Configurations that people requested, to which other processes may add."""

    takes_requests: bool
    """Whether the last run to begin still takes them: it says so before it looks for them a last time."""

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
