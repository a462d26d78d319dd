"""Which image size, networks and epochs fit the time, by how fast networks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imgcls_search.image_size import ImageSize, normal, shorter, sides
from imgcls_search.jobs.init.images import ImageFacts
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import Network
from imgcls_search.jobs.init.speed import Speed

SEARCH_SHARE = 0.7
"""Of the whole time; the rest retrains the best ones, scores the test split once and writes the bundle."""

FULL_TRIALS = 6
"""Trainings to their end that the search should have time for; with the pruner many more are begun."""

SHORTER_SIDES = (224, 192, 160, 128, 96, 64, 48, 32)
MOST_SCRATCH_SIDE = 128
"""Larger images teach a network from scratch little that a search has the time for."""

SMALL_SIDE = 24
"""Pixels of the shorter side below which pretrained networks see too little."""

FEWEST_PRETRAINED_SIDE = 64
FEW_IMAGES = 5_000
"""Training images up to which networks from scratch stay behind pretrained ones."""

BEST_TUNE_EPOCHS, FEWEST_TUNE_EPOCHS = 12, 3
HEAD_EPOCHS = 5
FEATURES_SHARE = 0.2
"""Of the search's time that the features of all images may take."""

MOST_SCRATCH_EPOCHS, FEWEST_SCRATCH_EPOCHS = 60, 8


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The time, divided."""

    seconds: float
    search: float
    confirm: float
    workers: int

    @classmethod
    def of(cls, seconds: float, workers: int) -> Budget:
        """Divide so many seconds between the search and what follows it."""
        search = SEARCH_SHARE * seconds
        return cls(seconds=seconds, search=search, confirm=seconds - search, workers=workers)

    @property
    def trial(self) -> float:
        """Seconds that a training to its end may take."""
        return self.search * self.workers / FULL_TRIALS


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits the time."""

    size: ImageSize
    networks: tuple[Network, ...]
    head_epochs: int
    """With a frozen backbone; 0 where networks are trained from scratch."""

    epochs: int
    """All of a training, those with a frozen backbone included."""

    tunes: bool
    """Whether there is time to train more than a head."""

    epoch_seconds: float
    """Of the costliest network of these, by one worker."""

    max_train: int | None
    """Training images that an epoch has time for; None: all of them."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Images that a trial sees in an epoch."""

    train: int
    val: int
    folds: int

    def seconds(self, macs: int, speed: Speed) -> float:
        """Return how long an epoch takes one worker."""
        return macs * (self.train * speed.train + self.val * speed.predict)


def pretrained_sizes(images: ImageFacts) -> list[ImageSize]:
    """Return sizes for pretrained networks, the largest first; they gain from images larger than they are."""
    native = native_size(images)
    tall = [_of_aspect(side, native) for side in SHORTER_SIDES if side >= FEWEST_PRETRAINED_SIDE]
    if FEWEST_PRETRAINED_SIDE <= shorter(native) <= SHORTER_SIDES[0]:
        tall.append(native)
    return sorted(dict.fromkeys(tall), key=lambda size: -_area(size))


def scratch_sizes(images: ImageFacts) -> list[ImageSize]:
    """Return sizes for networks from scratch, the largest first; none is larger than the images are."""
    native = native_size(images)
    if shorter(native) < SMALL_SIDE * 2:
        return [native]
    small = [_of_aspect(side, native) for side in SHORTER_SIDES if side <= min(MOST_SCRATCH_SIDE, shorter(native))]
    if shorter(native) <= MOST_SCRATCH_SIDE:
        small.append(native)
    return sorted(dict.fromkeys(small), key=lambda size: -_area(size))


LARGEST_SIDE, SMALLEST_SIDE = 224, 8
SQUARE = 1.1
"""An aspect up to this is taken for a square."""

SAME_ASPECT = 1.12
"""Aspects are the same where those of nine images in ten differ by less than this factor."""


def has_one_aspect(images: ImageFacts) -> bool:
    """Tell whether nearly all images have the same aspect."""
    low, _, high = images.aspects
    return high / low <= SAME_ASPECT


def native_size(images: ImageFacts) -> ImageSize:
    """Return the size of most images: a square unless nearly all have the same oblong aspect."""
    width, height = images.widths[1], images.heights[1]
    side = min(max(min(width, height), SMALLEST_SIDE), LARGEST_SIDE)
    aspect = images.aspects[1]
    if not has_one_aspect(images) or max(aspect, 1 / aspect) <= SQUARE:
        return side
    if images.sizes == 1 and side == min(width, height):
        return normal((height, width)) if max(width, height) <= 3 * side else side
    return _of_aspect(side, (100, round(100 * aspect)) if aspect > 1 else (round(100 / aspect), 100))


