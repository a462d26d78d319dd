"""Commands that search: run, plan, replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search import durations
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Data,
    Name,
    Overrides,
    SkipUnreadable,
    SpaceFile,
    Storage,
    Studies,
    StudyName,
    Timeout,
    Unlabeled,
    WeightsDir,
    read,
    study_files,
    with_options,
)
from imgcls_search.cli.output import best_lines, echo, going_on, make_console, make_screens, print_json, print_table
from imgcls_search.errors import NoResultError, UserError
from imgcls_search.measures import command_for
from imgcls_search.rounding import measured

if TYPE_CHECKING:
    from imgcls_search.jobs.replay import Replayed
    from imgcls_search.orchestrator.begin import Outcome
    from imgcls_search.study.record import Record


def run(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    unlabeled: Unlabeled = None,
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
    weights_dir: WeightsDir = None,
) -> None:
    """Run a search, or go on with one that was interrupted.

    \b
    imgcls-search run spaces/vit.yaml
    imgcls-search run spaces/vit.yaml --data folder:photos --set image.size=32
    imgcls-search run spaces/vit.yaml --set study.trials=100
    imgcls-search run spaces/vit.yaml --timeout 1h30m
    imgcls-search run spaces/vit.yaml --name alone --set study.learn_from=none
    imgcls-search run spaces/vit.yaml --storage postgresql://me@host/studies

    A new study learns from earlier ones of the same settings, and says from which. The same command again goes on
    where the search stands. Ctrl-C saves and stops; twice stops now.
    """
    from imgcls_search.api.searching import Search
    from imgcls_search.executors import processes

    # Torch is imported in another process while this one reads the space and imports Optuna.
    processes.warm_up()
    overrides = with_options(overrides, workers, timeout)
    space = read(space_file, overrides, data, name, skip_unreadable=skip_unreadable, unlabeled=unlabeled)
    outcome = Search.of(space, str(space_file), studies, storage).run(make_screens(), cluster=cluster)
    raise typer.Exit(_conclude(outcome, studies))


def plan(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    unlabeled: Unlabeled = None,
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

    from imgcls_search.jobs.plan import plan as make_plan
    from imgcls_search.jobs.plan import timed_as
    from imgcls_search.views.screen import PlanScreen

    overrides = with_options(overrides, workers, timeout)
    space = read(space_file, overrides, data, None, skip_unreadable=skip_unreadable, unlabeled=unlabeled)
    if space.is_config:
        raise UserError(f"{space_file}: nothing is searched in it; train it with: imgcls-search train {space_file}")
    timed = [f"{path}={value}" for path, value in {**timed_as(space), "study.max_epochs": epochs}.items()]
    calibration = read(
        space_file, [*(overrides or []), *timed], data, None, skip_unreadable=skip_unreadable, unlabeled=unlabeled
    )
    with PlanScreen(make_console(error=as_json), epochs) as screen:
        found = make_plan(space, calibration, studies, screen)
    if as_json:
        print_json(asdict(found))
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
    if found.pretrained_networks:
        echo(
            f"{found.pretrained_networks} distinct pretrained network(s), {found.pretraining_epochs:,} epochs in all, "
            f"take about {durations.show(found.pretraining_seconds)}"
        )
    with_these = " with these" if found.pretrained_networks else ""
    echo(f"study.trials: {found.trials} take about {durations.show(found.seconds)}{with_these}")
    if found.timeout is not None:
        shown = durations.show(found.timeout, exact=True)
        echo(f"study.timeout: {shown} afford about {found.trials_in_timeout} trials")


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
    from imgcls_search.study.record import load

    record = load(study_files(study, studies, storage))
    found = [as_it_was(record)]
    own = record.fact("space")["study"]
    for sampler in samplers or [json.dumps(own["sampler"])]:
        for pruner in pruners or [json.dumps(own["pruner"])]:
            changes = [("study.sampler", sampler), ("study.pruner", pruner)]
            if seed is not None:
                changes.append(("study.seed", str(seed)))
            found.append(replay_study(record, space_of(record, catalog(), changes), workers=workers))
    if as_json:
        print_json({"study": study, "replays": [asdict(each) for each in found]})
        return
    headings = ("strategy", "trials", "complete", "epochs", "extended", "best", "found after", "time")
    print_table(headings, [_replayed(each, record) for each in found])
    echo(
        "extended: epochs that were never trained, guessed from complete trials; found after: epochs; time: of training"
    )


def _replayed(found: Replayed, record: Record) -> tuple[str, ...]:
    metric = record.objectives[0][0]
    best_value = "-" if found.best is None else measured(metric, found.best, record.val_images)
    after = str(found.bests[-1][0]) if found.bests else "-"
    counts = (found.trials, found.complete, found.epochs, found.extended)
    return (found.strategy, *map(str, counts), best_value, after, durations.show(found.seconds))


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
    for line in best_lines(found["best"], found["val_images"]):
        echo(f"{line} {outcome.record.where_scored}")
    if found["outlook"]:
        echo(going_on(found["outlook"]))
    if outcome.ending in ("interrupted", "terminated"):
        echo("the same command goes on from here")
        return 130 if outcome.ending == "interrupted" else 143
    if not found["best"]:
        raise NoResultError(f"study {study!r} ended with no usable trial; see: imgcls-search status {study}{where}")
    after = command_for(outcome.record.objectives[0][0], "best.yaml")
    if len(found["best"]) > 1:
        numbers = ", ".join(str(trial["trial"]) for trial in found["best"])
        echo(f"{len(found['best'])} trials are on the Pareto front, and you choose: {numbers}")
        echo(f"next: imgcls-search front {study}{where}; imgcls-search export {study}{where} --trial N -o best.yaml")
    else:
        echo(f"next: imgcls-search export {study}{where} -o best.yaml && {after}")
    echo(f"look: imgcls-search dashboard {study}{where}")
    return 0
