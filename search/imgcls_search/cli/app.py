"""The command line: parse, call a floor below, print. The only place that catches SearchError."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls_search import durations, terminal
from imgcls_search.cli.output import STUDIES, AsJson, Storage, Studies, StudyName, echo
from imgcls_search.cli.output import pairs as _pairs
from imgcls_search.cli.output import print_json as _print_json
from imgcls_search.cli.output import print_table as _print_table
from imgcls_search.cli.results import COMMANDS as RESULTS
from imgcls_search.errors import NoResultError, SearchError, UserError, disk_trouble, path_trouble

# Nothing heavy is imported up here: `--help` answers at once, and each command imports what it needs.
if TYPE_CHECKING:
    from imgcls_search.data import LeftOut, Summary
    from imgcls_search.jobs.replay import Replayed
    from imgcls_search.orchestrator.begin import Outcome
    from imgcls_search.space import Space

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""What Typer raises for a command line that it cannot read; where the class is to be had depends on its version."""

ONLY_PRINT = frozenset(
    {"best", "check", "compare", "families", "front", "list", "plan", "predict", "replay", "schema", "status", "trials"}
)
"""Commands that end when nobody reads what they print; all others go on without output."""

app = typer.Typer(
    name="imgcls-search",
    help="Search hyperparameters and architectures for image classification.",
    epilog="Start with: imgcls-search run spaces/vit.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpaceFile = Annotated[
    Path, typer.Argument(metavar="SPACE", help="A search-space YAML file, for example spaces/vit.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value for this run; may be repeated."),
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="NAME[:ROOT]", help="Other images, for example folder:photos.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="DURATION", help=f"Stop this call after seconds, or {durations.EXAMPLES}."),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="Name of the study; default: SPACE-DATA, or SPACE-FOLDER, as in vit-photos."),
]


class Portion(str, Enum):
    """Which images `train` trains on."""

    train = "train"
    train_val = "train+val"


class Split(str, Enum):
    """Which images `evaluate` looks at."""

    val = "val"
    test = "test"
    all = "all"


@app.command()
def run(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    name: Name = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Trials at a time; default: one per core or GPU.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="auto|local|HOST:PORT",
            help="Train on a Ray cluster: this machine's, one of this machine alone, or by its address.",
        ),
    ] = None,
    timeout: Timeout = None,
) -> None:
    """Run a search, or go on with one that was interrupted.

    \b
    imgcls-search run spaces/vit.yaml
    imgcls-search run spaces/vit.yaml --data folder:photos --set image.size=32
    imgcls-search run spaces/vit.yaml --set study.trials=100
    imgcls-search run spaces/vit.yaml --timeout 1h30m
    imgcls-search run spaces/vit.yaml --storage postgresql://me@host/studies

    The same command again goes on where the search stands. Ctrl-C saves and stops; twice stops now.
    """
    from imgcls_search.executors import processes

    # Torch is imported in another process while this one reads the space and imports Optuna.
    processes.warm_up()
    from rich.console import Console

    overrides = _with_options(overrides, workers, timeout)
    space = _space(space_file, overrides, data, name, skip_unreadable=skip_unreadable)
    if space.is_config:
        raise UserError(f"{space_file}: nothing is searched in it; train it with: imgcls-search train {space_file}")
    from imgcls_search.data import must_exist

    must_exist(space.first().component("data"))
    from imgcls_search.cli.screen import SearchScreen
    from imgcls_search.orchestrator.begin import run as run_search
    from imgcls_search.orchestrator.study_data import with_known_name
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    address = settle(storage, space.study["storage"])
    space = with_known_name(space, studies, address)
    files = find_study(studies, space.name, address)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"study {space.name} in {files.store}")
    with SearchScreen(console) as screen:
        outcome = run_search(space, studies, screen, files.address, cluster=cluster)
    raise typer.Exit(_conclude(outcome, studies))


