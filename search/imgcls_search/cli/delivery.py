"""Commands that export and use a model: export, predict, serve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, cast

import typer

from imgcls_search.api.options import component_of_data
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    ModelFormat,
    MovedData,
    Storage,
    Studies,
    Views,
    study_files,
)
from imgcls_search.cli.output import MOST_CLASSES, echo, make_console, make_screens, print_json, warn
from imgcls_search.errors import NoResultError, UserError, refuse_idle
from imgcls_search.measures import main_measure, retraining_command
from imgcls_search.rounding import measured
from imgcls_search.words import argument, counted, some

if TYPE_CHECKING:
    from imgcls_search.data import LeftOut
    from imgcls_search.deploy.bundle import Bundle
    from imgcls_search.deploy.predict import Prediction, RankedClass, Skipped
    from imgcls_search.deploy.predictions import Summary
    from imgcls_search.deploy.views import ViewsName
    from imgcls_search.jobs.bundle.deliver import Format
    from imgcls_search.jobs.bundle.metrics import ViewsMetrics
    from imgcls_search.jobs.bundle.sureness import SurenessMetrics


TOP = 3
"""Number of classes that `predict` shows per image, by default."""


class _Delivery(TypedDict):
    """Options of `export` that go with --bundle."""

    target_precision: float | None
    tta: ViewsName
    to: Format


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|WEIGHTS", help="The name of a study; with --bundle also a file that train saved."
        ),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write this YAML file.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="Write this folder, with the network as ONNX.")
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option("--trial", help="Export this trial; default: the confirmed one, or else the best."),
    ] = None,
    target_precision: Annotated[
        float | None,
        typer.Option(
            "--target-precision",
            metavar="SHARE",
            help="With --bundle: answer only if confident enough that this share of the answers is right (lower 95 % "
            "bound on the validation images); otherwise predict says 'unsure'.",
        ),
    ] = None,
    tta: Annotated[
        Views | None,
        typer.Option(
            "--tta", help="With --bundle: build test-time augmentation into the model, which makes it slower."
        ),
    ] = None,
    to: Annotated[
        ModelFormat | None,
        typer.Option(
            "--format",
            help="With --bundle: onnx (default), or openvino or executorch, which need the extra of that name.",
        ),
    ] = None,
    data: MovedData = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Export a trial's configuration as a YAML file, or a trained network as a bundle that predicts without torch.

    \b
    imgcls-search export vit-digits -o best.yaml
    imgcls-search export vit-digits --trial 7 -o seven.yaml
    imgcls-search export vit-digits --bundle model
    imgcls-search export trained/best/seed-1.pt --bundle model
    imgcls-search export vit-digits --bundle model --target-precision 0.97 --tta shift
    imgcls-search export vit-digits --bundle model --format openvino

    A bundle holds model.onnx, labels, configuration, metrics and a model card; predict classifies images with it.
    """
    if (output is None) == (bundle is None):
        raise UserError("export: needs either -o FILE, for the configuration, or --bundle DIR, for the trained network")
    if bundle is not None:
        delivery: _Delivery = {
            "target_precision": target_precision,
            "tta": tta.value if tta is not None else "none",
            "to": to.value if to is not None else "onnx",
        }
        _export_bundle(source, bundle, trial, data, studies, storage, as_json, delivery)
        return
    refuse_idle({"--target-precision": target_precision, "--tta": tta, "--format": to}, "without --bundle")
    refuse_idle({"--data": data}, "without --bundle; for an exported configuration, give it to train")
    from imgcls_search.api.writing import write_configuration
    from imgcls_search.jobs.export import read_origin

    assert output is not None
    exported = write_configuration(study_files(source, studies, storage), output, trial)
    origin, _ = read_origin(exported)
    assert origin is not None
    if as_json:
        print_json({**origin, "file": str(output)})
        return
    # A configuration without a training section only pretrains.
    command = retraining_command(argument(output), pretrains="\ntraining:" not in exported)
    echo(f"wrote {output}: trial {origin['trial']}; retrain it with: {command}")


