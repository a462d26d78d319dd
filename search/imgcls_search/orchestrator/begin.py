"""The beginning of one search: open the study or make it, refuse what does not fit, settle the data, find workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imgcls_search import __version__
from imgcls_search.catalog import refuse_with_devices, refuse_with_folds
from imgcls_search.config import IN_DIGESTS, TrialConfig, completed
from imgcls_search.data import InputShape, Prepared, label_sets, load, must_exist
from imgcls_search.data.folds import places
from imgcls_search.errors import BuildError, NoResultError, StudyError, UserError
from imgcls_search.executors import packing
from imgcls_search.executors.helper import Helper, image_cache
from imgcls_search.executors.local import LocalExecutor, usable_groups
from imgcls_search.orchestrator import (
    code_used,
    learning,
    named_classes,
    named_metrics,
    study_data,
    teachers,
    weights_used,
)
from imgcls_search.orchestrator.backbones import Needs, look_early, note_images
from imgcls_search.orchestrator.context import study_settings
from imgcls_search.orchestrator.endings import Deadline, Ending
from imgcls_search.orchestrator.metering import MeteredExecutor
from imgcls_search.orchestrator.search import Search, Watcher
from imgcls_search.orchestrator.tracking import tracked
from imgcls_search.protocol import Executor
from imgcls_search.space import Space, differences
from imgcls_search.space.widening import compare
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.pruners import Promoting, Revising, make_pruner
from imgcls_search.strategy.view import View
from imgcls_search.study import record as records
from imgcls_search.study import requests
from imgcls_search.study.address import Address
from imgcls_search.study.extend import extend
from imgcls_search.study.facts import StudyFacts, WeightsFact
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.note import name_metrics, write_note
from imgcls_search.study.record import Record
from imgcls_search.study.settings import StudySettings, is_free
from imgcls_search.trackers.settings import wanted

WEIGHTS_DRAWS = 50
"""Random configurations that are looked at for the pretrained weights they start from."""

PACKING_DRAWS = 20
"""Random configurations whose memory is estimated before several workers share a GPU."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `run` ended."""

    ending: Ending
    record: Record


def run(
    space: Space,
    root: Path,
    watcher: Watcher,
    address: Address | None = None,
    *,
    cluster: str | None = None,
    deadline: Deadline | None = None,
    extends: bool = False,
) -> Outcome:
    """Run a search, or go on with it, until it ends or is asked to stop; the study is at the address, if one is given.

    `extends` lets a space that adds to the study's take its place.

    Trials run on this machine, or on the Ray cluster at the address `cluster`, see `executors.ray.cluster.join`.
    `deadline` bounds the search beside the settings of its space; its moments are those of `time.monotonic`.

    Raises:
        UserError: the space, the data, the device or the study is not fit for it.
        NoResultError: no configuration can be tried, or trials keep failing alike.
        KeyboardInterrupt: Ctrl-C came twice, or before the first trial.
    """
    settings = study_settings(space)
    if settings.min_gain is not None and len(space.objectives) > 1:
        raise UserError(f"{space.locate('study')}: study.min_gain: needs one objective, got {len(space.objectives)}")
    refuse_with_folds(space)
    refuse_with_devices(space)
    wanted(space.study["log"])
    must_exist(space.first().component("data"))
    look_early(_pretraining_draws(space))
    files = find_study(root, space.name, address)
    with ExitStack() as stack:
        stack.enter_context(files.taken(watcher.say))
        record = _reopen(files, space, watcher.say, extends=extends)
        asked, space = space, _with_placed_start(space, record)
        if record is not None and (line := learning.note_of_change(record, space)) is not None:
            watcher.say(line)
        if record is not None and _is_done(record, settings):
            _look_at_done(record, space, image_cache(root), watcher)
            return Outcome(ending="finished", record=record)
        helper = Helper(root)
        stack.callback(helper.close)
        ended = sum(not trial.is_open for trial in record.trials) if record is not None else 0
        most = settings.trials - ended + _num_asked_for(record)
        # The workers import torch while the images are looked at.
        if cluster is None:
            engine = _local_engine(space, helper, most)
        else:
            engine = _cluster_engine(cluster, space, files, watcher, most, stack)
        stack.callback(engine.executor.close)
        since = engine.executor.clock()
        space, data = _settle_data(space, helper, watcher)
        space = space.fill({"training.devices": engine.devices_each})
        used = fetch_weights(space, helper, len(data.classes), watcher.say)
        needs = _memory_needs(space, helper, len(data.classes)) if engine.free_memory else []
        for line in packing.advise(engine.devices, engine.free_memory, needs):
            watcher.say(line)
        known = record.facts.get("teachers", {}) if record is not None else {}
        taught_by = teachers.settle(space, files, data, helper, known)
        pretrained = Needs(
            helper=helper,
            seed=settings.seed,
            teacher_of=lambda alone: teachers.path_of(alone, files, taught_by),
            progress=watcher.decoding,
        )
        _look_at_unlabeled(space, pretrained, watcher)
        if record is None:
            facts = _facts(asked, data, helper, engine.hardware or helper.hardware(engine.devices[0]))
            if taught_by:
                facts["teachers"] = taught_by
            if learned := learning.learn(space, files, watcher.say):
                facts["learned"] = learned
            record = records.create(files, space.objectives, facts)
        study_data.refuse_other(record, space.first(), data, helper)
        note_images(record, pretrained.images)
        for line in (*weights_used.note(record, used), *code_used.note(record, code_used.sources(space))):
            watcher.say(line)
        study_data.note_place(record, space.first())
        watcher = stack.enter_context(tracked(space, files, record, watcher))
        executor = MeteredExecutor(
            engine.executor, record, workers=engine.workers, devices_of=engine.devices_of, since=since
        )
        search = Search(
            space=space,
            backbones=pretrained,
            files=files,
            record=record,
            executor=executor,
            helper=helper,
            watcher=watcher,
            num_classes=len(data.classes),
            draws=settings.pictures,
            earlier=learning.earlier_studies(record),
            deadline=deadline,
        )
        return _search(search, executor, record, files, watcher)


