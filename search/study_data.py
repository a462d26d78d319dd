"""Which images a study belongs to: found under its name, compared with what is there, found again after a move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from search.space import Space
from search.space.study_section import slug
from search.study.address import Address
from search.study.files import find_study
from search.study.record import Record, load


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


def _slug(record: Record) -> str | None:
    folder = record.facts["space"]["data"].get("folder")
    return None if folder is None else slug(folder["root"])
