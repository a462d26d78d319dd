"""One search: sample, record, submit, listen, then pause, prune or tell. The single writer of its study."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from imgcls_search import __version__
from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape, Prepared, must_exist
from imgcls_search.errors import BuildError, NoResultError, SpaceError, StudyError, UserError
from imgcls_search.executors import packing
from imgcls_search.executors.helper import Helper, image_cache
from imgcls_search.executors.local import LocalExecutor, usable_slots
from imgcls_search.orchestrator import study_data, teachers
from imgcls_search.orchestrator.faults import Faults
from imgcls_search.protocol import (
    CheckpointSaved,
    Drawn,
    EpochEnded,
    Event,
    Executor,
    Failed,
    Job,
    MilestoneReached,
    Scored,
    Started,
    Stopped,
    WorkerDied,
)
from imgcls_search.signature import build
from imgcls_search.space import Space, differences, start_of
from imgcls_search.strategy.closing import Left, finisher, foremost
from imgcls_search.strategy.dominance import Dominance, why_all_train_on
from imgcls_search.strategy.draws import draw_random, draw_start
from imgcls_search.strategy.propose import Proposal, Proposer, Weigh
from imgcls_search.strategy.pruners import PRUNERS, Pruner
from imgcls_search.strategy.samplers import SAMPLERS, Sampler
from imgcls_search.strategy.view import View
from imgcls_search.study import best, outlook
from imgcls_search.study import record as records
from imgcls_search.study.address import Address
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.note import write_note
from imgcls_search.study.record import Record, Stranger
from imgcls_search.study.settings import FREE_TO_CHANGE, StudySettings
from imgcls_search.trial import LATENCY_CONDITIONS, MEASURED, OPEN, Trial

WEIGHTS_DRAWS = 50
"""Random configurations that are looked at for the pretrained weights they start from."""

PACKING_DRAWS = 20
"""Random configurations whose memory is estimated before several workers share a GPU."""

POLL_SECONDS = 0.2
"""How long a Ctrl-C may go unnoticed."""

GLANCE_SECONDS = 0.01
"""How long to listen for events before looking whether the helper has measured the next candidate."""

Ending = Literal["finished", "exhausted", "timeout", "epochs", "target", "gain", "interrupted", "terminated"]
"""`epochs`: `study.max_epochs` are trained; `target`: a complete trial has `study.target`; `gain`: see `min_gain`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `run` ended."""

    ending: Ending
    record: Record


class Watcher(Protocol):
    """Somebody who looks on: a terminal, a log, a test."""

    def say(self, text: str) -> None:
        """Take a line that a person should see."""

    def decoding(self, done: int, total: int) -> None:
        """Take notice of images being decoded."""

    def changed(self, search: Search) -> None:
        """Take notice of any change; the search is only to be read."""


class Helps(Protocol):
    """Who answers what needs torch or the images: a process, or in a replay nobody."""

    @property
    def is_measuring(self) -> bool:
        """True while somebody waits for an answer."""

    def prepare(self, config: TrialConfig) -> Prepared:
        """Return the data set of a configuration."""

    def measuring(self, config: TrialConfig, shape: InputShape) -> Generator[None, None, dict[str, float]]:
        """Return the sizes of a configuration; yield as long as they are not there."""

    def wait(self, seconds: float | None) -> None:
        """Return when an answer is there, or after so many seconds."""


def run(
    space: Space, root: Path, watcher: Watcher, address: Address | None = None, *, cluster: str | None = None
) -> Outcome:
    """Run a search, or go on with it, until it ends or is asked to stop; the study is at the address, if one is given.

    Trials run on this machine, or on the Ray cluster at the address `cluster`, see `executors.ray.cluster.join`.

    Raises:
        UserError: the space, the data, the device or the study is not fit for it.
        NoResultError: no configuration can be tried, or trials keep failing alike.
        KeyboardInterrupt: Ctrl-C came twice, or before the first trial.
    """
    settings = study_settings(space)
    if settings.min_gain is not None and len(space.objectives) > 1:
        raise UserError(f"{space.locate('study')}: study.min_gain: needs one objective, got {len(space.objectives)}")
    must_exist(space.first().component("data"))
    files = find_study(root, space.name, address)
    with ExitStack() as stack:
        stack.enter_context(files.taken(watcher.say))
        record = _reopen(files, space)
        if record is not None and _is_done(record, settings):
            study_data.refuse_other_unopened(record, space.first().component("data"), image_cache(root))
            waiting = sum(other.state == "waiting" for other in record.strangers.values())
            if waiting:
                watcher.say(
                    f"{waiting} waiting trial(s) are not tried, since study.trials={settings.trials} are done; "
                    f"--set study.trials={len(record.trials) + waiting} tries them"
                )
            return Outcome(ending="finished", record=record)
        helper = Helper(root)
        stack.callback(helper.close)
        ended = sum(not trial.is_open for trial in record.trials) if record is not None else 0
        most = settings.trials - ended
        # The workers import torch while the images are looked at.
        if cluster is None:
            engine = _local_engine(space, helper, most)
        else:
            engine = _cluster_engine(cluster, space, files, watcher, most, stack)
        stack.callback(engine.executor.close)
        asked, (space, data) = space, _settle_data(space, helper, watcher)
        fetch_weights(space, helper, len(data.classes))
        needs = _memory_needs(space, helper, len(data.classes)) if engine.free_memory else []
        for line in packing.advise(engine.devices, engine.free_memory, needs):
            watcher.say(line)
        known = record.facts.get("teachers", {}) if record is not None else {}
        taught_by = teachers.settle(space, files, data, helper, known)
        if record is None:
            facts = _facts(asked, data, helper, engine.hardware or helper.hardware(engine.devices[0]))
            record = records.create(files, space.objectives, {**facts, "teachers": taught_by} if taught_by else facts)
        study_data.refuse_other(record, space.first(), data, helper)
        search = Search(
            space=space,
            files=files,
            record=record,
            executor=engine.executor,
            helper=helper,
            watcher=watcher,
            num_classes=len(data.classes),
            draws=settings.pictures,
        )
        ending = search.run()
        write_note(record)
        return Outcome(ending=ending, record=record)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """Where the trials of a search run."""

    executor: Executor
    devices: Sequence[str]
    """Of the workers on this machine."""

    free_memory: Mapping[str, float]
    """Of the GPUs that several of them share, bytes, before they took their part of it."""

    hardware: str | None = None
    """In words, where it is not this machine's."""


