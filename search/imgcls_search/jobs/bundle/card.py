"""The model card of a bundle, for users who did not train the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from imgcls_search import terminal
from imgcls_search.deploy.artifact import TITLES
from imgcls_search.deploy.bundle import EXECUTORCH, FILES, OPENVINO
from imgcls_search.image_size import sides
from imgcls_search.jobs.bundle.metrics import BundleMetrics, Parity, Score, same_decisions
from imgcls_search.jobs.bundle.sureness import AnsweredMetrics, CalibrationMetrics
from imgcls_search.measures import COSTED, NAMED, lowest_f1
from imgcls_search.rounding import measured, share, spread

MOST_CLASSES = 50
"""List at most this many classes; `labels.json` has all of them."""

MOST_COSTS = 100


_ARITHMETIC = {
    "none": "32-bit floats",
    "static": "8-bit integers, ranges fixed by training images",
    "dynamic": "8-bit integers in large matrix products, ranges found for each image; otherwise 32-bit floats",
}


def card(metrics: BundleMetrics, labels: Sequence[str]) -> str:
    """Return a model card in Markdown, from the contents of `metrics.json` and the labels."""
    parts = [
        f"# {metrics['title']}",
        _what(metrics),
        "## Classes\n\n" + _classes(labels),
        "## How good it is\n\n" + "\n".join(_scores(metrics)),
        "## When to trust it\n\n" + "\n".join(_sureness(metrics)),
        "## Size and speed\n\n" + "\n".join(_costs(metrics)),
        "## How to use it\n\n" + _use(metrics),
        "## Limits\n\n" + "\n".join(_limits(metrics)),
        "## Where it comes from\n\n" + "\n".join(_provenance(metrics)),
    ]
    return "\n\n".join(parts) + "\n"


_USE = """\
With the program that made it ({torch}):

    imgcls-search predict DIR photo.jpg folder-of-photos

With {runtime} alone: `{file}` takes `pixels`, uint8 [{count}, {channels}, {height}, {width}] with {any}, values 0 to
255, and gives `logits`, float32 [{count}, classes] in the order of `labels.json`; {probabilities}. The
normalisation is in the file. `bundle.json` says how an image is brought to this shape; another way of resizing costs
accuracy."""


def _use(metrics: BundleMetrics) -> str:
    height, width = sides(metrics["input"]["size"])
    probabilities = "their softmax are probabilities"
    if metrics["thresholds"] is not None:
        probabilities = (
            "their sigmoids are probabilities, and an\nimage has the labels of which that is at least the threshold in "
            "`bundle.json` (`output.thresholds`)"
        )
    is_openvino, is_executorch = (metrics["format"] == name for name in ("openvino", "executorch"))
    use = _USE.format(
        runtime=TITLES.get(metrics["format"], "ONNX Runtime"),
        count="1" if is_executorch else "N",
        any="one image at a time" if is_executorch else "any N",
        torch="its runtime for Python needs torch" if is_executorch else "torch is not needed for this",
        file=_model_file(metrics),
        channels=metrics["input"]["channels"],
        height=height,
        width=width,
        probabilities=probabilities,
    )
    if is_openvino:
        use += "\n`model.bin` has its weights."
    return use if metrics["costs"] is None else f"{use}\n\n{_decision(metrics['costs'])}"


def _model_file(metrics: BundleMetrics) -> str:
    return {"openvino": OPENVINO, "executorch": EXECUTORCH}.get(metrics["format"], FILES)["model"]


def _decision(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Explain how a class is chosen, with the costs as a table."""
    rows = [(true, predicted, cost) for true, row in costs.items() for predicted, cost in row.items()]
    shown = [f"| {_cell(true)} | {_cell(predicted)} | {cost:g} |" for true, predicted, cost in rows[:MOST_COSTS]]
    more = f"\n\nand {len(rows) - MOST_COSTS} more, see `bundle.json`" if len(rows) > MOST_COSTS else ""
    return (
        "`predict` decides on the class of least expected cost, which need not be the likeliest: the sum over the true "
        "classes of probability x cost. Other wrong classes cost 1, the right class costs nothing. Accuracy, precision "
        "and recall are those of the likeliest class; `cost` and `decision_accuracy` are those of the decision.\n\n"
        "| true class | predicted class | cost |\n|---|---|---|\n" + "\n".join(shown) + more
    )


