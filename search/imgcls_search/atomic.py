"""Write files and folders as a whole or not at all: as a draft beside the target, which then replaces it."""

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
"""Suffix of every draft that the caller does not name; a killed process leaves it behind."""


@contextlib.contextmanager
def replacing(target: Path, *, draft: Path | None = None) -> Iterator[Path]:
    """Yield a path to write a file or a folder at; it replaces the target when the block ends.

    If the block fails, or the process dies, the target stays unchanged. A target that is a device or a pipe is written
    to. Pass a `draft` only if a single process uses it: what a killed process left there is deleted first.

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
        # If the folder of the target is a file, this fails as the write did.
        with contextlib.suppress(OSError):
            remove(beside)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Create a folder for what the block writes; if that is nothing, delete it again, with the parents created for it.

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
    """Add the file to an error of a full or broken disk: the system adds it only when a file is opened."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _OF_CONTENT and cause.filename is None:
            cause.filename = str(target)
        cause = cause.__cause__ or cause.__context__


def publish(draft: Path, target: Path) -> None:
    """Replace the target with a draft in the same file system; both survive a power cut.

    Raises:
        OSError: it cannot be replaced; it stays unchanged.
    """
    for path in (*draft.rglob("*"), draft):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync_file(path)
    if draft.is_file() and target.is_file():
        # Keep the permissions, as opening the target for writing would.
        shutil.copymode(target, draft)
    draft.replace(target)
    sync_folder(target.parent)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file, see `replacing`."""
    with replacing(target) as draft:
        draft.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Write a file as UTF-8, see `replacing`; characters that are not valid UTF-8 become backslash escapes."""
    write_bytes(target, text.encode(errors="backslashreplace"))


def copy(source: Path, target: Path) -> None:
    """Copy the content of a file, see `replacing`."""
    with replacing(target) as draft:
        shutil.copyfile(source, draft)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, as a whole or not at all, without reading the file; others may append at the same time.

    Raises:
        OSError: it cannot be written; the file stays unchanged.
    """
    from filelock import FileLock

    # Unbuffered: a buffer would write what did not fit a second time when the file is closed.
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        # Start a new line after an incomplete one that another process left.
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
    """Check whether a file could be written, without changing anything.

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
    """Make the names in a folder survive a power cut, if the system can open folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _draft(target: Path) -> Path:
    # Other threads and machines may write the same file; a long name leaves no room for more.
    absolute = target.absolute()
    return absolute.with_name(f".{absolute.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")


def _is_stream(target: Path) -> bool:
    """Tell whether a target cannot be replaced by another file, such as `/dev/stdout`."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    if stat.S_ISREG(mode):
        # Standard output may go to a file.
        return str(target.absolute().parent) in ("/dev", "/dev/fd")
    return not stat.S_ISDIR(mode)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
