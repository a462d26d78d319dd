"""Choose the networks, image size and epochs that fit the time, from the speeds of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imgcls_search.image_size import ImageSize, shorter
from imgcls_search.jobs.init.networks import Network
from imgcls_search.jobs.init.sizes import FEWEST_PRETRAINED_SIDE, LARGEST_SIDE, SHORTER_SIDES, of_aspect
from imgcls_search.jobs.init.speed import Speed, time_allowed

PROCESS_BYTES = 0.6e9
"""Estimated memory of a worker before its first image: torch and its libraries."""

SEARCH_SHARE = 0.7
"""Share of the total time for the search; the rest is for confirming (retraining, one test) and the bundle."""

FULL_TRIALS = 6
"""Complete trainings that the search should have time for; with the pruner, it begins many more."""

FEW_IMAGES = 5_000
"""Up to this many training images, networks from scratch score lower than pretrained ones."""

MOST_NETWORKS = 3
"""Most networks of each kind in a space."""

BEST_TUNE_EPOCHS = 12


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A way to fine-tune, with the time that it needs.

    Test accuracy of EfficientNet-Lite0 on TrashNet: heads at 224x304 pixels 0.87. All layers for 10 epochs at 96x128
    0.87, for 8 at 96x128 0.83, for 3 at 160x208 0.77: a few epochs disturb the pretrained weights and end too soon.
    With the first half of the stages frozen, 12 epochs at 120x160 0.89, 9 at 128x176 and 8 at 160x208 0.88; an epoch
    takes 0.6 of the time.
    """

    half: bool
    """Whether the first half of the stages stays frozen."""

    cost: float
    """Time of an epoch / that of an epoch of all layers."""

    fewest_epochs: int
    trials: int
    """Trials to fine-tune completely; heads cost almost nothing in comparison and are compared first."""

    smallest_side: float
    """Smallest worthwhile side / that at which features can be computed."""

    enlarged: float = math.inf
    """Largest worthwhile side / that of the images."""

    networks: int = MOST_NETWORKS
    search_share: float = SEARCH_SHARE

    margin: float = 1.0
    """Time to allow for an epoch / that expected: a training that does not end in time has no score."""


WHOLE = Tuning(half=False, cost=1.0, fewest_epochs=10, trials=4, smallest_side=0.4)
HALF = Tuning(half=True, cost=0.6, fewest_epochs=12, trials=4, smallest_side=0.5, enlarged=1.6)
# There is no time to retrain the best.
HALF_IN_SHORT_TIME = replace(HALF, trials=2, networks=1, search_share=0.78, margin=1.25)

HEAD_EPOCHS, HEAD_ONLY_EPOCHS = 2, 20
HEAD_SECONDS = 5e-6
"""Seconds per image in an epoch of a head."""

FIRST_SECONDS, FIRST_SHARE = 60.0, 0.05
"""When the first score should be ready: after these seconds or this share of the total time, if that is longer."""

MARGIN = 0.5
"""Share of that time to plan with, because other trials start in parallel with the first."""

BEGINNING_SECONDS = 15.0
"""Estimated seconds of that time for starting and decoding."""

TUNED_VIEWS, MOST_VIEWS = 2, 4
FEATURES_SHARE, VIEWS_SHARE = 0.25, 0.5
"""Largest shares of the search's time for the features of all images, and for those of all their views."""