def _cell(text: str) -> str:
    return _code(text).replace("|", chr(92) + "|")


def _what(metrics: BundleMetrics) -> str:
    shape, data = metrics["input"], metrics["data"]
    colours = "colour" if shape["channels"] == 3 else "gray"
    network = f"a {metrics['model']['family']} network"
    if members := metrics["model"].get("members"):
        families = ", ".join(f"{member['family']} of trial {member['trial']}" for member in members)
        network = f"an ensemble of {len(members)} network{'' if len(members) == 1 else 's'} ({families})"
    return (
        f"An image classifier: {network} of {metrics['model']['params']:,} parameters"
        f"{_compression(metrics)}, for {colours} images of {_pixels(metrics)}. "
        f"It was trained on {data['counts']['train']:,} images of the data set `{data['name']}` "
        f"({data['counts']['val']:,} more for validation, {data['counts']['test']:,} sealed as a test)."
    )


def _pixels(metrics: BundleMetrics) -> str:
    height, width = sides(metrics["input"]["size"])
    size = f"{height}x{width} pixels" + (" (height x width)" if height != width else "")
    return size + _FITS[metrics["input"]["fit"]]


_FITS = {
    "crop": "",
    "pad": ", to which whole images are brought with borders",
    "squash": ", to which whole images are stretched",
}


def _compression(metrics: BundleMetrics) -> str:
    sections = [name for name, value in metrics["model"]["compression"].items() if value != "none"]
    steps = ", ".join(f"{name}: {metrics['model']['compression'][name]}" for name in sections)
    return f" ({steps})" if sections else ""


def _classes(labels: Sequence[str]) -> str:
    shown = ", ".join(_code(label) for label in labels[:MOST_CLASSES])
    rest = f" and {len(labels) - MOST_CLASSES} more, see `labels.json`" if len(labels) > MOST_CLASSES else ""
    return f"{len(labels)}: {shown}{rest}."


def _scores(metrics: BundleMetrics) -> Iterator[str]:
    if metrics["thresholds"] is not None:
        yield from _label_scores(metrics)
        return
    yield "| measured on | split | images | accuracy | 95 % interval | macro F1 |"
    yield "|---|---|---|---|---|---|"
    for score in metrics["scores"]:
        low, high = score["accuracy_interval_95"]
        yield (
            f"| {score['of']} | {score['split']} | {score['images']:,} | {share(score['accuracy'], score['images'])} "
            f"| {share(low, score['images'])} to {share(high, score['images'])} "
            f"| {share(score['macro_f1'], score['images'])} |"
        )
    yield ""
    yield "The intervals are Wilson's, for the number of images; another training would differ by more."
    yield from _more_scores(metrics["scores"][0])
    yield from _seeds(metrics)
    yield from ("", _parity(metrics["parity"]))


def _label_scores(metrics: BundleMetrics) -> Iterator[str]:
    """Yield a table of a multi-label model's scores at its thresholds."""
    headings = ("mean average precision", "macro F1", "micro F1", "subset accuracy", "its 95 % interval")
    yield f"| measured on | split | images | {' | '.join(headings)} |"
    yield "|---|---|---|---|---|---|---|---|"
    names = ("average_precision", "macro_f1", "micro_f1", "subset_accuracy")
    for score in metrics["scores"]:
        images = score["images"]
        cells = [measured(name, cast(Any, score)[name], images) if name in score else "" for name in names]
        low, high = (share(end, images) for end in score["subset_accuracy_interval_95"])
        yield f"| {score['of']} | {score['split']} | {images:,} | {' | '.join(cells)} | {low} to {high} |"
    yield ""
    yield (
        "Subset accuracy is the share of images all of whose labels are right; its interval is Wilson's, for the "
        "number of images. F1, subset accuracy, precision and recall are those at the thresholds below."
    )
    if any(score["split"] == "validation" for score in metrics["scores"]) and set(metrics["thresholds"] or ()) != {0.5}:
        yield (
            "The thresholds are those with the largest F1 of each label on the validation images, so scores "
            "at them on these images are somewhat too high."
        )
    yield from _more_scores(metrics["scores"][0])
    yield from _seeds(metrics)
    yield from ("", _parity(metrics["parity"]))


