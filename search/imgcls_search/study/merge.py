"""Merge studies of one space on the same images into one study, with consecutive trial numbers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict, cast

import sqlalchemy

from imgcls_search import atomic
from imgcls_search.config import completed
from imgcls_search.errors import StudyError
from imgcls_search.space import differences
from imgcls_search.study.copy import refuse_links
from imgcls_search.study.copy_rows import copy_into
from imgcls_search.study.database import explaining_damage
from imgcls_search.study.facts import CodeFact, MergedFrom, StudyFacts
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import PLACE, Record, load
from imgcls_search.study.rows import Rows
from imgcls_search.study.settings import OF_POPULATION, is_free
from imgcls_search.study.tables import FACTS, STUDIES, TRIALS, USER
from imgcls_search.study.trial_attributes import TrialAttributes, strategy_of

MAY_DIFFER = ("study.seed", "study.sampler", "study.pruner", "start")
"""Settings of how a space is searched; they may differ between the studies."""

MARK = "merging"
"""The file in a study's folder that marks a merge as unfinished."""

_OF_TRIAL = re.compile(r"trial-(\d{5,})(\..+)")


def merge(sources: Sequence[StudyFiles], target: StudyFiles) -> list[MergedFrom]:
    """Merge the trials of several studies into a new study, and return its parts; the sources stay unchanged.

    Raises:
        StudyError: one is missing, damaged, worked on, or of another space, objective or data set; or the target exists
            or cannot be written.
    """
    _refuse_repeats(sources, target)
    records = [_read(files) for files in sources]
    for files, record in zip(sources[1:], records[1:], strict=True):
        # Of the stored spaces, only what every command reads was checked.
        with explaining_damage(str(files.store)):
            _refuse_other(files, record, records[0], sources[0].recorded_as)
    for files, record in zip(sources, records, strict=True):
        _refuse_common(files, record, sources)
        refuse_links(files, files.folder)
    first = 0
    parts = []
    for files, record in zip(sources, records, strict=True):
        parts.append(_part(files, record, first))
        first += record.next_number
    with _making(target):
        for files, part in zip(sources, parts, strict=True):
            _copy_files(files.folder, target.folder, part["first"])
        with target.store.making() as (storage, draft):
            for place, (files, part) in enumerate(zip(sources, parts, strict=True)):
                copy_into(files, storage.engine, draft, first=part["first"] if place else None)
            for files in sources:
                # The sources are read without a lock: a run that started meanwhile may have written to one.
                _refuse_at_work(files)
            with storage.engine.begin() as connection:
                _adapt(connection, storage.engine, draft, records, parts, target)
        target.take_over()
    return parts


def _refuse_repeats(sources: Sequence[StudyFiles], target: StudyFiles) -> None:
    names = [files.recorded_as for files in sources]
    # An earlier state of a study has trials in common with it.
    if len(names) < 2 or len({files.name for files in sources}) < len(names):
        raise StudyError(f"got {', '.join(names)}; needs two studies or more, each once")
    if target.recorded_as in names:
        raise StudyError(f"{target.recorded_as}: is one of the studies to merge; name another with -o")


def _read(files: StudyFiles) -> Record:
    files.must_exist()
    _refuse_at_work(files)
    record = load(files)
    if record.rows.engine is not None:
        record.rows.engine.dispose()
    return record


def _refuse_at_work(files: StudyFiles) -> None:
    if (holder := files.holder()) is not None:
        raise StudyError(
            f"{files.store}: {holder.process} is working on this study ({holder.task}); merge when it ends"
        )


def _refuse_common(files: StudyFiles, record: Record, others: Sequence[StudyFiles]) -> None:
    """Refuse a study that already contains the trials of another one."""
    merged = {part["study"] for part in record.facts.get("merged", [])}
    if found := [other.recorded_as for other in others if other.recorded_as in merged]:
        raise StudyError(f"{files.recorded_as}: has the trials of {found[0]} already; leave that one out")


