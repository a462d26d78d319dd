"""Count the contents of a folder other than the images that are read, by reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from imgcls_search.data.opening import EXTENSIONS
from imgcls_search.data.source import LeftOut
from imgcls_search.errors import DataError
from imgcls_search.words import counted, some

SYSTEM_FOLDERS = (
    "__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "recycler", "recycled", "system volume information",
    "lost+found", "__pycache__", "@recycle", "@tmp", "lost.dir", "found.000", "config.msi", "network trash folder",
    "temporary items",
)  # fmt: skip
"""Folders that systems, network drives and tools leave next to images, in lower case."""

SYSTEM_FILES = ("thumbs.db", "desktop.ini", "icon\r", "ehthumbs.db")


class Tally:
    """Counts the contents of a folder other than the images that are read, by reason."""

    def __init__(self, top: Path) -> None:
        """Examples are named relative to `top`."""
        self.top = top
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}
        self.broken_links: list[str] = []

    def add(self, reason: str, path: str | Path) -> None:
        """Count an entry that is not read."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, self.name(path))

    def name(self, path: str | Path) -> str:
        """Return a path relative to the top."""
        return Path(path).relative_to(self.top).as_posix()

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return the counts, the largest first."""
        found = [
            LeftOut(reason=reason, count=count, example=self.examples[reason]) for reason, count in self.counts.items()
        ]
        return tuple(sorted(found, key=lambda entry: (-entry.count, entry.reason)))

    def refuse_broken_links(self, place: str) -> None:
        """Raise DataError if there are broken links."""
        if self.broken_links:
            raise DataError(
                f"{place}: {counted('broken link', len(self.broken_links))}: {quoted(sorted(self.broken_links))}; "
                "restore what they point to, or delete them"
            )

    def skips(self, entry: os.DirEntry[str], *, counts_files: bool = True) -> bool:
        """Return whether an entry is hidden, a system file or a broken link, and count it."""
        name = entry.name
        if name.startswith(".") or name.lower() in (*SYSTEM_FOLDERS, *SYSTEM_FILES):
            is_folder = not is_broken(entry) and entry.is_dir()
            if is_folder or counts_files:
                self.add("hidden or system folder" if is_folder else "hidden or system file", entry.path)
            return True
        if is_broken(entry):
            self.broken_links.append(self.name(entry.path))
            return True
        return False

    def add_other(self, name: str, path: str | Path) -> None:
        """Count a file that is not an image, by its extension."""
        ending = Path(name).suffix.lower()
        self.add(f"file ending in {ending}" if ending else "file without an ending", path)


def is_broken(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to nothing, or to itself."""
    return entry.is_symlink() and not Path(entry.path).exists()


def image_files(top: Path, tally: Tally) -> Iterator[Path]:
    """Yield the image files below a folder, entering every real folder once, because links may form cycles.

    Other entries are counted.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that the same tree gives the same names even if two links lead to one folder.
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            if tally.skips(entry):
                continue
            if entry.is_dir():
                waiting.append(Path(entry.path))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield Path(entry.path)
            else:
                tally.add_other(entry.name, entry.path)


def quoted(names: Sequence[str]) -> str:
    """Return the first names in quotes, and how many more there are."""
    return some([repr(name) for name in names])
