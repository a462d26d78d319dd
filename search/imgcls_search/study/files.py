"""Where a study stores its data: the record in a database, everything else in a folder."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from imgcls_search import atomic
from imgcls_search.errors import StudyError, UserError
from imgcls_search.study import address, folder_checks
from imgcls_search.study.address import KEPT, Address
from imgcls_search.study.holder import RUN, Holder, marking, read_mark
from imgcls_search.words import counted, in_folder

if TYPE_CHECKING:
    from imgcls_search.study.postgres import PostgresStudy
    from imgcls_search.study.sqlite import SqliteFile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")

_OWNER = "this file says in which database the study is: write its address into it, without a password"


@dataclass(frozen=True)
class StudyFiles:
    """`<root>/<name>.db`, or a database on a server, is the record; `<root>/<name>/` holds checkpoints and logs."""

    root: Path
    name: str
    address: Address | None = None
    """The address of the database, if it is on a server."""

    kept: int | None = None
    """Number of an earlier state, from before its space grew; it shares the folder with the current study."""

    def __reduce__(self) -> tuple[type[StudyFiles], tuple[Path, str, Address | None, int | None]]:
        # Connections cannot be pickled: another process opens the database itself.
        return StudyFiles, (self.root, self.name, self.address, self.kept)

    def __post_init__(self) -> None:
        """Refuse names that could leave the folder."""
        if not is_name(self.name):
            raise StudyError(
                f"study name {self.name!r}: allowed: letters, digits, '.', '_' and '-', at most 100, no '..', "
                "starting with a letter or digit"
            )

    @cached_property
    def store(self) -> SqliteFile | PostgresStudy:
        """The database; it is opened on first use.

        Raises:
            UserError: the database driver is not installed.
        """
        # Import when needed: each takes a second with its dependencies.
        if self.address is not None:
            from imgcls_search.study.postgres import PostgresStudy

            return PostgresStudy(self.address, self.recorded_as)
        from imgcls_search.study.sqlite import SqliteFile

        return SqliteFile(self.database, self.folder / "new.db", self.recorded_as)

    @property
    def options(self) -> str:
        """The options with which a shown command finds the study, without a password; often empty."""
        return in_folder(self.root) + address.option(self.address)

    @property
    def argument(self) -> str:
        """The study as arguments of a shown command."""
        return self.recorded_as + self.options

    @property
    def recorded_as(self) -> str:
        """The name of the study in its database."""
        return self.name if self.kept is None else self.kept_as(self.kept)

    def kept_as(self, number: int) -> str:
        """Return the name in the database of an earlier state, from before the space grew."""
        return f"{self.name}{KEPT}{number}"

    @property
    def database(self) -> Path:
        """The SQLite file, if that is the record."""
        return self.root / f"{self.name}.db"

    @property
    def owner(self) -> Path:
        """File with the address of the study's database on a server; without it, the record is the SQLite file."""
        return self.folder / "storage"

    @property
    def folder(self) -> Path:
        """Folder of everything that is not in the database."""
        return self.root / self.name

    def checkpoint(self, trial: int) -> Path:
        """Return the path of a trial's training state."""
        return self.folder / "checkpoints" / f"trial-{trial:05d}.pt"

    def artifact(self, trial: int) -> Path:
        """Return the path of a trial's exported network, which may not exist."""
        return self.checkpoint(trial).with_suffix(".onnx")

    @property
    def pictures(self) -> Path:
        """Folder of Optuna's artifacts: pictures of trials, named by artifact id."""
        return self.folder / "artifacts"

    def teacher(self, digest: str) -> Path:
        """Return the path of the copy of a teacher's weights, named by their digest."""
        return self.folder / "teachers" / f"{digest[:16]}.pt"

    def log(self, trial: int) -> Path:
        """Return the path of a trial's log: its output, and the traceback of a failure."""
        return self.folder / "logs" / f"trial-{trial:05d}.log"

    def make(self) -> None:
        """Create the folders.

        Raises:
            StudyError: they cannot be created, are unsafe for a study, or hold checkpoints without their database.
        """
        for folder in (self.root, self.folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"{folder}: cannot be created ({error.strerror})") from error
            folder_checks.refuse_unfit(folder, holds_database=self.address is None)
        self._refuse_folder_of_another()
        self._refuse_lost_database()

    @contextlib.contextmanager
    def taken(self, say: Callable[[str], None] | None = None, *, task: str = RUN) -> Iterator[None]:
        """Create the folders and lock the study and its folder for this process, see `make` and `locked`.

        If no study was created, delete a new folder again.

        Raises:
            StudyError: they cannot be created, or another process holds them.
        """
        is_new = not self.folder.exists()
        self.make()
        with self.locked(say, task=task):
            if self.address is not None:
                # Only now that the server has answered: a mistyped address must not be stored.
                self.take_over()
            try:
                yield
            finally:
                if is_new:
                    self._leave_nothing_without_study()

    def _leave_nothing_without_study(self) -> None:
        # A folder that cannot be checked or deleted now does no harm.
        with contextlib.suppress(StudyError, OSError):
            if not self.store.exists():
                shutil.rmtree(self.folder)

    def take_over(self) -> None:
        """Store in the folder which database the study is in.

        Raises:
            StudyError: the folder cannot be written.
        """
        try:
            if self.address is None:
                self.owner.unlink(missing_ok=True)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                atomic.write_text(self.owner, f"{self.address}\n")
        except OSError as error:
            raise StudyError(f"{self.owner}: cannot be written ({error.strerror})") from error

    def _refuse_folder_of_another(self) -> None:
        known, copy = _read_owner(self.owner), f"imgcls-search copy {self.name}{in_folder(self.root)}"
        if known is not None and known != self.address:
            raise StudyError(
                f"{self.folder}: belongs to the study in {known}, and not to {self.address or self.database}; copy "
                f"that one: {copy}{address.option(known)} --to ..., name another study with --name, or, where both "
                f"are one database, delete {self.owner}"
            )
        if known is None and self.address is not None and self.database.exists():
            raise StudyError(
                f"{self.folder}: belongs to the study in {self.database}, and not to {self.address}; copy that one: "
                f"{address.unset()}{copy} --to "
                f"{shlex.quote(self.address.text)}, or name another study with --name"
            )

    def _refuse_lost_database(self) -> None:
        # The database always exists before the first checkpoint.
        saved = len(list(self.checkpoint(0).parent.glob("trial-*.pt")))
        if saved and not self.store.exists():
            raise StudyError(
                f"{self.store}: is gone, but {self.folder} holds checkpoints of {counted('trial', saved)}; put the "
                "database or a copy of it back, or start again: move that folder away, or name another study with "
                "--name"
            )

    def must_exist(self) -> None:
        """Raise an error if the study does not exist.

        Raises:
            StudyError: there is no such study; the message suggests similar names.
        """
        self.store.must_exist()

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None] | None = None, *, task: str = RUN) -> Iterator[None]:
        """Lock the study and its folder for this process; released if the process dies.

        If the server becomes unreachable, wait for it and say so.

        Raises:
            StudyError: another process holds it.
        """
        with self.folder_locked(task=task), self.store.held(say, task=task):
            yield

    def holder(self) -> Holder | None:
        """Return who works on the study now, without taking a lock.

        Raises:
            StudyError: the database cannot be reached.
        """
        return self.store.holder(self._mark)

    @property
    def _mark(self) -> Path:
        """File that names the holder of the folder."""
        return self.folder / "lock.pid"

    @contextlib.contextmanager
    def folder_locked(self, *, task: str = RUN) -> Iterator[None]:
        """Lock the study's folder for this process.

        Raises:
            StudyError: another process holds it.
        """
        path, mark = self.folder / "lock", self._mark
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            shown = self.address or self.database
            raise StudyError(f"{shown}: another run is working on this study ({read_mark(mark).process})") from None
        except OSError as error:
            raise StudyError(f"{path}: cannot be locked ({error.strerror})") from error
        try:
            with marking(mark, task):
                yield
        finally:
            lock.release()


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of a study; the name of a copy, such as `vit copy`, often cannot."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def refuse_if_any_runs(root: Path) -> None:
    """Raise an error if a run works on any study in a folder.

    Raises:
        StudyError: one does; the message names it.
    """
    for name in filter(is_name, study_names(root)):
        files = find_study(root, name, None)
        if files.folder.is_dir():
            with files.folder_locked(task="clean"):
                pass


