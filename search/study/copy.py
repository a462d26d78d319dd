"""A study copied while a search may be writing it."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from search.errors import StudyError
from search.study import database
from search.study.files import StudyFiles

LEFT_OUT = re.compile(r"lock|lock\.pid|new\.db.*|.*\.tmp")
"""What of a study's folder belongs to the run that is under way."""


def copy_study(files: StudyFiles, to: Path, *, with_folder: bool = False) -> Path:
    """Copy the database as it stands at one moment to a file or into a folder, and return where it is now.

    The folder follows: each checkpoint is whole, and what it holds beyond the database a search fills in.

    Raises:
        StudyError: there is no such study, it is damaged, or the copy cannot be written or would overwrite a file.
    """
    files.must_exist()
    is_folder = to.is_dir() or str(to).endswith(os.sep) or with_folder
    target = to / files.database.name if is_folder else to
    for path in (target, *((target.parent / files.name,) if with_folder else ())):
        if path.exists():
            raise StudyError(f"{path}: exists already; name another place")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_database(files.database, target)
        if with_folder:
            _copy_folder(files.folder, target.parent / files.name)
    except (OSError, shutil.Error) as error:
        raise StudyError(f"{target}: cannot be written ({error})") from error
    return target


def _copy_database(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with (
            database.explaining(source, "copied"),
            closing(sqlite3.connect(database.sound_url(source), uri=True, timeout=database.LOCK_SECONDS)) as ours,
            closing(sqlite3.connect(partial)) as theirs,
        ):
            # All pages in one step: one moment of the study, and no writer is held up.
            ours.backup(theirs)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        for leftover in partial.parent.glob(f"{partial.name}*"):
            leftover.unlink()


def _copy_folder(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and not LEFT_OUT.fullmatch(path.name):
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            # A search deletes checkpoints that it needs no more.
            with suppress(FileNotFoundError):
                shutil.copy2(path, copied)