def _export_bundle(
    source: str,
    out: Path,
    trial: int | None,
    data: str | None,
    studies: Path,
    storage: str | None,
    as_json: bool,
    delivery: _Delivery,
) -> None:
    # `ensemble -o` may have given the file any name.
    is_weights = source.endswith(".pt") or Path(source).is_file()
    if is_weights and trial is not None:
        raise UserError(f"--trial {trial}: {source} is one training; --trial needs the name of a study")
    from imgcls_search.api.writing import write_bundle
    from imgcls_search.jobs.bundle.metrics import same_decisions
    from imgcls_search.jobs.bundle.weights import from_trial, from_weights

    moved_to = component_of_data(data)
    if is_weights:
        trained = from_weights(Path(source), moved_to)
    else:
        trained = from_trial(study_files(source, studies, storage), trial, moved_to)
    found = write_bundle(trained, out, studies, make_screens(error=as_json), moved=moved_to is not None, **delivery)
    if as_json:
        print_json(found)
        return
    latency, parity, score = found["latency"], found["parity"], found["scores"][0]
    echo(
        f"wrote {out}: {found['title']}, {found['size']['file_kb']:,.0f} KB, {latency['median_ms']:.3g} ms an image on "
        f"one thread ({latency['low_ms']:.3g} to {latency['high_ms']:.3g})"
    )
    name = main_measure(score)
    reached = measured(name, cast(Any, score)[name], score["images"])
    doubt = "" if trained.is_held_out else " (probably too high: they may have been trained on)"
    echo(f"the exported file on {score['images']} validation images: {name} {reached}{doubt}")
    if not is_weights and (folds := len(trained.data.folds)):
        train = "imgcls-search export STUDY -o best.yaml && imgcls-search train best.yaml"
        echo(f"it is the network of the last of {folds} folds; to train one on all images: {train}")
    same, what = same_decisions(parity)
    echo(
        f"against torch{' before quantization' if parity['is_quantized'] else ''}: {what} on "
        f"{same} of {parity['images']} images, logits differ by at most {parity['max_difference']:.1e}"
    )
    for line in _trust(found["sureness"], found["tta"], latency["median_ms"]):
        echo(line)
    echo(f"next: imgcls-search predict {argument(out)} IMAGES... (model card: {out / 'MODEL_CARD.md'})")


def _trust(found: SurenessMetrics, tta: ViewsMetrics | None, median_ms: float) -> Iterator[str]:
    """Yield lines about a bundle's calibration, confidence threshold and test-time augmentation."""
    made = found["calibration"]
    before, after = made["before"], made["held_out"]
    if made["is_calibrated"]:
        assert before is not None
        assert after is not None, "temperatures are kept for what they bring"
        yield (
            f"calibrated: expected calibration error {before['error']:.4f} before, {after['error']:.4f} after, log "
            f"loss {before['loss']:.4f} and {after['loss']:.4f} (held-out validation images)"
        )
    else:
        yield f"not calibrated: {made['reason']}"
    if (refusal := found["refusal"]) is not None:
        yield (
            f"below a confidence of {refusal['min_confidence']:.4f} it is unsure: {refusal['answered']} of "
            f"{refusal['images']} validation images are answered, {refusal['right']} of them right (lower 95 % bound "
            f"{refusal['lower_bound_95']:.3f})"
        )
    if tta is not None:
        yield (
            f"test-time augmentation ({tta['views']}): {tta['count']} views, {median_ms:.3g} ms an image instead of "
            f"{tta['median_ms_without']:.3g}"
        )


