"""The tree of errors. Only the command line catches them, and prints them without a traceback.

SearchError
├── UserError            a mistake of the user's: exit code 2
│   ├── SpaceError       a space or config file, with every problem in it
│   ├── BuildError       a configuration that no model, optimizer or loss can be built from
│   ├── DataError        images that are missing, damaged or unusable
│   │   └── CutError     images that are there, but cannot be cut into splits
│   ├── CheckpointError  a weights file that is missing, damaged or of another model
│   ├── DeployError      a model that cannot be exported, quantized or served, or a bundle that is incomplete
│   ├── DeviceError      a device or precision this machine does not have
│   ├── ClusterError     a cluster that cannot be reached or is not suitable for the search
│   └── StudyError       a study that is missing, locked, changed or not writable
├── NoResultError        a search that ended with nothing to show: exit code 1
├── DivergedError        a training whose loss became NaN or infinite
├── OutOfTimeError       work that has not finished in time
└── StoppedError         a training that was asked to stop in the middle of an epoch
"""

from __future__ import annotations

import difflib
import errno
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SearchError(Exception):
    """Anything that this package raises on purpose."""

    exit_code = 1

    def lines(self) -> list[str]:
        """Return the lines to print, one for each problem."""
        return list(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.lines())


class UserError(SearchError):
    """A mistake that the user can fix: one line that says where it is, what was found and what is allowed."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One problem in one place of a file."""

    line: int = 0
    """Counted from 1; 0 if the problem has no line, as for `--set`."""

    column: int = 0
    path: str = ""
    """The dotted path of the key, for example `model.vit.depth`; empty for the whole file."""

    message: str

    def render(self, source: str) -> str:
        """Return `source:line:column: path: message`, without the parts that are not known."""
        place = f"{source}:{self.line}:{self.column}" if self.line else source
        return ": ".join(part for part in (place, self.path, self.message) if part)


class SpaceError(UserError):
    """A space or config file with problems in it, all reported together."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(problem.render(source) for problem in self.problems))

    def lines(self) -> list[str]:
        """Return the problems."""
        return [problem.render(self.source) for problem in self.problems]

    def __reduce__(self) -> tuple[type[SpaceError], tuple[str, tuple[Problem, ...]]]:
        # Exceptions cross process boundaries; one that cannot be unpickled leaves a pool of workers waiting forever.
        return type(self), (self.source, self.problems)


class BuildError(UserError):
    """A configuration that cannot be built; `path` names the key at fault."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{path}: {message}")

    def __reduce__(self) -> tuple[type[BuildError], tuple[str, str]]:
        # See SpaceError.
        return type(self), (self.path, self.message)


class DataError(UserError):
    """Images that are missing, damaged or unusable."""


class CutError(DataError):
    """Images that are there, but cannot be cut into splits: too few of a class, or only one class."""


class CheckpointError(UserError):
    """A weights file that is missing, damaged or of another model."""


class DeployError(UserError):
    """A model that cannot be exported, quantized or served, or a bundle that is incomplete."""


class DeviceError(UserError):
    """A device or precision that this machine does not have."""


class ClusterError(UserError):
    """A cluster that cannot be reached or is not suitable for the search."""


class StudyError(UserError):
    """A study that is missing, locked, changed or not writable."""


class NoResultError(SearchError):
    """A search that ended with nothing to show."""


class DivergedError(SearchError):
    """A training whose loss became NaN or infinite."""


class OutOfTimeError(SearchError):
    """Work that has not finished in time."""


class StoppedError(SearchError):
    """A training that was asked to stop in the middle of an epoch; that epoch is lost, the ones before it are not."""


UNWRITTEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError),
)
"""Errors that values raise if no program would write their type or shape: a damaged file raises any of them."""


_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


def disk_trouble(error: BaseException | None) -> str | None:
    """Return the system's message if an error comes from a disk that is full, at its quota, read-only or broken."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        # torch.save hides the system's error behind its own.
        error = error.__cause__ or error.__context__
    return None


_PATH = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    }
)


def path_trouble(error: OSError) -> str | None:
    """Return the system's message if an error comes from a path that is missing, inaccessible or unusable."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.errno in _PATH else None


@contextmanager
def writing(path: Path, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn a system error while a file or folder is written into a line that names it."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be written ({error.strerror or error})") from error


def refuse_idle(options: Mapping[str, Any], why: str) -> None:
    """Refuse an option that was given, but would change nothing; None and False mean that it was not given.

    Raises:
        UserError: it names the first such option, and `why`, such as `without --ablation`.
    """
    for option, value in options.items():
        # By identity, since 0 == False, and a 0 is given.
        if value is not None and value is not False:
            raise UserError(f"{option}: has no effect {why}")


def first_line(error: BaseException, otherwise: str | None = None) -> str:
    """Return the first line of an exception's message: libraries add pages of advice.

    If the message is empty, return `otherwise`, or the name of the exception.
    """
    return (str(error).strip() or otherwise or type(error).__name__).splitlines()[0]


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return an exception's message, or else its name, in one line; at most `most` characters of the message."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def closest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name nearest to `name`, or an empty string."""
    names = list(known)
    if (twin := next((each for each in names if _looks_like(each, name)), None)) is not None:
        # Escaped, since both look the same otherwise.
        return f" (did you mean {twin!a}? {name!a} differs from it in Unicode form only)"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _looks_like(one: str, other: str) -> bool:
    return one != other and unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", other)
