"""The top of a report: the model, its scores, its cost and its confusions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imgcls_search.confidence import share_interval
from imgcls_search.measures import main_measure
from imgcls_search.rounding import measured, share, spread
from imgcls_search.study.activity import shown_state
from imgcls_search.study.record import Record
from imgcls_search.study.usage import summarise_usage, usage_lines
from imgcls_search.terminal import shown
from imgcls_search.trial import MEASURED, SIZES, Trial, can_be_confirmed
from imgcls_search.views.browse import family_of
from imgcls_search.views.mistakes import EvaluatedTrial
from imgcls_search.words import times

BYTES_OF_A_WEIGHT = 4

LATENCY_RUNS, LATENCY_SECONDS = 30, 2.0
"""Most runs, and most seconds for them, to time a network for the page."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A figure with a heading above and an explanation below it."""

    name: str
    value: str
    detail: str
    id: str


ScoreInterval = tuple[str, float, float]
"""A metric and the ends of its interval."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The top of a page."""

    sentence: str
    cards: list[Card]


@dataclass(frozen=True, kw_only=True)
class CostOfState:
    """Cost of the trials in one state."""

    state: str
    trials: int
    epochs: int
    hours: str
    """Device hours."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a search."""

    rows: list[CostOfState]
    hardware: str
    runs: int
    """Number of calls of `run`."""

    elapsed: float
    """Wall-clock seconds of these calls."""

    usage: list[str]


def verdict(
    record: Record,
    winner: Trial,
    looked: EvaluatedTrial | None,
    confused: list[str] | None,
    choice: ScoreInterval | None,
) -> Verdict:
    """Return the first sentence of a page and its cards."""
    tested = _tested(record, winner)
    cards = [
        tested if tested is not None else _untested(record),
        *_objectives(record, winner, choice),
        *_baselines(record, winner, looked),
        *_size(winner),
        *([_latency(winner, looked)] if "latency_ms" not in dict(record.objectives) else []),
        *([_confuses(confused, looked)] if looked is not None and confused is not None else []),
    ]
    return Verdict(sentence=_sentence(record, winner, tested), cards=cards)


def _sentence(record: Record, winner: Trial, tested: Card | None) -> str:
    what = f"Trial {winner.number}, {_network(winner)} with {winner.sizes['params']:,.0f} parameters,"
    metric = record.objectives[0][0]
    if tested is not None:
        score = f"{tested.name.removeprefix('test ')} {tested.value}"
        return f"{what} has {score} on test images that were not used for any choice."
    value = measured(metric, (winner.values or (math.nan,))[0], record.val_images)
    return (
        f"{what} has {metric} {value} {record.where_scored}. It was chosen by this score, so expect a slightly lower "
        "one; it has not been tested."
    )


def _network(winner: Trial) -> str:
    """Return the family of a network, with the name of the model if the family has several."""
    name = winner.candidate.config.component("model").args.get("name")
    return f"{family_of(winner)} {name}" if isinstance(name, str) else family_of(winner)


def _objectives(record: Record, winner: Trial, choice: ScoreInterval | None) -> Iterator[Card]:
    folds = len(record.fact("data").get("folds", []))
    for (metric, _), value in zip(record.objectives, winner.values or (), strict=False):
        if metric != "params":
            number, detail = measured(metric, value, record.val_images), how_known(metric, folds)
            if choice is not None and choice[0] == metric:
                ends = " to ".join(measured(metric, end, record.val_images) for end in choice[1:])
                detail += f"; 95 % {ends} from sampling the images"
            yield Card(name=metric, value=number, detail=detail, id=f"best-{metric}")


