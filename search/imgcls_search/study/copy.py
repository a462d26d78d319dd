"""Copy a study, even while a search writes it, or move it to another database."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from imgcls_search import atomic
from imgcls_search.errors import StudyError
from imgcls_search.study import database
from imgcls_search.study.address import Address
from imgcls_search.study.copy_rows import copy_into, earlier_states
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.sqlite import SqliteFile

LEFT_OUT = re.compile(r"lock|lock\.pid|storage|new\.db.*|.*\.tmp")
"""Files in a study's folder that are not copied: they belong to the current run or to the database."""


def copy_study(files: StudyFiles, to: Path, *, with_folder: bool = False) -> Path:
    """Copy a snapshot of the database to a file or into a folder, and return the path of the copy.

    Also copy the pictures, or the whole folder. Files are copied after the database: each checkpoint is complete, and a
    search fills in what the database lacks. A copy to the study's own path uses the folder that is there.

    Raises:
        StudyError: there is no such study, it is damaged, a link leads out of its folder, or the copy cannot be written
            or would overwrite a file.
    """
    files.must_exist()
    target = to / files.database.name if to.is_dir() or with_folder else to
    folder = target.with_suffix("") if target.suffix else target.with_name(f"{target.name}-files")
    is_home = target.absolute() == files.database.absolute()
    copied = () if is_home else (folder,) if with_folder else (folder / files.pictures.name,)
    for path in (target, *copied):
        if path.exists():
            raise StudyError(f"{path}: exists already; name another place")
    source = files.folder if with_folder else files.pictures
    if copied:
        refuse_links(files, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_home:
            with files.locked(task="copy"):
                _copy_database(files, target)
                StudyFiles(files.root, files.name).take_over()
            return target
        _copy_database(files, target)
        _copy_folder(source, *copied)
    except (OSError, shutil.Error) as error:
        shown = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StudyError(f"{target}: cannot be written ({shown})") from error
    return target


def move_study(files: StudyFiles, to: Address) -> None:
    """Copy the database to a server, and assign the folder to that copy; the old database stays unchanged.

    Raises:
        StudyError: there is no such study, a run works on it, or that database has a study of this name.
    """
    files.must_exist()
    if files.kept is not None:
        raise StudyError(f"{files.recorded_as} is an earlier state of the study and moves with it: copy {files.name}")
    target = StudyFiles(files.root, files.name, to)
    earlier = earlier_states(files)
    for there in (target, *(replace(each, address=to) for each in earlier)):
        if there.store.exists():
            raise StudyError(f"{to}: has a study {there.recorded_as!r} already; name another database")
    files.folder.mkdir(parents=True, exist_ok=True)
    with files.locked(task="copy"), target.store.held(task="copy"), target.store.making() as (storage, draft):
        for each in earlier:
            copy_into(each, storage.engine, each.recorded_as)
        copy_into(files, storage.engine, draft)
    target.take_over()


def _copy_database(files: StudyFiles, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with _without_leftovers(partial):
        if files.address is not None:
            with SqliteFile(target, partial, files.name).making() as (storage, name):
                copy_into(files, storage.engine, name)
                for each in earlier_states(files):
                    copy_into(each, storage.engine, each.recorded_as)
            return
        # Fail here if the target is not writable: that is no fault of the study.
        partial.touch()
        with (
            database.explaining(files.database, "copied"),
            closing(
                sqlite3.connect(database.sound_url(files.database), uri=True, timeout=database.LOCK_SECONDS)
            ) as ours,
            closing(sqlite3.connect(partial)) as theirs,
        ):
            # Copy all pages in one step: this is a consistent snapshot and blocks no writer.
            ours.backup(theirs)
        atomic.publish(partial, target)


@contextmanager
def _without_leftovers(partial: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for leftover in partial.parent.glob(f"{partial.name}*"):
            leftover.unlink()


def refuse_links(files: StudyFiles, source: Path) -> None:
    """Refuse a study's folder if a link leads out of it.

    Raises:
        StudyError: one does.
    """
    # A study may come from anyone: a link in it could leak files of this machine into the copy.
    home = files.folder.resolve()
    for path in (source, *sorted(source.rglob("*"))):
        if path.is_symlink() and path != files.folder and not path.resolve().is_relative_to(home):
            raise StudyError(f"{path}: a link that leads out of the study's folder; put the files there, or delete it")


def _copy_folder(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and not LEFT_OUT.fullmatch(path.name):
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            # A search deletes checkpoints that it no longer needs.
            with suppress(FileNotFoundError):
                shutil.copy2(path, copied)