def _refuse_other(files: StudyFiles, record: Record, first: Record, name: str) -> None:
    """Refuse a study whose trials are not comparable with those of the first."""
    if record.objectives != first.objectives:
        theirs, ours = (", ".join(f"{to} {metric}" for metric, to in each.objectives) for each in (record, first))
        raise StudyError(f"{files.recorded_as}: its objective is to {theirs}, that of {name} to {ours}")
    data, known = record.fact("data"), first.fact("data")
    if data["fingerprint"] != known["fingerprint"] or data["classes"] != known["classes"]:
        raise StudyError(f"{files.recorded_as}: has other images than {name}, so their scores are not comparable")
    old, new = (cast(dict[str, Any], each.fact("space")) for each in (first, record))
    changes = differences(completed(old, new), completed(new, old))
    others = [change for change in changes if not is_free(change.path) and not change.path.startswith(MAY_DIFFER)]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise StudyError(
            f"{files.recorded_as}: has another space than {name}: {others[0]}{more}; where one contains the other, "
            "extend the smaller one first: imgcls-search run SPACE --extend"
        )
    for key in first.facts.get("teachers", {}).keys() & record.facts.get("teachers", {}).keys():
        if first.facts["teachers"][key]["sha256"] != record.facts["teachers"][key]["sha256"]:
            raise StudyError(f"{files.recorded_as}: its trials learned from other weights than those of {name} ({key})")


def _part(files: StudyFiles, record: Record, first: int) -> MergedFrom:
    part = MergedFrom(study=files.recorded_as, trials=record.next_number, first=first)
    if "seed" in (rules := record.fact("space")["study"]):
        part["seed"] = rules["seed"]
    if "hardware" in record.facts:
        part["hardware"] = record.facts["hardware"]
    return part


@contextmanager
def _making(target: StudyFiles) -> Iterator[None]:
    """Lock a study to be created and its folder, and clear what a killed merge left there."""
    is_new = not target.folder.exists()
    try:
        target.folder.mkdir(parents=True, exist_ok=True)
        with target.folder_locked(task="merge"), target.store.held(task="merge"):
            if target.store.exists():
                raise StudyError(f"{target.store}: has a study {target.recorded_as!r} already; name another with -o")
            _clear(target, is_new=is_new)
            atomic.write_text(target.folder / MARK, "")
            try:
                yield
            except BaseException:
                if not target.store.exists():
                    _remove(target.folder)
                raise
            (target.folder / MARK).unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(f"{target.folder}: cannot be written ({error.strerror or error})") from error


def _clear(target: StudyFiles, *, is_new: bool) -> None:
    left = [path for path in target.folder.iterdir() if path.name not in ("lock", "lock.pid") and not _is_draft(path)]
    if left and not is_new and not (target.folder / MARK).exists():
        raise StudyError(f"{target.folder}: exists already; name another study with -o, or move that folder away")
    _remove(target.folder)


def _is_draft(path: Path) -> bool:
    """Tell whether a file is a partly written mark of a killed merge."""
    return path.name.startswith(f".{MARK}.") and path.name.endswith(atomic.SUFFIX)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name in ("lock", "lock.pid", MARK):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy_files(source: Path, target: Path, first: int) -> None:
    """Copy the files of trials, under their new numbers, and those that trials share."""
    for folder in ("checkpoints", "logs", "artifacts", "teachers"):
        for path in sorted((source / folder).glob("*")):
            name = path.name
            if path.name.endswith(atomic.SUFFIX) or not path.is_file():
                continue
            if folder in ("checkpoints", "logs"):
                if (found := _OF_TRIAL.fullmatch(name)) is None:
                    continue
                name = f"trial-{int(found[1]) + first:05d}{found[2]}"
            (target / folder).mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.copy2(path, target / folder / name)


