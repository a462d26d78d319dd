"""Check weights files, zip archives that torch does not check: ours end in a digest, others have checksums."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import BinaryIO

_MARK = b"imgcls-search sha256:"
_LENGTH = len(_MARK) + 64
"""Length of the archive's comment, which holds the digest of everything before it."""

_BLOCK = 2**20


class DamagedError(Exception):
    """A file that differs from what was written."""


def seal(file: BinaryIO) -> None:
    """Add the digest of a zip archive to it, as its comment; the file is open for reading and writing."""
    # An archive without a comment ends with the comment's length.
    file.seek(-2, 2)
    file.write(_LENGTH.to_bytes(2, "little"))
    file.seek(0)
    digest = _digest(file)
    file.seek(0, 2)
    file.write(_MARK + digest)


def verify(path: Path) -> None:
    """Check a weights file against its digest or, if it has none, a zip archive against its checksums.

    Raises:
        DamagedError: it differs from what was written.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LENGTH - 2))
        length, comment = int.from_bytes(file.read(2), "little"), file.read()
        file.seek(0)
        if comment.startswith(_MARK):
            if _digest(file, size - _LENGTH) != comment[len(_MARK) :]:
                raise DamagedError("its digest differs")
        elif length == len(comment) == _LENGTH:
            raise DamagedError("its digest is unreadable")
        else:
            _verify_entries(file)


def _digest(file: BinaryIO, size: int | None = None) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK if size is None else min(_BLOCK, size)):
        digest.update(block)
        size = None if size is None else size - len(block)
    return digest.hexdigest().encode()


def _verify_entries(file: BinaryIO) -> None:
    is_archive = file.read(2) == b"PK"
    file.seek(0)
    # Weights of torch before 1.6 are not an archive and have no checksum.
    if not is_archive and not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    # A damaged directory makes zipfile raise nearly anything.
    except Exception as error:
        raise DamagedError(f"its archive is damaged: {type(error).__name__}") from error
    if broken is not None:
        raise DamagedError(f"the checksum of {broken[:80]!r} in it differs")
