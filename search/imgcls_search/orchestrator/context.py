"""State that all parts of one search share, and the interface of its helper."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape, Prepared
from imgcls_search.errors import StudyError
from imgcls_search.measures import sign_of
from imgcls_search.space import Space
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.settings import StudySettings
from imgcls_search.trial import MEASURED, Trial


class Assistant(Protocol):
    """Answers questions that need torch or the images: a helper process, or in a replay nobody."""

    @property
    def is_measuring(self) -> bool:
        """True while a caller waits for an answer."""

    def prepare(self, config: TrialConfig) -> Prepared:
        """Return the data set of a configuration."""

    def measuring(self, config: TrialConfig, shape: InputShape) -> Generator[None, None, dict[str, float]]:
        """Return the sizes of a configuration; yield until they are known."""

    def wait(self, seconds: float | None) -> None:
        """Return when an answer is available, or after these seconds."""


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """One study, its space and its settings."""

    space: Space
    files: StudyFiles
    record: Record
    settings: StudySettings
    say: Callable[[str], None]
    """Shows a line to the user."""

    @cached_property
    def epochs(self) -> int:
        """Epochs of a trial that trains to its end, over all folds."""
        return self.space.first().epochs

    @cached_property
    def sign(self) -> int:
        """1 if the first objective is maximized, -1 if it is minimized."""
        return sign_of(self.space.objectives[0][1])

    def outcome(self, trial: Trial) -> tuple[list[float], dict[str, float]]:
        """Return the values of a trial at its last epoch, and its excess over each measured limit.

        Raises:
            StudyError: its record lacks one, as only a damaged one does.
        """
        last = {**trial.sizes, **trial.epochs[-1], **trial.scores.get(trial.epoch, {})}
        limits = {name: limit for name, limit in self.space.limits.items() if name in MEASURED}
        needed = [*(metric for metric, _ in self.space.objectives), *limits, *self.space.score_limits]
        if lacking := [name for name in needed if name not in last]:
            raise StudyError(
                f"study {self.record.study.study_name!r}: the record of trial {trial.number} is damaged: "
                f"its last epoch has no {', '.join(lacking)}"
            )
        over = {f"limits.{name}": last[name] - limit for name, limit in limits.items()}
        over |= {f"limits.{name}": excess for name, excess in self.space.over_score_limits(last).items()}
        return [last[metric] for metric, _ in self.space.objectives], over


def study_settings(space: Space) -> StudySettings:
    """Return the settings of the `study` section without its components."""
    known = StudySettings.__dataclass_fields__
    return StudySettings(**{name: value for name, value in space.study.items() if name in known})
