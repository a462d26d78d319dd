"""Watch the search of `auto`: keep the account, print the first score, start a first bundle."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from imgcls_search import durations
from imgcls_search.automatic import budget
from imgcls_search.automatic.bundling import BundleProcess
from imgcls_search.automatic.ledger import Ledger
from imgcls_search.jobs.pace import Epoch
from imgcls_search.jobs.trainer import TrainingWatcher
from imgcls_search.orchestrator.search import Search, Watcher
from imgcls_search.progress import ShowStep
from imgcls_search.study import best
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial


class AutoWatcher:
    """Forwards the events of a search to a screen; use it as a context manager."""

    def __init__(self, screen: Watcher, ledger: Ledger, bundle: Path) -> None:
        """`bundle` is the folder of the first model."""
        self.screen, self.ledger, self.bundle = screen, ledger, bundle
        self.early: BundleProcess | None = None
        self.search: Search | None = None
        self.kept: tuple[object, float] = (None, 0.0)
        """Inputs of the last call of `kept_seconds` or `end_seconds`, and its result."""

    def __enter__(self) -> AutoWatcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.early is not None:
            self.early.close()
        self.early = None

    def say(self, text: str) -> None:
        """Show a line."""
        self.screen.say(text)

    def decoding(self, done: int, total: int) -> None:
        """Show images being decoded."""
        self.screen.decoding(done, total)
        self.ledger.save_sometimes()

    def changed(self, search: Search) -> None:
        """Handle a change in the search."""
        if self.search is not search:
            self.search = search
            self.ledger.keep_in(search.record)
            workers = len(search.working) + search.executor.free_slots()
            self.ledger.fact["workers"] = max(self.ledger.fact.get("workers", 1), workers)
        self._look_for_baseline(search)
        self.screen.changed(search)

    def deadline(self, record: Record) -> float:
        """Return when the search must end to leave time for the remaining steps."""
        # The search calls this in each iteration of its loop.
        self._look_for_bundle()
        self.ledger.save_sometimes()
        fact = self.ledger.fact
        done = sum(not trial.is_open for trial in record.trials)
        basis = (done, dict(fact.get("measured", {})), fact["given"])
        if self.kept[0] != basis:
            has_score = done and best.ranked(record)
            # Reserve no time for confirming and reporting before there is a score.
            self.kept = basis, budget.kept_seconds(record, fact) if has_score else budget.end_seconds(fact)
        return self.ledger.end - self.kept[1]

    def finish_bundle(self, seconds: float) -> None:
        """Wait at most `seconds` for the first bundle if its trial is still the best."""
        if self.early is None or self.search is None:
            return
        ranking = best.ranked(self.search.record)
        if ranking and ranking[0].number == self.early.trial:
            self._look_for_bundle(max(0.0, seconds))

    def _look_for_baseline(self, search: Search) -> None:
        fact = self.ledger.fact
        trial = _baseline(search.record)
        if trial is None or "baseline" in fact:
            return
        seconds = self.ledger.spent
        fact["baseline"] = {"trial": trial.number, "seconds": seconds}
        self.ledger.begin("search")
        self.screen.say(
            f"baseline: {best.values_in_words(trial, search.record)} after {durations.show(seconds)} (trial "
            f"{trial.number}, {search.record.where_scored})"
        )
        if "bundled" not in fact and search.files.checkpoint(trial.number).is_file():
            self.early = BundleProcess(search.files, trial.number, self.bundle)

    def _look_for_bundle(self, seconds: float = 0.0) -> None:
        if self.early is None:
            return
        told = self.early.poll(seconds)
        if told is None:
            return
        if isinstance(told, str):
            self.screen.say(f"no early bundle of the baseline: {told}")
        else:
            fact = self.ledger.fact
            fact["bundled"] = self.early.trial
            fact["measured"] = {**fact.get("measured", {}), "bundle": told}
            self.screen.say(f"the baseline's model is in {self.bundle}, usable now; the search continues")
            self.ledger.save()
        self.early.close()
        self.early = None


def _baseline(record: Record) -> Trial | None:
    """Return the trial to compare others with: the first one, or the first complete one if that failed."""
    if not record.trials:
        return None
    first = record.trials[0]
    if first.is_open:
        return None
    done = best.feasible(record)
    return first if first in done else min(done, key=lambda trial: trial.number, default=None)


class TrainingWatch:
    """Shows trainings and saves the account of the time meanwhile."""

    def __init__(self, screen: TrainingWatcher, ledger: Ledger) -> None:
        self.screen, self.ledger = screen, ledger

    def say(self, text: str) -> None:
        """Show a line."""
        self.screen.say(text)
        self.ledger.save_sometimes()

    def decoding(self, done: int, total: int) -> None:
        """Show how many images are decoded."""
        self.screen.decoding(done, total)
        self.ledger.save_sometimes()

    def epoch_ended(self, epoch: Epoch) -> None:
        """Show an epoch."""
        self.screen.epoch_ended(epoch)
        self.ledger.save_sometimes()


def watch_steps(step: ShowStep, ledger: Ledger) -> ShowStep:
    """Return a callback that shows steps and saves the account of the time meanwhile."""

    def show(what: str, number: int, of: int) -> None:
        step(what, number, of)
        ledger.save_sometimes()

    return show
