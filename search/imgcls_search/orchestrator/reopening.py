"""Run a study again: check how its space differs from the one it was started with, and extend it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from imgcls_search.config import IN_DIGESTS, TrialConfig, completed
from imgcls_search.errors import StudyError
from imgcls_search.orchestrator import study_data
from imgcls_search.space import Space, differences, start_of
from imgcls_search.space.widening import compare
from imgcls_search.strategy.early_rungs import EarlyPromoting
from imgcls_search.strategy.pruners import make_pruner
from imgcls_search.strategy.rungs import Promoting
from imgcls_search.study import record as records
from imgcls_search.study import requests
from imgcls_search.study.database import explaining_damage
from imgcls_search.study.extend import extend
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.settings import is_free
from imgcls_search.words import counted


def reopen(files: StudyFiles, space: Space, say: Callable[[str], None], *, extends: bool) -> Record | None:
    """Return the study if it exists; refuse one that was made from another space, unless it may be extended.

    A study without trials fits any space: it is deleted and created again.
    """
    if not files.store.exists():
        return None
    record = records.load(files)
    new = records.to_json(space.document)
    # Of the stored space, only what every command reads was checked.
    with explaining_damage(str(files.store)):
        old = _with_later_settings(record, new)
        changes = [change for change in differences(old, new) if not _may_change(change.path, new)]
    if changes and not (record.trials or record.foreign_trials or requests.pending(record)):
        say("the study has no trial yet: it starts over with this space")
        if record.rows.engine is not None:
            record.rows.engine.dispose()
        files.store.remove()
        return None
    if changes:
        with explaining_damage(str(files.store)):
            widening = compare(changes, old, space)
        if widening.refused:
            raise StudyError(
                *(f"{files.store}: {change}" for change in widening.refused),
                f"{files.store}: these differ from what the study was started with; "
                # Not --name, which auto does not have.
                "put them back, or name another study with --set study.name=NAME",
            )
        added = "; ".join(widening.added)
        if not extends:
            raise StudyError(
                f"{files.store}: the space adds to what the study was started with ({added}); add it to the study "
                "with run --extend, or name another study with --set study.name=NAME"
            )
        with explaining_damage(str(files.store)):
            record = extend(files, record, space, widening, old)
        say(f"the study is extended: {added}; its earlier state: {record.facts['extended'][-1]['kept']}")
        _tell_stranded(record, space, say)
    # Trials can then resume, and repeated draws are recognised, wherever the images are now.
    study_data.move(record, space.first())
    return record


def _tell_stranded(record: Record, space: Space, say: Callable[[str], None]) -> None:
    """Report how many paused trials the current pruner cannot continue."""
    pruner = make_pruner(space.pruner, space.first(), 1)
    rungs = {*pruner.rungs} if isinstance(pruner, Promoting) else set()
    rungs |= {*pruner.early} if isinstance(pruner, EarlyPromoting) else set()
    stranded = [trial for trial in record.trials if trial.state == "paused" and trial.epoch not in rungs]
    if stranded:
        say(f"pruner {space.pruner.name} cannot continue {counted('paused trial', len(stranded))}")


def with_placed_start(space: Space, record: Record | None) -> Space:
    """Return the space with only those start configurations that are matched to trials by position.

    Raises:
        SpaceError: the study's record of them is damaged.
    """
    placed = None if record is None else record.facts.get("placed_start")
    if record is None or placed is None:
        return space
    source = f"study {record.study.study_name!r}: its fact placed_start is damaged"
    return replace(space, start=tuple(start_of(entry, space.root, source=source) for entry in placed))


def _with_later_settings(record: Record, new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original space of a study, completed by settings of later versions; complete its trials too."""
    old = record.fact("space")
    written = completed(old, new)
    if written != old:
        # Checkpoints are identified by the original data section.
        kept = [path for path in IN_DIGESTS if path.startswith("data.")]
        for trial in record.trials:
            tree = completed(trial.candidate.config.to_dict(), new, but=kept)
            trial.candidate = replace(trial.candidate, config=TrialConfig.from_dict(tree))
    return written


def _may_change(path: str, new: Mapping[str, Any]) -> bool:
    if path == "training.devices" and new["training"]["batch_norm"] == "local":
        # The more devices, the smaller the part of a batch from which each computes its statistics.
        return False
    return is_free(path)
