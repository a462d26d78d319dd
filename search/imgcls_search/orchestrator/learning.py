"""Learn from earlier studies: find them, check them, and copy their results into a study before its first trial.

Afterwards only the copy is read, so later changes to the earlier studies have no effect. Only configurations and
validation scores are copied.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from imgcls_search import __version__, digests
from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.errors import StudyError, UserError
from imgcls_search.measures import sign_of
from imgcls_search.space import Parameter, Space
from imgcls_search.space.problems import canonical
from imgcls_search.strategy.earlier import EarlierStudy, EarlierTrial
from imgcls_search.strategy.samplers import learns_from_others
from imgcls_search.study.facts import LearnedFact
from imgcls_search.study.files import StudyFiles, find_study, study_names
from imgcls_search.study.glance import Glance, glance
from imgcls_search.study.record import Record, load
from imgcls_search.trial import Trial
from imgcls_search.words import counted, some

KEY = "study.learn_from"

MOST_STUDIES = 16
"""Most studies to learn from: first those that share most settings, then those with most trials."""

MOST_TRIALS = 3000
"""A study with more is left out, since reading it takes seconds."""

MOST_ROWS = 200
"""Most trials to copy from a study, spread evenly over their ranking."""

FEWEST_TRIALS = 2
"""Fewest trials with a score to learn from."""

SHOWN = 5
"""Studies that a message names."""


def learn(space: Space, files: StudyFiles, say: Callable[[str], None]) -> list[LearnedFact]:
    """Return what a new study learns; report the studies that it learns from, and those left out.

    Raises:
        UserError: the space names a study that does not exist.
    """
    asked: Literal["auto", "none"] | Sequence[str] = space.study["learn_from"]
    if asked == "none":
        return []
    if not learns_from_others(space):
        if asked != "auto":
            say(f"{KEY}: needs one objective and the sampler auto or curves; no earlier study is used")
        return []
    reader = _Reader(space, files)
    found = reader.read_all() if isinstance(asked, str) else reader.read_named(asked)
    if found:
        names = [f"{fact['study']} ({counted('trial', len(fact['rows']))})" for fact in found]
        say(f"learns from {len(found)} earlier stud{'y' if len(found) == 1 else 'ies'}: {some(names, SHOWN)}")
    if reader.left_out:
        say(f"does not learn from {some([f'{name}: {why}' for name, why in reader.left_out.items()], SHOWN)}")
    return found


def earlier_studies(record: Record) -> list[EarlierStudy]:
    """Return what a study learned before its first trial."""
    return [
        EarlierStudy(
            name=fact["study"],
            trials=[
                EarlierTrial(settings=_settings(fact["settings"], row), reached=row[-2], value=row[-1])
                for row in fact["rows"]
            ],
        )
        for fact in record.facts.get("learned", [])
    ]


def note_of_change(record: Record, space: Space) -> str | None:
    """Return a line if a space asks for other studies than its study began with, else None."""
    rules: Mapping[str, Any] = record.facts.get("space", {}).get("study", {})
    then, now = rules.get("learn_from"), space.study["learn_from"]
    if then is None or _plain(then) == _plain(now):
        return None
    names = [fact["study"] for fact in record.facts.get("learned", [])]
    learned = f"from {some(names, SHOWN)}" if names else "nothing"
    return f"{KEY}: decides at the beginning of a study; this one learned {learned}, and learns nothing now"


@dataclass(kw_only=True)
class _SourceStudy:
    """A study that may be learned from."""

    files: StudyFiles
    trials: int
    shared: int
    """Settings that both spaces search."""


class _Reader:
    """Reads earlier studies, and records why some are left out."""

    def __init__(self, space: Space, files: StudyFiles) -> None:
        self.space = space
        self.files = files
        self.parameters = [parameter for parameter in space.parameters() if parameter.num_values != 1]
        self.left_out: dict[str, str] = {}

    def read_all(self) -> list[LearnedFact]:
        """Read the studies in the same folder or database that search some of the same settings."""
        names = study_names(self.files.root, self.files.address)
        return self._read(self._possible_sources(name for name in names if name != self.files.name))

    def read_named(self, names: Sequence[str]) -> list[LearnedFact]:
        """Read the studies of these names.

        Raises:
            UserError: there is no study of this name, or it is the new study itself.
        """
        where = f"{self.space.locate(KEY)}: {KEY}"
        for name in names:
            if name == self.files.name:
                raise UserError(f"{where}: {name}: a study does not learn from itself; name others")
            try:
                self._beside(name).must_exist()
            except StudyError as error:
                raise UserError(f"{where}: {error}") from None
        found = self._possible_sources(dict.fromkeys(names))
        for source in found:
            if not source.shared:
                self.left_out[source.files.name] = "has no searched setting in common with this space"
        return self._read(found)

    def _beside(self, name: str) -> StudyFiles:
        return find_study(self.files.root, name, self.files.address)

    def _possible_sources(self, names: Iterable[str]) -> list[_SourceStudy]:
        found = []
        for name in names:
            with _explaining(name, self.left_out):
                files = self._beside(name)
                if files.address != self.files.address:
                    continue
                seen = glance(files)
                shared = self._count_shared(seen)
                if shared and (why := self._why_not(seen)) is not None:
                    self.left_out[name] = why
                else:
                    found.append(_SourceStudy(files=files, trials=seen.trials, shared=shared))
        return found

    def _why_not(self, seen: Glance) -> str | None:
        metric, direction = self.space.objectives[0]
        if _is_newer(seen.version):
            return f"is from a newer version, {seen.version}; here is {__version__}"
        if [list(each) for each in seen.objectives[:1]] != [[metric, direction]] or len(seen.objectives) > 1:
            theirs = ", ".join(f"{to} {name}" for name, to in seen.objectives)
            return f"its objective is to {theirs}, here to {direction} {metric}"
        if seen.trials > MOST_TRIALS:
            return f"has {seen.trials:,} trials; at most {MOST_TRIALS:,} are read"
        return None

    def _count_shared(self, seen: Glance) -> int:
        return sum(_is_searched(seen.space, parameter) for parameter in self.parameters)

    def _read(self, sources: Sequence[_SourceStudy]) -> list[LearnedFact]:
        fit = [source for source in sources if source.shared]
        fit.sort(key=lambda source: (-source.shared, -source.trials, source.files.name))
        found: list[LearnedFact] = []
        for source in fit:
            if len(found) == MOST_STUDIES:
                break
            with _explaining(source.files.name, self.left_out):
                fact = self._copy(source.files)
                if fact is not None:
                    found.append(fact)
        return found

    def _copy(self, files: StudyFiles) -> LearnedFact | None:
        record = load(files)
        rows = self._rows(record)
        if record.rows.engine is not None:
            record.rows.engine.dispose()
        if len(rows) < FEWEST_TRIALS:
            self.left_out[files.name] = f"has {counted('trial', len(rows))} with a score"
            return None
        return LearnedFact(
            study=files.name,
            sha256=digests.of_text(json.dumps(rows)),
            settings=[parameter.path for parameter in self.parameters],
            rows=rows,
        )

    def _rows(self, record: Record) -> list[list[Any]]:
        """Return for each trial its settings, how far it trained, and its value there, the best first."""
        sign = sign_of(record.objectives[0][1])
        rows: list[list[Any]] = [
            [*(_setting(trial.candidate.config, each) for each in self.parameters), *result]
            for trial in record.trials
            if (result := _last_result(trial, sign)) is not None
        ]
        rows.sort(key=lambda row: (-row[-2], -row[-1]))
        if len(rows) <= MOST_ROWS:
            return rows
        return [rows[round(place * (len(rows) - 1) / (MOST_ROWS - 1))] for place in range(MOST_ROWS)]


@contextmanager
def _explaining(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Record in one line why a study cannot be read, and continue."""
    try:
        yield
    # The data may have any shape: another program may have written it.
    except (StudyError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()).split("; ")[0]
        left_out[name] = f"cannot be read ({said[:160]})"


