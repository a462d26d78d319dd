"""The facts of a study: attributes that its database stores for the whole study, by name, each with its type.

`shape` checks loaded values against these declarations, so code that reads a fact need not check it again.
"""

from __future__ import annotations

from typing import Any, TypedDict

from imgcls_search.study.fact_kinds import Finite, Setting, Whole
from imgcls_search.study.result_facts import Ablation, AutoFact, Confirmation


class _Rules(TypedDict):
    sampler: dict[str, dict[str, Any]]
    pruner: dict[str, dict[str, Any]]


class Rules(_Rules, total=False):
    """How a study searches: the `study` section of its space."""

    name: str
    seed: Whole
    trials: Whole


class SpaceFact(TypedDict, total=False):
    """The parts of a space file that are read without parsing it; its other sections are stored too."""

    study: Rules
    limits: dict[str, Any]
    start: Any
    data: dict[str, Any]


class _DataFact(TypedDict, total=False):
    seen_fingerprint: str
    """Excludes a test split that comes with the data; missing in older versions."""

    folds: list[Whole]
    """Images per fold, if there are folds; the last one is `val` in `images`."""


class DataFact(_DataFact):
    """The images that a study was started with."""

    fingerprint: str
    classes: list[str]
    images: dict[str, Whole]
    """Number of images per split."""


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
    """A teacher with the digest under which the study keeps its weights."""

    sha256: str


class WeightsFact(TypedDict):
    """A file of pretrained weights."""

    file: str
    """Its name, without the folder."""

    sha256: str


class CodeFact(TypedDict):
    """A user's own function."""

    sha256: str
    """Digest of its source when the study began."""

    changed: list[str]
    """Digests of later sources, in order."""


class LearnedFact(TypedDict):
    """Rows copied from an earlier study before the first trial."""

    study: str
    sha256: str
    """Digest of the rows."""

    settings: list[str]
    """Paths of the settings whose values come first in each row."""

    rows: list[list[Any]]
    """One per trial: its settings, null if unset; the share of its training that it reached; its value."""


class Extension(TypedDict):
    """One extension of a study's space."""

    at: str
    added: list[str]
    """The additions, in words."""

    novel: list[Setting]
    """Paths and new values of choices, including families."""

    kept: str
    """The name of the study's earlier state."""

    trials: Whole
    """Number of trials at that time."""


class _Request(TypedDict):
    id: str
    at: str
    by: str
    """`try`, or `start` for a start configuration that was added later."""

    params: dict[str, Any]


class Request(_Request, total=False):
    """A configuration that the run is asked to try."""

    refused: str
    """Why it cannot be tried."""


class MergedFrom(TypedDict, total=False):
    """A study whose trials were merged into this one."""

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
    """Epochs done."""

    state: str
    """`making`, `made` or `failed`."""

    seconds: Finite
    """Time that its epochs took."""

    reason: str
    """Why it failed."""

    sha256: str
    """Digest of its file."""


class UsageFact(TypedDict):
    """The cost of all calls of `run` together."""

    devices: dict[str, Finite]
    """Seconds in use, by device."""

    workers: dict[str, Finite]
    """Seconds of all workers, by activity."""


class Run(TypedDict, total=False):
    """One call of `run`."""

    seconds: Finite
    writer_seconds: Finite
    """Time in which the run process itself was not idle."""

    ending: str
    trials: Whole
    epochs: Whole
    """Of all trials together, at its end."""


class ChangedTest(TypedDict):
    """Number of images in a test split, before and now."""

    then: Whole
    now: Whole


class Opening(TypedDict, total=False):
    """One opening of the test split."""

    by: str
    at: str
    seeds: list[Whole]
    portion: str
    trial: Whole
    test_changed: ChangedTest
    """Set if the test split is not the one that the study began with."""


class StudyFacts(TypedDict, total=False):
    """All facts; older studies lack some."""

    imgcls_search: str
    known_as: str
    """The study's name in trackers, if it uses any."""

    objectives: list[list[str]]
    space: SpaceFact
    data: DataFact
    versions: dict[str, str]
    hardware: str
    teachers: dict[str, KnownTeacher]
    """By the setting that names the teacher."""

    learned: list[LearnedFact]
    """Copied from earlier studies before the first trial; missing in older versions."""

    extended: list[Extension]
    """Each extension of its space; missing in older versions."""

    placed_start: list[dict[str, Any]]
    """The start configurations of its first trials, if more were added later."""

    requests: list[Request]
    """Configurations that people requested; other processes may add to them."""

    takes_requests: bool
    """Whether the latest run still takes requests; it sets this to false before its last check for them."""

    merged: list[MergedFrom]
    """The studies that were merged into it."""

    weights: dict[str, WeightsFact]
    """The weight files that trials started from, by path or model, such as `timm name=tf_efficientnet_lite0`."""

    code: dict[str, CodeFact]
    """User functions that its space names, by `module:name`."""

    backbones: dict[str, KnownBackbone]
    """The pretrained networks that trials start from, by file name."""

    unlabeled: dict[str, str]
    """Fingerprints of the images to pretrain on, by a digest of image format and held-out fold."""

    data_root: str
    """The folder in which its images were last found; missing in older versions."""

    data_file: str
    """The table in which they were last found."""

    unlabeled_root: str
    """The folder in which the images to pretrain on were last found; missing in older versions."""

    usage: UsageFact
    """Missing in older versions."""

    runs: list[Run]
    test_openings: list[Opening]
    confirmed: Confirmation
    ablation: Ablation
    auto: AutoFact
