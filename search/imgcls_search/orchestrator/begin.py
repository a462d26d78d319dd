"""Start one search: open or create the study, refuse what does not fit, prepare the data, find workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from imgcls_search import __version__
from imgcls_search.catalog import refuse_with_devices, refuse_with_folds
from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape, Prepared, label_sets, load, must_exist
from imgcls_search.data.folds import places
from imgcls_search.errors import BuildError, NoResultError, UserError
from imgcls_search.executors import packing
from imgcls_search.executors.helper import Helper, image_cache
from imgcls_search.orchestrator import (
    code_used,
    learning,
    named_classes,
    named_metrics,
    study_data,
    teachers,
    weights_used,
)
from imgcls_search.orchestrator.backbones import BackboneFinder, look_early, note_images
from imgcls_search.orchestrator.context import study_settings
from imgcls_search.orchestrator.endings import Deadline
from imgcls_search.orchestrator.engines import cluster_engine, local_engine
from imgcls_search.orchestrator.metering import MeteredExecutor
from imgcls_search.orchestrator.reopening import reopen, with_placed_start
from imgcls_search.orchestrator.search import Search, Watcher
from imgcls_search.orchestrator.tracking import tracked
from imgcls_search.signature import build
from imgcls_search.space import Space
from imgcls_search.strategy.draws import random_configs
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.study import record as records
from imgcls_search.study import requests
from imgcls_search.study.address import Address
from imgcls_search.study.endings import Ending
from imgcls_search.study.facts import StudyFacts, WeightsFact
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.note import name_metrics, write_note
from imgcls_search.study.record import Record
from imgcls_search.study.settings import StudySettings
from imgcls_search.trackers.settings import wanted
from imgcls_search.words import counted

WEIGHTS_DRAWS = 50
"""Random configurations to check for pretrained weights that they start from."""

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
    """Run or resume a search until it ends or is asked to stop; `address` is that of the study's database, if any.

    With `extends`, a space that adds to the study's space replaces it.

    Trials run on this machine, or on the Ray cluster at the address `cluster`, see `executors.ray.cluster.join`.
    `deadline` limits the search in addition to the settings of its space; it returns a time of `time.monotonic`.

    Raises:
        UserError: the space, the data, the device or the study does not fit the search.
        NoResultError: no configuration can be tried, or trials keep failing in the same way.
        KeyboardInterrupt: Ctrl-C came twice, or before the first trial.
    """
    settings = study_settings(space)
    if settings.min_gain is not None and len(space.objectives) > 1:
        raise UserError(f"{space.locate('study')}: study.min_gain: needs one objective, got {len(space.objectives)}")
    refuse_with_folds(space)
    refuse_with_devices(space)
    # Refuse a sampler that does not fit the space before the study is created or extended.
    build(SAMPLERS, space.sampler, space=space)
    wanted(space.study["log"])
    must_exist(space.first().component("data"))
    look_early(_pretraining_draws(space))
    files = find_study(root, space.name, address)
    with ExitStack() as stack:
        stack.enter_context(files.taken(watcher.say))
        record = reopen(files, space, watcher.say, extends=extends)
        asked, space = space, with_placed_start(space, record)
        if record is not None and (line := learning.note_of_change(record, space)) is not None:
            watcher.say(line)
        if record is not None and _is_done(record, settings):
            _look_at_done(record, space, image_cache(root), watcher)
            return Outcome(ending="finished", record=record)
        helper = Helper(root)
        stack.callback(helper.close)
        ended = sum(not trial.is_open for trial in record.trials) if record is not None else 0
        most = settings.trials - ended + _num_asked_for(record)
        # The workers import torch while the images are prepared.
        if cluster is None:
            engine = local_engine(space, helper, most)
        else:
            engine = cluster_engine(cluster, space, files, watcher, most, stack)
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
        pretrained = BackboneFinder(
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
    """Run a search, and write the dashboard's note on it before and after."""
    name_metrics(record)
    write_note(record, files.holder())
    try:
        ending = search.run()
    except NoResultError:
        write_note(record)
        raise
    executor.count_time("idle")
    executor.save()
    _tell_pending(record, watcher)
    # From now on nobody works on the study.
    write_note(record)
    return Outcome(ending=ending, record=record)