def _search(search: Search, executor: MeteredExecutor, record: Record, files: StudyFiles, watcher: Watcher) -> Outcome:
    """Run a search, and write what the dashboard shows of it before and after."""
    name_metrics(record)
    write_note(record, files.holder())
    try:
        ending = search.run()
    except NoResultError:
        write_note(record)
        raise
    executor.passed("idle")
    executor.save()
    _tell_pending(record, watcher)
    # As it stands from now on.
    write_note(record)
    return Outcome(ending=ending, record=record)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """Where the trials of a search run."""

    executor: Executor
    workers: int
    devices_of: Callable[[str], Sequence[str]]
    """Returns the devices of a worker by its name."""

    devices: Sequence[str]
    """Of the workers on this machine."""

    free_memory: Mapping[str, float]
    """Of the GPUs that several of them share, bytes, before they took their part of it."""

    devices_each: int
    """Devices that train a trial together."""

    hardware: str | None = None
    """In words, where it is not this machine's."""


def _local_engine(space: Space, helper: Helper, most: int) -> _Engine:
    training = space.document["training"]
    devices = helper.devices(training["device"])
    groups = usable_groups(devices, training["devices"], study_settings(space).workers, most)
    slots = [device for group in groups for device in group]
    free = packing.free_memory(slots)
    return _Engine(
        executor=LocalExecutor(groups),
        workers=len(groups),
        devices_of=lambda worker: groups[int(worker.rpartition("-")[2])],
        devices=slots,
        free_memory=free,
        devices_each=len(groups[0]),
    )


def _cluster_engine(
    address: str,
    space: Space,
    files: StudyFiles,
    watcher: Watcher,
    most: int,
    stack: ExitStack,
) -> _Engine:
    from imgcls_search.executors.ray import cluster

    cluster.join(address)
    stack.callback(cluster.leave)
    cluster.refuse_strangers()
    training = space.document["training"]
    layout = cluster.lay_out(training["device"], study_settings(space).workers, most, training["devices"])
    metrics = space.named_metrics
    node = cluster.only_node(layout) if "latency_ms" in metrics else None
    watcher.say(f"{layout.hardware}; {layout.count} worker(s)")
    # It imports Ray, which is there only now.
    from imgcls_search.executors.ray.executor import RayExecutor

    executor = RayExecutor(layout, files.folder, watcher.say, node=node, code=code_used.sources(space))
    kind = layout.devices[0].partition(":")[0]
    return _Engine(
        executor=executor,
        workers=layout.count,
        devices_of=lambda worker: [f"{kind}@{worker.partition('@')[2]}"] * len(layout.devices),
        devices=[],
        free_memory={},
        devices_each=len(layout.devices),
        hardware=layout.hardware,
    )


