"""Survey a space by building samples of it: sizes by family, impossible combinations, limits."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape, describe, known_shape, native_shape
from imgcls_search.errors import BuildError, UserError
from imgcls_search.executors.helper import Helper, image_cache
from imgcls_search.executors.local import usable_slots
from imgcls_search.image_size import ImageSize, normal, sides
from imgcls_search.progress import Progress
from imgcls_search.space import Space
from imgcls_search.strategy.draws import draw_random, draw_start
from imgcls_search.strategy.view import View

ASSUMED_CLASSES = 10
"""Number of classes to assume if the images are missing."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One configuration and the result of building it."""

    family: str
    image_size: ImageSize
    sizes: Mapping[str, float] | None
    """None if it cannot be built."""

    problem: BuildError | None
    over: tuple[str, ...]
    """The limits that it breaks."""

    start: int | None
    """Its index among the `start` configurations; None if it was drawn."""

    @property
    def is_fit(self) -> bool:
        """Whether it can become a trial."""
        return self.problem is None and not self.over


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Samples of a space, and the assumptions for building them."""

    samples: Sequence[Sample]
    """Random draws, or every combination of a space that has no more than requested."""

    starts: Sequence[Sample]
    is_complete: bool
    """Whether the samples are all combinations."""

    shape: InputShape
    is_assumed: bool
    """Whether the images are missing, so that channels or classes are assumed."""


class Range(TypedDict):
    """Range of a size over all networks that were built."""

    min: float
    median: float
    max: float


class _FamilyCounts(TypedDict):
    samples: int
    impossible: int
    over_limits: int
    fit: int


class FamilySummary(_FamilyCounts, total=False):
    """Counts of a family's samples, and their sizes if any was built."""

    params: Range
    macs: Range
    largest_activation: Range
    memory: Range


class Refusal(TypedDict):
    """A path that impossible combinations are refused for."""

    path: str
    place: str
    """Its line in the space file."""

    count: int
    share: float
    example: str


class UnfitStart(TypedDict):
    """A start configuration that cannot become a trial."""

    number: int | None
    problem: str | None
    over: Sequence[str]


class SurveySummary(TypedDict):
    """A survey as plain values, ready for JSON."""

    samples: int
    every_combination: bool
    fit: int
    image_sizes: list[ImageSize]
    channels: int
    classes: int
    assumed: bool
    families: dict[str, FamilySummary]
    impossible: list[Refusal]
    """Most frequent first."""

    over_limits: dict[str, int]
    start: list[UnfitStart]


def survey(space: Space, root: Path, *, samples: int, seed: int, progress: Progress) -> Survey:
    """Build samples of a space on the meta device, without data and without training.

    Raises:
        UserError: the size of the images is neither in the space nor known.
    """
    space, shape, is_assumed = _settle_shape(space, image_cache(root))
    combinations = space.num_combinations()
    is_complete = combinations is not None and combinations <= samples
    drawn = [config for _, config in zip(range(samples), _configs(space, seed, is_complete), strict=False)]
    view = View(space, [], [], seed)
    starts = [draw_start(view, params, number).config for number, params in enumerate(space.start)]
    numbers: list[int | None] = [*[None] * len(drawn), *range(len(starts))]
    built = _build(space, root, shape, [*drawn, *starts], numbers, progress)
    return Survey(
        samples=built[: len(drawn)],
        starts=built[len(drawn) :],
        is_complete=is_complete,
        shape=shape,
        is_assumed=is_assumed,
    )


def summarise(found: Survey, space: Space) -> SurveySummary:
    """Return a survey as plain values."""
    total = len(found.samples)
    return {
        "samples": total,
        "every_combination": found.is_complete,
        "fit": sum(sample.is_fit for sample in found.samples),
        "image_sizes": sorted({sample.image_size for sample in found.samples}, key=sides),
        "channels": found.shape.channels,
        "classes": found.shape.classes,
        "assumed": found.is_assumed,
        "families": {
            family: _family([sample for sample in found.samples if sample.family == family])
            for family in sorted({sample.family for sample in found.samples})
        },
        "impossible": _blame(found.samples, space),
        "over_limits": dict(Counter(limit for sample in found.samples for limit in sample.over)),
        "start": [
            {"number": sample.start, "problem": str(sample.problem) if sample.problem else None, "over": sample.over}
            for sample in found.starts
            if not sample.is_fit
        ],
    }