@app.command()
def plan(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Trials at a time; default: one per core or GPU.")
    ] = None,
    timeout: Timeout = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs to train for it, of all trials.")] = 6,
    as_json: AsJson = False,
) -> None:
    """Tell how long a search will take and what a timeout affords, from a few epochs of random trials.

    \b
    imgcls-search plan spaces/vit.yaml
    imgcls-search plan spaces/vit.yaml --timeout 1h --epochs 20

    Keeps the decoded images and nothing else.
    """
    from dataclasses import asdict

    from rich.console import Console

    from imgcls_search.cli.screen import PlanScreen
    from imgcls_search.jobs.plan import CALIBRATION
    from imgcls_search.jobs.plan import plan as make_plan

    overrides = _with_options(overrides, workers, timeout)
    space = _space(space_file, overrides, data, None, skip_unreadable=skip_unreadable)
    if space.is_config:
        raise UserError(f"{space_file}: nothing is searched in it; train it with: imgcls-search train {space_file}")
    timed = [f"{path}={value}" for path, value in {**CALIBRATION, "study.max_epochs": epochs}.items()]
    calibration = _space(space_file, [*(overrides or []), *timed], data, None, skip_unreadable=skip_unreadable)
    with PlanScreen(Console(soft_wrap=True, highlight=False, stderr=as_json), epochs) as screen:
        found = make_plan(space, calibration, studies, screen)
    if as_json:
        _print_json(asdict(found))
        return
    echo(
        f"{found.measured_epochs} epochs of {found.measured_trials} random trials: "
        f"{durations.show(found.epoch_seconds)} an epoch ({durations.show(found.fastest_seconds)} to "
        f"{durations.show(found.slowest_seconds)}), {found.workers} trial(s) at a time"
    )
    echo(
        f"a full trial has {found.epochs_of_full_trial} epochs; with pruner {space.pruner.name} one gets about "
        f"{found.epochs_of_trial:.1f}"
    )
    echo(f"study.trials: {found.trials} take about {durations.show(found.seconds)}")
    if found.timeout is not None:
        shown = durations.show(found.timeout, exact=True)
        echo(f"study.timeout: {shown} afford about {found.trials_in_timeout} trials")


@app.command()
def check(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    name: Name = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Configurations to build; 0 only validates the file.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which configurations are drawn.")] = 0,
    studies: Studies = STUDIES,
    as_json: AsJson = False,
) -> None:
    """Validate a space, show what it searches, and build samples of it without any training.

    \b
    imgcls-search check spaces/vit.yaml
    imgcls-search check spaces/mixed.yaml --samples 1000
    imgcls-search check best.yaml --json

    Needs no images and no GPU. Counts are remembered under the studies folder.
    """
    from rich.console import Console

    from imgcls_search.cli.screen import SurveyScreen
    from imgcls_search.jobs.survey import summarise, survey
    from imgcls_search.signature import build
    from imgcls_search.strategy.pruners import PRUNERS
    from imgcls_search.strategy.samplers import SAMPLERS

    space = _space(space_file, overrides, data, name, skip_unreadable=skip_unreadable)
    build(SAMPLERS, space.sampler, space=space)
    build(PRUNERS, space.pruner, epochs=space.first().section("training")["epochs"], sign=1)
    images = _images_there(space, studies)
    if not as_json:
        for line in images.lines() if images is not None else ():
            echo(line)
        _show_space(space, space_file)
    found = None
    if samples:
        with SurveyScreen(Console(stderr=True)) as screen:
            found = summarise(survey(space, studies, samples=samples, seed=seed, progress=screen.built), space)
    if as_json:
        parameters = [
            {"path": p.path, "kind": p.kind, "domain": p.domain, "when": dict(p.when)} for p in space.parameters()
        ]
        typed = {"space": dict(space.document), "parameters": parameters, "combinations": space.num_combinations()}
        data_found = None if images is None else images.to_dict()
        _print_json({"name": space.name, "is_config": space.is_config, **typed, "data": data_found, "survey": found})
    elif found is not None:
        _show_survey(found, space)


@app.command()
def status(study: StudyName, studies: Studies = STUDIES, storage: Storage = None, as_json: AsJson = False) -> None:
    """Tell how a study stands: trials by state, rejections, troubles, failures, the best so far.

    \b
    imgcls-search status vit-digits
    imgcls-search status vit-digits --json
    """
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study
    from imgcls_search.study.record import load
    from imgcls_search.study.summary import STATES, summarise

    found = summarise(load(find_study(studies, study, settle(storage))))
    if as_json:
        _print_json(found)
        return
    counts = ", ".join(f"{found['trials'][state]} {state}" for state in STATES if found["trials"][state])
    echo(f"{study}: {found['trials']['total']} trials ({counts or 'none yet'}), {found['epochs']} epochs trained")
    for reason, count in found["rejected"].items():
        echo(f"rejected before training: {count} x {reason}")
    for reason, count in found["troubles"].items():
        echo(f"trouble on the way: {count} x {reason}")
    for failure in found["failures"]:
        echo(f"trial {failure['trial']} failed: {failure['reason']}")
    for limit, count in found["over_limits"].items():
        echo(f"complete but over a limit, and so never best: {count} x {limit}")
    for line in _best_lines(found["best"]):
        echo(line)
    if found["outlook"]:
        echo(_going_on(found["outlook"]))
    if found["test_openings"]:
        echo(f"the test split was opened {len(found['test_openings'])} time(s)")


