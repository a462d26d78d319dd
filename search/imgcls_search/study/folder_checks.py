"""Check where a study may be stored: the kind of file system, and write access."""

from __future__ import annotations

import os
import re
from pathlib import Path

from imgcls_search.errors import StudyError

MOUNTS = Path("/proc/mounts")

NETWORK = frozenset(
    {
        *("nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs"),
        *("beegfs", "glusterfs", "pvfs2", "orangefs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"),
        *("fuse.rclone", "fuse.gcsfuse"),
    }
)
"""File systems that several machines share. SQLite's log needs memory that all its processes share."""


def refuse_unfit(folder: Path, mounts: Path = MOUNTS, *, holds_database: bool = True) -> None:
    """Refuse a folder that a search cannot safely write a study to.

    Raises:
        StudyError: it is read-only, or on a network file system although it is to hold an SQLite file.
    """
    kind = file_system(folder, mounts)
    if holds_database and kind in NETWORK:
        raise StudyError(
            f"{folder}: is on a network file system ({kind}), where SQLite's log can lose trials; choose a folder on a "
            "disk of this machine with --studies, and bring the study over when it has ended: imgcls-search copy"
        )
    if not is_writable(folder):
        raise StudyError(f"{folder}: not writable; choose another place with --studies")


def is_writable(path: Path) -> bool:
    """Tell whether a file can be changed, or files can be created in a folder; false on a read-only file system."""
    return os.access(path, os.W_OK | os.X_OK if path.is_dir() else os.W_OK)


def file_system(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the kind of file system that a folder is on, or None if the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    here = folder.resolve()
    found: tuple[int, str | None] = (-1, None)
    for line in lines:
        _, top, kind, *_ = [*line.split(" "), "", ""]
        # A later mount hides an earlier one on the same folder.
        if here.is_relative_to(_unescaped(top)) and len(top) >= found[0]:
            found = len(top), kind
    return found[1]


def _unescaped(text: str) -> str:
    """Decode the octal escapes for blanks in a path of the mount table."""
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), text)
