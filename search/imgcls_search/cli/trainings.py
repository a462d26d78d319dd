"""Commands that train or measure one configuration: train, pretrain, evaluate, confirm, reproduce."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search.api.options import component_of_data
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Data,
    MovedData,
    Overrides,
    SkipUnreadable,
    SpaceFile,
    Storage,
    Studies,
    StudyName,
    Unlabeled,
    Views,
    WeightsDir,
    override,
    study_files,
)
from imgcls_search.cli.output import echo, make_console, print_classes, print_json, print_table
from imgcls_search.measures import by_class, main_measure
from imgcls_search.rounding import measured, pairs, rounded, spread
from imgcls_search.words import counted, times

if TYPE_CHECKING:
    from imgcls_search.deploy.views import ViewsName


class Portion(str, Enum):
    """Images that `train` trains on."""

    train = "train"
    train_val = "train+val"


class Split(str, Enum):
    """Images that `evaluate` scores."""

    val = "val"
    test = "test"
    all = "all"
    folds = "folds"


def train(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A space with only fixed values, as export writes it.")
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Train this many times, each with its own seed.")] = 1,
    on: Annotated[
        Portion | None,
        typer.Option(
            "--on",
            help="Train on the training images (default), or on the validation images too; with folds, always on both.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write results to this folder; default: trained/NAME.")
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    unlabeled: Unlabeled = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Train a final model and score it on the test split: mean and spread over seeds.

    \b
    imgcls-search train best.yaml --seeds 3
    imgcls-search train best.yaml --on train+val --out final
    """

    from imgcls_search.api.trainings import training_of
    from imgcls_search.jobs.retrain import train as train_all
    from imgcls_search.views.screen import TrainingScreen

    screen = TrainingScreen(make_console(error=True))
    training = training_of(
        config_file,
        [override(entry) for entry in overrides or []],
        data,
        unlabeled,
        skip_unreadable=skip_unreadable,
        seeds=seeds,
        on=None if on is None else on.value,
        out=out,
        studies=studies,
        storage=storage,
        say=screen.say,
    )
    with screen:
        report = train_all(training, screen)
    if as_json:
        print_json(report)
        return
    together, _ = by_class(report["summary"])
    for metric, value in together.items():
        values = [report["test"][str(seed)][metric] for seed in report["seeds"]]
        shown = spread(metric, values, value["mean"], value["ci95"], report["images"].get("test"))
        std = value["std"]
        interval = f" (95 % interval, std {rounded(std)})" if len(values) > 2 and std is not None else ""
        echo(f"test {metric}: {shown}{interval}")
    if len(report["seeds"]) > 1:
        echo("means over the seeds:")
    print_classes(by_class({name: value["mean"] for name, value in report["summary"].items()})[1])
    echo(
        f"{counted('seed', len(report['seeds']))}, trained on {report['trained_on']}; weights and metrics.json in "
        f"{training.out}"
    )


