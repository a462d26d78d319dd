"""Which images a study belongs to: found under its name, compared with what is there, found again after a move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import Prepared, describe
from imgcls_search.errors import StudyError
from imgcls_search.executors.helper import Helper
from imgcls_search.space import Space
from imgcls_search.space.study_section import slug
from imgcls_search.study.address import Address
from imgcls_search.study.files import find_study
from imgcls_search.study.record import Record, load


def with_known_name(space: Space, root: Path, address: Address | None) -> Space:
    """Return a space under the name of its study: earlier versions named every study of a folder `<space>-folder`.

    Such a study is the space's own where it would have the space's name today, and none has that name yet.

    Raises:
        StudyError: a study of either name is damaged.
    """
    if space.former_name is None or find_study(root, space.name, address).store.exists():
        return space
    former = find_study(root, space.former_name, address)
    if not former.store.exists() or _slug(load(former)) != slug(space.first().component("data").args["root"]):
        return space
    return replace(space, name=space.former_name, former_name=None)


def refuse_other(record: Record, config: TrialConfig, data: Prepared, helper: Helper) -> None:
    """Refuse images that are not those of a study, compared as the version of its fingerprint did.

    Raises:
        StudyError: they are others; it says how many there were and are.
    """
    known = record.fact("data")["fingerprint"]
    if known != data.fingerprint and not helper.has_fingerprint(config, known):
        raise _others(record, data.classes, data.counts, data.fingerprint)


def refuse_other_unopened(record: Record, component: Component, cache: Path) -> None:
    """Do the same for a study that has nothing left to do, where no image is worth decoding.

    Only folders change: what comes with a library is checked by it.

    Raises:
        StudyError: they are others.
        DataError: they are missing.
    """
    if component.name != "folder":
        return
    source = describe(component, cache)
    if not source.has_fingerprint(record.fact("data")["fingerprint"]):
        counts: dict[str, int] = {split: len(names) for split, names in source.names.items()}
        raise _others(record, source.classes, counts, source.fingerprint)


def _others(record: Record, classes: Sequence[str], counts: Mapping[str, int], fingerprint: str) -> StudyError:
    known = record.fact("data")
    return StudyError(
        f"study {record.study.study_name!r} was started with other images: then {known['images']} of "
        f"{len(known['classes'])} classes, fingerprint {known['fingerprint']}; now {dict(counts)} of "
        f"{len(classes)} classes, fingerprint {fingerprint}; put them back, or begin another study: run ... --name NAME"
    )


def _slug(record: Record) -> str | None:
    folder = record.fact("space")["data"].get("folder")
    return None if folder is None else slug(folder["root"])
