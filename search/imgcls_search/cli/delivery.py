"""Commands that hand on what was found: export, predict, serve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from imgcls_search import atomic
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    MovedData,
    Storage,
    Studies,
    data_component,
    study_files,
)
from imgcls_search.cli.output import echo, make_console, print_json, warn
from imgcls_search.errors import NoResultError, UserError, writing
from imgcls_search.measures import PROBE, command_for, main_measure
from imgcls_search.rounding import measured

if TYPE_CHECKING:
    from imgcls_search.data import LeftOut
    from imgcls_search.deploy.predict import Prediction


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|WEIGHTS", help="The name of a study; with --bundle also a file that train saved."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The YAML file to write.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="The folder to write, with the network as ONNX.")
    ] = None,
    trial: Annotated[int | None, typer.Option("--trial", help="A trial's number; default: the best.")] = None,
    data: MovedData = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Write a trial's configuration as YAML that trains alone, or a trained network as a folder that serves alone.

    \b
    imgcls-search export vit-digits -o best.yaml
    imgcls-search export vit-digits --trial 7 -o seven.yaml
    imgcls-search export vit-digits --bundle model
    imgcls-search export trained/best/seed-1.pt --bundle model

    A bundle holds model.onnx, labels, configuration, metrics and a model card; predict classifies images with it.
    """
    if (output is None) == (bundle is None):
        raise UserError("export: needs either -o FILE, for the configuration, or --bundle DIR, for the trained network")
    if bundle is not None:
        _export_bundle(source, bundle, trial, data, studies, storage, as_json)
        return
    if data is not None:
        raise UserError(f"--data {data}: goes with --bundle; of a configuration that was exported, train takes it")
    from imgcls_search.jobs.export import export_trial

    assert output is not None
    exported = export_trial(study_files(source, studies, storage), trial)
    with writing(output):
        atomic.write_text(output, exported)
    # What was pretrained alone says nothing of a training on labels.
    metric = "accuracy" if "\ntraining:" in exported else PROBE
    echo(f"wrote {output}; retrain it with: {command_for(metric, str(output))}")


def _export_bundle(
    source: str,
    out: Path,
    trial: int | None,
    data: str | None,
    studies: Path,
    storage: str | None,
    as_json: bool,
) -> None:
    is_weights = source.endswith(".pt")
    if is_weights and trial is not None:
        raise UserError(f"--trial {trial}: {source} is one training; --trial goes with the name of a study")
    from imgcls_search.cli.screen import StepScreen
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.bundle.deliver import deliver
    from imgcls_search.jobs.bundle.metrics import same_decisions
    from imgcls_search.jobs.bundle.weights import from_trial, from_weights

    moved_to = data_component(data)
    if is_weights:
        trained = from_weights(Path(source), moved_to)
    else:
        trained = from_trial(study_files(source, studies, storage), trial, moved_to)
    say = partial(echo, error=as_json)
    with StepScreen(make_console(error=as_json)) as steps:
        found = deliver(trained, out, image_cache(studies), say, steps.step, must_be_same=moved_to is not None)
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
    echo(f"the exported file on {score['images']} validation images: {name} {reached}")
    same, what = same_decisions(parity)
    echo(
        f"against torch{' before quantization' if parity['is_quantized'] else ''}: {what} on "
        f"{same} of {parity['images']} images, logits differ by at most {parity['max_difference']:.1e}"
    )
    echo(f"next: imgcls-search predict {out} IMAGES... (model card: {out / 'MODEL_CARD.md'})")


def predict(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that export --bundle wrote.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    top: Annotated[
        int, typer.Option("--top", min=1, help="Classes to show of each image; of several labels, all that it has too.")
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Classify images with an exported bundle, without torch.

    \b
    imgcls-search predict model photo.jpg
    imgcls-search predict model photos more/*.png --top 1
    imgcls-search predict model photos --json

    With predict.costs the class of least expected cost comes first.

    Unreadable images are named and skipped; the exit code is 1 if none could be read.
    """
    from imgcls_search.deploy.bundle import read
    from imgcls_search.deploy.predict import Prediction, classify, plain

    predicted, skipped = [], []
    for found in classify(read(bundle), images, top=top, on_left_out=_say_left_out):
        if isinstance(found, Prediction):
            predicted.append(plain(found))
            if not as_json:
                echo(f"{found.image}: {_said(found)}")
        else:
            skipped.append({"image": found.image, "reason": found.reason})
            echo(f"skipped: {found.image}: {found.reason}", error=True)
    if as_json:
        print_json({"bundle": str(bundle), "predictions": predicted, "skipped": skipped})
    if not predicted:
        raise NoResultError(f"{bundle}: none of {len(skipped)} image(s) could be read")


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that export --bundle wrote.")],
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve an exported bundle over HTTP: a page to drop images on, and JSON for programs.

    \b
    imgcls-search serve model
    imgcls-search serve model --port 9000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
    curl -F image=@a.jpg -F image=@b.jpg 'http://127.0.0.1:8000/predict?top=1'

    A request may hold 32 images and 32 MB. Only this machine is answered, unless --host says otherwise.
    """
    from imgcls_search.deploy.bundle import read
    from imgcls_search.views.addresses import is_loopback
    from imgcls_search.views.service import listen, make_service
    from imgcls_search.views.service import serve as answer

    application = make_service(read(bundle), host, name=bundle.resolve().name)
    with listen(host, port) as at:
        if not is_loopback(host):
            warn("whoever reaches this address can send images to the model")
        shown = f"[{host}]" if ":" in host else host
        echo(f"{bundle} on http://{shown}:{at.getsockname()[1]}/ (Ctrl-C ends it)")
        answer(application, at)


def _said(found: Prediction) -> str:
    """Return the likeliest classes of an image; of several labels those that it has, then others that are likely."""
    from imgcls_search.deploy.predict import ranking

    ranked = [(entry["label"], _in_words(entry)) for entry in ranking(found)]
    if found.labels is None:
        return ", ".join(text for _, text in ranked)
    has = [text for name, text in ranked if name in found.labels]
    others = [text for name, text in ranked if name not in found.labels]
    below = f" (below the threshold: {', '.join(others)})" if others else ""
    return (", ".join(has) or "no label") + below


def _in_words(entry: dict[str, Any]) -> str:
    price = f" (cost {entry['expected_cost']:.4g})" if "expected_cost" in entry else ""
    return f"{entry['label']} {entry['probability']:.4f}{price}"


def _say_left_out(folder: Path, found: Sequence[LeftOut]) -> None:
    from imgcls_search.data import describe_left_out

    echo(f"{folder}: not counted: {describe_left_out(found)}", error=True)
