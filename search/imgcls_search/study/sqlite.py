"""A study in its own SQLite file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage

from imgcls_search import atomic
from imgcls_search.errors import StudyError, closest
from imgcls_search.study import database
from imgcls_search.study.database import FileAccess
from imgcls_search.study.holder import RUN, Holder, holder_of


class SqliteFile:
    """The file `<root>/<name>.db`."""

    def __init__(self, path: Path, draft: Path, name: str) -> None:
        """Create the file under the name `draft`, in a folder that exists by then."""
        self.path = path
        self.draft = draft
        self.name = name
        self.access = FileAccess()

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Tell whether the study exists."""
        return self.path.is_file()

    def must_exist(self) -> None:
        """Raise an error if the study does not exist.

        Raises:
            StudyError: there is no such database; the message suggests similar names.
        """
        if not self.exists():
            known = sorted(path.stem for path in self.path.parent.glob("*.db"))
            shown = f"; studies there: {', '.join(known)}" if known else "; there is no study there yet"
            raise StudyError(f"{self}: no such study{closest(self.path.stem, known)}{shown}")

    def open(self) -> RDBStorage:
        """Open the database of an existing study.

        Raises:
            StudyError: it is damaged, or not ours.
        """
        return database.open_storage(self.path)

    @contextmanager
    def making(self) -> Iterator[tuple[RDBStorage, str]]:
        """Yield a new database and the name of the study to create in it; move it into place when it is complete.

        Raises:
            StudyError: it cannot be created.
        """
        for leftover in self.draft.parent.glob(f"{self.draft.name}*"):
            leftover.unlink()
        storage = database.make(self.draft)
        try:
            with database.explaining(self.draft, "written"):
                yield storage, self.name
        finally:
            # The last connection to close writes the log into the database and deletes it.
            storage.engine.dispose()
        atomic.publish(self.draft, self.path)

    def remove(self) -> None:
        """Delete the study.

        Raises:
            StudyError: it cannot be deleted.
        """
        try:
            # Delete the log first: it would damage a later database of this name.
            for suffix in ("-wal", "-shm", ""):
                self.path.with_name(f"{self.path.name}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise StudyError(f"{self.path}: cannot be deleted ({error.strerror})") from error

    @contextmanager
    def held(self, say: Callable[[str], None] | None = None, *, task: str = RUN) -> Iterator[None]:
        """Do nothing: the lock on the study's folder holds the file too."""
        yield

    def holder(self, mark: Path) -> Holder | None:
        """Return who works on the study: the holder of the mark in its folder."""
        return holder_of(mark)

    def stamp(self) -> Any:
        """Return a value that changes when the database does."""
        paths = [path for path in (self.path, self.path.with_name(f"{self.path.name}-wal")) if path.exists()]
        return [(found.st_mtime_ns, found.st_size) for found in (path.stat() for path in paths)]
