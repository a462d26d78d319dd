"""The next trial of a search: the same after a restart, and none once the search stops."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.jobs.replay import Idle, Steps
from imgcls_search.orchestrator.search import Search
from imgcls_search.protocol import Event, Job
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.view import View
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.trial import SIZES, Candidate

TEXT = """
model: {lenet5: {width: {float: [0.5, 2]}}}
optimizer: {adamw: {lr: {float: [0.0001, 0.1], log: true}}}
training: {epochs: 27}
"""


class Hill:
    """An accuracy that is best in the middle of the space, and shows that from early on."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        width, rate = config.component("model").args["width"], config.component("optimizer").args["lr"]
        far = (width - 1.2) ** 2 + (math.log10(rate) + 2.5) ** 2
        return {"accuracy": math.exp(-far) * (1 - 0.6 ** (epoch + 1))}


class Quiet(ReplayExecutor):
    """Is silent between two events, so that the next trial is drawn while one trains."""

    is_silent = True

    def next_event(self, timeout: float) -> Event | None:
        self.is_silent = not self.is_silent
        return None if self.is_silent else super().next_event(timeout)


class KilledError(BaseException):
    """The run dies at once."""


class Killing(Steps):
    """Kills the run when this many events have been handled, and a trial trains."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def changed(self, search: Search) -> None:
        self.left -= 1
        if self.left <= 0 and search.working:
            raise KilledError


def measured(config: TrialConfig) -> Any:
    yield from ()
    return dict.fromkeys(SIZES, 0.0)


def searching(folder: Path, space: Space, watcher: Steps, **more: Any) -> Search:
    """Return a search that begins, or resumes, a study on the disk."""
    files = StudyFiles(folder, "s")
    if not files.store.exists():
        files.make()
        records.create(files, space.objectives, {"space": records.to_json(space.document)})
    files.log(0).parent.mkdir(exist_ok=True)
    return Search(
        space=space,
        files=files,
        record=records.load(files),
        helper=Idle(),
        watcher=watcher,
        num_classes=0,
        measure_sizes=measured,
        **{"executor": Quiet(Hill()), **more},
    )


def table(search: Search) -> list[tuple[Any, ...]]:
    return [(dict(each.candidate.params), each.seed, each.state, each.epoch) for each in search.record.trials]


@pytest.mark.parametrize("pruner", ["asha", "brackets"])
def test_run_that_is_killed_while_a_promoted_trial_trains_draws_the_same_trials(pruner: str, tmp_path: Path) -> None:
    limits = "epoch_timeout: null, trials: 16, sampler: {curves: {n_startup_trials: 5, random_share: 0}}"
    space = parse(f"study: {{name: s, {limits}, pruner: {pruner}}}" + TEXT, catalog(), source="x")
    undisturbed = searching(tmp_path / "undisturbed", space, Steps())
    undisturbed.run()
    disturbed = searching(tmp_path / "disturbed", space, Steps())
    for _ in range(100):
        # Each call gets a little further.
        disturbed = searching(tmp_path / "disturbed", space, Killing(9))
        try:
            disturbed.run()
            break
        except KilledError:
            pass
    assert table(disturbed) == table(undisturbed)


class Interrupting:
    """A Ctrl-C comes while this sampler draws."""

    def __init__(self) -> None:
        self.draws = 0

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        self.draws += 1
        os.kill(os.getpid(), signal.SIGINT)
        return draw_random(view, number, attempt)


def test_no_trial_begins_once_a_signal_came_while_it_was_drawn(tmp_path: Path) -> None:
    space = parse("study: {name: s, trials: 4, pruner: none}" + TEXT, catalog(), source="x")
    sampler = Interrupting()
    search = searching(tmp_path, space, Steps(), sampler=sampler)
    assert search.run() == "interrupted"
    assert (search.record.trials, sampler.draws) == ([], 1)


class Signalled(Quiet):
    """A Ctrl-C comes just before the worker has its job."""

    def __init__(self, curves: Any) -> None:
        super().__init__(curves)
        self.stops: list[int] = []

    def start(self, job: Job) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        super().start(job)

    def stop(self, trial: int) -> None:
        # A worker without a job has nothing to stop.
        if trial in self.jobs:
            self.stops.append(trial)
            super().stop(trial)


def test_trial_whose_job_starts_at_the_moment_of_a_signal_is_stopped_too(tmp_path: Path) -> None:
    space = parse("study: {name: s, trials: 4, pruner: none}" + TEXT, catalog(), source="x")
    executor = Signalled(Hill())
    search = searching(tmp_path, space, Steps(), executor=executor)
    assert search.run() == "interrupted"
    assert executor.stops == [0]
    assert [(each.state, each.epoch) for each in search.record.trials] == [("running", 0)]
