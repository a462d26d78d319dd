"""Classify image files with a bundle; they are decoded like the training images. Never imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from imgcls_search import costs
from imgcls_search.data.decode import MAX_PIXELS, THREADS, decode_middle, reason, unlimited_pillow
from imgcls_search.data.opening import EXTENSIONS, open_image
from imgcls_search.data.source import LeftOut
from imgcls_search.data.tally import Tally, image_files
from imgcls_search.deploy.artifact import Artifact, measure_latency
from imgcls_search.deploy.bundle import Bundle
from imgcls_search.deploy.unlike import doubt
from imgcls_search.deploy.views import VIEWS, ViewsName
from imgcls_search.errors import UserError
from imgcls_search.probabilities import sigmoid, softmax

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one image."""

    image: str
    ranked: tuple[tuple[str, float], ...]
    """Labels with their probabilities, the likeliest first; with costs, the lowest expected cost first."""

    costs: tuple[float, ...] | None = None
    """The expected cost of each label; None if the bundle has no costs."""

    labels: tuple[str, ...] | None = None
    """The predicted labels, with several labels per image; None with one class per image."""

    is_unsure: bool | None = None
    """Whether the chosen class is less likely than required; None if there is no requirement."""

    is_unlike: bool | None = None
    """Whether the image is unlike the training images; None if the bundle cannot tell."""

    unlikeness: float | None = None
    """The score behind `is_unlike`; higher is more unlike."""

    def first(self, top: int) -> Prediction:
        """Return the prediction with fewer labels ranked; predicted labels are kept."""
        has = set(self.labels or ())
        kept = [place for place, (name, _) in enumerate(self.ranked) if place < top or name in has]
        prices = None if self.costs is None else tuple(self.costs[place] for place in kept)
        return replace(self, ranked=tuple(self.ranked[place] for place in kept), costs=prices)


class _RankedClass(TypedDict):
    label: str
    probability: float


class RankedClass(_RankedClass, total=False):
    """A candidate class of an image."""

    expected_cost: float
    """Only if the bundle has costs."""


class PlainPrediction(TypedDict, total=False):
    """A prediction in JSON form; unknown values are left out."""

    image: str
    labels: list[str]
    """With several labels per image: those above the bundle's thresholds."""

    unsure: bool
    unlike: bool
    unlikeness: float | None
    classes: list[RankedClass]
    """The chosen class comes first."""


def plain(found: Prediction) -> PlainPrediction:
    """Return a prediction as plain values for JSON."""
    shown: PlainPrediction = {"image": found.image}
    if found.labels is not None:
        shown["labels"] = list(found.labels)
    if found.is_unsure is not None:
        shown["unsure"] = found.is_unsure
    if found.is_unlike is not None:
        shown["unlike"], shown["unlikeness"] = found.is_unlike, found.unlikeness
    shown["classes"] = ranking(found)
    return shown