@app.command()
def best(study: StudyName, studies: Studies = STUDIES, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the best trial of a study, or its Pareto front where there are several objectives.

    \b
    imgcls-search best vit-digits
    imgcls-search best vit-digits --json
    """
    from imgcls_search.study.address import settle
    from imgcls_search.study.best import front
    from imgcls_search.study.files import find_study
    from imgcls_search.study.record import load
    from imgcls_search.study.summary import describe

    record = load(find_study(studies, study, settle(storage)))
    found = [describe(trial, record) for trial in front(record)]
    confirmed = record.facts.get("confirmed")
    if as_json:
        _print_json({"study": study, "best": found, "confirmed": confirmed})
        return
    for trial in found:
        echo(f"trial {trial['trial']}: {_pairs(trial['values'])}, {trial['sizes']['params']:,.0f} parameters")
        for path, value in trial["params"].items():
            echo(f"  {path}: {value}")
        for line in _as_deployed(trial["deployed"]):
            echo(f"  {line}")
    echo(_trust(confirmed, [trial["trial"] for trial in found], study))


@app.command()
def front(
    study: StudyName,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Draw it as a .png, .svg or .pdf too.")
    ] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show the Pareto front of a study: the trials that no other beats in every objective.

    \b
    imgcls-search front compressed-digits
    imgcls-search front compressed-digits -o front.png
    imgcls-search front compressed-digits --json

    Trials over a measured limit (latency_ms, size_kb) are never on it.
    """
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study
    from imgcls_search.study.record import load
    from imgcls_search.views.front import describe_front, draw_front

    record = load(find_study(studies, study, settle(storage)))
    found = describe_front(record)
    if output is not None:
        draw_front(record, output)
    if as_json:
        _print_json(found)
        return
    rows = [
        (
            str(trial["trial"]),
            *(f"{value:,.4f}" if value < 1000 else f"{value:,.0f}" for value in trial["values"].values()),
            f"{trial['sizes']['params']:,.0f}",
        )
        for trial in found["front"]
    ]
    _print_table(("trial", *((name, f"({how})") for name, how in found["objectives"].items()), "parameters"), rows)
    echo(f"{len(rows)} of {found['complete']} complete trials; {len(found['over_limits'])} are over a limit")
    echo(f"what they are: imgcls-search best {study}")
    if output is not None:
        echo(f"wrote {output}")


@app.command()
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
        _export_bundle(source, bundle, trial, studies, storage, as_json)
        return
    from imgcls_search.jobs.export import export_trial, write_text
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    assert output is not None
    write_text(output, export_trial(find_study(studies, source, settle(storage)), trial))
    echo(f"wrote {output}; retrain it with: imgcls-search train {output} --seeds 3")


def _export_bundle(
    source: str, out: Path, trial: int | None, studies: Path, storage: str | None, as_json: bool
) -> None:
    is_weights = source.endswith(".pt")
    if is_weights and trial is not None:
        raise UserError(f"--trial {trial}: {source} is one training; --trial goes with the name of a study")
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.bundle.deliver import deliver
    from imgcls_search.jobs.bundle.weights import from_trial, from_weights
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    if is_weights:
        trained = from_weights(Path(source))
    else:
        trained = from_trial(find_study(studies, source, settle(storage)), trial)
    found = deliver(trained, out, image_cache(studies), partial(echo, error=as_json))
    if as_json:
        _print_json(found)
        return
    latency, parity, score = found["latency"], found["parity"], found["scores"][0]
    echo(
        f"wrote {out}: {found['title']}, {found['size']['file_kb']:,.0f} KB, {latency['median_ms']:.3g} ms an image on "
        f"one thread ({latency['low_ms']:.3g} to {latency['high_ms']:.3g})"
    )
    echo(f"the exported file on {score['images']} validation images: accuracy {score['accuracy']:.4f}")
    echo(
        f"against torch{' before quantization' if parity['is_quantized'] else ''}: the same class on "
        f"{parity['equal_top1']} of {parity['images']} images, logits differ by at most {parity['max_difference']:.1e}"
    )
    echo(f"next: imgcls-search predict {out} IMAGES... (model card: {out / 'MODEL_CARD.md'})")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that export --bundle wrote.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show of each image.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Classify images with an exported bundle, without torch.

    \b
    imgcls-search predict model photo.jpg
    imgcls-search predict model photos more/*.png --top 1
    imgcls-search predict model photos --json

    Unreadable images are named and skipped; the exit code is 1 if none could be read.
    """
    from imgcls_search.deploy.bundle import read
    from imgcls_search.deploy.predict import Prediction, classify

    predicted, skipped = [], []
    for found in classify(read(bundle), images, top=top, on_left_out=_say_left_out):
        if isinstance(found, Prediction):
            predicted.append(
                {"image": found.image, "classes": [{"label": n, "probability": p} for n, p in found.ranked]}
            )
            if not as_json:
                echo(f"{found.image}: {', '.join(f'{n} {p:.4f}' for n, p in found.ranked)}")
        else:
            skipped.append({"image": found.image, "reason": found.reason})
            echo(f"skipped: {found.image}: {found.reason}", error=True)
    if as_json:
        _print_json({"bundle": str(bundle), "predictions": predicted, "skipped": skipped})
    if not predicted:
        raise NoResultError(f"{bundle}: none of {len(skipped)} image(s) could be read")


def _say_left_out(folder: Path, found: Sequence[LeftOut]) -> None:
    from imgcls_search.data import describe_left_out

    echo(f"{folder}: not counted: {describe_left_out(found)}", error=True)


@app.command()
def train(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A space with no choice left, as export writes it.")
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many trainings, each with a seed of its own.")] = 1,
    on: Annotated[
        Portion, typer.Option("--on", help="Train on the training images, or on the validation images too.")
    ] = (Portion.train),
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where results go; default: trained/NAME.")
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Train one configuration for good and open the test split: mean and spread over seeds.

    \b
    imgcls-search train best.yaml --seeds 3
    imgcls-search train best.yaml --on train+val --out final
    """
    from rich.console import Console

    from imgcls_search.cli.screen import TrainingScreen
    from imgcls_search.jobs.export import read_origin
    from imgcls_search.jobs.retrain import Training
    from imgcls_search.jobs.retrain import train as train_all
    from imgcls_search.study.address import settle

    config = _space(config_file, overrides, data, None, skip_unreadable=skip_unreadable).config()
    screen = TrainingScreen(Console(stderr=True, soft_wrap=True, highlight=False))
    origin, problem = read_origin(config_file.read_text(encoding="utf-8"))
    if problem is not None:
        screen.say(f"{config_file}:{problem}; no study will know that its test split was opened")
    training = Training(
        config=config,
        seeds=tuple(range(1, seeds + 1)),
        portion="train" if on is Portion.train else "train+val",
        out=out or Path("trained") / config_file.stem,
        studies=studies,
        origin=origin,
        at=settle(storage),
    )
    report = train_all(training, screen)
    if as_json:
        _print_json(report)
        return
    for metric, value in report["summary"].items():
        spread = f" ± {value['ci95']:.4f} (95 % interval, std {value['std']:.4f})" if value["std"] is not None else ""
        echo(f"test {metric}: {value['mean']:.4f}{spread}")
    echo(
        f"{len(report['seeds'])} seed(s), trained on {report['trained_on']}; weights and metrics.json in {training.out}"
    )


@app.command()
def evaluate(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="A weights file, for example trained/best/seed-1.pt.")
    ],
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    split: Annotated[Split, typer.Option("--split", help="test and all open the sealed test split.")] = Split.val,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="CSV", help="Write every image's prediction.")
    ] = None,
    studies: Studies = STUDIES,
    as_json: AsJson = False,
) -> None:
    """Measure saved weights on images: their own validation split, the test split, or other images.

    \b
    imgcls-search evaluate trained/best/seed-1.pt
    imgcls-search evaluate trained/best/seed-1.pt --split test --predictions test.csv
    imgcls-search evaluate trained/best/seed-1.pt --data folder:more-photos --split all
    """
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.evaluate import evaluate_weights, predictions_csv
    from imgcls_search.jobs.export import write_text

    component = _data_component(data) if data is not None else None
    found = evaluate_weights(
        weights,
        split.value,
        image_cache(studies),
        data=component,
        skip_unreadable=skip_unreadable,
        say=partial(echo, error=as_json),
    )
    if predictions is not None:
        write_text(predictions, predictions_csv(found))
    if as_json:
        counts = {name: int((found.labels == number).sum()) for number, name in enumerate(found.classes)}
        measured = {"split": found.split, "images": len(found.labels), "classes": counts, "metrics": found.metrics}
        _print_json(measured)
        return
    seen, known = len(set(found.labels.tolist())), len(found.classes)
    of = f" of {seen} of the {known} trained classes" if seen < known else ""
    echo(f"{found.split} split, {len(found.labels)} images{of}: {_pairs(found.metrics)}")


@app.command()
def augment_preview(
    space_file: SpaceFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PNG", help="The picture to write.")],
    rows: Annotated[int, typer.Option("--rows", min=1, max=100, help="Images to show, of several classes.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides the configuration and the random numbers.")] = 0,
    first: Annotated[
        bool, typer.Option("--first", help="The first choice and lowest value of everything, nothing drawn.")
    ] = False,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
) -> None:
    """Draw training images beside what augmentation makes of them, as a contact sheet.

    \b
    imgcls-search augment-preview spaces/vit.yaml -o sheet.png
    imgcls-search augment-preview spaces/vit.yaml -o sheet.png --set augment.policy=trivial
    imgcls-search augment-preview spaces/vit.yaml -o sheet.png --rows 12 --seed 7

    Shows one configuration drawn from the space, and only images of the training split.
    """
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.preview import draw_config, write_preview

    space = _space(space_file, overrides, data, None, skip_unreadable=skip_unreadable)
    config = space.first() if first or space.is_config else draw_config(space, seed)
    shown = write_preview(config, image_cache(studies), output, rows=rows, seed=seed, say=echo)
    echo(f"wrote {output}: {shown.rows} images; {', '.join(shown.settings) or 'nothing is on'}")


@app.command()
def families(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A family, for example vit; default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the families of networks are, or what one takes: defaults, and ranges that make sense.

    \b
    imgcls-search families
    imgcls-search families vit
    imgcls-search families vit --json
    """
    from imgcls_search.catalog import catalog
    from imgcls_search.space.families import families as sentences
    from imgcls_search.space.families import family

    if name is None:
        found = sentences(catalog())
        if as_json:
            _print_json(found)
            return
        _print_table(("family", "what it is"), found.items())
        return
    taken = family(catalog(), name)
    if as_json:
        _print_json(taken)
        return
    echo(f"{taken['name']}: {taken['doc']}")
    rows = [(argument["name"], _facts(argument)) for argument in taken["arguments"]]
    if others := taken["others"]:
        rows.append(("any other", (others["doc"], others["allowed"])))
    _print_table(("argument", "what it is"), rows)


@app.command()
def schema() -> None:
    """Print the JSON schema of space files, which gives editors completion, hover text and errors.

    \b
    imgcls-search schema > space.schema.json

    A space whose first line names it is checked by editors with yaml-language-server while you type:

    \b
    # yaml-language-server: $schema=space.schema.json
    """
    from imgcls_search.catalog import catalog
    from imgcls_search.space.schema import render, schema

    print(render(schema(catalog())), end="")  # noqa: T201 - JSON


@app.command()
def replay(
    study: StudyName,
    samplers: Annotated[
        list[str] | None,
        typer.Option("--sampler", metavar="NAME", help="Another sampler, as in a space; may be repeated."),
    ] = None,
    pruners: Annotated[
        list[str] | None,
        typer.Option("--pruner", metavar="NAME", help="Another pruner, as in a space; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Trials side by side.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Another seed for the draws.")] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Tell what other strategies would have cost and found on the curves of a study, without any training.

    \b
    imgcls-search replay vit-digits --pruner asha
    imgcls-search replay vit-digits --sampler random --sampler curves --pruner asha --pruner none
    imgcls-search replay vit-digits --pruner '{halving: {eta: 4}}' --json

    Only the study's own configurations can be drawn. A trial that was stopped goes on as the complete trial that stood
    nearest to it there did; such epochs are counted.
    """
    from dataclasses import asdict

    from imgcls_search.catalog import catalog
    from imgcls_search.jobs.replay import as_it_was, replay_study, space_of
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study
    from imgcls_search.study.record import load

    record = load(find_study(studies, study, settle(storage)))
    found = [as_it_was(record)]
    own = record.fact("space")["study"]
    for sampler in samplers or [json.dumps(own["sampler"])]:
        for pruner in pruners or [json.dumps(own["pruner"])]:
            changes = [("study.sampler", sampler), ("study.pruner", pruner)]
            if seed is not None:
                changes.append(("study.seed", str(seed)))
            found.append(replay_study(record, space_of(record, catalog(), changes), workers=workers))
    if as_json:
        _print_json({"study": study, "replays": [asdict(each) for each in found]})
        return
    headings = ("strategy", "trials", "complete", "epochs", "extended", "best", "found after", "time")
    _print_table(headings, [_replayed(each) for each in found])
    echo(
        "extended: epochs that were never trained, guessed from complete trials; found after: epochs; time: of training"
    )


def _replayed(found: Replayed) -> tuple[str, ...]:
    best_value = "-" if found.best is None else f"{found.best:.4f}"
    after = str(found.bests[-1][0]) if found.bests else "-"
    counts = (found.trials, found.complete, found.epochs, found.extended)
    return (found.strategy, *map(str, counts), best_value, after, durations.show(found.seconds))


@app.command()
def dashboard(
    study: StudyName,
    studies: Studies = STUDIES,
    storage: Storage = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8080,
) -> None:
    """Open optuna-dashboard on a study, also while it runs.

    \b
    imgcls-search dashboard vit-digits
    imgcls-search dashboard vit-digits --port 9000
    """
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study
    from imgcls_search.views.dashboard import is_loopback, make_dashboard

    server = make_dashboard(find_study(studies, study, settle(storage)), host, port, _warn)
    if not is_loopback(host):
        _warn("whoever reaches this address can read and delete studies")
    echo(f"optuna-dashboard on http://{host}:{server.server_port}/ (Ctrl-C ends it)")
    server.serve_forever()


def _warn(text: str) -> None:
    echo(f"warning: {text}", error=True)


@app.command()
def copy(
    study: StudyName,
    to: Annotated[str, typer.Option("--to", metavar="FILE|DIR|URL", help="Where the copy goes; nothing is replaced.")],
    with_folder: Annotated[
        bool, typer.Option("--with-folder", help="Checkpoints and logs too; --to is a folder then.")
    ] = False,
    studies: Studies = STUDIES,
    storage: Storage = None,
) -> None:
    """Copy a study as it stands at one moment, also while a run writes it; a plain `cp` would miss trials.

    \b
    imgcls-search copy vit-digits --to backup.db
    imgcls-search copy vit-digits --to elsewhere/ --with-folder
    imgcls-search copy vit-digits --to postgresql://me@host/studies
    imgcls-search copy vit-digits --to studies/

    Pictures go along, beside the file. To a database on a server, and from there back into its own folder, a study
    moves: the folder with its checkpoints belongs to the new database, and no run may work on it meanwhile.
    """
    from imgcls_search.study.address import is_address, parse, settle
    from imgcls_search.study.copy import copy_study, move_study
    from imgcls_search.study.files import find_study

    files = find_study(studies, study, settle(storage))
    if not is_address(to):
        # A path forgets the stroke at its end.
        place = Path(to) / files.database.name if to.endswith(os.sep) and not with_folder else Path(to)
        echo(f"wrote {copy_study(files, place, with_folder=with_folder)}")
        return
    if with_folder:
        raise UserError(f"--with-folder: {files.folder} stays where it is when the study moves to a server")
    address = parse(to, "--to")
    move_study(files, address)
    echo(f"wrote {address}; {files.folder} belongs to the study there now, and {files.store} stays as it was")


@app.command()
def clean(
    studies: Studies = STUDIES,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
) -> None:
    """Delete decoded images, which the next command that needs them makes anew; studies and weights stay.

    \b
    imgcls-search clean --dry-run
    imgcls-search clean
    """
    from imgcls_search.data import remove, stored
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.study.files import refuse_if_any_runs

    if not dry_run:
        refuse_if_any_runs(studies)
    sizes = stored(image_cache(studies))
    for folder, size in sizes.items():
        if not dry_run:
            remove(folder)
        echo(f"{'would delete' if dry_run else 'deleted'} {folder}: {size / 1e6:,.1f} MB")
    echo(f"{sum(sizes.values()) / 1e6:,.1f} MB of decoded images in {len(sizes)} folder(s)")


for _command_name, _command in RESULTS.items():
    app.command(_command_name)(_command)


def main() -> None:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    try:
        _hide_password()
        _must_be_somewhere()
        logging.getLogger(__package__).handlers = [_NOTES]
        if set(sys.argv[1:2]) & ONLY_PRINT:
            terminal.end_with_reader()
        # A command that ends by itself returns its exit code, or nothing.
        code = app(prog_name="imgcls-search", standalone_mode=False)
        sys.stdout.flush()
        if (trouble := terminal.output_trouble()) is not None:
            raise UserError(trouble)
        sys.exit(code)
    except USAGE_ERROR as error:
        if error.ctx is not None and not sys.argv[1:]:
            print(error.ctx.get_help())  # noqa: T201 - of several lines, and of nobody else
        else:
            name = "imgcls-search" if error.ctx is None else error.ctx.command_path
            _fail(f"{error.format_message().rstrip('.')} (see {name} --help)")
        sys.exit(UserError.exit_code)
    except SearchError as error:
        _fail(*error.lines())
        sys.exit(error.exit_code)
    except (BrokenPipeError, terminal.ReaderLeftError):
        # Somebody closed the pipe, as `| head` does.
        sys.exit(0)
    except OSError as error:
        trouble = disk_trouble(error) or path_trouble(error)
        if trouble is None:
            raise
        _fail(trouble)
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        echo("stopped; the same command goes on from the last checkpoints", error=True)
        sys.exit(130)


class _Notes(logging.Handler):
    """Prints what the floors below note, each line once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a note that was not printed yet; a dashboard loads its study again and again."""
        if (text := record.getMessage()) not in self.said:
            self.said.add(text)
            echo(text, error=True)


_NOTES = _Notes()


def _fail(*problems: str) -> None:
    for problem in problems:
        echo(f"error: {problem}", error=True)


def _must_be_somewhere() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        if sys.argv[1:] and "--help" not in sys.argv:
            folder = os.environ.get("PWD", "the working folder")
            raise UserError(f"{folder}: this folder, in which the command was started, was deleted") from None


def _hide_password() -> None:
    """Start anew, with the password of an address in the environment, where all users could read it in a list."""
    if not any("postgres" in argument for argument in sys.argv[1:]):
        return
    from imgcls_search.study.address import without_passwords

    arguments, variables = without_passwords(sys.argv[1:])
    count = len(arguments)
    # In a process that was started otherwise, the list does not show these arguments.
    if variables and os.name == "posix" and sys.orig_argv[-count:] == sys.argv[1:]:
        os.execve(sys.executable, [*sys.orig_argv[:-count], *arguments], {**os.environ, **variables})  # noqa: S606


def _space(
    path: Path, overrides: list[str] | None, data: str | None, name: str | None, *, skip_unreadable: bool = False
) -> Space:
    from imgcls_search.catalog import catalog, refuse_idle_sections
    from imgcls_search.space import read_space
    from imgcls_search.study.address import refuse_password

    pairs = [_override(text) for text in overrides or []]
    if name is not None:
        pairs.append(("study.name", json.dumps(name)))
    space = read_space(path, catalog(), overrides=pairs, data=data)
    if skip_unreadable:
        component = space.first().component("data")
        if component.name != "folder":
            raise UserError(f"--skip-unreadable: goes with a folder of images (data.folder), got {component.path}")
        pairs.append(("data.folder.skip_unreadable", "true"))
        space = read_space(path, catalog(), overrides=pairs, data=data)
    refuse_idle_sections(space)
    refuse_password(space.study["storage"], space.locate("study"))
    return space


def _with_options(overrides: list[str] | None, workers: int | None, timeout: str | None) -> list[str]:
    """Return what `--set` changes, with what `--workers` and `--timeout` stand for."""
    found = list(overrides or [])
    if workers is not None:
        found.append(f"study.workers={workers}")
    if timeout is not None:
        seconds = durations.parse(timeout)
        if not seconds or not math.isfinite(seconds):
            raise UserError(f"--timeout {timeout}: is no duration > 0; allowed: seconds, or {durations.EXAMPLES}")
        found.append(f"study.timeout={seconds!r}")
    return found


def _override(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: needs PATH=VALUE, for example --set study.trials=10")
    return path, value


def _images_there(space: Space, studies: Path) -> Summary | None:
    """Return what there is to read of a folder of images; None of other data, and of a folder that is not there."""
    from imgcls_search.data import choose_shape, describe, is_there, read_headers, summarise
    from imgcls_search.executors.helper import image_cache

    component = space.first().component("data")
    if not is_there(component):
        return None
    source = describe(component, image_cache(studies))
    headers = read_headers(source)
    size, _, is_chosen = choose_shape(headers)
    chosen = size if is_chosen and space.first().section("image")["size"] is None else None
    return summarise(source, headers, chosen_size=chosen)


def _data_component(text: str) -> Any:
    """Return the data component that `--data` names, checked as a space file's would be."""
    from imgcls_search.catalog import catalog
    from imgcls_search.space import parse

    # A study's name would be made of the source's; this space is no study's.
    unnamed = [("study.name", "unnamed")]
    space = parse("model: {lenet5: {}}", catalog(), source=f"--data {text}", overrides=unnamed, data=text)
    return space.first().component("data")


def _conclude(outcome: Outcome, studies: Path) -> int:
    """Print how a search ended and return the exit code."""
    from imgcls_search.study.summary import summarise

    found = summarise(outcome.record)
    study = found["study"]
    where = "" if studies == STUDIES else f" --studies {studies}"
    counts = found["trials"]
    echo(
        f"{outcome.ending}: {counts['total']} trials ({counts['complete']} complete, {counts['pruned']} pruned, "
        f"{counts['fail']} failed), {sum(found['rejected'].values())} rejected before training"
    )
    for line in _best_lines(found["best"]):
        echo(f"{line} on the validation split")
    if found["outlook"]:
        echo(_going_on(found["outlook"]))
    if outcome.ending in ("interrupted", "terminated"):
        echo("the same command goes on from here")
        return 130 if outcome.ending == "interrupted" else 143
    if not found["best"]:
        raise NoResultError(f"study {study!r} ended with no usable trial; see: imgcls-search status {study}{where}")
    if len(found["best"]) > 1:
        numbers = ", ".join(str(trial["trial"]) for trial in found["best"])
        echo(f"{len(found['best'])} trials are on the Pareto front, and you choose: {numbers}")
        echo(f"next: imgcls-search front {study}{where}; imgcls-search export {study}{where} --trial N -o best.yaml")
    else:
        echo(f"next: imgcls-search export {study}{where} -o best.yaml && imgcls-search train best.yaml --seeds 3")
    echo(f"look: imgcls-search dashboard {study}{where}")
    return 0


def _best_lines(best: list[dict[str, Any]]) -> Iterable[str]:
    """Return a line for the best trial, or for each of the first trials of a front."""
    what = "on the front" if len(best) > 1 else "best"
    return (f"{what}: trial {trial['trial']}, {_pairs(trial['values'])}" for trial in best[:5])


def _going_on(outlook: dict[str, Any]) -> str:
    """Return what more trials are likely to bring."""
    return (
        f"going on: as many trials again as the {outlook['trials']} that ended are likely to gain at most "
        f"{outlook['gain']:.2g} {outlook['metric']}"
    )


def _trust(confirmed: dict[str, Any] | None, numbers: list[int], study: str) -> str:
    """Return whether a winner was confirmed, and what that showed."""
    if confirmed is None:
        which = " --trial N" if len(numbers) > 1 else ""
        return (
            "not confirmed: scores are on the validation split, and luck is in them; "
            f"imgcls-search confirm {study}{which}"
        )
    found, test = confirmed["confirmed"], confirmed["test"]
    shown = f"{confirmed['metric']} {found['mean']:.4f} ± {found['ci95']:.4f} on fresh seeds, test {test['mean']:.4f}"
    if confirmed["chosen"] in numbers:
        return f"confirmed: trial {confirmed['chosen']}, {shown}"
    return f"not the confirmed winner, which is trial {confirmed['chosen']}: {shown}"


def _show_space(space: Space, path: Path) -> None:
    if space.is_config:
        echo(f"{path}: a configuration, nothing is searched; train it with: imgcls-search train {path}")
        return
    rows = [(p.path, p.domain, ", ".join(f"{k}: {v}" for k, v in p.when)) for p in space.parameters()]
    _print_table(("parameter", "domain", "only when"), rows)
    combinations = space.num_combinations()
    count = "without end (a float without a step)" if combinations is None else f"{combinations:,}"
    echo(f"combinations: {count}")
    echo(f"objectives: {', '.join(f'{direction} {metric}' for metric, direction in space.objectives)}")
    for limit, value in space.limits.items():
        echo(f"limit: {limit} <= {_plain(value)}")
    echo(
        f"sampler {space.sampler.name}, pruner {space.pruner.name}, {space.study['trials']} trials, "
        f"{len(space.start)} start setting(s); study {space.name}"
    )


def _show_survey(found: dict[str, Any], space: Space) -> None:
    echo("")
    what = "every combination" if found["every_combination"] else f"{found['samples']} random configurations"
    guess = " (no images there: 10 classes assumed)" if found["assumed"] else ""
    sizes = ", ".join(map(str, found["image_sizes"]))
    echo(f"built {what} for {sizes} pixels, {found['classes']} classes{guess}: {found['fit']} fit")
    rows = []
    for family, facts in found["families"].items():
        row = [family, f"{facts['fit']} of {facts['samples']}"]
        if "params" in facts:
            row.append(("min", "median", "max"))
            row += [
                tuple(f"{_short(value)}{unit}" for value in facts[size].values())
                for size, unit in (("params", ""), ("macs", ""), ("largest_activation", ""), ("memory", "B"))
            ]
        rows.append(tuple(row))
    _print_table(("family", "fit", "", "parameters", "MACs", "activation", "memory"), rows)
    echo(
        "activation: numbers in the largest tensor of one image; memory: estimated peak in training, 32-bit arithmetic"
    )
    for entry in found["impossible"]:
        echo(f"impossible: {entry['share']:.1%}: {entry['place']}: {entry['path']}: for example {entry['example']}")
    for limit, count in found["over_limits"].items():
        echo(f"over the limit: {count / found['samples']:.1%}: {limit} > {_plain(space.limits[limit])}")
    for entry in found["start"]:
        over = f"over limits: {', '.join(entry['over'])}"
        echo(f"start setting {entry['number']} can be no trial: {entry['problem'] or over}")


def _short(number: float) -> str:
    """Return three digits and a letter: 1.23 M."""
    letters = ["", "k", "M", "G", "T", "P"]
    while number >= 999.5 and len(letters) > 1:
        number /= 1000
        letters.pop(0)
    return f"{number:.3g} {letters[0]}"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:,}"


def _as_deployed(score: dict[str, float]) -> Iterable[str]:
    """Return what is to be said of an exported network besides its values."""
    if "size_kb" in score:
        yield f"file: {score['size_kb']:,.1f} KB, in a compressed archive {score['archive_kb']:,.1f} KB"
    if "latency_ms" in score:
        spread = f"{score['latency_low_ms']:.3f} to {score['latency_high_ms']:.3f}"
        yield f"latency: {score['latency_ms']:.3f} ms for one image on one thread (10 to 90 %: {spread} ms)"
    if score.get("sparsity", 0) > 0:
        share = f"{score['sparsity']:.0%} of the weights"
        yield f"zeros: {share}; they make the archive smaller, but neither the file, nor the network faster"


def _facts(argument: dict[str, Any]) -> tuple[str, str]:
    """Return what an argument of a family means, and below it what it may be."""
    default = "required" if argument["required"] else f"default: {json.dumps(argument['default'])}"
    search = f"; worth searching: {argument['search']}" if argument["search"] else ""
    return argument["doc"], f"{argument['allowed']}; {default}{search}"
