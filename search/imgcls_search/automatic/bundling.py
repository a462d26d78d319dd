"""Write the bundles of `auto`: a first one during the search, and the final one in its place during the report."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

from imgcls_search import atomic
from imgcls_search.deploy.bundle import FILES
from imgcls_search.errors import SearchError
from imgcls_search.executors import processes
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.export import read_origin
from imgcls_search.progress import ShowStep
from imgcls_search.study.files import StudyFiles

POLL_SECONDS = 0.2
"""How long a poll waits for progress of the bundle."""


def put_bundle(
    files: StudyFiles,
    trial: int,
    target: Path,
    step: ShowStep = lambda what, number, of: None,
) -> None:
    """Write the network of a trial as a bundle; replace an earlier bundle of `auto` once this one is complete.

    Raises:
        SearchError: the trial's weights, its images or the disk cannot be used.
    """
    from imgcls_search.jobs.bundle.deliver import deliver
    from imgcls_search.jobs.bundle.weights import from_trial

    clear_drafts(target)
    drafts = _drafts(target)
    draft, former = drafts / "new", drafts / "former"
    try:
        drafts.mkdir(parents=True)
        deliver(
            from_trial(files, trial),
            draft,
            image_cache(files.root),
            step=lambda what, number, of: step(what.replace(str(draft), str(target)), number, of),
        )
        if target.exists():
            target.rename(former)
        atomic.publish(draft, target)
    finally:
        clear_drafts(target)


def trial_in(target: Path, study: str) -> int | None:
    """Return the trial in a bundle, None if there is no bundle, or if it is of another study.

    The folder may serve several studies: `--set study.name` begins another one.
    """
    try:
        text = (target / FILES["config"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    origin, _ = read_origin(text)
    return origin["trial"] if origin is not None and origin["study"] == study else None


def _drafts(target: Path) -> Path:
    return target.with_name(f".{target.name}.drafts")


def clear_drafts(target: Path) -> None:
    """Delete a killed process's unfinished bundle; restore the former one if there is no new one."""
    former = _drafts(target) / "former"
    if former.is_dir() and not target.exists():
        former.rename(target)
    atomic.remove(_drafts(target))


class BundleProcess:
    """A bundle that is written in a separate process while other work continues."""

    def __init__(self, files: StudyFiles, trial: int, target: Path) -> None:
        self.trial, self.target = trial, target
        self.step: tuple[str, int, int] | None = None
        """The current step: its description, its number and the number of steps."""

        self.process, self.connection = processes.start(_write, "bundle", files, trial, target)

    def poll(self, seconds: float = 0.0) -> str | float | None:
        """Return the CPU seconds of a finished bundle, or why it failed; None while it is being written."""
        end = time.monotonic() + seconds
        while self.connection.poll(max(0.0, end - time.monotonic())):
            try:
                told: str | float | tuple[str, int, int] = self.connection.recv()
            except (EOFError, OSError):
                return "its process died"
            if not isinstance(told, tuple):
                return told
            self.step = told
        return None

    def wait(self, show: ShowStep) -> str | float:
        """Show the steps until the bundle is done; return the result of `poll`."""
        shown = None
        while (told := self.poll(POLL_SECONDS)) is None:
            if self.step is not None and self.step != shown:
                shown = self.step
                show(*shown)
        return told

    def close(self) -> None:
        """Kill the process and delete an unfinished bundle."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        clear_drafts(self.target)


def _write(connection: Connection, files: StudyFiles, trial: int, target: Path) -> None:
    from imgcls_search.training.device import settle_in

    settle_in("cpu")
    try:
        put_bundle(files, trial, target, lambda *step: connection.send(step))
        # CPU time, because other processes slow this one down. The next bundle has a core to itself.
        told: str | float = time.process_time()
    except SearchError as error:
        told = str(error)
    connection.send(told)