def _seeds(metrics: BundleMetrics) -> Iterator[str]:
    if seeds := metrics.get("seeds"):
        values, measure = seeds["values"], seeds.get("measure", "accuracy")
        shown = spread(measure, values, seeds["mean"], seeds["ci95"], metrics["data"]["counts"]["test"])
        interval = " (95 % interval of the mean, Student's t)" if len(values) > 2 else ""
        yield f"Over {seeds['count']} trainings that differ only in the seed, test {measure} is {shown}{interval}."


def _more_scores(score: Score) -> Iterator[str]:
    """Yield the additional metrics and the scores of each class."""
    # With several labels, the mean average precision is already in the table.
    without = {"average_precision"} if "micro_f1" in score else set()
    known = [name for name in (*NAMED, *COSTED) if name in score and name not in without]
    if known:
        numbers = ", ".join(f"{name} {measured(name, cast(Any, score)[name], score['images'])}" for name in known)
        yield from ("", f"{score['of'].capitalize()} on the {score['split']} images: {numbers}.")
    classes = {name: found for name, found in score.get("classes", {}).items() if "f1" in found}
    if not classes:
        return
    of_labels = any("threshold" in found for found in classes.values())
    worst = lowest_f1(classes, MOST_CLASSES)
    if len(worst) < len(classes):
        kinds = "labels" if of_labels else "classes"
        yield from ("", f"The {MOST_CLASSES} {kinds} with the lowest F1 score; `metrics.json` has all:")
    if of_labels:
        yield from ("", "| label | precision | recall | F1 | average precision | threshold | images |")
        yield "|---|---|---|---|---|---|---|"
    else:
        yield from ("", "| class | precision | recall | F1 | images |", "|---|---|---|---|---|")
    for name in worst:
        found = classes[name]
        cells = [share(found[key], int(found["support"])) for key in ("precision", "recall", "f1")]
        if of_labels:
            cells += [share(found["average_precision"], int(found["support"])), f"{found['threshold']:.3f}"]
        yield f"| {_cell(name)} | {' | '.join(cells)} | {found['support']:,.0f} |"


def _parity(parity: Parity) -> str:
    count, what = same_decisions(parity)
    same = f"{what} on {count:,} of {parity['images']:,} validation images"
    if parity["is_quantized"]:
        return f"Against the same weights before they were quantized, in torch, it gives {same}."
    return (
        f"Against the same weights in torch it gives {same}; logits differ by at most {parity['max_difference']:.1e}."
    )


def _sureness(metrics: BundleMetrics) -> Iterator[str]:
    """Yield the calibration, the confidence threshold, and how images unlike the training images are detected."""
    found = metrics["sureness"]
    yield _calibration(found["calibration"], _model_file(metrics))
    if found["answered"]:
        yield ""
        yield "If it answers only images with at least this confidence (validation images):"
        yield from ("", "| confidence | answered | right of these | lower 95 % bound |", "|---|---|---|---|")
        for row in found["answered"]:
            yield f"| {row['min_confidence']:g} | {' | '.join(_answered(row))} |"
    if (refusal := found["refusal"]) is not None:
        answered, right, lower = _answered(refusal)
        yield ""
        yield (
            f"For a precision of {refusal['target_precision']:g} `predict` says 'unsure' below a confidence of "
            f"{refusal['min_confidence']:.4f}: {answered} of the validation images are answered, {right} of these "
            f"right, exact lower 95 % bound {lower}. The threshold is the smallest of many that reaches it on these "
            "images, so that the bound is somewhat optimistic."
        )
    if (strange := found["unlike"]) is not None:
        yield ""
        yield (
            f"`predict` marks images as unlike the training images by {strange['score'].replace('_', ' ')}: above a "
            f"score of {strange['threshold']:.4g}, which 5 % of the validation images exceed. It finds some images "
            "of something else, not all."
        )