def _of_aspect(side: int, like: ImageSize) -> ImageSize:
    """Return a size with a shorter side and about the aspect of another one, its longer side a multiple of 16."""
    height, width = sides(like)
    ratio = max(height, width) / min(height, width)
    longer = side if ratio <= SQUARE else max(side, round(side * min(ratio, 3.0) / 16) * 16)
    return normal((side, longer) if width >= height else (longer, side))


def _area(size: ImageSize) -> int:
    height, width = sides(size)
    return height * width


def fit_pretrained(
    networks: Sequence[Network],
    sizes: Sequence[ImageSize],
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    classes: int,
) -> Fit | None:
    """Return the largest size and the networks for which there is time to fine-tune, or else to train a head."""
    best: Fit | None = None
    for size in sizes:
        tuned, headed = [], []
        for network in networks:
            macs = network.macs(size, 3, classes)
            speed = speeds[network.key]
            head = (work.train + work.val) * macs * speed.predict
            if head > FEATURES_SHARE * budget.search * budget.workers:
                continue
            headed.append(network)
            left = budget.trial - head / FULL_TRIALS
            if left / work.folds >= FEWEST_TUNE_EPOCHS * work.seconds(macs, speed):
                tuned.append((network, int(left / work.folds / work.seconds(macs, speed)), work.seconds(macs, speed)))
        if tuned:
            kept = sorted(tuned, key=lambda one: -one[0].macs(size, 3, classes))[:3]
            epochs = min(BEST_TUNE_EPOCHS, *(count for _, count, _ in kept))
            return Fit(
                size=size,
                networks=tuple(network for network in networks if network in [one for one, _, _ in kept]),
                head_epochs=HEAD_EPOCHS,
                epochs=HEAD_EPOCHS + epochs,
                tunes=True,
                epoch_seconds=max(seconds for _, _, seconds in kept),
                max_train=None,
            )
        if headed and best is None:
            best = Fit(
                size=size,
                networks=tuple(headed[:3]),
                head_epochs=4 * HEAD_EPOCHS,
                epochs=4 * HEAD_EPOCHS,
                tunes=False,
                epoch_seconds=max(work.seconds(one.macs(size, 3, classes), speeds[one.key]) for one in headed[:3]),
                max_train=None,
            )
    return best


def fit_scratch(
    candidates: Mapping[ImageSize, Sequence[Network]],
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    channels: int,
    classes: int,
) -> Fit | None:
    """Return the largest size, the networks and the epochs for which there is time, or the least that there is."""
    wanted = min(MOST_SCRATCH_EPOCHS, max(FEWEST_SCRATCH_EPOCHS, round(30 * (5_000 / work.train) ** 0.5)))
    least: Fit | None = None
    for size, networks in candidates.items():
        costs = [(work.seconds(one.macs(size, channels, classes), speeds[one.key]), one) for one in networks]
        for enough in (wanted, max(FEWEST_SCRATCH_EPOCHS, wanted // 2)):
            fit = [(cost, one) for cost, one in costs if cost * enough * work.folds <= budget.trial]
            if len({one.name for _, one in fit}) >= min(2, len({one.name for _, one in costs})):
                kept = {one.name: (cost, one) for cost, one in fit}
                return Fit(
                    size=size,
                    networks=tuple(one for _, one in list(kept.values())[:3]),
                    head_epochs=0,
                    epochs=enough,
                    tunes=True,
                    epoch_seconds=max(cost for cost, _ in list(kept.values())[:3]),
                    max_train=None,
                )
        if costs:
            cost, one = min(costs, key=lambda each: each[0])
            epochs = max(2, min(enough, int(budget.trial / work.folds / cost)))
            share = budget.trial / (epochs * work.folds * cost)
            least = Fit(
                size=size,
                networks=(one,),
                head_epochs=0,
                epochs=epochs,
                tunes=True,
                epoch_seconds=cost * min(1.0, share),
                max_train=None if share >= 1 else max(2 * classes, int(share * work.train)),
            )
    return least


PROCESS_BYTES = 0.6e9
"""What a worker takes before its first image: torch and its libraries; an estimate."""


def fitting_workers(need: float, machine: Machine) -> int:
    """Return how many workers the memory holds, at most one for each core or GPU."""
    return max(1, min(machine.workers, int(0.8 * machine.memory_bytes // need)))