def _last_result(trial: Trial, sign: int) -> tuple[float, float] | None:
    """Return the share of its training at which a trial last had a value, and that value; larger is better.

    A diverged training ranks last; return None for a trial that failed or has no value yet.
    """
    last = trial.last_shown
    value = trial.value_at(last) if last else math.nan
    if trial.state != "fail" and math.isfinite(value):
        return (1.0 if trial.candidate.is_fitted else last / trial.candidate.config.epochs), sign * value
    return (0.0, 0.0) if trial.state == "pruned" else None


def _setting(config: TrialConfig, parameter: Parameter) -> Scalar:
    """Return a configuration's value at a parameter's path, searched or fixed; None if it has none."""
    node: Any = config.tree
    for key in parameter.path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    value = canonical(node)
    if isinstance(node, Mapping) and value not in parameter.choices and len(node) == 1:
        (name,) = node
        return str(name)
    return value


def _is_searched(space: Any, parameter: Parameter) -> bool:
    """Tell whether a space, as its study stores it, searches the setting at a parameter's path."""
    node = space
    for key in parameter.path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return isinstance(node, Mapping) and (len(node) > 1 or any(kind in node for kind in ("choice", "int", "float")))


def _settings(paths: Sequence[str], row: Sequence[Any]) -> dict[str, Scalar]:
    return {path: value for path, value in zip(paths, row, strict=False) if value is not None}


def _is_newer(version: Any) -> bool:
    return isinstance(version, str) and _numbers(version) > _numbers(__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _plain(asked: Any) -> Any:
    return asked if isinstance(asked, str) else list(asked)