def _reopen(files: StudyFiles, space: Space, say: Callable[[str], None], *, extends: bool) -> Record | None:
    """Return the study if it exists; refuse one that was made from another space, unless that may be extended."""
    if not files.store.exists():
        return None
    record = records.load(files)
    new = records.to_json(space.document)
    old = _with_later_settings(record, new)
    changes = [change for change in differences(old, new) if not _may_change(change.path, new)]
    if changes:
        widening = compare(changes, old, space)
        if widening.refused:
            raise StudyError(
                *(f"{files.store}: {change}" for change in widening.refused),
                f"{files.store}: these differ from what the study was started with; "
                "put them back, or name another study with --name",
            )
        added = "; ".join(widening.added)
        if not extends:
            raise StudyError(
                f"{files.store}: the space adds to what the study was started with ({added}); --extend lets the study "
                "grow by it, or name another study with --name"
            )
        record = extend(files, record, space, widening, old)
        say(f"the study grows: {added}; as it was before: {record.facts['extended'][-1]['kept']}")
        _tell_stranded(record, space, say)
    # Trials go on, and draws that repeat them are recognised, wherever the images are now.
    study_data.move(record, space.first())
    return record


def _tell_stranded(record: Record, space: Space, say: Callable[[str], None]) -> None:
    """Say how many paused trials stand where the pruner of now takes none further."""
    pruner = make_pruner(space.pruner, space.first(), 1)
    rungs = {*pruner.rungs} if isinstance(pruner, Promoting) else set()
    rungs |= {*pruner.early} if isinstance(pruner, Revising) else set()
    stranded = [trial for trial in record.trials if trial.state == "paused" and trial.epoch not in rungs]
    if stranded:
        say(f"{len(stranded)} paused trial(s) stand where pruner {space.pruner.name} takes none further")


def _with_placed_start(space: Space, record: Record | None) -> Space:
    """Return the space with those start settings alone that are known by their place among the trials."""
    placed = None if record is None else record.facts.get("placed_start")
    return space if placed is None else replace(space, start=tuple(placed))


def _tell_pending(record: Record, watcher: Watcher) -> None:
    record.read_requests()
    if left := requests.pending(record):
        watcher.say(f"{len(left)} request(s) wait for the next run: {', '.join(each['id'] for each in left[:5])}")