def _local_engine(space: Space, helper: Helper, most: int) -> _Engine:
    devices = helper.devices(space.first().section("training")["device"])
    slots = usable_slots(devices, study_settings(space).workers, most)
    free = packing.free_memory(slots)
    return _Engine(executor=LocalExecutor(slots), devices=slots, free_memory=free)


def _cluster_engine(
    address: str, space: Space, files: StudyFiles, watcher: Watcher, most: int, stack: ExitStack
) -> _Engine:
    from imgcls_search.executors.ray import cluster

    cluster.join(address)
    stack.callback(cluster.leave)
    cluster.refuse_strangers()
    layout = cluster.lay_out(space.first().section("training")["device"], study_settings(space).workers, most)
    metrics = {metric for metric, _ in space.objectives} | set(space.limits)
    node = cluster.only_node(layout) if "latency_ms" in metrics else None
    watcher.say(f"{layout.hardware}; {layout.count} worker(s)")
    # It imports Ray, which is there only now.
    from imgcls_search.executors.ray.executor import RayExecutor

    executor = RayExecutor(layout, files.folder, watcher.say, node=node)
    return _Engine(executor=executor, devices=[], free_memory={}, hardware=layout.hardware)


def _reopen(files: StudyFiles, space: Space) -> Record | None:
    """Return the study if it exists; refuse one that was made from another space."""
    if not files.store.exists():
        return None
    record = records.load(files)
    new = records.to_json(space.document)
    old = _with_later_sections(record, new)
    changes = [change for change in differences(old, new) if not _is_free(change.path)]
    if changes:
        raise StudyError(
            *(f"{files.store}: {change}" for change in changes),
            f"{files.store}: these differ from what the study was started with; "
            "put them back, or name another study with --name",
        )
    return record


_LATER_SECTIONS = ("distill", "prune", "quantize")
"""Sections that the first studies did not know; there they stand for `none`."""


_LATER_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"folder": {"skip_unreadable": False}}


