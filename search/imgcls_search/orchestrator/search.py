"""The search loop: hand trials to workers, listen, record, then continue, pause, prune or end. The only writer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from imgcls_search.config import TrialConfig
from imgcls_search.orchestrator.adopting import adopt
from imgcls_search.orchestrator.backbones import BackboneFinder
from imgcls_search.orchestrator.checkpoints import Checkpoints
from imgcls_search.orchestrator.clock import RunClock
from imgcls_search.orchestrator.context import Assistant, SearchContext, study_settings
from imgcls_search.orchestrator.endings import Deadline, note_run, reached_end, stopping_on_signals
from imgcls_search.orchestrator.faults import Faults
from imgcls_search.orchestrator.metering import MeteredExecutor
from imgcls_search.orchestrator.milestones import Milestones
from imgcls_search.orchestrator.pretraining_jobs import PretrainingJobs
from imgcls_search.orchestrator.stages import Stage, Stages
from imgcls_search.orchestrator.trial_jobs import job_of
from imgcls_search.orchestrator.upcoming import POLL_SECONDS, Upcoming, sizes_within_limits
from imgcls_search.protocol import (
    CheckpointSaved,
    Drawn,
    EpochEnded,
    Event,
    Executor,
    Failed,
    MilestoneReached,
    Notice,
    Scored,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.space import Space
from imgcls_search.strategy.dominance import choose_pruner
from imgcls_search.strategy.earlier import EarlierStudy
from imgcls_search.strategy.propose import MeasureSizes, make_proposer
from imgcls_search.strategy.samplers import Sampler
from imgcls_search.study import best
from imgcls_search.study.endings import Ending
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trial import LATENCY_CONDITIONS, MEASURED, NOT_PROMOTED, Trial
from imgcls_search.words import counted

GLANCE_SECONDS = 0.01
"""How long to listen for events before looking whether the helper has measured the next candidate."""


class Watcher(Protocol):
    """Observes a search: a terminal, a log, a test."""

    def say(self, text: str) -> None:
        """Show a line to the user."""

    def decoding(self, done: int, total: int) -> None:
        """Show how many images are decoded."""

    def changed(self, search: Search) -> None:
        """Show what has changed; the search must not be modified."""


@dataclass(kw_only=True)
class Search:
    """A running search."""

    space: Space
    files: StudyFiles
    record: Record
    executor: Executor
    helper: Assistant
    watcher: Watcher
    num_classes: int
    sampler: Sampler | None = None
    """Replaces the sampler of the space."""

    measure_sizes: MeasureSizes | None = None
    """Replaces the helper for sizes and limits."""

    draws: bool = False
    """Whether to draw pictures of trials that end among the best."""

    earlier: Sequence[EarlierStudy] = ()
    """Studies that it learns from, as they were when the study began."""

    backbones: BackboneFinder | None = None
    """Finds the pretrained networks that trials start from; None if nothing is trained."""

    deadline: Deadline | None = None
    """When the search must end, whatever its settings allow."""

    working: dict[int, Trial] = field(default_factory=dict)
    """Trials on a worker, by number."""

    def __post_init__(self) -> None:
        """Build the strategy, and find the trials that an earlier run left."""
        self.settings = study_settings(self.space)
        self.context = SearchContext(
            space=self.space, files=self.files, record=self.record, settings=self.settings, say=self.watcher.say
        )
        self.sign, self.epochs = self.context.sign, self.context.epochs
        self.pruner, why_pruned = choose_pruner(self.space, self.sign, self.watcher.say)
        self.milestones = Milestones(context=self.context, pruner=self.pruner, why_pruned=why_pruned)
        metrics = self.space.named_metrics
        if "latency_ms" in metrics:
            self.watcher.say(f"latency_ms: {LATENCY_CONDITIONS}")
        self.stages = Stages(
            epochs=self.epochs,
            is_measured=any(name in metrics for name in MEASURED),
            is_timed="latency_ms" in metrics,
            deserves_pictures=self._deserves_pictures,
        )
        proposer, race = make_proposer(
            self.space,
            self.pruner,
            self.sign,
            seed=self.settings.seed,
            measure_sizes=self.measure_sizes or self._measure_sizes,
            sampler=self.sampler,
            earlier=self.earlier,
            novel=[(path, value) for grown in self.record.facts.get("extended", []) for path, value in grown["novel"]],
        )
        self.upcoming = Upcoming(
            self.context,
            proposer,
            self.pruner,
            self.helper,
            remaining=lambda: self.clock.remaining_budget(self.working.values()),
            is_timing=self._is_timing,
            is_stopping=lambda: self.stopping is not None,
            race=race,
        )
        self.checkpoints = Checkpoints(self.context)
        self.faults = Faults(self.record, self.files, self.settings, self.watcher.say)
        self.pretraining = PretrainingJobs(
            context=self.context, executor=self.executor, finder=self.backbones, faults=self.faults
        )
        self.waiting = adopt(self.context)
        """Open trials without a worker: adopted from a run that ended, or orphaned by a worker that died."""
        self.meter = self.executor if isinstance(self.executor, MeteredExecutor) else None
        self.stopping: Ending | None = None
        self.clock = RunClock(
            executor=self.executor, settings=self.settings, record=self.record, deadline=self.deadline
        )
        self.heard_at: dict[int, float] = {}
        """When each trial on a worker was last heard of, on the executor's clock."""

    # The loop.

    def run(self) -> Ending:
        """Run until nothing is left to do or someone stops the search."""
        self.checkpoints.clear_leftovers()
        if self.waiting:
            self.watcher.say(f"resuming {counted('trial', len(self.waiting))} that an earlier run left unfinished")
        self.upcoming.take_requests(True)
        with stopping_on_signals(self._stop), closing(self.pretraining):
            while True:
                self._check_ends()
                if self.stopping is None:
                    self._fill_slots()
                    if self.upcoming.is_stopping():
                        # A signal came while workers were given jobs: they may not have known of theirs.
                        self._stop_workers()
                else:
                    self.upcoming.take_requests(False)
                self._note_why_free()
                if self.clock.is_overdue(self.stopping) or not (self._is_busy() or self._has_late_request()):
                    break
                event = self.clock.listen(self._patience())
                if event is not None:
                    self._handle(event)
                    self.watcher.changed(self)
                else:
                    self._enforce_time_limits()
                    self.pretraining.enforce_time_limit()
                    if self.stopping is None:
                        self.upcoming.look_ahead()
        if self.stopping is None:
            self.milestones.close_paused(NOT_PROMOTED)
            self.watcher.changed(self)
            self.checkpoints.tidy()
        # Workers that were killed meanwhile may have left some, and none writes any more.
        self.checkpoints.clear_leftovers()
        ending = self.stopping or ("exhausted" if self.upcoming.is_exhausted else "finished")
        note_run(self.record, ending, self.clock.seconds(), self.clock.idle_seconds)
        return ending

    @property
    def num_wanted(self) -> int:
        """How many trials there will be: those of `study.trials`, and the requested ones."""
        return self.settings.trials + self.record.num_requested

    def _fill_slots(self) -> None:
        while self.stopping is None and self.executor.free_slots() > 0:
            self.waiting += self.pretraining.released()
            if not self.waiting and self.pretraining.start_one():
                continue
            trial = self._next_trial()
            if trial is None:
                return
            stage = self.stages.move(trial)
            if stage is Stage.DECIDE:
                # The previous run died at this stage; the next trial was drawn before this decision.
                self.upcoming.complete_drawing()
                self._decide(trial)
            elif stage is not Stage.TRAIN or not self.pretraining.must_wait(trial):
                self._start(trial)

    def _next_trial(self) -> Trial | None:
        if self.waiting:
            return self.waiting.pop(0)
        if not self.pretraining.may_draw(len(self.working) + self.executor.free_slots()):
            return None
        if self.meter is not None:
            self.meter.count_time("decision")
        trial = self.upcoming.next()
        if self.meter is not None:
            self.meter.count_time("draw")
        if trial is None and self.stopping is None and not self._is_busy():
            # A search must not end with only paused trials.
            trial = self.upcoming.best_paused()
        return trial

    def _note_why_free(self) -> None:
        """Record why workers without a job are free."""
        if self.meter is None:
            return
        if self.stopping is None and (self.upcoming.can_look_ahead() or self.helper.is_measuring):
            self.meter.why_free = "draw"
        elif self.pretraining.is_busy(stopping=self.stopping is not None):
            self.meter.why_free = "network"
        else:
            self.meter.why_free = "idle"

    def _has_late_request(self) -> bool:
        """Stop taking requests, since nothing is left to do; return True if one arrived just before."""
        self.upcoming.take_requests(False)
        if self.stopping is None and self.upcoming.is_asked():
            self.upcoming.take_requests(True)
            return True
        return False

    def _is_busy(self) -> bool:
        return bool(self.working) or self.pretraining.is_busy(stopping=self.stopping is not None)

    def _patience(self) -> float:
        """Return how long to listen for an event: not long if there is something else to do."""
        if not self.upcoming.can_look_ahead():
            return POLL_SECONDS
        return GLANCE_SECONDS if self.helper.is_measuring else 0

    # Jobs go out, events come in.

    def _start(self, trial: Trial) -> None:
        stage = self.stages.move(trial)
        if stage is Stage.TIME:
            # The helper's computation would disturb the timing.
            self.helper.wait(None)
        if stage is Stage.DRAW:
            # Requested only once: with or without pictures, the trial then ends.
            trial.pictures = {}
        self.working[trial.number] = trial
        self.heard_at[trial.number] = self.clock.now()
        backbones = self.pretraining.files_of(trial) if stage in (Stage.TRAIN, Stage.DRAW) else ()
        self.executor.start(job_of(trial, stage, self.stages, self.context, self.helper, backbones))

    def _handle(self, event: Event) -> None:
        if self.pretraining.handles(event):
            return
        trial = self.record.by_number[event.trial]
        self.heard_at[event.trial] = self.clock.now()
        if isinstance(event, (MilestoneReached, Stopped, Failed, WorkerDied)):
            del self.working[event.trial]
        if not trial.is_open:
            return
        self._apply(event, trial)
        self.checkpoints.tidy_after(trial)

    def _apply(self, event: Event, trial: Trial) -> None:
        match event:
            case Started(history=history, dropped=dropped):
                # A leftover that a trial finds before its first epoch belongs to a deleted study.
                if dropped and trial.epoch:
                    self.faults.note_dropped(trial, dropped)
                self._fill_in(trial, history, event.worker)
            case Notice(text=text):
                self.watcher.say(text)
            case EpochEnded(metrics=metrics):
                self._add_epoch(trial, metrics)
            case CheckpointSaved():
                if trial.deaths:
                    trial.deaths = 0
                    self.record.note(trial, deaths=0)
            case Scored(epoch=epoch, metrics=metrics, notes=notes):
                if trial.is_open:
                    # The job that trains a trial to its milestone also scores it there.
                    self.stages.move(trial)
                self.record.add_score(trial, epoch, metrics, notes)
                if "latency_ms" in metrics:
                    # The others had to pause during the measurement: do not count that time.
                    self.heard_at |= dict.fromkeys(self.working, self.clock.now())
                if trial.is_open:
                    self.stages.move(trial)
            case Drawn(pictures=pictures, reason=reason):
                trial.pictures = pictures
                if reason:
                    self.watcher.say(f"trial {trial.number}: its pictures could not be drawn: {reason}")
            case MilestoneReached():
                if self.stages.move(trial) is Stage.DECIDE:
                    self._decide(trial)
                else:
                    # First in the queue: the worker that is free holds its state.
                    self.waiting.insert(0, trial)
            case Failed() | WorkerDied():
                if self.faults.take(trial, event):
                    self.waiting.insert(0, trial)

    def _fill_in(self, trial: Trial, history: Sequence[Mapping[str, float]], worker: str) -> None:
        self.record.note(trial, worker=worker, log=str(self.files.log(trial.number).relative_to(self.files.root)))
        if trial.epoch > len(history):
            self.watcher.say(
                f"trial {trial.number}: {counted('recorded epoch', trial.epoch - len(history))} in no checkpoint; "
                "training resumes before that"
            )
        for metrics in history:
            self._add_epoch(trial, metrics)

    def _add_epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        # An epoch that was trained again after a worker died is the same; the first record stays.
        if metrics["epoch"] == trial.epoch + 1:
            self.record.add_epoch(trial, metrics)
            if not trial.is_open:
                self.watcher.say(f"trial {trial.number}: {trial.reason}")
                self.executor.stop(trial.number)

    def _decide(self, trial: Trial) -> None:
        self.faults.note_progress()
        if self.milestones.decide(trial):
            # First in the queue: the worker that is free holds its state.
            self.waiting.insert(0, trial)

    def _deserves_pictures(self, trial: Trial) -> bool:
        """Tell whether a trained and measured trial is about to end among the best."""
        # A stopping search starts no more jobs: a trained trial then ends without pictures.
        if not self.draws or self.stopping:
            return False
        values, over = self.context.outcome(trial)
        is_feasible = all(excess <= 0 for excess in over.values())
        return is_feasible and best.is_among(trial, values, self.record, self.settings.keep)

    # Limits and ends.

    def _check_ends(self) -> None:
        if self.stopping is None:
            why = reached_end(self.context, self.clock.seconds())
            if why is None and self.clock.seconds_left() < 0:
                why = "timeout"
            if why is not None:
                self._stop(why)

    def _stop(self, why: Ending) -> bool:
        """Ask all workers to save and stop; return False if that was done before."""
        if self.stopping is not None:
            return False
        self.stopping = why
        self.clock.note_stop()
        if self.working:
            self.watcher.say(f"{why}: saving {counted('running trial', len(self.working))}")
        self._stop_workers()
        return True

    def _stop_workers(self) -> None:
        for number in self.working:
            self.executor.stop(number)
        self.pretraining.stop()

    def _enforce_time_limits(self) -> None:
        """End a trial that takes too long, or kill a worker that hangs; its trial resumes on another."""
        for trial in list(self.working.values()):
            seconds = self.clock.now() - self.heard_at[trial.number]
            final = self.faults.over_trial_time(trial, seconds)
            reason = final or self.faults.over_epoch_time(seconds)
            if reason is not None and trial.is_open:
                self.executor.kill(trial.number, reason)
                if final is not None:
                    self.faults.fail(trial, final)

    # Called while the next trial is drawn.

    def _is_timing(self) -> bool:
        return any(self.stages.now(trial) is Stage.TIME for trial in self.working.values())

    def _measure_sizes(self, config: TrialConfig) -> Generator[None, None, Mapping[str, float] | str]:
        return sizes_within_limits(self.context, self.helper, config, self.num_classes)