def _tell_pending(record: Record, watcher: Watcher) -> None:
    record.read_requests()
    if left := requests.pending(record):
        watcher.say(
            f"{counted('request', len(left))} left to the next run: {', '.join(each['id'] for each in left[:5])}"
        )


def _look_at_done(record: Record, space: Space, images: Path, watcher: Watcher) -> None:
    """Check the images of a study that has all its trials, and mention trials that wait."""
    study_data.refuse_other_unopened(record, space.first().component("data"), images)
    study_data.note_place(record, space.first())
    waiting = sum(other.state == "waiting" for other in record.foreign_trials.values())
    if waiting:
        watcher.say(
            f"not tried: {counted('waiting trial', waiting)}, since study.trials={study_settings(space).trials} are "
            f"done; --set study.trials={record.num_drawn + waiting} tries them"
        )


def _num_asked_for(record: Record | None) -> int:
    return 0 if record is None else record.num_requested + len(requests.pending(record))


def _is_done(record: Record, settings: StudySettings) -> bool:
    if requests.pending(record):
        return False
    return record.num_drawn >= settings.trials and not any(trial.is_open for trial in record.trials)


def _settle_data(space: Space, helper: Helper, watcher: Watcher) -> tuple[Space, Prepared]:
    """Decode the images, and fill their size and channels into the space where it leaves them open."""
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
    """Return the classes that occur in the images of every score: the validation images, or those of each fold."""
    import numpy as np

    train, validation = load(data, "train").labels, load(data, "val").labels
    if not data.folds:
        return label_sets.seen(validation)
    labels = np.concatenate([train, validation])
    return set.intersection(*(label_sets.seen(labels[items]) for items in places(data.folds, len(train))))


def _look_at_unlabeled(space: Space, finder: BackboneFinder, watcher: Watcher) -> None:
    """Decode the images that random draws pretrain on, and report notes about them.

    Raises:
        DataError: they are missing, damaged or too few.
    """
    for config in _pretraining_draws(space):
        finder.of(config, finder.helper.prepare(config))
    for line in finder.lines:
        watcher.say(line)


def _facts(space: Space, data: Prepared, helper: Helper, hardware: str) -> StudyFacts:
    """Return the facts that a study stores at its start."""
    return {
        "imgcls_search": __version__,
        "space": records.to_json(space.document),
        "data": study_data.as_fact(data),
        "versions": helper.versions(),
        "hardware": hardware,
    }


def _memory_needs(space: Space, helper: Helper, num_classes: int) -> list[float]:
    """Return the estimated peak memory in training, bytes, of random draws that can be built."""
    needs = []
    for config, shape in _configs_with_shapes(space, PACKING_DRAWS, num_classes):
        with contextlib.suppress(BuildError):
            needs.append(helper.measure(config, shape)["memory"])
    return needs or [0.0]


def _configs_with_shapes(space: Space, count: int, num_classes: int) -> Iterator[tuple[TrialConfig, InputShape]]:
    for config in random_configs(space, count):
        yield config, InputShape.of(config.section("image"), num_classes)


def _pretraining_draws(space: Space) -> Iterator[TrialConfig]:
    """Yield random configurations if the space has any pretraining."""
    return random_configs(space, WEIGHTS_DRAWS if set(space.document.get("pretrain", {})) - {"none"} else 0)


def fetch_weights(
    space: Space, helper: Helper, num_classes: int, say: Callable[[str], None] | None = None
) -> dict[str, WeightsFact]:
    """Fetch the pretrained weights that random draws of a space start from.

    Return their files; `say` gets a note on each that was trained on images of another size.

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

    for config, shape in _configs_with_shapes(space, WEIGHTS_DRAWS, num_classes):
        if config.digest("model", "image") not in seen:
            seen.add(config.digest("model", "image"))
            with contextlib.suppress(BuildError):
                found |= weights_used.of_config(config, shape, helper, say_once)
    return found
