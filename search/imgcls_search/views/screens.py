"""Show each kind of work to the user: on a terminal, in a notebook, as lines, or not at all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from imgcls_search.progress import Progress
from imgcls_search.rounding import without_long_numbers
from imgcls_search.terminal import shown

if TYPE_CHECKING:
    from rich.console import Console

    from imgcls_search.jobs.pace import Epoch
    from imgcls_search.jobs.trainer import TrainingWatcher
    from imgcls_search.orchestrator.search import Search, Watcher

Show = Callable[[str, int, int], None]
"""Called with a description of the work, the number done, and the total."""

_LOG = logging.getLogger("imgcls_search")


class Screens(Protocol):
    """Shows every kind of work."""

    def say(self, text: str) -> None:
        """Show a line."""

    def drafting(self) -> AbstractContextManager[Show]:
        """Return a context that shows the progress of any work."""

    def search(self) -> AbstractContextManager[Watcher]:
        """Return a context that shows a search."""

    def training(self) -> AbstractContextManager[TrainingWatcher]:
        """Return a context that shows trainings."""

    def planning(self, epochs: int) -> AbstractContextManager[Watcher]:
        """Return a context that shows the epochs that are timed for a plan."""

    def steps(self) -> AbstractContextManager[Show]:
        """Return a context that shows the steps of a task."""

    def building(self) -> AbstractContextManager[Progress]:
        """Return a context that shows configurations being built."""


class ConsoleScreens:
    """Shows progress on a terminal or in a notebook, else prints lines."""

    def __init__(self, main: Callable[[], Console], aside: Callable[[], Console] | None = None) -> None:
        """`main` makes the console for searches and lines, `aside` the console for the progress of other work."""
        self.main = main
        self.aside = aside or main

    def say(self, text: str) -> None:
        """Print a line."""
        from rich.text import Text

        self.main().print(Text(shown(without_long_numbers(text))))

    @contextlib.contextmanager
    def drafting(self) -> Iterator[Show]:
        """Show the progress of any work."""
        from imgcls_search.views.screen import WorkScreen

        with WorkScreen(self.aside()) as screen:
            yield screen.show

    def search(self) -> AbstractContextManager[Watcher]:
        """Show a search."""
        from imgcls_search.views.search_screen import SearchScreen

        return SearchScreen(self.main())

    def training(self) -> AbstractContextManager[TrainingWatcher]:
        """Show trainings."""
        from imgcls_search.views.screen import TrainingScreen

        return TrainingScreen(self.aside())

    def planning(self, epochs: int) -> AbstractContextManager[Watcher]:
        """Show the epochs that are timed for a plan."""
        from imgcls_search.views.screen import PlanScreen

        return PlanScreen(self.main(), epochs)

    @contextlib.contextmanager
    def steps(self) -> Iterator[Show]:
        """Show the steps of a task."""
        from imgcls_search.views.screen import StepScreen

        with StepScreen(self.main()) as screen:
            yield screen.step

    @contextlib.contextmanager
    def building(self) -> Iterator[Progress]:
        """Show configurations being built."""
        from imgcls_search.views.screen import SurveyScreen

        with SurveyScreen(self.aside()) as screen:
            yield screen.built


class SilentScreens:
    """Shows nothing; lines go to the log of the package, where a program can read them."""

    def say(self, text: str) -> None:
        """Log a line."""
        _LOG.info("%s", shown(without_long_numbers(text)))

    @contextlib.contextmanager
    def drafting(self) -> Iterator[Show]:
        """Show nothing."""
        yield lambda what, done, total: None

    @contextlib.contextmanager
    def search(self) -> Iterator[Watcher]:
        """Show nothing."""
        yield _SilentWatcher(self.say)

    @contextlib.contextmanager
    def training(self) -> Iterator[TrainingWatcher]:
        """Show nothing."""
        yield _SilentWatcher(self.say)

    @contextlib.contextmanager
    def planning(self, epochs: int) -> Iterator[Watcher]:
        """Show nothing."""
        yield _SilentWatcher(self.say)

    @contextlib.contextmanager
    def steps(self) -> Iterator[Show]:
        """Show nothing."""
        yield lambda what, number, of: None

    @contextlib.contextmanager
    def building(self) -> Iterator[Progress]:
        """Show nothing."""
        yield lambda done, total: None


class _SilentWatcher:
    def __init__(self, say: Callable[[str], None]) -> None:
        self.say: Any = say

    def decoding(self, done: int, total: int) -> None:
        """Show nothing."""

    def changed(self, search: Search) -> None:
        """Show nothing."""

    def epoch_ended(self, epoch: Epoch) -> None:
        """Show nothing."""