def _tested(record: Record, winner: Trial) -> Card | None:
    """Return the test score of a trial, from new trainings or from its one network."""
    confirmed, opened = record.facts.get("confirmed"), times(len(record.facts.get("test_openings", [])))
    if confirmed is not None and confirmed["chosen"] == winner.number:
        test, metric = confirmed["test"], confirmed["metric"]
        value = spread(metric, test.get("scores", []), test["mean"], test["ci95"], test["images"])
        trainings = len(confirmed["scores"])
        over = f"{'95 % over ' if trainings > 2 else ''}{trainings} retrainings"
        detail = f"{over}; {test['images']:,} images, test split opened {opened}"
        if ends := test.get("images_interval"):
            detail += f"; {_between(ends[0], ends[1], test['images'])} from sampling the images"
        return Card(name=f"test {metric}", value=value, detail=detail, id="verdict-test")
    single = record.facts.get("auto", {}).get("test")
    if single is not None and single["trial"] == winner.number:
        score = single["test"]
        value = measured(single["metric"], score["score"], score["images"])
        interval = f"95 % {_between(score['low'], score['high'], score['images'])}"
        detail = f"{interval} from sampling {score['images']:,} images, test split opened {opened}; one training"
        return Card(name=f"test {single['metric']}", value=value, detail=detail, id="verdict-test")
    return None


def _untested(record: Record) -> Card:
    images = record.fact("data")["images"].get("test", 0)
    if not images:
        return Card(name="test score", value="none", detail="there are no test images", id="verdict-test")
    if (confirmed := record.facts.get("confirmed")) is not None:
        detail = f"confirm chose trial {confirmed['chosen']}: only its report has a test score"
    elif count := len(record.facts.get("test_openings", [])):
        detail = f"not scored by confirm; the {images:,} test images were opened {times(count)} before"
    else:
        detail = f"{images:,} test images are sealed"
        if can_be_confirmed(record.objectives):
            detail += f": imgcls-search confirm {record.argument} opens them once"
    return Card(name="test score", value="not tested", detail=detail, id="verdict-test")


def _between(low: float, high: float, images: int) -> str:
    return f"{share(low, images)} to {share(high, images)}"


def interval_of_choice(record: Record, looked: EvaluatedTrial | None) -> ScoreInterval | None:
    """Return a metric of the winner with its 95 % interval from sampling the images that it was scored on.

    It is the first objective; return None if that is not a score, or the images cannot be read.
    """
    metric = record.objectives[0][0]
    if looked is not None and metric in looked.evaluation.metrics:
        from imgcls_search.jobs.chance import interval_of

        if metric in ("accuracy", "subset_accuracy"):
            return metric, *share_interval(looked.evaluation.metrics[metric], len(looked.evaluation.labels))
        low, high = interval_of(looked.evaluation, metric)
        return (metric, low, high) if math.isfinite(low) else None
    return None


def _baselines(record: Record, winner: Trial, looked: EvaluatedTrial | None) -> Iterator[Card]:
    """Yield the scores to compare the winner with: a constant prediction, and the first configuration."""
    metric = record.objectives[0][0]
    if looked is not None:
        found = looked.evaluation
        metric = metric if metric in found.metrics else main_measure(found.metrics)
        name, value = _always_largest(looked, metric)
        if value is not None:
            number = measured(metric, value, len(found.labels))
            yield Card(
                name="constant prediction",
                value=number,
                detail=f"{metric} {name}",
                id="verdict-largest",
            )
    first = record.trials[0]
    if first.number != winner.number and first.last_shown:
        number = measured(first.metric, first.value_at(first.last_shown), record.val_images)
        what = "the first start configuration" if record.fact("space").get("start") else "the first trial"
        when = "" if first.state == "complete" else f" at epoch {first.last_shown} ({shown_state(first, record)})"
        detail = f"{first.metric} of trial {first.number}, {what}{when}"
        yield Card(name="first configuration", value=number, detail=detail, id="verdict-first")


def _always_largest(looked: EvaluatedTrial, metric: str) -> tuple[str, float | None]:
    """Return a description of a constant prediction, and its score on the validation images."""
    from imgcls_search.data import label_sets
    from imgcls_search.jobs.chance import constant_scores

    found = looked.evaluation
    counts = label_sets.count(found.labels, len(found.classes))
    known = constant_scores(counts, len(found.labels), found.labels, found.classes, metric)
    if found.labels.ndim == 2:
        return "if every image is given the frequencies of the labels", known.get(metric)
    largest = shown(found.classes[int(counts.argmax())])
    return f"if every image is called {largest!r}, the largest class", known.get(metric)