def pretrain(
    space_file: SpaceFile,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Write this weights file.")] = Path(
        "backbone.pt"
    ),
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Set the seed of the initial weights and of all random draws.")
    ] = 0,
    unlabeled: Unlabeled = None,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Pretrain the network of a space on images without labels, and write its weights.

    \b
    imgcls-search pretrain space.yaml --unlabeled folder:many-photos -o backbone.pt
    imgcls-search pretrain space.yaml --set pretrain=simclr --set pretrain.simclr.epochs=50
    imgcls-search run space.yaml --set pretrain=none --set model.resnet.weights=backbone.pt

    The section pretrain of the space sets the method: simclr (two views of each image) or imitate (the features of a
    pretrained teacher). Labels of --data only measure how good the features are. Validation and test images are
    never trained on. After Ctrl-C or a kill, run the same command again to resume.
    """
    from imgcls_search.api.pretraining import pretraining_of
    from imgcls_search.jobs.pretrain import pretrain as pretrain_one
    from imgcls_search.views.screen import TrainingScreen

    wanted = pretraining_of(
        space_file,
        [override(entry) for entry in overrides or []],
        data,
        unlabeled,
        skip_unreadable=skip_unreadable,
        out=out,
        seed=seed,
        studies=studies,
        storage=storage,
    )
    with TrainingScreen(make_console(error=True)) as screen:
        found = pretrain_one(wanted, screen)
    if as_json:
        print_json(found)
        return
    epochs = counted("epoch", found["epochs"])
    echo(f"after {epochs} on {found['images']:,} images: {pairs(found['health'], found['asked'])}")
    echo(f"{out}: weights of model.{next(iter(found['config']['model']))}; start from them with weights: {out}")


def evaluate(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="A weights file, for example trained/best/seed-1.pt.")
    ],
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    split: Annotated[
        Split,
        typer.Option(
            "--split",
            help="Score this split; test and all open the sealed test split, and folds scores each image with the "
            "network of the trial that was not trained on it.",
        ),
    ] = Split.val,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="CSV", help="Write the prediction of every image.")
    ] = None,
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions",
            help="Also measure corruption_accuracy: blur, noise, JPEG, brightness and contrast at severities 1, 3 and "
            "5, 15 passes over the images.",
        ),
    ] = False,
    tta: Annotated[
        Views | None,
        typer.Option("--tta", help="Average the logits of several views of each image, and print what that costs."),
    ] = None,
    studies: Studies = STUDIES,
    as_json: AsJson = False,
) -> None:
    """Evaluate saved weights on their validation split, the test split, or other images.

    \b
    imgcls-search evaluate trained/best/seed-1.pt
    imgcls-search evaluate trained/best/seed-1.pt --split test --predictions test.csv
    imgcls-search evaluate trained/best/seed-1.pt --data folder:more-photos --split all
    imgcls-search evaluate trained/best/seed-1.pt --tta mirror --corruptions
    """
    from imgcls_search.api.trainings import (
        by_severity,
        check_predictions,
        evaluation_as_dict,
        refuse_idle_with_folds,
        write_predictions,
    )

    views: ViewsName = tta.value if tta is not None else "none"
    refuse_idle_with_folds(split.value, data, skip_unreadable=skip_unreadable, corruptions=corruptions, tta=views)
    from imgcls_search.data import label_sets
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.evaluate import evaluate_weights

    if predictions is not None:
        check_predictions(predictions)
    found = evaluate_weights(
        weights,
        split.value,
        image_cache(studies),
        data=component_of_data(data),
        skip_unreadable=skip_unreadable,
        corruptions=corruptions,
        tta=views,
        say=partial(echo, error=as_json),
    )
    if predictions is not None:
        write_predictions(found, predictions)
    together, single = by_class(found.metrics)
    if as_json:
        print_json(evaluation_as_dict(found))
        return
    seen, known = len(label_sets.seen(found.labels)), len(found.classes)
    of = f" of {seen} of the {known} trained classes" if seen < known else ""
    echo(f"{found.split} split, {counted('image', len(found.labels))}{of}: {pairs(together, len(found.labels))}")
    print_classes(single)
    if found.corruptions is not None:
        for name, row in by_severity(found.corruptions).items():
            shown = ", ".join(
                f"{measured('accuracy', value, len(found.labels))} at severity {severity}"
                for severity, value in row.items()
            )
            echo(f"accuracy with {name.replace('_', ' ')}: {shown}")
    if found.tta is not None:
        name = main_measure(found.metrics)
        with_it, without = (
            measured(name, values[name], len(found.labels)) for values in (found.metrics, found.tta.metrics_without)
        )
        echo(
            f"test-time augmentation ({found.tta.views}): {name} {with_it} instead of {without}, {found.tta.count} "
            f"views, {found.tta.image_ms:.3g} ms an image instead of {found.tta.image_ms_without:.3g}"
        )


def confirm(
    study: StudyName,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Retrain this many of the best trials; default: 3.")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", min=2, help="Use this many new seeds per trial, and as many more to score the winner."),
    ] = 3,
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="Confirm only this trial, for example one of a Pareto front.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Confirm again; this opens the test split once more.")] = False,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Pretrain again for each seed, if trials pretrain.")
    ] = False,
    data: MovedData = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Retrain the best trials with new seeds, then score the winner on the test split once.

    \b
    imgcls-search confirm vit-digits
    imgcls-search confirm vit-digits --top 5 --seeds 4
    imgcls-search confirm compressed-digits --trial 12

    The winner is scored on seeds that were not used to pick it. Run the same command again to resume.
    """

    from imgcls_search.jobs.confirm import confirm as confirm_study
    from imgcls_search.jobs.confirm import optimism_of_each
    from imgcls_search.study.record import load
    from imgcls_search.views.screen import TrainingScreen

    files, moved_to = study_files(study, studies, storage), component_of_data(data)
    with TrainingScreen(make_console(error=True)) as screen:
        found = confirm_study(
            files, top=top, seeds=seeds, again=again, watcher=screen, trial=trial, data=moved_to, pretrains=pretrain
        )
    if as_json:
        print_json({"study": study, **found})
        return
    record, metric = load(files), found["metric"]
    images, opened = record.val_images, times(len(record.facts.get("test_openings", [])))
    rows = [
        (
            str(entry["trial"]),
            measured(metric, entry["searched"], images),
            spread(metric, entry["scores"], entry["mean"], entry["ci95"], images),
            "chosen" if entry["trial"] == found["chosen"] else "may be as good" if entry["is_tied"] else "",
        )
        for entry in found["ranking"]
    ]
    print_table(("trial", f"search {metric}", f"new seeds (n={len(found['seeds']['choosing'])})", ""), rows)
    confirmed, luck, test, count = found["confirmed"], found["optimism"], found["test"], len(found["scores"])
    interval = f"95 %, std {rounded(confirmed['std'])}, " if count > 2 else ""
    scores = spread(metric, found["scores"], confirmed["mean"], confirmed["ci95"], images)
    echo(
        f"trial {found['chosen']} is confirmed: validation {metric} {scores} "
        f"({interval}{count} seeds not used to pick it)"
    )
    lucks = spread(metric, optimism_of_each(found), luck["mean"], luck["ci95"], images, signed=True)
    echo(f"optimism of the search score: {lucks} (above 0: it looked better than it is)")
    tested = spread(metric, test["scores"], test["mean"], test["ci95"], test["images"])
    chance = f", {test['images']} images"
    if ends := test.get("images_interval"):
        low, high = (measured(metric, end, test["images"]) for end in ends)
        chance = f"; 95 % interval {low} to {high} from sampling {test['images']} images"
    echo(f"test {metric}: {tested} over seeds{chance}, test split opened {opened}")