def _with_later_settings(record: Record, new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the space that a study was started with, and give its trials the settings that it did not know."""
    old = record.fact("space")
    written = completed(old, new)
    if written != old:
        # Checkpoints are known by the data section as it was.
        kept = [path for path in IN_DIGESTS if path.startswith("data.")]
        for trial in record.trials:
            tree = completed(trial.candidate.config.to_dict(), new, but=kept)
            trial.candidate = replace(trial.candidate, config=TrialConfig.from_dict(tree))
    return written


def _may_change(path: str, new: Mapping[str, Any]) -> bool:
    if path == "training.devices" and new["training"]["batch_norm"] == "local":
        # Each device's own statistics are those of a smaller part of a batch, the more there are.
        return False
    return is_free(path)


def _look_at_done(record: Record, space: Space, images: Path, watcher: Watcher) -> None:
    """Look at what a study that has all its trials is still asked: its images, and trials that wait."""
    study_data.refuse_other_unopened(record, space.first().component("data"), images)
    study_data.note_place(record, space.first())
    waiting = sum(other.state == "waiting" for other in record.strangers.values())
    if waiting:
        watcher.say(
            f"{waiting} waiting trial(s) are not tried, since study.trials={study_settings(space).trials} are done; "
            f"--set study.trials={record.num_drawn + waiting} tries them"
        )


def _num_asked_for(record: Record | None) -> int:
    return 0 if record is None else record.num_requested + len(requests.pending(record))


def _is_done(record: Record, settings: StudySettings) -> bool:
    if requests.pending(record):
        return False
    return record.num_drawn >= settings.trials and not any(trial.is_open for trial in record.trials)


def _settle_data(space: Space, helper: Helper, watcher: Watcher) -> tuple[Space, Prepared]:
    """Decode the images and write their own shape into the space where it asks for that."""
    named_metrics.refuse_early(space, image_cache(helper.root))
    data = helper.prepare(space.first(), watcher.decoding, watcher.say)
    if data.streamed_from is not None:
        watcher.say(
            f"decoded images of {data.num_bytes / 1e9:,.1f} GB do not fit into image.cache_gb: "
            f"{space.first().section('image')['cache_gb']:g}; they are decoded again every epoch"
        )
    if data.repeated:
        which, others = ("", " of another fold") if data.folds else ("validation ", "")
        watcher.say(
            f"{data.repeated} of {data.scored} {which}images are among the training images{others} too, for example "
            f"{data.repeated_for_example[0]}: scores are too high: the model trained on these images"
        )
    for line in named_classes.refuse_unknown(space.document, data.classes, space.locate):
        watcher.say(line)
    if space.is_of_pretraining:
        for line in helper.open_unlabeled(space.first(), data, progress=watcher.decoding)[1]:
            watcher.say(line)
    labels = load(data, "val").labels
    seen = _shown_in_all(data)
    named_metrics.refuse_undefined(space, data.classes, seen, labels)
    if custom := named_metrics.custom(space):
        helper.try_metrics(custom, data)
    return space.fill({"image.size": data.image_size, "image.channels": data.channels}), data


def _shown_in_all(data: Prepared) -> set[int]:
    """Return the classes that the images of each score show: the validation images, or those of each fold."""
    import numpy as np

    train, validation = load(data, "train").labels, load(data, "val").labels
    if not data.folds:
        return label_sets.seen(validation)
    labels = np.concatenate([train, validation])
    return set.intersection(*(label_sets.seen(labels[items]) for items in places(data.folds, len(train))))


def _look_at_unlabeled(space: Space, needs: Needs, watcher: Watcher) -> None:
    """Decode the images that trials pretrain on, as far as random draws show which, and say what there is to know.

    Raises:
        DataError: they are missing, damaged or too few.
    """
    for config in _pretraining_draws(space):
        needs.of(config, needs.helper.prepare(config))
    for line in needs.lines:
        watcher.say(line)


def _facts(space: Space, data: Prepared, helper: Helper, hardware: str) -> StudyFacts:
    """Return what a study remembers of its beginning."""
    return {
        "imgcls_search": __version__,
        "space": records.to_json(space.document),
        "data": study_data.as_fact(data),
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
    for config in _draws(space, count):
        yield config, InputShape.of(config.section("image"), num_classes)


def _draws(space: Space, count: int) -> Iterator[TrialConfig]:
    return (draw_random(View(space, [], [], 0), number, 0).config for number in range(count))


def _pretraining_draws(space: Space) -> Iterator[TrialConfig]:
    """Yield random configurations, where any pretrains."""
    return _draws(space, WEIGHTS_DRAWS if set(space.document.get("pretrain", {})) - {"none"} else 0)


def fetch_weights(
    space: Space, helper: Helper, num_classes: int, say: Callable[[str], None] | None = None
) -> dict[str, WeightsFact]:
    """Fetch the pretrained weights that the trials of a space start from, as far as random draws show which.

    Return the files that they are from; `say` is told, once each, which were trained on images of another size.

    Raises:
        CheckpointError: they cannot be fetched or read.
    """
    found: dict[str, WeightsFact] = {}
    if not space.gives("weights"):
        return found
    seen, told = set(), set()

    def say_once(line: str) -> None:
        if say is not None and line not in told:
            told.add(line)
            say(line)

    for config, shape in _random_configs(space, WEIGHTS_DRAWS, num_classes):
        if config.digest("model", "image") not in seen:
            seen.add(config.digest("model", "image"))
            with contextlib.suppress(BuildError):
                found |= weights_used.of_config(config, shape, helper, say_once)
    return found
