"""Show the progress of plans, surveys, trainings and other work: bars on a terminal, else plain lines."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.text import Text

from imgcls_search import durations
from imgcls_search.measures import main_measure
from imgcls_search.rounding import pairs
from imgcls_search.terminal import shown
from imgcls_search.views.notebook import NotebookConsole, NotebookProgress

if TYPE_CHECKING:
    from imgcls_search.jobs.pace import Epoch
    from imgcls_search.orchestrator.search import Search


PLAIN_SECONDS = 10.0
"""Print at most one line in this time outside a terminal, except for trials that end."""


def can_draw(console: Console) -> bool:
    """Tell whether a console can draw bars, or only print lines."""
    return console.is_terminal or isinstance(console, NotebookConsole)


def new_bars(console: Console, *columns: ProgressColumn, auto_refresh: bool = True) -> Progress:
    """Return progress bars for a terminal or a notebook."""
    if isinstance(console, NotebookConsole):
        return NotebookProgress(*columns)
    return Progress(*columns, console=console, transient=True, auto_refresh=auto_refresh)


def _text(template: str) -> TextColumn:
    """Return a column of plain text: rich would parse brackets in names and paths as markup."""
    return TextColumn(template, markup=False)


class PlanScreen:
    """Shows the epochs that are timed for a plan; use it as a context manager."""

    def __init__(self, console: Console, epochs: int) -> None:
        """Draw on a console; outside a terminal, print only lines of `say`."""
        self.console = console
        self.progress = new_bars(console, _text("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.epochs = epochs
        self.task = self.progress.add_task("timing epochs", total=epochs)

    def __enter__(self) -> PlanScreen:
        """Start drawing."""
        if can_draw(self.console):
            self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop drawing."""
        if can_draw(self.console):
            self.progress.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(shown(text)))

    def decoding(self, done: int, total: int) -> None:
        """Show images being decoded."""
        self.progress.update(self.task, description="decoding images", completed=done, total=total)

    def changed(self, search: Search) -> None:
        """Show how many epochs are complete."""
        done = sum(trial.epoch for trial in search.record.trials)
        self.progress.update(self.task, description="timing epochs", completed=done, total=self.epochs)


class SurveyScreen:
    """Shows configurations being built; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        """Draw on a console; outside a terminal, show nothing."""
        self.progress = new_bars(console, TextColumn("building"), BarColumn(), MofNCompleteColumn())
        self.task = self.progress.add_task("building", total=None)
        self.is_shown = can_draw(console)

    def __enter__(self) -> SurveyScreen:
        """Start drawing."""
        if self.is_shown:
            self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop drawing."""
        if self.is_shown:
            self.progress.stop()

    def built(self, done: int, total: int) -> None:
        """Show the progress."""
        self.progress.update(self.task, completed=done, total=total)


class TrainingScreen:
    """Shows several trainings: a bar on a terminal, else lines; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        """Draw on a console."""
        self.console = console
        self.progress = new_bars(console, BarColumn(), MofNCompleteColumn(), _text("epochs; {task.description}"))
        self.task: TaskID | None = None
        self.told_at: dict[str, float] = {}

    def __enter__(self) -> TrainingScreen:
        """Start drawing, once there is something to draw."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop drawing."""
        if self.task is not None:
            self.progress.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(shown(text)))

    def decoding(self, done: int, total: int) -> None:
        """Print how many images are decoded, at most once in `PLAIN_SECONDS`."""
        if time.monotonic() - self.told_at.get("", 0.0) > PLAIN_SECONDS:
            self.told_at[""] = time.monotonic()
            self.say(f"decoding images: {done:,} of {total:,}")

    def epoch_ended(self, epoch: Epoch) -> None:
        """Show an epoch; as lines, at most one in 2 seconds per training, and the last epoch."""
        shown_of_it = dict.fromkeys(("train_loss", main_measure(epoch.metrics), "knn_accuracy", "spread"))
        scores = {name: epoch.metrics[name] for name in shown_of_it if name in epoch.metrics}
        what = f"epoch {epoch.number}/{epoch.of} of {epoch.training}, {pairs(scores, epoch.val_images)}"
        if epoch.done < epoch.total:
            what += f", {left_in_words(epoch.seconds_left)}"
        if can_draw(self.console):
            self.progress.start()
            self.task = self.task if self.task is not None else self.progress.add_task("")
            self.progress.update(self.task, completed=epoch.done, total=epoch.total, description=shown(what))
        elif epoch.number == epoch.of or time.monotonic() - self.told_at.get(epoch.training, 0.0) >= 2.0:
            self.told_at[epoch.training] = time.monotonic()
            self.say(what)


class StepScreen:
    """Shows the steps of a task: a bar on a terminal, else lines; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        """Draw on a console."""
        self.console = console
        # Drawn only by this thread: another thread would disturb measurements.
        self.progress = new_bars(console, BarColumn(), _text("{task.description}"), auto_refresh=False)
        self.task: TaskID | None = None
        self.started = time.monotonic()

    def __enter__(self) -> StepScreen:
        """Start drawing, once there is something to draw."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop drawing."""
        if self.task is not None:
            self.progress.stop()

    def step(self, what: str, number: int, of: int) -> None:
        """Show a step that begins, counted from 1."""
        line = f"step {number}/{of}: {what}"
        if number > 1:
            seconds = (time.monotonic() - self.started) / (number - 1) * (of - number + 1)
            line += f", {left_in_words(seconds)}"
        if can_draw(self.console):
            self.progress.start()
            self.task = self.task if self.task is not None else self.progress.add_task("")
            self.progress.update(self.task, completed=number - 1, total=of, description=shown(line), refresh=True)
        else:
            self.console.print(Text(shown(line)))


class WorkScreen:
    """Shows the progress and the time left of each part of a task: a bar on a terminal, else lines."""

    def __init__(self, console: Console) -> None:
        """Draw on a console; use it as a context manager."""
        self.console = console
        self.progress = new_bars(console, BarColumn(), MofNCompleteColumn(), _text("{task.description}"))
        self.task: TaskID | None = None
        self.what = ""
        self.started = self.told_at = time.monotonic()
        self.first = 0

    def __enter__(self) -> WorkScreen:
        """Start drawing, once there is something to draw."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop drawing."""
        if self.task is not None:
            self.progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Show the progress of a part; as lines, at most one in `PLAIN_SECONDS`."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.started, self.first = what, now, done
        left = ""
        if done > self.first and done < total:
            left = f", {left_in_words((now - self.started) / (done - self.first) * (total - done))}"
        if can_draw(self.console):
            self.progress.start()
            self.task = self.task if self.task is not None else self.progress.add_task("")
            self.progress.update(self.task, completed=done, total=total, description=shown(f"{what}{left}"))
        elif now - self.told_at >= PLAIN_SECONDS and done < total:
            self.told_at = now
            self.console.print(Text(shown(f"{what}: {done:,} of {total:,}{left}")))


def left_in_words(seconds: float) -> str:
    """Format the time left."""
    return f"about {durations.show(round(seconds) if seconds > 1 else math.ceil(seconds))} left"
