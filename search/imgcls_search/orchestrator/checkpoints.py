"""Keep the weights of the best trials and of open trials, within a disk budget."""

from __future__ import annotations

import re

from imgcls_search import atomic
from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.study import best
from imgcls_search.trial import Trial

_OF_TRIAL = re.compile(r"trial-(\d{5,})\.[^.]+")
"""The files of a trial; people may keep others beside them."""


class Checkpoints:
    """Keeps the folder of checkpoints small."""

    def __init__(self, context: SearchContext) -> None:
        self.record, self.files, self.settings = context.record, context.files, context.settings
        self.sign, self.say = context.sign, context.say
        self.folder = self.files.checkpoint(0).parent

    def clear_leftovers(self) -> None:
        """Delete files that a killed worker left half-written."""
        for folder in (self.folder, self.files.pictures):
            for path in folder.glob(f"*{atomic.SUFFIX}"):
                path.unlink(missing_ok=True)

    def tidy_after(self, trial: Trial) -> None:
        """Tidy if a trial has ended; if it has paused, keep within the budget."""
        if not trial.is_open:
            self.tidy()
        elif trial.state == "paused":
            self.keep_within_budget()

    def tidy(self) -> None:
        """Keep the weights of the best trials and of open trials; delete the others."""
        kept = {trial.number for trial in best.ranked(self.record)[: self.settings.keep]}
        kept |= {trial.number for trial in self.record.trials if trial.is_open}
        for path in self.folder.glob("trial-*.*"):
            found = _OF_TRIAL.fullmatch(path.name)
            if found is not None and int(found[1]) not in kept:
                path.unlink(missing_ok=True)
        self.keep_within_budget()

    def keep_within_budget(self) -> None:
        """Prune paused trials, the worst first, until the checkpoints fit into `study.disk_gb`."""
        files = (path for path in self.folder.glob("trial-*.pt") if _OF_TRIAL.fullmatch(path.name))
        sizes = {path: path.stat().st_size for path in files}
        if sum(sizes.values()) <= self.settings.disk_gb * 1e9:
            return
        paused = [trial for trial in self.record.trials if trial.state == "paused"]
        paused.sort(key=lambda trial: (trial.epoch, self.sign * trial.value_at(trial.epoch)))
        for trial in paused:
            if sum(sizes.values()) <= self.settings.disk_gb * 1e9:
                return
            self.record.prune(
                trial, f"its checkpoint was deleted to stay within study.disk_gb={self.settings.disk_gb:g}"
            )
            self.say(f"trial {trial.number}: {trial.reason}")
            path = self.files.checkpoint(trial.number)
            path.unlink(missing_ok=True)
            sizes.pop(path, None)