def predict(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle: a folder that export --bundle wrote.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="Show this many classes per image; with several labels, also every label that the image has; "
            "default: 3.",
        ),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            "--min-confidence",
            metavar="SHARE",
            help="Say 'unsure' if the probability of the class is lower; default: the bundle's threshold.",
        ),
    ] = None,
    tta: Annotated[
        Views | None,
        typer.Option("--tta", help="Average several views of each image, and print how much time that takes."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write a table (.csv or .parquet) instead of printing."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images with an exported bundle, without torch.

    \b
    imgcls-search predict model photo.jpg
    imgcls-search predict model photos more/*.png --top 1
    imgcls-search predict model photos -o photos.csv
    imgcls-search predict model photos --json
    imgcls-search predict model photos --min-confidence 0.9 --tta mirror

    Images that are unlike the training images are marked, if the bundle has a threshold for that. With predict.costs,
    the class with the lowest expected cost comes first. Unreadable images are named and skipped; the exit code is 1
    if none could be read.
    """
    from imgcls_search.deploy.bundle import read
    from imgcls_search.deploy.predict import Prediction, check_confidence, classify, cost_of_views
    from imgcls_search.deploy.predictions import Summary, check_table

    if output is not None:
        if as_json:
            raise UserError(f"-o {output}: writes a table; leave out --json, which prints")
        refuse_idle({"--top": top}, "together with -o, which writes all classes")
        check_table(output)
    served = read(bundle)
    note = check_confidence(served, min_confidence)
    if note is not None:
        echo(f"{bundle}: {note}", error=True)
    views: ViewsName = tta.value if tta is not None else "none"
    is_folder = any(path.is_dir() for path in images)
    if is_folder and not as_json:
        channels, height, width = served.artifact.pixel_shape
        kind = "colour" if channels == 3 else "grey"
        echo(f"{bundle}: {len(served.labels)} classes, {kind} images of {width}x{height} pixels", error=True)
    shown_classes = (top or TOP) if output is None else len(served.labels)
    found = classify(
        served, images, top=shown_classes, on_left_out=_say_left_out, min_confidence=min_confidence, views=views
    )
    summary = Summary()
    if output is not None:
        _write_table(served, images, _counted(found, summary), output)
        echo(f"wrote {output}: {summary}")
    elif as_json:
        _print_predictions(bundle, _counted(found, summary))
    else:
        for one in _counted(found, summary):
            if isinstance(one, Prediction):
                echo(f"{one.image}: {_said(one)}")
        if is_folder:
            echo(str(summary), error=True)
    if views != "none":
        echo(cost_of_views(served, views), error=True)
    if not summary.images:
        raise NoResultError(f"{bundle}: no image could be read ({counted('file', summary.skipped)} tried)")


def _counted(found: Iterable[Prediction | Skipped], summary: Summary) -> Iterator[Prediction | Skipped]:
    """Yield the results, counting them and printing why images are skipped."""
    from imgcls_search.deploy.predict import Skipped

    for one in found:
        summary.add(one)
        if isinstance(one, Skipped):
            echo(f"skipped: {one.image}: {one.reason}", error=True)
        yield one


def _print_predictions(bundle: Path, found: Iterable[Prediction | Skipped]) -> None:
    from imgcls_search.deploy.predict import Prediction, plain

    predicted, skipped = [], []
    for one in found:
        if isinstance(one, Prediction):
            predicted.append(plain(one))
        else:
            skipped.append({"image": one.image, "reason": one.reason})
    print_json({"bundle": str(bundle), "predictions": predicted, "skipped": skipped})


def _write_table(bundle: Bundle, images: Sequence[Path], found: Iterable[Prediction | Skipped], output: Path) -> None:
    from imgcls_search.deploy.predict import count_images
    from imgcls_search.deploy.predictions import table
    from imgcls_search.views.screen import WorkScreen

    total = count_images(images)
    with WorkScreen(make_console(error=True)) as screen, table(bundle, output) as add:
        for number, one in enumerate(found, start=1):
            add(one)
            screen.show("classifying", number, total)


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle: a folder that export --bundle wrote.")],
    host: Annotated[str, typer.Option("--host", help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Listen on this port; 0 picks a free one.")
    ] = 8000,
) -> None:
    """Serve an exported bundle over HTTP: a page to drop images on, and JSON for programs.

    \b
    imgcls-search serve model
    imgcls-search serve model --port 9000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
    curl -F image=@a.jpg -F image=@b.jpg 'http://127.0.0.1:8000/predict?top=1'

    A request may have up to 32 images and 32 MB, and 50 megapixels are decoded of an image. Only this machine can
    connect, unless you set --host.
    """
    from imgcls_search.deploy.bundle import read
    from imgcls_search.views.addresses import is_loopback
    from imgcls_search.views.service import listen, make_service
    from imgcls_search.views.service import serve as answer

    application = make_service(read(bundle), host, name=bundle.resolve().name)
    with listen(host, port) as at:
        if not is_loopback(host):
            warn("anyone who can reach this address can send images to the model")
        shown = f"[{host}]" if ":" in host else host
        echo(f"{bundle} on http://{shown}:{at.getsockname()[1]}/ (Ctrl-C ends it)")
        answer(application, at)


def _said(found: Prediction) -> str:
    unlike = " (unlike the training images)" if found.is_unlike else ""
    if found.is_unsure:
        return f"unsure ({_answer(found)}){unlike}"
    return _answer(found) + unlike


def _answer(found: Prediction) -> str:
    """Return an image's most likely classes as text; with several labels, those it has, then other likely ones."""
    from imgcls_search.deploy.predict import ranking

    ranked = [(entry["label"], _in_words(entry)) for entry in ranking(found)]
    if found.labels is None:
        return ", ".join(text for _, text in ranked)
    has = some([text for name, text in ranked if name in found.labels], MOST_CLASSES)
    others = [text for name, text in ranked if name not in found.labels]
    below = f" (below the threshold: {', '.join(others)})" if others else ""
    return (has or "no label") + below


def _in_words(entry: RankedClass) -> str:
    price = f" (cost {entry['expected_cost']:.4g})" if "expected_cost" in entry else ""
    return f"{entry['label']} {entry['probability']:.4f}{price}"


def _say_left_out(folder: Path, found: Sequence[LeftOut]) -> None:
    from imgcls_search.data import describe_left_out

    echo(f"{folder}: not counted: {describe_left_out(found)}", error=True)