MOST_SCRATCH_EPOCHS, FEWEST_SCRATCH_EPOCHS = 60, 8
FEWEST_IMAGES, FEWEST_OF_CLASS = 50, 10
"""Fewest training images to use, in total and on average per class, however short the time is."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The time for search and confirmation."""

    seconds: float
    search: float
    confirm: float
    workers: int

    @classmethod
    def of(cls, seconds: float, workers: int, share: float = SEARCH_SHARE) -> Budget:
        """Divide the seconds between search and confirmation; `share` is that of the search."""
        search = share * seconds
        return cls(seconds=seconds, search=search, confirm=seconds - search, workers=workers)

    @property
    def first(self) -> float:
        """Seconds for the features of the first trial, so that its score is ready early; less the time of drafting."""
        spent = BEGINNING_SECONDS + time_allowed(self.seconds)
        return MARGIN * max(0.0, max(FIRST_SECONDS, FIRST_SHARE * self.seconds) - spent)

    @property
    def trial(self) -> float:
        """Seconds that a complete training may take."""
        return self.search * self.workers / FULL_TRIALS


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Networks, image size and epochs that fit the time."""

    size: ImageSize
    networks: tuple[Network, ...]
    head_epochs: int
    """Epochs with a frozen backbone; 0 if networks are trained from scratch."""

    epochs: int
    """All epochs of a training, including those with a frozen backbone."""

    tunes: bool
    """Whether there is time to train more than a head."""

    freezes_half: bool = False
    """Whether the first half of a pretrained network's stages keeps its weights."""

    epoch_seconds: float
    """Seconds per epoch of the most expensive network, with one worker."""

    max_train: int | None
    """Training images that an epoch has time for; None: all of them."""

    first_size: ImageSize | None = None
    """A smaller size that gives an early first score; None if `size` is small enough."""

    search_share: float = SEARCH_SHARE
    """Share of the search in the total time."""

    views: int | None = None
    """Augmented versions of each image whose features are stored; None: only the unchanged images."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Images that a trial sees in an epoch."""

    train: int
    val: int
    folds: int

    @property
    def images(self) -> int:
        """Number of training and validation images."""
        return self.train + self.val

    def seconds(self, macs: int, speed: Speed) -> float:
        """Return the seconds of an epoch with one worker."""
        return macs * (self.train * speed.train + self.val * speed.predict)

    def feature_seconds(self, macs: int, speed: Speed) -> float:
        """Return the seconds for the features of all images with one worker."""
        return self.images * macs * speed.predict


def fit_pretrained(
    networks: Sequence[Network],
    sizes: Sequence[ImageSize],
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    classes: int,
    native: int = LARGEST_SIDE,
) -> Fit | None:
    """Return the size, networks and epochs that fit the time; None if nothing fits.

    `native` is the shorter side of the images.

    Features at a larger size are as good as short fine-tuning at a smaller one, so fine-tuning is chosen only if there
    is time for enough epochs at a size that is not too small.
    """
    headed = next((fit for size in sizes if (fit := _head_fit(networks, size, speeds, work, budget, classes))), None)
    if headed is None:
        return _few_images_fit(networks, sizes, speeds, work, budget, classes)
    # Largest size first; the last way only if no size has time for the others.
    order = [(way, size) for ways in ((WHOLE, HALF), (HALF_IN_SHORT_TIME,)) for size in sizes for way in ways]
    for way, size in order:
        if way.smallest_side * shorter(headed.size) <= shorter(size) <= way.enlarged * native:
            divided = Budget.of(budget.seconds, budget.workers, way.search_share)
            if (tuned := _tuned_fit(way, networks, size, speeds, work, divided, classes)) is not None:
                return tuned
    return headed


def _head_fit(
    networks: Sequence[Network],
    size: ImageSize,
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    classes: int,
) -> Fit | None:
    """Return the networks whose features of all images can be computed in `FEATURES_SHARE` of the search's time."""
    left = FEATURES_SHARE * budget.search
    kept: list[Network] = []
    spent = 0.0
    for network in networks:
        seconds = work.feature_seconds(network.macs(size, 3, classes), speeds[network.key])
        # One worker computes them, and the others wait for it.
        if len(kept) < MOST_NETWORKS and spent + seconds <= left:
            kept.append(network)
            spent += seconds
    if not kept:
        return None
    first = _first_size(kept[0], size, speeds, work, budget, classes)
    views = 1
    if first is None:
        views = int(min(VIEWS_SHARE * budget.search / spent, budget.first / (spent / len(kept))))
    return Fit(
        size=size,
        networks=tuple(kept),
        head_epochs=HEAD_ONLY_EPOCHS,
        epochs=HEAD_ONLY_EPOCHS,
        tunes=False,
        # A head takes almost no time compared with its features.
        epoch_seconds=HEAD_SECONDS * work.images,
        max_train=None,
        first_size=first,
        views=min(views, MOST_VIEWS) if views > 1 else None,
    )


