"""Files and folders that are written whole or not at all: as a draft beside the target, which then takes its place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".tmp"
"""Of every draft that has no name of its own; a killed process leaves it behind."""


@contextlib.contextmanager
def replacing(target: Path, *, draft: Path | None = None) -> Iterator[Path]:
    """Yield a path to write a file or a folder at; when the block ends it takes the place of the target.

    If the block fails, or the process dies, the target is what it was before. A target that is a device or a pipe is
    written to. Give a `draft` where only one process can be at it: what a killed one left there is deleted first.

    Raises:
        OSError: it cannot be written; or the target is a folder that is not empty.
    """
    if _is_stream(target):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "draft"
            yield path
            with path.open("rb") as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream)
        return
    beside = draft or _draft(target)
    if draft is not None:
        remove(draft)
    try:
        yield beside
        publish(beside, target)
    except Exception as error:
        _name_file(error, target)
        raise
    finally:
        # Where the folder of the target is a file, this fails as the writing did.
        with contextlib.suppress(OSError):
            remove(beside)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Create a folder for what the block writes; where that is nothing, it goes again, with those made above it.

    Raises:
        OSError: it cannot be created.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


_OF_CONTENT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _name_file(error: BaseException, target: Path) -> None:
    """Let an error of a full or broken disk say which file it came from: the system's does where a file is opened."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_CONTENT and cause.filename is None:
            cause.filename = str(target)
        cause = cause.__cause__ or cause.__context__


def publish(draft: Path, target: Path) -> None:
    """Let what was written take the place of the target, in the same file system; both survive a power cut.

    Raises:
        OSError: it cannot; the target is what it was before.
    """
    for path in (*draft.rglob("*"), draft):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync_file(path)
    if draft.is_file() and target.is_file():
        # As if it had been opened for writing.
        shutil.copymode(target, draft)
    draft.replace(target)
    sync_folder(target.parent)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file, see `replacing`."""
    with replacing(target) as draft:
        draft.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write a file as UTF-8, see `replacing`; a name in it that is not UTF-8 is written with a backslash."""
    write_bytes(target, text.encode(errors="backslashreplace"))


def copy(source: Path, target: Path) -> None:
    """Copy the content of a file, see `replacing`."""
    with replacing(target) as draft:
        shutil.copyfile(source, draft)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all; nothing of what is there is read, and others may add at once.

    Raises:
        OSError: it cannot be written; the file is what it was before.
    """
    from filelock import FileLock

    # Without a buffer, which would write what did not fit once more as the file is closed.
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        # Half a line, which somebody left, keeps to itself.
        begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
        content = begin + line.encode() + b"\n"
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def check_writable(target: Path) -> None:
    """Try whether a file could be written, and leave everything as it is.

    Raises:
        OSError: it cannot.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if _is_stream(target):
        return
    draft = _draft(target)
    draft.touch()
    draft.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system lets folders be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _draft(target: Path) -> Path:
    # Other threads and other machines may write the same file; a long name has no room for more.
    absolute = target.absolute()
    return absolute.with_name(f".{absolute.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")


def _is_stream(target: Path) -> bool:
    """Tell whether a target is nothing that another file can take the place of, as `/dev/stdout`."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    if stat.S_ISREG(mode):
        # Where the standard output goes to a file.
        return str(target.absolute().parent) in ("/dev", "/dev/fd")
    return not stat.S_ISDIR(mode)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
