"""Where a study keeps what."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from search.errors import StudyError, closest
from search.study import place

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class StudyFiles:
    """`<root>/<name>.db` is the record; `<root>/<name>/` holds checkpoints, logs and the lock."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        """Refuse names that could leave the folder."""
        if not _NAME.fullmatch(self.name) or ".." in self.name:
            raise StudyError(
                f"study name {self.name!r}: allowed: letters, digits, '.', '_' and '-', at most 100, no '..', "
                "starting with a letter or digit"
            )

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / f"{self.name}.db"

    @property
    def folder(self) -> Path:
        """What is not in the database."""
        return self.root / self.name

    def checkpoint(self, trial: int) -> Path:
        """The state of a trial's training."""
        return self.folder / "checkpoints" / f"trial-{trial:05d}.pt"

    def artifact(self, trial: int) -> Path:
        """The exported network of a trial, where it has one."""
        return self.checkpoint(trial).with_suffix(".onnx")

    @property
    def pictures(self) -> Path:
        """Optuna's artifacts: pictures of trials, under their artifacts' ids."""
        return self.folder / "artifacts"

    def teacher(self, digest: str) -> Path:
        """The copy of a teacher's weights, named by what they are."""
        return self.folder / "teachers" / f"{digest[:16]}.pt"

    def log(self, trial: int) -> Path:
        """What a trial printed, with the traceback of its failure."""
        return self.folder / "logs" / f"trial-{trial:05d}.log"

    def make(self) -> None:
        """Create the folders.

        Raises:
            StudyError: they cannot be created, are where a study is not safe, or hold one without its database.
        """
        for folder in (self.root, self.folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"{folder}: cannot be created ({error.strerror})") from error
            place.refuse_unfit(folder)
        self._refuse_lost_database()

    def _refuse_lost_database(self) -> None:
        # A checkpoint is never written before the database is there.
        saved = len(list(self.checkpoint(0).parent.glob("trial-*.pt")))
        if saved and not self.database.exists():
            raise StudyError(
                f"{self.database}: is gone, but {self.folder} holds checkpoints of {saved} trial(s); put the database "
                "or a copy of it back, or begin anew: move that folder away, or name another study with --name"
            )

    def must_exist(self) -> None:
        """Refuse a study that is not there.

        Raises:
            StudyError: there is no such database; names near ones.
        """
        if not self.database.is_file():
            known = sorted(path.stem for path in self.root.glob("*.db"))
            shown = f"; studies there: {', '.join(known)}" if known else "; there is no study there yet"
            raise StudyError(f"{self.database}: no such study{closest(self.name, known)}{shown}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study for this process alone; released by the system if the process dies.

        Raises:
            StudyError: another process holds it.
        """
        path = self.folder / "lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StudyError(f"{self.database}: another run is working on this study ({_holder(path)})") from None
        except OSError as error:
            raise StudyError(f"{path}: cannot be locked ({error.strerror})") from error
        try:
            _write_holder(path)
            yield
        finally:
            lock.release()


def refuse_if_any_runs(root: Path) -> None:
    """Refuse while a run works on any study of a folder.

    Raises:
        StudyError: one does; it is named.
    """
    for database in sorted(root.glob("*.db")):
        files = StudyFiles(root, database.stem)
        if files.folder.is_dir():
            with files.locked():
                pass


def _write_holder(path: Path) -> None:
    # Only for the message of whoever comes second; a full disk shall not end a search over it.
    with contextlib.suppress(OSError):
        path.with_suffix(".pid").write_text(f"{os.getpid()}\n")


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.with_suffix('.pid').read_text())}"
    except (OSError, ValueError):
        return "process unknown"