def _adapt(
    connection: sqlalchemy.Connection,
    engine: sqlalchemy.Engine,
    draft: str,
    records: Sequence[Record],
    parts: Sequence[MergedFrom],
    target: StudyFiles,
) -> None:
    """Write the origin of each trial, and the facts of the merged study."""
    which = sqlalchemy.select(STUDIES.c.study_id).where(STUDIES.c.study_name == draft)
    study_id = connection.execute(which).scalar_one()
    upserts = Rows(engine, study_id).upserts
    numbered = sqlalchemy.select(TRIALS.c.number, TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    ids = dict(map(tuple, connection.execute(numbered)))
    num_copied = connection.execute(
        sqlalchemy.select(sqlalchemy.func.count()).select_from(numbered.subquery())
    ).scalar()
    if not num_copied == len(ids) == sum(part["trials"] for part in parts):
        raise StudyError("trials were added to one of the studies meanwhile; nothing was made: merge again")
    before = 0
    for record, part in zip(records, parts, strict=True):
        rows = [
            {"trial_id": ids[number + part["first"]], "key": key, "value_json": json.dumps(value)}
            for number in record.by_number
            for key, value in _attributes(record, number, part, target, before).items()
        ]
        if rows:
            connection.execute(upserts[USER], rows)
        before += len(record.trials)
    facts = _facts(records, parts, target)
    known = (FACTS.c.study_id == study_id) & FACTS.c.key.not_in([*facts])
    connection.execute(FACTS.delete().where(known))
    rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in facts.items()]
    connection.execute(upserts[FACTS], rows)


def _attributes(record: Record, number: int, part: MergedFrom, target: StudyFiles, before: int) -> TrialAttributes:
    trial = record.by_number[number]
    rules = record.fact("space")["study"]
    found: TrialAttributes = {"origin": dict(trial.origin) or {"study": part["study"], "trial": number}}
    if not trial.strategy:
        found["strategy"] = strategy_of(rules["sampler"], rules["pruner"])
    if record.files is not None and record.files.log(number).exists():
        log = target.log(number + part["first"])
        found["log"] = str(log.relative_to(target.root))
    if number in record.placed:
        found[PLACE] = record.placed[number] + before
    if part["first"] and next(iter(rules["sampler"])) in OF_POPULATION and trial.candidate.sampler_state:
        # The states of two populations do not combine.
        found["sampler_state"] = {}
    return found


def _facts(records: Sequence[Record], parts: Sequence[MergedFrom], target: StudyFiles) -> StudyFacts:
    """Return the facts of the merged study: those shared by all parts, and those collected from each."""
    first = records[0].facts
    # Leave out results of one study alone: its winner may not be the best of all.
    left_out = ("confirmed", "ablation", "auto", "known_as", "extended")
    facts = cast(StudyFacts, {key: value for key, value in first.items() if key not in left_out})
    space = cast(dict[str, Any], first["space"])
    facts["space"] = cast(Any, {**space, "study": {**space["study"], "name": target.name}})
    facts["merged"] = list(parts)
    for key in ("teachers", "weights", "backbones", "unlabeled"):
        found: dict[str, Any] = {}
        for record in reversed(records):
            found |= cast(dict[str, Any], record.facts.get(key, {}))
        if found:
            facts |= cast(StudyFacts, {key: found})
    facts |= cast(StudyFacts, {key: value for key, value in _sums(records).items() if value})
    for key in ("runs", "requests"):
        if listed := [entry for record in records for entry in cast(list[Any], record.facts.get(key, []))]:
            facts |= cast(StudyFacts, {key: listed})
    learned = {(fact["study"], fact["sha256"]): fact for record in records for fact in record.facts.get("learned", [])}
    if learned:
        facts["learned"] = list(learned.values())
    openings = [
        {**opening, "trial": opening["trial"] + part["first"]} if "trial" in opening else {**opening}
        for record, part in zip(records, parts, strict=True)
        for opening in record.facts.get("test_openings", [])
    ]
    if openings:
        facts["test_openings"] = cast(Any, openings)
    return facts


class _Sums(TypedDict):
    usage: dict[str, dict[str, float]]
    code: dict[str, CodeFact]


def _sums(records: Sequence[Record]) -> _Sums:
    """Return the total cost of the studies, and all sources of their user functions."""
    usage: dict[str, dict[str, float]] = {}
    code: dict[str, CodeFact] = {}
    for record in records:
        for kind, spent in cast(dict[str, dict[str, float]], record.facts.get("usage", {})).items():
            total = usage.setdefault(kind, {})
            for name, seconds in spent.items():
                total[name] = total.get(name, 0.0) + seconds
        for function, fact in record.facts.get("code", {}).items():
            known = code.setdefault(function, CodeFact(sha256=fact["sha256"], changed=[]))
            seen = [known["sha256"], *known["changed"]]
            known["changed"] += [each for each in (fact["sha256"], *fact["changed"]) if each not in seen]
    return {"usage": usage, "code": code}