def _with_later_sections(record: Record, new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the space that a study was started with, and give its trials the sections that it did not know."""
    old = record.fact("space")
    missing: dict[str, Any] = {name: {"none": {}} for name in _LATER_SECTIONS if name in new and name not in old}
    for trial in record.trials if missing else ():
        config = TrialConfig.from_dict({**trial.candidate.config.to_dict(), **missing})
        trial.candidate = replace(trial.candidate, config=config)
    return {**old, **missing, "data": _with_later_arguments(old["data"])}


def _with_later_arguments(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data section with the arguments that earlier versions did not know, as they were meant then."""
    return {name: {**_LATER_ARGUMENTS.get(name, {}), **arguments} for name, arguments in old.items()}


def _is_free(path: str) -> bool:
    # A folder of images may move; whether the images are the same is told by their fingerprint.
    return path in FREE_TO_CHANGE or (path.startswith("data.") and path.endswith((".root", ".download")))


def _is_done(record: Record, settings: StudySettings) -> bool:
    return len(record.trials) >= settings.trials and not any(trial.is_open for trial in record.trials)


def _settle_data(space: Space, helper: Helper, watcher: Watcher) -> tuple[Space, Prepared]:
    """Decode the images and write their own shape into the space where it asks for that."""
    data = helper.prepare(space.first(), watcher.decoding, watcher.say)
    if data.streamed_from is not None:
        watcher.say(
            f"decoded images of {data.num_bytes / 1e9:,.1f} GB do not fit into image.cache_gb: "
            f"{space.first().section('image')['cache_gb']:g}; they are decoded anew in each epoch"
        )
    if data.repeated:
        watcher.say(
            f"{data.repeated} of {data.counts['val']} validation images are among the training images too, for example "
            f"{data.repeated_for_example[0]}: scores are too good by what was learned by heart"
        )
    for metric, _ in space.objectives:
        if metric == "top5_accuracy" and len(data.classes) <= 5:
            raise UserError(f"study.objectives: top5_accuracy needs more than 5 classes, got {len(data.classes)}")
    return space.fill({"image.size": data.image_size, "image.channels": data.channels}), data


def _facts(space: Space, data: Prepared, helper: Helper, hardware: str) -> dict[str, Any]:
    """Return what a study remembers of its beginning."""
    return {
        "imgcls_search": __version__,
        "space": records.to_json(space.document),
        "data": {
            "fingerprint": data.fingerprint,
            "classes": list(data.classes),
            "images": dict(data.counts),
        },
        "versions": helper.versions(),
        "hardware": hardware,
    }


def _memory_needs(space: Space, helper: Helper, num_classes: int) -> list[float]:
    """Return the estimated peak of memory in training, bytes, of random draws that can be built."""
    needs = []
    for config, shape in _random_configs(space, PACKING_DRAWS, num_classes):
        with contextlib.suppress(BuildError):
            needs.append(helper.measure(config, shape)["memory"])
    return needs or [0.0]


def _random_configs(space: Space, count: int, num_classes: int) -> Iterator[tuple[TrialConfig, InputShape]]:
    for number in range(count):
        config = draw_random(View(space, [], [], 0), number, 0).config
        image = config.section("image")
        yield config, InputShape(image_size=image["size"], channels=image["channels"], classes=num_classes)


def fetch_weights(space: Space, helper: Helper, num_classes: int) -> None:
    """Fetch the pretrained weights that the trials of a space start from, as far as random draws show which.

    Raises:
        CheckpointError: they cannot be fetched or read.
    """
    if not space.gives("weights"):
        return
    seen = set()
    for config, shape in _random_configs(space, WEIGHTS_DRAWS, num_classes):
        if config.digest("model", "image") not in seen:
            seen.add(config.digest("model", "image"))
            with contextlib.suppress(BuildError):
                helper.fetch_weights(config, shape)


def study_settings(space: Space) -> StudySettings:
    """Return the settings of the `study` section without its components."""
    known = StudySettings.__dataclass_fields__
    return StudySettings(**{name: value for name, value in space.study.items() if name in known})


@dataclass(kw_only=True)
class Search:
    """A search under way."""

    space: Space
    files: StudyFiles
    record: Record
    executor: Executor
    helper: Helps
    watcher: Watcher
    num_classes: int
    sampler: Sampler | None = None
    """What draws in place of the space's own sampler."""

    weigh: Weigh | None = None
    """What answers for sizes and limits in place of the helper."""

    draws: bool = False
    """Whether trials that end among the best are drawn."""

    working: dict[int, Trial] = field(default_factory=dict)
    """Trials on a worker, by number."""

    def __post_init__(self) -> None:
        """Build the strategy."""
        self.settings = study_settings(self.space)
        self.sign = 1 if self.space.objectives[0][1] == "maximize" else -1
        self.epochs: int = self.space.first().section("training")["epochs"]
        self.pruner, self.why_pruned = self._make_pruner()
        metrics = [metric for metric, _ in self.space.objectives]
        self.measured = {name for name in MEASURED if name in metrics or name in self.space.limits}
        """What is measured on the exported network of each trial that trains to its end."""
        if "latency_ms" in self.measured:
            self.watcher.say(f"latency_ms: {LATENCY_CONDITIONS}")
        sampler = self.sampler or build(SAMPLERS, self.space.sampler, space=self.space)
        self.proposer = Proposer(self.space, sampler, self.settings.seed, self.weigh or self._weigh)
        self.waiting = [trial for trial in self.record.trials if trial.state == "running"]
        """Open trials without a worker: adopted from a run that ended, or orphaned by a worker that died."""
        self.stopping: Ending | None = None
        self.upcoming: Trial | None = None
        """The next new trial, drawn and measured but not yet recorded."""
        self.claimed: Stranger | None = None
        """The waiting trial that the next one is made of, if it is."""
        self.drawing: Iterator[None] | None = None
        """The search for it, if under way."""
        self.is_exhausted = False
        self.faults = Faults(self.record, self.files, self.settings, self.watcher.say)
        self.heard_at: dict[int, float] = {}
        """When each trial on a worker was last heard of, on the executor's clock."""
        self.idle_seconds = 0.0
        self.started_at = self.executor.clock()

    def _make_pruner(self) -> tuple[Pruner, str]:
        """Return the pruner, and what it stops a trial for; say where the objectives leave no choice of it."""
        name, objectives = self.space.pruner.name, self.space.objectives
        pruner: Pruner = build(PRUNERS, self.space.pruner, epochs=self.epochs, sign=self.sign)
        why_not = why_all_train_on(objectives) if name != "none" else None
        if why_not is not None:
            self.watcher.say(f"{why_not}; every trial trains to its end")
            return PRUNERS["none"](epochs=self.epochs, sign=self.sign), ""
        if name == "none" or len(objectives) == 1:
            return pruner, f"pruned by {name}"
        self.watcher.say(
            f"several objectives: at the rungs of {name} a trial is stopped where even an optimistic continuation "
            "of it is beaten at its own cost"
        )
        return Dominance(rungs=pruner, objectives=objectives), "even an optimistic continuation is beaten at its cost"

    def run(self) -> Ending:
        """Work until nothing is left to do or somebody says stop."""
        self._clear_leftovers()
        if self.waiting:
            self.watcher.say(f"going on with {len(self.waiting)} trial(s) that an earlier run left unfinished")
        with self._signals():
            while True:
                self._check_ends()
                if self.stopping is None:
                    self._fill_slots()
                if not self.working:
                    break
                event = self._listen()
                if event is not None:
                    self._handle(event)
                    self.watcher.changed(self)
                else:
                    self._enforce_time_limits()
                    if self.stopping is None:
                        self._look_ahead()
        if self.stopping is None:
            self._close_paused("the search ended before it was promoted")
        self._note_run()
        return self.stopping or ("exhausted" if self.is_exhausted else "finished")

    def _listen(self) -> Event | None:
        before = self.executor.clock()
        event = self.executor.next_event(self._patience())
        self.idle_seconds += self.executor.clock() - before
        return event

    def _patience(self) -> float:
        """Return how long to listen for an event when there is something else to do, and when there is not."""
        if not self._can_look_ahead():
            return POLL_SECONDS
        return GLANCE_SECONDS if self.helper.is_measuring else 0

    def _note_run(self) -> None:
        """Record how long this call took, and how much of that the run process itself was at work."""
        seconds = self.executor.clock() - self.started_at
        entry = {"seconds": round(seconds, 3), "writer_seconds": round(seconds - self.idle_seconds, 3)}
        self.record.append_fact("runs", entry)

    def _fill_slots(self) -> None:
        while self.stopping is None and self.executor.free_slots() > 0:
            trial = self._next_trial()
            if trial is None:
                return
            if self._is_at_decision(trial):
                # It stood there when the run before this one died.
                self._decide(trial)
            else:
                self._start(trial)

    def _next_trial(self) -> Trial | None:
        if self.waiting:
            return self.waiting.pop(0)
        while self.drawing is not None:
            # A promotion now would change what the next trial is drawn by.
            self._look_ahead()
            self.helper.wait(POLL_SECONDS)
        last = self._finish(self._finisher())
        if last is not None:
            return last
        promoted = self.pruner.promote(self.record.trials)
        if promoted is not None:
            self.record.set_plan(promoted, until=self.pruner.milestone(promoted), paused=False)
            return promoted
        while True:
            while self._can_look_ahead():
                self._look_ahead()
                self.helper.wait(POLL_SECONDS)
            if self.upcoming is None:
                return self._finalist()
            if (trial := self._new_trial()) is not None:
                return trial

    def _finisher(self) -> Trial | None:
        """Return the paused trial that the rest of a budget is for, once it is for one."""
        most, timeout = self.settings.max_epochs, self.settings.timeout
        if most is None and timeout is None:
            return None
        trials = self.record.trials
        spoken_for = sum(trial.epoch for trial in trials)
        spoken_for += sum(trial.until - trial.epoch for trial in self.working.values())
        left = Left(
            epochs=math.inf if most is None else most - spoken_for,
            seconds=math.inf if timeout is None else timeout - (self.executor.clock() - self.started_at),
        )
        return finisher(trials, self.epochs, self.sign, left)

    def _finish(self, trial: Trial | None) -> Trial | None:
        """Let a paused trial, if there is one, train to its end."""
        if trial is not None:
            self.record.set_plan(trial, until=self.epochs, paused=False)
        return trial

    def _finalist(self) -> Trial | None:
        """Return the best paused trial if the search would otherwise end without a complete one."""
        paused = [trial for trial in self.record.trials if trial.state == "paused"]
        if not paused or self.working or any(trial.state == "complete" for trial in self.record.trials):
            return None
        return self._finish(foremost(paused, self.sign))

    def _can_look_ahead(self) -> bool:
        is_open = self.upcoming is None and not self.is_exhausted and len(self.record.trials) < self.settings.trials
        return is_open and not self._is_timing()

    def _look_ahead(self) -> None:
        """Take one step towards the next trial, so that it is ready before a worker is free."""
        if not self._can_look_ahead():
            return
        if self.drawing is None:
            self.drawing = self._draw()
        if next(self.drawing, "over") == "over":
            self.drawing = None

    def _draw(self) -> Iterator[None]:
        """Draw and measure candidates, one a step, until one is fit to be the upcoming trial."""
        try:
            if (yield from self._draw_waiting()):
                return
            for proposal in self.proposer.proposals(self.record.trials):
                if proposal is not None:
                    self.upcoming = self._trial_of(proposal)
                    return
                yield
        except NoResultError as error:
            if not self.record.trials:
                raise
            self.watcher.say(str(error))
        self.is_exhausted = True

    def _draw_waiting(self) -> Generator[None, None, bool]:
        """Make the upcoming trial of one that others put into the study to be tried; False where none can be."""
        # The space's own start settings are known by their place among the trials.
        if len(self.record.trials) < len(self.space.start):
            return False
        self.record.look_again()
        for stranger in [other for other in self.record.strangers.values() if other.state == "waiting"]:
            answer = yield from self._proposal_of(stranger)
            if not isinstance(answer, str):
                self.upcoming, self.claimed = replace(self._trial_of(answer), number=stranger.number), stranger
                return True
            self.record.refuse(stranger, answer)
            self.watcher.say(f"trial {stranger.number}: waited to be tried, and failed: {answer}")
        return False

    def _proposal_of(self, stranger: Stranger) -> Generator[None, None, Proposal | str]:
        """Return what a waiting trial asks for, or why it cannot be tried."""
        try:
            params = start_of(stranger.params, self.space.root)
        except SpaceError as error:
            return "; ".join(str(error).splitlines())
        number = len(self.record.trials)
        candidate = draw_start(View(self.space, self.record.trials, [], self.settings.seed), params, number)
        sizes = yield from (self.weigh or self._weigh)(candidate.config)
        return sizes if isinstance(sizes, str) else Proposal(candidate=candidate, sizes=sizes, rejections=())

    def _trial_of(self, proposal: Proposal) -> Trial:
        return Trial(
            number=self.record.next_number,
            candidate=proposal.candidate,
            seed=_training_seed(self.settings.seed, len(self.record.trials)),
            sizes=proposal.sizes,
            metric=self.space.objectives[0][0],
            rejected_before=proposal.rejections,
        )

    def _new_trial(self) -> Trial | None:
        """Record the upcoming trial; None where it waited in the study and somebody else has taken it."""
        trial, self.upcoming = self.upcoming, None
        claimed, self.claimed = self.claimed, None
        assert trial is not None
        # What is known to be good trains to its end, whatever its early epochs say: all else must beat it.
        is_start = claimed is not None or len(self.record.trials) < len(self.space.start)
        trial.until = self.epochs if is_start else self.pruner.milestone(trial)
        if claimed is None:
            self.record.add(trial)
        elif not self.record.claim(claimed, trial):
            return None
        else:
            self.watcher.say(f"trial {trial.number}: waited in the study to be tried; it begins")
        # A leftover of a study of the same name that was deleted.
        self.files.log(trial.number).unlink(missing_ok=True)
        return trial

    def _exports(self, trial: Trial) -> bool:
        """Tell whether what a trial is worth at its end is read from its exported network."""
        return trial.compresses or bool(self.measured)

    def _is_scored_at(self, trial: Trial, epoch: int) -> bool:
        """Tell whether a milestone asks for more than the epoch's own metrics."""
        return trial.compresses or (epoch == self.epochs and self._exports(trial))

    def _is_scored(self, trial: Trial) -> bool:
        """Tell whether all that its last epoch asks to be measured is known, but for the latency."""
        return not self._is_scored_at(trial, trial.epoch) or trial.epoch in trial.scores

    def _is_at_decision(self, trial: Trial) -> bool:
        """Tell whether all is known that a decision about a trial at its milestone needs."""
        if trial.epoch < trial.until:
            return False
        if not self._is_scored(trial):
            return False
        return not self._is_to_be_timed(trial) and not self._is_to_be_drawn(trial)

    def _is_to_be_drawn(self, trial: Trial) -> bool:
        """Tell whether nothing but its pictures is missing of a trial that is about to end among the best."""
        # A search that stops takes no more jobs: what is trained to its end then ends without pictures.
        if not self.draws or self.stopping or trial.pictures is not None or trial.epoch < self.epochs:
            return False
        values, over = self._outcome(trial)
        return all(excess <= 0 for excess in over.values()) and best.is_among(
            trial, values, self.record, self.settings.keep
        )

    def _outcome(self, trial: Trial) -> tuple[list[float], dict[str, float]]:
        """Return the values of a trial at its last epoch, and by how much it is over each measured limit."""
        last = {**trial.sizes, **trial.epochs[-1], **trial.scores.get(trial.epoch, {})}
        limits = {name: limit for name, limit in self.space.limits.items() if name in MEASURED}
        over = {f"limits.{name}": last[name] - limit for name, limit in limits.items()}
        return [last[metric] for metric, _ in self.space.objectives], over

    def _is_to_be_timed(self, trial: Trial) -> bool:
        """Tell whether nothing but its latency is missing of a trial."""
        score = trial.scores.get(self.epochs)
        return "latency_ms" in self.measured and score is not None and "latency_ms" not in score

    def _is_timing(self) -> bool:
        return any(self._is_to_be_timed(trial) for trial in self.working.values())

    def _start(self, trial: Trial) -> None:
        is_to_be_timed = self._is_to_be_timed(trial)
        if is_to_be_timed:
            # The helper would compute beside it.
            self.helper.wait(None)
        kind: Literal["train", "time", "draw"] = "time" if is_to_be_timed else "train"
        if trial.epoch == trial.until and not is_to_be_timed and self._is_scored(trial) and self._is_to_be_drawn(trial):
            kind = "draw"
            # Asked for once: whatever becomes of it, the trial then ends.
            trial.pictures = {}
        exports = trial.until == self.epochs and self._exports(trial)
        self.working[trial.number] = trial
        self.heard_at[trial.number] = self.executor.clock()
        self.executor.start(
            Job(
                trial=trial.number,
                config=trial.candidate.config,
                data=self.helper.prepare(trial.candidate.config).to_dict(),
                seed=trial.seed,
                portion="train",
                until_epoch=trial.until,
                from_epoch=trial.epoch,
                checkpoint=str(self.files.checkpoint(trial.number)),
                log=str(self.files.log(trial.number)),
                micro_batches=trial.micro_batches,
                kind=kind,
                pictures=str(self.files.pictures),
                is_scored=self._is_scored_at(trial, trial.until),
                artifact=str(self.files.artifact(trial.number)) if exports else "",
                teacher=teachers.path_of(trial.candidate.config, self.files, self.record.facts.get("teachers", {})),
            )
        )

    def _handle(self, event: Event) -> None:
        trial = self.record.by_number[event.trial]
        self.heard_at[event.trial] = self.executor.clock()
        if isinstance(event, (MilestoneReached, Stopped, Failed, WorkerDied)):
            del self.working[event.trial]
        if not trial.is_open:
            return
        self._apply(event, trial)
        if trial.state not in OPEN:
            self._tidy()

    def _apply(self, event: Event, trial: Trial) -> None:
        match event:
            case Started(history=history):
                self._fill_in(trial, history, event.worker)
            case EpochEnded(metrics=metrics):
                self._add_epoch(trial, metrics)
            case CheckpointSaved():
                if trial.deaths:
                    trial.deaths = 0
                    self.record.note(trial, deaths=0)
            case Scored(epoch=epoch, metrics=metrics, notes=notes):
                self.record.add_score(trial, epoch, metrics, notes)
                if "latency_ms" in metrics:
                    # While it was taken the others rested, which is no fault of theirs.
                    self.heard_at |= dict.fromkeys(self.working, self.executor.clock())
            case Drawn(pictures=pictures, reason=reason):
                trial.pictures = pictures
                if reason:
                    self.watcher.say(f"trial {trial.number}: its pictures could not be drawn: {reason}")
            case MilestoneReached():
                if self._is_at_decision(trial):
                    self._decide(trial)
                else:
                    # Its latency is left, while which nothing else may be at work, or its pictures.
                    self.waiting.insert(0, trial)
            case Failed():
                self._try_again(trial, self.faults.take_failure(trial, event))
            case WorkerDied():
                self._try_again(trial, self.faults.take_death(trial, event))

    def _fill_in(self, trial: Trial, history: Sequence[Mapping[str, float]], worker: str) -> None:
        self.record.note(trial, worker=worker, log=str(self.files.log(trial.number).relative_to(self.files.root)))
        if trial.epoch > len(history):
            self.watcher.say(
                f"trial {trial.number}: {trial.epoch - len(history)} recorded epoch(s) are in no checkpoint; "
                "they are trained again"
            )
        for metrics in history:
            self._add_epoch(trial, metrics)

    def _add_epoch(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        # An epoch that was trained a second time, after a death, is the same; the first record stays.
        if metrics["epoch"] == trial.epoch + 1:
            self.record.add_epoch(trial, metrics)
            if not trial.is_open:
                self.watcher.say(f"trial {trial.number}: {trial.reason}")
                self.executor.stop(trial.number)

    def _decide(self, trial: Trial) -> None:
        self.faults.note_progress()
        if trial.epoch == self.epochs:
            self.record.complete(trial, *self._outcome(trial))
            return
        decision = self.pruner.judge(trial, self.record.trials)
        if decision == "prune":
            self.record.prune(trial, f"{self.why_pruned} at epoch {trial.epoch}")
        else:
            paused = decision == "pause"
            until = trial.epoch if paused else self.pruner.milestone(trial)
            self.record.set_plan(trial, until=until, paused=paused)
        if decision == "continue":
            # First in the queue: the worker that holds its state is the one that is free.
            self.waiting.insert(0, trial)

    def _try_again(self, trial: Trial, is_wanted: bool) -> None:
        if is_wanted:
            self.waiting.insert(0, trial)

    def _enforce_time_limits(self) -> None:
        """End what takes too long: the trial, or the worker that it hangs on, from which it goes on elsewhere."""
        for trial in list(self.working.values()):
            seconds = self.executor.clock() - self.heard_at[trial.number]
            final = self.faults.over_trial_time(trial, seconds)
            reason = final or self.faults.over_epoch_time(seconds)
            if reason is not None and trial.is_open:
                self.executor.kill(trial.number, reason)
                if final is not None:
                    self.faults.fail(trial, final)

    def _close_paused(self, reason: str) -> None:
        for trial in self.record.trials:
            if trial.state == "paused":
                self.record.prune(trial, reason)
        self._tidy()

    def _clear_leftovers(self) -> None:
        """Delete what a killed worker was in the middle of writing."""
        for path in self.files.checkpoint(0).parent.glob("*.tmp"):
            path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Keep the weights of the best trials and of those that may go on; delete the others."""
        kept = {trial.number for trial in best.ranked(self.record)[: self.settings.keep]}
        kept |= {trial.number for trial in self.record.trials if trial.is_open}
        for path in self.files.checkpoint(0).parent.glob("trial-*.*"):
            if int(path.name[6:11]) not in kept:
                path.unlink(missing_ok=True)
        self._keep_within_budget()

    def _keep_within_budget(self) -> None:
        sizes = {path: path.stat().st_size for path in self.files.checkpoint(0).parent.glob("trial-*.pt")}
        paused = [trial for trial in self.record.trials if trial.state == "paused"]
        paused.sort(key=lambda trial: (trial.epoch, self.sign * trial.value_at(trial.epoch)))
        for trial in paused:
            if sum(sizes.values()) <= self.settings.disk_gb * 1e9:
                return
            self.record.prune(
                trial, f"its checkpoint was deleted to stay within study.disk_gb={self.settings.disk_gb:g}"
            )
            self.watcher.say(f"trial {trial.number}: {trial.reason}")
            path = self.files.checkpoint(trial.number)
            path.unlink(missing_ok=True)
            sizes.pop(path, None)

    def _weigh(self, config: TrialConfig) -> Generator[None, None, Mapping[str, float] | str]:
        """Return the sizes of a configuration, or why it can be no trial; yield while they are being measured."""
        try:
            shape = InputShape(
                image_size=config.section("image")["size"],
                channels=config.section("image")["channels"],
                classes=self.num_classes,
            )
            sizes = yield from self.helper.measuring(config, shape)
        except BuildError as error:
            return str(error)
        for name, limit in self.space.limits.items():
            if sizes.get(name, 0) > limit:
                return f"limits.{name}: over {limit:g}"
        return sizes

    def _check_ends(self) -> None:
        why = None if self.stopping is not None else self._reached_end()
        if why is not None:
            self._stop(why)

    def _reached_end(self) -> Ending | None:
        timeout, target = self.settings.timeout, self.settings.target
        if timeout is not None and self.executor.clock() - self.started_at > timeout:
            return "timeout"
        most = self.settings.max_epochs
        if most is not None and sum(trial.epoch for trial in self.record.trials) >= most:
            return "epochs"
        if target is not None and any(
            trial.values is not None and self.sign * trial.values[0] >= self.sign * target
            for trial in self.record.trials
            if trial.state == "complete" and trial.is_feasible
        ):
            return "target"
        least = self.settings.min_gain
        if least is not None and (found := outlook.outlook(self.record)) is not None and found.gain < least:
            return "gain"
        return None

    def _stop(self, why: Ending) -> None:
        self.stopping = why
        if self.working:
            self.watcher.say(f"{why}: saving {len(self.working)} running trial(s)")
        for number in self.working:
            self.executor.stop(number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request, and the second into an end."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stopping is not None:
                raise KeyboardInterrupt
            self._stop("interrupted" if number == signal.SIGINT else "terminated")

        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # The terminal was closed, or the connection to it; `nohup` makes a program ignore that.
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _training_seed(study_seed: int, number: int) -> int:
    """Return the seed of a trial's training: another for each trial, the same after a restart."""
    import numpy as np

    return int(np.random.SeedSequence([study_seed, number, 1]).generate_state(1)[0] // 2)