def _few_images_fit(
    networks: Sequence[Network],
    sizes: Sequence[ImageSize],
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    classes: int,
) -> Fit | None:
    """Return the fastest network, with as many training images as there is time for; None if these are too few.

    On few images, a head on features scores higher than a network from scratch.
    """
    costs = [
        (network.macs(size, 3, classes) * speeds[network.key].predict, size, network)
        for size in sizes
        for network in networks
    ]
    each, size, network = min(costs, key=lambda cost: cost[0])
    affordable = int(VIEWS_SHARE * budget.search / each) - work.val
    if work.folds > 1 or affordable < max(FEWEST_IMAGES, FEWEST_OF_CLASS * classes):
        return None
    max_train = _fewer(affordable, work.train, classes)
    return Fit(
        size=size,
        networks=(network,),
        head_epochs=HEAD_ONLY_EPOCHS,
        epochs=HEAD_ONLY_EPOCHS,
        tunes=False,
        epoch_seconds=HEAD_SECONDS * ((max_train or work.train) + work.val),
        max_train=max_train,
    )


def _first_size(
    network: Network, size: ImageSize, speeds: Mapping[str, Speed], work: Work, budget: Budget, classes: int
) -> ImageSize | None:
    """Return a smaller size whose features are ready early; None if those of `size` are, or there is no smaller one."""

    def seconds(other: ImageSize) -> float:
        return work.feature_seconds(network.macs(other, 3, classes), speeds[network.key])

    smaller = [of_aspect(side, size) for side in SHORTER_SIDES if FEWEST_PRETRAINED_SIDE <= side < shorter(size)]
    if seconds(size) <= budget.first or not smaller:
        return None
    return next((other for other in smaller if seconds(other) <= budget.first), smaller[-1])


def _tuned_fit(
    way: Tuning,
    networks: Sequence[Network],
    size: ImageSize,
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    classes: int,
) -> Fit | None:
    """Return the networks that enough trials can fine-tune for enough epochs, including their features."""
    found = []
    for network in networks:
        macs, speed = network.macs(size, 3, classes), speeds[network.key]
        # With one view, the first score is ready earlier.
        once = work.feature_seconds(macs, speed)
        views = TUNED_VIEWS if TUNED_VIEWS * once <= budget.first and not way.half else 1
        features = views * once
        trial = (budget.search - features) * budget.workers / way.trials
        epoch = way.cost * work.seconds(macs, speed)
        epochs = int(trial / (work.folds * way.margin * epoch))
        if features <= FEATURES_SHARE * budget.search and epochs >= way.fewest_epochs:
            found.append((epoch, epochs, network, views))
    if not found:
        return None
    # Larger networks learn more.
    kept = sorted(found, key=lambda one: -one[0])[: way.networks]
    epochs = min([BEST_TUNE_EPOCHS, *(epochs for _, epochs, _, _ in kept)])
    head_epochs = 0 if way.half else HEAD_EPOCHS
    return Fit(
        size=size,
        networks=tuple(network for network in networks if network in [one for _, _, one, _ in kept]),
        head_epochs=head_epochs,
        epochs=head_epochs + epochs,
        tunes=True,
        freezes_half=way.half,
        search_share=way.search_share,
        epoch_seconds=kept[0][0],
        max_train=None,
        views=None if way.half else min(views for _, _, _, views in kept),
    )


def fit_scratch(
    candidates: Mapping[ImageSize, Sequence[Network]],
    speeds: Mapping[str, Speed],
    work: Work,
    budget: Budget,
    channels: int,
    classes: int,
) -> Fit | None:
    """Return the largest size with networks and epochs that fit the time, or the cheapest fit if there is none."""
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
                max_train=None if share >= 1 else _fewer(int(share * work.train), work.train, classes),
            )
    return least


def _fewer(affordable: int, known: int, classes: int) -> int | None:
    """Return how many training images to use, None for all."""
    found = max(affordable, FEWEST_IMAGES, FEWEST_OF_CLASS * classes)
    # Rounded to two digits.
    return None if found >= known else int(float(f"{found:.2g}"))