def ranking(found: Prediction) -> list[RankedClass]:
    """Return the classes of an image as plain values, the chosen one first."""
    if found.costs is None:
        return [{"label": name, "probability": share} for name, share in found.ranked]
    return [
        {"label": name, "probability": share, "expected_cost": cost}
        for (name, share), cost in zip(found.ranked, found.costs, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class InMemory:
    """A named image in memory."""

    name: str
    image: Image


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image without a prediction, and the reason."""

    image: str
    reason: str


def classify(
    bundle: Bundle,
    paths: Iterable[Path | InMemory],
    *,
    top: int,
    on_left_out: Callable[[Path, Sequence[LeftOut]], None] = lambda folder, found: None,
    min_confidence: float | None = None,
    views: ViewsName = "none",
    most_pixels: int = MAX_PIXELS,
) -> Iterator[Prediction | Skipped]:
    """Yield the `top` labels of every image, in order; a folder yields all images below it.

    With several labels per image, all predicted labels are ranked, even beyond `top`.

    `on_left_out` gets the other contents of a folder. `min_confidence` overrides the bundle's; `views` averages the
    logits of several views of each image; `most_pixels` limits the pixels that are decoded of an image.
    """
    least = bundle.sureness.min_confidence if min_confidence is None else min_confidence
    with unlimited_pillow(), ThreadPoolExecutor(THREADS) as pool:
        files = itertools.chain.from_iterable(_files(path, on_left_out) for path in paths)
        while batch := list(itertools.islice(files, BATCH)):
            decoded = list(pool.map(lambda file: _decode(file, bundle, most_pixels), batch))
            yield from _classify(bundle, decoded, top, least, views)


def check_confidence(bundle: Bundle, min_confidence: float | None) -> str | None:
    """Return a note about probabilities that are compared with a minimum confidence, None if there is none.

    Raises:
        UserError: it is out of range, or the bundle is for several labels.
    """
    if min_confidence is None:
        return None
    if not 0 <= min_confidence <= 1:
        raise UserError(f"--min-confidence {min_confidence:g}: not allowed; allowed: a number from 0 to 1")
    if bundle.thresholds is not None:
        raise UserError(
            "--min-confidence: is for images of one class; this bundle has several labels, each with its threshold"
        )
    return None if bundle.sureness.is_calibrated else "its probabilities are not calibrated"


def cost_of_views(bundle: Bundle, views: ViewsName) -> str:
    """Return a line about the cost of several views per image, measured with the bundle's file."""
    pixels = np.zeros((1, *bundle.frame.shape), dtype=np.uint8)
    one = measure_latency(bundle.artifact, pixels).median_ms
    count = len(VIEWS[views])
    return f"test-time augmentation ({views}): {count} views, about {count * one:.3g} ms an image instead of {one:.3g}"


def count_images(paths: Iterable[Path | InMemory]) -> int:
    """Return how many images `classify` will process."""
    return sum(1 for path in paths for _ in _files(path, lambda folder, found: None))


_Decoded = tuple[str, npt.NDArray[np.uint8]] | Skipped


def _classify(
    bundle: Bundle, items: Sequence[_Decoded], top: int, least: float | None, views: ViewsName
) -> Iterator[Prediction | Skipped]:
    pixels = [item[1] for item in items if not isinstance(item, Skipped)]
    rows: Iterator[Prediction] = iter(())
    if pixels:
        stacked = np.stack(pixels)
        logits, distances = answers_of_views(bundle.artifact, stacked, views)
        if bundle.thresholds is not None:
            rows = _labelled(bundle, bundle.thresholds, sigmoid(logits), top)
        else:
            rows = _ranked(bundle, softmax(logits), top, least)
        rows = _with_unlikeness(bundle, logits, distances, rows)
    for item in items:
        yield item if isinstance(item, Skipped) else replace(next(rows), image=item[0])


def answers_of_views(
    artifact: Artifact, pixels: npt.NDArray[np.uint8], views: ViewsName
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Return the mean logits over some views of each image, and the mean unlikeness if the file outputs it."""
    each = [artifact.answers(view.of(pixels)) for view in VIEWS[views]]
    logits: npt.NDArray[np.float32] = np.mean([found for found, _ in each], axis=0, dtype=np.float32)
    distances = [unlike for _, unlike in each if unlike is not None]
    return logits, np.mean(distances, axis=0) if distances else None


def _with_unlikeness(
    bundle: Bundle,
    logits: npt.NDArray[np.float32],
    distances: npt.NDArray[np.float32] | None,
    rows: Iterator[Prediction],
) -> Iterator[Prediction]:
    """Yield predictions with the unlikeness of each image to the training images."""
    limit = bundle.sureness.unlike
    if limit is None:
        yield from rows
        return
    scores: npt.NDArray[Any]
    if bundle.sureness.score == "feature_distance":
        assert distances is not None, "the file was seen to give them when the bundle was read"
        scores = distances
    else:
        scores = doubt(softmax(logits))
    for row, score in zip(rows, scores.tolist(), strict=True):
        yield replace(row, is_unlike=score > limit, unlikeness=score)


def _labelled(
    bundle: Bundle, thresholds: Sequence[float], probabilities: npt.NDArray[np.float64], top: int
) -> Iterator[Prediction]:
    """Yield the labels of each image in order, without the image's name."""
    for row in probabilities:
        order = np.argsort(-row, kind="stable").tolist()
        has = row >= np.array(thresholds)
        # A label with a low threshold may rank below one that the image lacks.
        shown = [number for place, number in enumerate(order) if place < top or has[number]]
        yield Prediction(
            image="",
            ranked=tuple((bundle.labels[number], float(row[number])) for number in shown),
            labels=tuple(bundle.labels[number] for number in order if has[number]),
        )


def _ranked(
    bundle: Bundle, probabilities: npt.NDArray[np.float64], top: int, least: float | None
) -> Iterator[Prediction]:
    """Yield the prediction of each image in order, without the image's name."""
    stated = costs.matrix(bundle.costs, bundle.labels) if bundle.costs is not None else None
    prices = costs.expected(probabilities, stated) if stated is not None else None
    for number, order in enumerate(costs.ranked(probabilities, stated)[:, :top]):
        confidence = float(probabilities[number, order[0]])
        yield Prediction(
            image="",
            ranked=tuple((bundle.labels[k], float(probabilities[number, k])) for k in order),
            costs=tuple(prices[number, order].tolist()) if prices is not None else None,
            is_unsure=confidence < least if least is not None else None,
        )


def _files(
    path: Path | InMemory, on_left_out: Callable[[Path, Sequence[LeftOut]], None]
) -> Iterator[Path | InMemory | Skipped]:
    if isinstance(path, InMemory):
        yield path
        return
    try:
        if not path.is_dir():
            yield path
            return
        tally = Tally(path)
        found = sorted(image_files(path, tally))
    except OSError as error:
        yield Skipped(image=str(path), reason=error.strerror or type(error).__name__)
        return
    if tally.counts:
        on_left_out(path, tally.left_out())
    yield from found
    for name in tally.broken_links:
        yield Skipped(image=str(path / name), reason="a broken link")
    if not found:
        yield Skipped(image=str(path), reason=f"no image in this folder; looked for {' '.join(EXTENSIONS)}")


def _decode(file: Path | InMemory | Skipped, bundle: Bundle, most_pixels: int) -> _Decoded:
    if isinstance(file, Skipped):
        return file
    if isinstance(file, InMemory):
        try:
            return file.name, decode_middle(bundle.frame, file.image, most_pixels)
        except Exception as error:
            return Skipped(image=file.name, reason=reason(error))
    try:
        with open_image(file) as image:
            return str(file), decode_middle(bundle.frame, image, most_pixels)
    except OSError as error:
        return Skipped(image=str(file), reason=error.strerror or reason(error))
    # Pillow raises almost anything for damaged files.
    except Exception as error:
        return Skipped(image=str(file), reason=reason(error))