def reproduce(
    study: StudyName,
    trial: Annotated[int, typer.Option("--trial", min=0, help="Retrain this trial.")],
    seeds: Annotated[
        int, typer.Option("--seeds", min=2, help="Train with this many other seeds, if the result is not identical.")
    ] = 3,
    data: MovedData = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Retrain a trial and compare it with its record: identical, within the noise of seeds, or different.

    \b
    imgcls-search reproduce vit-digits --trial 7

    On a CPU with the same versions, the result is identical. The exit code is 1 if it is different.
    """

    from imgcls_search.jobs.reproduce import reproduce as train_again
    from imgcls_search.views.screen import TrainingScreen

    files, moved_to = study_files(study, studies, storage), component_of_data(data)
    with TrainingScreen(make_console(error=True)) as screen:
        found = train_again(files, trial, seeds=seeds, watcher=screen, moved_to=moved_to)
    if as_json:
        print_json(found)
    else:
        metric, images = found["metric"], found["val_images"]
        then, now = (measured(metric, found[when], images) for when in ("then", "now"))
        epochs = counted("epoch", found["epochs"])
        echo(f"{found['verdict']}: trial {trial}, {epochs}, {metric} was {then}, is now {now}")
        if found["verdict"] != "identical":
            noise = f"noise of seeds ± {rounded(found['margin'])}"
            if len(found["noise"]) == 2:
                noise = f"two other seeds: {spread(metric, found['noise'], 0, None, images)}"
            echo(f"epoch {found['first_different_epoch']} is the first to differ; {noise}")
        for line in found["differs"]:
            echo(f"differs: {line}")
    raise typer.Exit(1 if found["verdict"] == "different" else 0)
