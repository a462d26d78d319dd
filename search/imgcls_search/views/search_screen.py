"""Show a running search: a table on a terminal or in a notebook, else lines."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from imgcls_search import durations
from imgcls_search.rounding import measured, pairs
from imgcls_search.study import best
from imgcls_search.terminal import shown
from imgcls_search.trial import NOT_PROMOTED, Trial
from imgcls_search.views.notebook import NotebookConsole, NotebookLive
from imgcls_search.views.screen import PLAIN_SECONDS, left_in_words
from imgcls_search.words import counted

if TYPE_CHECKING:
    from imgcls_search.orchestrator.search import Search

LIVE_SECONDS = 0.25
"""Least time between updates, since they take time that workers may be waiting for."""


def _live(console: Console) -> Live | NotebookLive | None:
    if isinstance(console, NotebookConsole):
        return NotebookLive()
    return Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None


class SearchScreen:
    """Shows a search; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        """Draw on a console; outside a terminal, print plain lines."""
        self.console = console
        self.live = _live(console)
        self.started = time.monotonic()
        self.told_at = self.looked_at = 0.0
        self.latest: Search | None = None
        """A search that has changed since the last update."""

        self.done_before: int | None = None
        self.told: set[int] = set()

    def __enter__(self) -> SearchScreen:
        """Start drawing."""
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop drawing."""
        if self.live is not None:
            self.live.stop()
        elif self.latest is not None:
            self._look(self.latest)

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self.console.print(Text(shown(text)))

    def decoding(self, done: int, total: int) -> None:
        """Show images being decoded."""
        if self.live is not None:
            self.live.update(Text(f"decoding images: {done:,} of {total:,}"))
        elif self._is_time():
            self.say(f"decoding images: {done:,} of {total:,}")

    def changed(self, search: Search) -> None:
        """Show the current state of the search, now or soon."""
        self.latest = search
        if time.monotonic() - self.looked_at >= LIVE_SECONDS:
            self._look(search)

    def _look(self, search: Search) -> None:
        self.latest, self.looked_at = None, time.monotonic()
        trials = search.record.trials
        if self.done_before is None:
            self.done_before = _num_settled(search) - 1
            self.told = {trial.number for trial in trials if not trial.is_open}
        if self.live is not None:
            self.live.update(self._table(search))
            return
        ended = [trial for trial in trials if not trial.is_open and trial.number not in self.told]
        self.told |= {trial.number for trial in ended}
        unpromoted = [trial for trial in ended if trial.reason == NOT_PROMOTED]
        for trial in ended:
            if trial not in unpromoted:
                self.say(f"{_sentence(trial, search)}  |  {self._state(search)}")
        if unpromoted:
            self.say(f"{counted('paused trial', len(unpromoted))} pruned: the search ended before they were promoted")
        if self._is_time():
            self.say(self._state(search))

    def _is_time(self) -> bool:
        if time.monotonic() - self.told_at < PLAIN_SECONDS:
            return False
        self.told_at = time.monotonic()
        return True

    def _state(self, search: Search) -> str:
        trials = search.record.trials
        counts = {state: sum(trial.state == state for trial in trials) for state in ("paused", "pruned", "fail")}
        done = _num_ended(search)
        parts = [f"{done}/{search.num_wanted} trials", f"{len(search.working)} running"]
        if (pretraining := len(search.pretraining.making)) or search.pretraining.waiting:
            parts.append(f"{pretraining} pretraining ({counted('trial', len(search.pretraining.waiting))} wait)")
        parts += [f"{count} {state}" for state, count in counts.items() if count]
        ranking = best.ranked(search.record)
        if ranking:
            parts.append(f"best {best.values_in_words(ranking[0], search.record)} (trial {ranking[0].number})")
        elif leader := _leader(search):
            shown = _last_value(leader, search)
            parts.append(f"leading {shown} at epoch {leader.last_shown} (trial {leader.number})")
        parts.append(self._timeleft_in_words(search, _num_settled(search)))
        return ", ".join(parts)

    def _timeleft_in_words(self, search: Search, done: int) -> str:
        since = done - (self.done_before or 0)
        if since <= 0:
            left = search.clock.seconds_left()
            return "time left unknown" if math.isinf(left) else f"at most {durations.show(max(0.0, left))} left"
        seconds = (time.monotonic() - self.started) / since * max(0, search.num_wanted - done)
        return left_in_words(min(seconds, max(0.0, search.clock.seconds_left())))

    def _table(self, search: Search) -> RenderableType:
        progress = Progress(TextColumn(search.space.name), BarColumn(), MofNCompleteColumn(), auto_refresh=False)
        progress.add_task("", total=search.num_wanted, completed=_num_ended(search))
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        for heading in ("trial", "state", "epoch", search.space.objectives[0][0]):
            # A narrow terminal cuts off the configuration, never these columns.
            table.add_column(Text(shown(heading)), no_wrap=True, min_width=max(8, len(heading)))
        table.add_column("configuration", no_wrap=True, ratio=1)
        for making in search.pretraining.making.values():
            epochs = f"{making.epoch}/{making.backbone.config.epochs}"
            table.add_row("", "pretrains", epochs, "-", Text(making.backbone.what), style="bold")
        for trial in self._shown(search):
            value = _value_alone(trial, search) if trial.last_shown else "-"
            epochs = f"{trial.epoch}/{search.epochs}"
            table.add_row(str(trial.number), trial.state, epochs, value, Text(_params(trial)), style=_style(trial))
        return Group(progress.get_renderable(), Text(self._state(search)), table)

    def _shown(self, search: Search) -> list[Trial]:
        """Return the best three trials, then the running ones, then the latest others."""
        top = best.ranked(search.record)[:3]
        running = list(search.working.values())
        # By number: comparing whole trials is slow with thousands of them.
        known = {trial.number for trial in (*top, *running)}
        others = [trial for trial in search.record.trials if trial.number not in known][-5:]
        return [*top, *running, *others]


def _num_ended(search: Search) -> int:
    return sum(not trial.is_open for trial in search.record.trials)


def _num_settled(search: Search) -> int:
    """Return how many trials ended or are paused, to estimate the time left: most paused ones never continue."""
    return sum(trial.state != "running" for trial in search.record.trials)


def _leader(search: Search) -> Trial | None:
    """Return the trial that would be best if all ended now: within limits, with most epochs, then the best value."""
    shown = [trial for trial in search.record.trials if trial.last_shown and _is_within_limits(trial, search)]

    def standing(trial: Trial) -> tuple[int, float, int]:
        # A fitted head is complete after its only epoch.
        reached = search.epochs if trial.candidate.is_fitted else trial.last_shown
        return reached, search.sign * trial.value_at(trial.last_shown), -trial.number

    return max(shown, key=standing, default=None)


def _is_within_limits(trial: Trial, search: Search) -> bool:
    if trial.state == "complete":
        return trial.is_feasible
    return all(excess <= 0 for excess in search.space.over_score_limits(trial.shown_at(trial.last_shown)).values())


def _last_value(trial: Trial, search: Search) -> str:
    return pairs({trial.metric: trial.value_at(trial.last_shown)}, search.record.val_images)


def _value_alone(trial: Trial, search: Search) -> str:
    return measured(trial.metric, trial.value_at(trial.last_shown), search.record.val_images)


def _sentence(trial: Trial, search: Search) -> str:
    value = f", {_last_value(trial, search)}" if trial.last_shown else ""
    reason = f" ({trial.reason})" if trial.state == "fail" else ""
    return f"trial {trial.number} {trial.state} at epoch {trial.epoch}{value}{reason}"


def _params(trial: Trial) -> str:
    parts = []
    for name, value in trial.candidate.params.items():
        short = f"{value:.3g}" if isinstance(value, float) else shown(value)
        parts.append(f"{name.rpartition('.')[2]}={short}")
    return " ".join(parts)


def _style(trial: Trial) -> str:
    return {"complete": "green", "pruned": "dim", "fail": "red", "running": "bold"}.get(trial.state, "")