def _size(winner: Trial) -> Iterator[Card]:
    deployed, params = winner.scores.get(winner.epoch, {}), winner.sizes["params"]
    size = params * BYTES_OF_A_WEIGHT
    about = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} KB"
    weight = f"file {deployed['size_kb']:,.0f} KB" if "size_kb" in deployed else f"about {about} at 32 bits each"
    detail = f"{weight}; {winner.sizes['macs']:,.0f} MACs per image"
    yield Card(name="parameters", value=f"{params:,.0f}", detail=detail, id="best-params")


def _latency(winner: Trial, looked: EvaluatedTrial | None) -> Card:
    deployed = winner.scores.get(winner.epoch, {})
    if "latency_ms" in deployed:
        value = f"{deployed['latency_ms']:.3g} ms"
        return Card(name="latency", value=value, detail="one image, one thread, ONNX Runtime", id="verdict-latency")
    if looked is None:
        detail = "stated in a bundle"
        return Card(name="latency", value="not measured", detail=detail, id="verdict-latency")
    detail = "per image, in torch on one thread of the machine that wrote this page; a bundle gives its file's"
    return Card(name="latency", value=f"about {_time(looked):.2g} ms", detail=detail, id="verdict-latency")


def _time(looked: EvaluatedTrial) -> float:
    """Return the median of a few runs of a network on one image and one thread, in milliseconds."""
    import statistics
    import time

    import torch

    from imgcls_search.training.device import one_thread

    shape = looked.data.shape
    height, width = looked.pixels[[0]].shape[-2:]
    model = looked.model.cpu().eval()
    image = torch.zeros(1, shape.channels, height, width)
    times: list[float] = []
    with one_thread(), torch.inference_mode():
        model(image)
        until = time.monotonic() + LATENCY_SECONDS
        while len(times) < LATENCY_RUNS and (not times or time.monotonic() < until):
            began = time.perf_counter()
            model(image)
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _confuses(confused: list[str], looked: EvaluatedTrial) -> Card:
    count = len(looked.evaluation.labels)
    if not confused:
        detail = f"none of {count:,} validation images is wrong"
        return Card(name="confuses", value="nothing", detail=detail, id="verdict-confuses")
    value, detail = confused[0], "; ".join(confused[1:3]) or f"nothing else on {count:,} validation images"
    return Card(name="confuses most", value=value, detail=detail, id="verdict-confuses")


def how_known(metric: str, folds: int) -> str:
    """Describe in a few words where the value of an objective comes from."""
    if metric in SIZES:
        return "known before training"
    how = f"cross-validation in {folds} folds" if folds else "validation split"
    return "of the exported network" if metric in MEASURED else f"search score, {how}"


def hours(seconds: float) -> str:
    """Format seconds as device hours."""
    return f"{seconds / 3600:,.2f}" if seconds < 36_000 else f"{seconds / 3600:,.0f}"


def cost(record: Record, states: Iterable[str]) -> Cost:
    """Return the cost of the search in device hours, by the state of the trials."""
    rows = []
    for state in states:
        trials = [trial for trial in record.trials if shown_state(trial, record) == state]
        if trials:
            seconds = sum(epoch.get("seconds", 0.0) for trial in trials for epoch in trial.epochs)
            epochs = sum(trial.epoch for trial in trials)
            rows.append(CostOfState(state=state, trials=len(trials), epochs=epochs, hours=hours(seconds)))
    runs = record.facts.get("runs", [])
    return Cost(
        rows=rows,
        hardware=record.facts.get("hardware", ""),
        runs=len(runs),
        elapsed=sum(run.get("seconds", 0.0) for run in runs),
        usage=usage_lines(summarise_usage(record.facts.get("usage"))),
    )