def _settle_shape(space: Space, cache: Path) -> tuple[Space, InputShape, bool]:
    """Return the space with an image shape, the shape of its first configuration, and whether that is a guess."""
    component = space.first().component("data")
    image = space.first().section("image")
    size, channels, classes = known_shape(component, cache)
    is_there = classes is not None
    if is_there and None in (image["size"] or size, image["channels"] or channels):
        # Reads the headers of the image files.
        size, channels = native_shape(describe(component, cache))
    size, channels = image["size"] or size, image["channels"] or channels
    if size is None:
        raise UserError(
            f"{space.locate('image.size')}: image.size: null takes the size of the images, but {component.path} is not "
            "there to be looked at; give image.size, or other images with --data"
        )
    shape = InputShape(image_size=normal(size), channels=channels or 3, classes=classes or ASSUMED_CLASSES)
    filled = space.fill({"image.size": shape.image_size, "image.channels": shape.channels})
    return filled, shape, not is_there


def _configs(space: Space, seed: int, is_complete: bool) -> Iterator[TrialConfig]:
    if is_complete:
        yield from (space.config_of(params) for params in space.combinations())
        return
    view = View(space, [], [], seed)
    number = 0
    while True:
        yield draw_random(view, number, 0).config
        number += 1


def _build(
    space: Space,
    root: Path,
    shape: InputShape,
    configs: Sequence[TrialConfig],
    starts: Sequence[int | None],
    progress: Progress,
) -> list[Sample]:
    with ExitStack() as stack:
        helpers = [Helper(root) for _ in usable_slots(["cpu"], None, len(configs))]
        for helper in helpers:
            stack.callback(helper.close)
        done = 0

        def work(first: int) -> dict[int, Sample]:
            nonlocal done
            built = {}
            for index in range(first, len(configs), len(helpers)):
                built[index] = _sample(helpers[first], space, shape, configs[index], starts[index])
                done += 1
                progress(done, len(configs))
            return built

        with ThreadPoolExecutor(len(helpers)) as pool:
            parts = list(pool.map(work, range(len(helpers))))
    samples = {index: sample for part in parts for index, sample in part.items()}
    return [samples[index] for index in range(len(configs))]


def _sample(helper: Helper, space: Space, shape: InputShape, config: TrialConfig, start: int | None) -> Sample:
    family = config.component("model").name
    own = InputShape.of(config.section("image"), shape.classes)
    try:
        sizes = helper.measure(config, own)
    except BuildError as error:
        return Sample(family=family, image_size=own.image_size, sizes=None, problem=error, over=(), start=start)
    over = tuple(name for name, limit in space.limits.items() if sizes.get(name, 0) > limit)
    return Sample(family=family, image_size=own.image_size, sizes=sizes, problem=None, over=over, start=start)


def _family(samples: Sequence[Sample]) -> FamilySummary:
    built = [sample.sizes for sample in samples if sample.sizes is not None]
    found: FamilySummary = {
        "samples": len(samples),
        "impossible": len(samples) - len(built),
        "over_limits": sum(bool(sample.over) for sample in samples),
        "fit": sum(sample.is_fit for sample in samples),
    }
    if built:
        found["params"] = _range(built, "params")
        found["macs"] = _range(built, "macs")
        found["largest_activation"] = _range(built, "largest_activation")
        found["memory"] = _range(built, "memory")
    return found


def _range(built: Sequence[Mapping[str, float]], size: str) -> Range:
    values = [sizes[size] for sizes in built]
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _blame(samples: Sequence[Sample], space: Space) -> list[Refusal]:
    """Return the paths that impossible combinations are refused for, the most frequent first."""
    messages: dict[str, Counter[str]] = {}
    for sample in samples:
        if sample.problem is not None:
            messages.setdefault(sample.problem.path, Counter())[sample.problem.message] += 1
    found = [
        Refusal(
            path=path,
            place=space.locate(path),
            count=counts.total(),
            share=counts.total() / len(samples),
            example=counts.most_common(1)[0][0],
        )
        for path, counts in messages.items()
    ]
    return sorted(found, key=lambda entry: (-entry["count"], entry["path"]))
