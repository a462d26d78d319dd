"""Send files between the run and nodes that do not see the study's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imgcls_search import atomic, digests
from imgcls_search.errors import ClusterError
from imgcls_search.executors import processes
from imgcls_search.protocol import CheckpointSaved, Drawn, Event, Job, Scored

CHUNK_BYTES = 64 * 2**20
"""How many bytes of an image array to send at a time."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file, or what was appended to it."""

    path: str
    """Its path below the studies' folder."""

    content: bytes
    is_added: bool = False


@dataclass(frozen=True, kw_only=True)
class JobParcel:
    """A job with the files that its node needs and cannot read in place."""

    job: Job
    files: Sequence[Piece] = ()
    images: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The decoded images: by the file's name, references to its chunks in the object store."""


def below(root: Path, path: Path) -> Piece:
    """Return a whole file."""
    return Piece(path=str(path.relative_to(root)), content=path.read_bytes())


def write(root: Path, pieces: Sequence[Piece]) -> None:
    """Write received pieces below a folder; a crash leaves a whole file as it was or as it was sent.

    Raises:
        ClusterError: a path leads out of the folder.
    """
    for piece in pieces:
        path = root / piece.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise ClusterError(f"--cluster: a node sent a file that leads out of the study: {piece.path!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if piece.is_added:
            with path.open("ab") as file:
                file.write(piece.content)
            continue
        atomic.write_bytes(path, piece.content)


def chunks(path: Path) -> Iterator[bytes]:
    """Read a file in chunks."""
    with path.open("rb") as file:
        while content := file.read(CHUNK_BYTES):
            yield content


def own_folder() -> Path:
    """Return a folder on this node that only this user may enter.

    Raises:
        ClusterError: it belongs to another user.
    """
    folder = Path(processes.short_folder()) / f"imgcls-search-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"--cluster: {folder} belongs to another user")
    return folder


class RemoteFolder:
    """The folder of one worker on a node that does not see the run's folder: the same files under another root."""

    def __init__(self, root: Path, name: str) -> None:
        """Replace `root` on the run's machine, for the worker of a name."""
        self.root = root
        base = own_folder()
        self.images = base / "images"
        self.here = base / digests.of_text(f"{root} {name}")[:16]
        self.trial = -1
        self.sent: dict[Path, tuple[int, int]] = {}
        self.log_sent = 0

    def take(self, parcel: JobParcel) -> Job:
        """Make room for a job, write the files that came with it, and return it with this node's paths."""
        job = parcel.job
        if job.trial != self.trial:
            self.clear()
            self.trial = job.trial
        write(self.here, parcel.files)
        self.sent = {path: _state(path) for path in self._results()}
        moved = replace(
            job,
            checkpoint=self._moved(job.checkpoint),
            log=self._moved(job.log),
            artifact=self._moved(job.artifact),
            pictures=self._moved(job.pictures),
            teacher=self._moved(job.teacher) if job.teacher else None,
            backbones=tuple(map(self._moved, job.backbones)),
            data={**job.data, "folder": str(self._fetch_images(parcel))},
        )
        Path(moved.log).unlink(missing_ok=True)
        self.log, self.log_sent = Path(moved.log), 0
        return moved

    def clear(self) -> None:
        """Delete the files of the trials."""
        shutil.rmtree(self.here, ignore_errors=True)

    def pack(self, event: Event) -> list[Piece]:
        """Return the files that a worker has written by the time of an event, and that the run does not have."""
        pieces = []
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self.log_sent)
            if added := file.read():
                self.log_sent += len(added)
                pieces.append(Piece(path=str(self.log.relative_to(self.here)), content=added, is_added=True))
        if isinstance(event, (CheckpointSaved, Scored, Drawn)):
            for path in self._results():
                state = _state(path)
                if self.sent.get(path) != state:
                    self.sent[path] = state
                    pieces.append(below(self.here, path))
        return pieces

    def _moved(self, path: str) -> str:
        return str(self.here / Path(path).relative_to(self.root)) if path else ""

    def _results(self) -> list[Path]:
        found = [path for path in self.here.rglob("*") if path.is_file() and path.suffix not in (atomic.SUFFIX, ".log")]
        return sorted(found)

    def _fetch_images(self, parcel: JobParcel) -> Path:
        """Return where the decoded images are on this node, after fetching them if nobody else has."""
        import ray
        from filelock import FileLock

        folder = self.images / Path(parcel.job.data["folder"]).name
        self.images.mkdir(exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                with atomic.replacing(folder, draft=folder.with_name(f"{folder.name}.part")) as draft:
                    draft.mkdir()
                    for name, references in parcel.images.items():
                        with (draft / name).open("wb") as file:
                            for reference in references:
                                file.write(ray.get(reference))
        return folder


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