def study_names(root: Path, at: Address | None = None) -> list[str]:
    """Return the studies of a database on a server, or of a folder, including those with a record on a server.

    Raises:
        StudyError: the database cannot be reached, or is not ours; or the folder is a file.
    """
    if at is not None:
        from imgcls_search.study.postgres import studies_of

        return studies_of(at)
    if root.exists() and not root.is_dir():
        raise StudyError(f"{root}: is not a folder; allowed: the folder of the studies (--studies)")
    files = {path.stem for path in root.glob("*.db")}
    return sorted(files | {path.parent.name for path in root.glob("*/storage") if not path.parent.name.startswith(".")})


def find_study(root: Path, name: str, at: Address | None) -> StudyFiles:
    """Locate a study: at the address, else where its folder says, else in an SQLite file.

    Raises:
        StudyError: the name is not allowed, or the address in its folder cannot be read.
    """
    base, is_kept, number = name.partition(KEPT)
    kept = int(number) if is_kept and _NUMBER.fullmatch(number) else None
    files = StudyFiles(root, name if kept is None else base, at, kept)
    return files if at is not None else StudyFiles(root, files.name, _read_owner(files.owner), kept)


def _read_owner(path: Path) -> Address | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        shown = (error.strerror if isinstance(error, OSError) else None) or "damaged, not UTF-8"
        raise StudyError(f"{path}: cannot be read ({shown}); {_OWNER}") from error
    try:
        return address.parse(text, str(path))
    except UserError as error:
        raise StudyError(f"{error}; {_OWNER}") from None