def _calibration(made: CalibrationMetrics, file: str) -> str:
    before, after = made["before"], made["held_out"]
    figures = "expected calibration error (15 bins of equally many images) {error:.4f}, log loss {loss:.4f}"
    if not made["is_calibrated"]:
        shown = f" On them: {figures.format(**before)}." if before is not None else ""
        return f"Probabilities are not calibrated: {made['reason']}.{shown}"
    assert before is not None
    assert after is not None, "temperatures are kept for what they bring"
    temperature = made["temperature"]
    how = f"a temperature of {temperature:.4g}"
    if isinstance(temperature, Mapping):
        how = f"one temperature a label, {min(temperature.values()):.4g} to {max(temperature.values()):.4g}"
    return (
        f"Probabilities are calibrated, in `{file}` itself: {how}, fitted on {made['images']:,} validation images. "
        f"Before: {figures.format(**before)}; after, each image by a temperature that was fitted without it: "
        f"{figures.format(**after)}."
    )


def _answered(row: AnsweredMetrics) -> tuple[str, str, str]:
    right = share(row["right"] / row["answered"], row["answered"]) if row["answered"] else "none"
    part = f"{row['answered'] / row['images']:.1%} ({row['answered']:,} of {row['images']:,})"
    return part, right, f"{row['lower_bound_95']:.3f}"


def _costs(metrics: BundleMetrics) -> Iterator[str]:
    latency, conditions, size = metrics["latency"], metrics["latency"]["conditions"], metrics["size"]
    file = f"`{_model_file(metrics)}`" + (" and `model.bin`" if metrics["format"] == "openvino" else "")
    yield f"- {file}: {size['file_kb']:,.0f} KB of 1,024 bytes, {size['archive_kb']:,.0f} in a compressed archive"
    yield (
        f"- {latency['median_ms']:.3g} ms for one image (median of {latency['runs']} runs; one in ten below "
        f"{latency['low_ms']:.3g}, one in ten above {latency['high_ms']:.3g}): {conditions['processor']}, "
        f"{conditions['runtime']}, one thread, batch of 1, after a warm-up, other work on the machine not excluded"
    )
    if (tta := metrics["tta"]) is not None:
        yield (
            f"- test-time augmentation ({tta['views']}): the file gives the mean logits of {tta['count']} views of an "
            f"image; without, one takes {tta['median_ms_without']:.3g} ms"
        )
    if metrics["model"]["macs"] is not None:
        yield f"- {metrics['model']['macs']:,} multiply-accumulates for one image"
    yield f"- arithmetic: {_ARITHMETIC[metrics['model']['quantized']]}"
    if "unstructured" in metrics["model"]["compression"]["prune"]:
        yield "- single weights are zero: that makes the archive smaller, not the file, and nothing faster"


def _limits(metrics: BundleMetrics) -> Iterator[str]:
    if metrics["thresholds"] is None:
        classes = metrics["data"]["classes"]
        yield f"- It names one of its {classes} classes for any image, even if the image shows none of them."
    else:
        yield "- It knows its own labels alone; an image of something else may be given some of them, or none."
    yield "- Other cameras, crops or light than in the training images may lower the accuracy; no such test was made."
    yield from (f"- {note}" for note in metrics["notes"])


def _provenance(metrics: BundleMetrics) -> Iterator[str]:
    for name, value in metrics["provenance"].items():
        yield f"- {name}: {_code(str(value))}"
    yield "- configuration: `config.yaml`, which `imgcls-search train` takes"


def _code(text: str) -> str:
    """Format a name as inline code, without markup or line breaks from the name."""
    return f"`{terminal.shown(text).replace('`', chr(39)) or ' '}`"
