"""Commands that search: run, plan, replay, try."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls_search import durations
from imgcls_search.api.options import with_settings
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
    Workers,
    override,
    read,
    study_files,
)
from imgcls_search.cli.output import best_lines, echo, going_on, make_screens, print_json, print_table
from imgcls_search.errors import NoResultError
from imgcls_search.measures import of_features, retraining_command
from imgcls_search.words import counted

if TYPE_CHECKING:
    from imgcls_search.orchestrator.begin import Outcome


def run(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    unlabeled: Unlabeled = None,
    skip_unreadable: SkipUnreadable = False,
    name: Name = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    workers: Workers = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="auto|local|HOST:PORT",
            help="Train on a Ray cluster: auto (the one of this machine), local (a new one here), or an address.",
        ),
    ] = None,
    timeout: Timeout = None,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="Extend the study by what the space adds; the sampler and pruner may change, too."
        ),
    ] = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Run a search, or resume an interrupted one.

    \b
    imgcls-search run spaces/vit.yaml
    imgcls-search run spaces/vit.yaml --data folder:photos --set image.size=32
    imgcls-search run spaces/vit.yaml --set study.trials=100
    imgcls-search run spaces/vit.yaml --timeout 1h30m
    imgcls-search run spaces/vit.yaml --name alone --set study.learn_from=none
    imgcls-search run spaces/vit.yaml --storage postgresql://me@host/studies
    imgcls-search run wider.yaml --name vit-digits --extend

    A new study learns from earlier ones with the same objective and some of the same settings, and says from which.
    Run the same command again to resume. Ctrl-C saves and stops; press it twice to stop at once. With --extend, the
    space may have wider ranges, more choices, families and start configurations than before, and another sampler and
    pruner; earlier trials are kept.
    """
    from imgcls_search.api.searching import Search
    from imgcls_search.executors import processes

    # Import torch in another process while this one reads the space and imports Optuna.
    processes.warm_up()
    space = read(
        space_file,
        overrides,
        data,
        name,
        skip_unreadable=skip_unreadable,
        unlabeled=unlabeled,
        workers=workers,
        timeout=timeout,
    )
    outcome = Search.of(space, str(space_file), studies, storage).run(make_screens(), cluster=cluster, extends=extend)
    raise typer.Exit(_conclude(outcome))


def plan(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    unlabeled: Unlabeled = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
    workers: Workers = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help=f"Say how many trials fit into this time: seconds, or {durations.EXAMPLES}.",
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="Epochs to spend on the estimate, over all trials.")
    ] = 6,
    as_json: AsJson = False,
) -> None:
    """Estimate how long a search takes and how many trials fit into a timeout, by training random trials briefly.

    \b
    imgcls-search plan spaces/vit.yaml
    imgcls-search plan spaces/vit.yaml --timeout 1h --epochs 20

    The trials are discarded; only the decoded images are kept.
    """
    from dataclasses import asdict

    from imgcls_search.api.planning import make_plan

    found = make_plan(
        space_file,
        with_settings([override(text) for text in overrides or []], workers=workers, timeout=timeout),
        data,
        unlabeled,
        skip_unreadable=skip_unreadable,
        epochs=epochs,
        studies=studies,
        screens=make_screens(error=as_json),
    )
    if as_json:
        print_json(asdict(found))
        return
    for line in found.lines():
        echo(line)


def replay(
    study: StudyName,
    samplers: Annotated[
        list[str] | None,
        typer.Option("--sampler", metavar="NAME", help="Replay with this sampler, as in a space; may be repeated."),
    ] = None,
    pruners: Annotated[
        list[str] | None,
        typer.Option("--pruner", metavar="NAME", help="Replay with this pruner, as in a space; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Simulate this many trials at a time.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Set the seed; default: the study's.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, help="Compare on this many random parts of the study, with 90 % intervals."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            min=0.01,
            max=1.0,
            help="With --seeds: put this share of the configurations into each part; default: 0.67.",
        ),
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(
            "--max-epochs",
            min=1,
            help="With --seeds: give each search this many epochs; default: a third of what a whole part takes.",
        ),
    ] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Replay other strategies on the recorded curves of a study, to see what they would have cost and found.

    \b
    imgcls-search replay vit-digits --pruner asha
    imgcls-search replay vit-digits --sampler random --sampler curves --pruner asha --pruner none
    imgcls-search replay vit-digits --pruner '{halving: {eta: 4}}' --json
    imgcls-search replay vit-digits --pruner asha --pruner median --seeds 50

    With --seeds, all strategies search the same random parts of the study with the same number of epochs, one part per
    seed. Only the study's own configurations can be drawn. After its last epoch, a stopped trial is assumed to continue
    like the most similar complete trial; such epochs are counted.
    """
    from imgcls_search.api.replaying import replay_strategies

    found = replay_strategies(
        study_files(study, studies, storage),
        samplers or [],
        pruners or [],
        workers=workers,
        seed=seed,
        seeds=seeds,
        share=share,
        max_epochs=max_epochs,
    )
    if as_json:
        print_json(found.facts)
        return
    first, last = (found.notes[:1], found.notes[1:]) if seeds is not None else ((), found.notes)
    for line in first:
        echo(line)
    print_table(found.headings, found.rows)
    for line in last:
        echo(line)


def try_configuration(
    study: StudyName,
    overrides: Overrides = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Request a trial of one configuration: the current run, or the next one, trains it to the end.

    \b
    imgcls-search try vit-digits --set optimizer.adamw.lr=3e-3
    imgcls-search try vit-digits --set model=resnet --set training.batch_size=64 --json

    Values that you leave out come from the best trial. Those of a family (or another component) that it does not use
    come from the best trial that uses it; if there is none, they are the middle of a range and the first choice.
    The trial is never pruned and does not count towards study.trials.
    """
    from dataclasses import asdict

    from imgcls_search.jobs.asking import ask

    found = ask(study_files(study, studies, storage), [override(text) for text in overrides or []])
    if as_json:
        print_json(asdict(found))
        return
    echo(f"request {found.request}: {_settings({path: found.params[path] for path in found.named})}")
    for source in dict.fromkeys(found.sources.values()):
        taken = {path: found.params[path] for path, each in found.sources.items() if each == source}
        where = "no trial has it; middle or first choice" if source is None else f"from trial {source}"
        echo(f"{where}: {_settings(taken)}")
    if found.same_as is not None:
        echo(f"trial {found.same_as} has the same configuration; this one trains it with another seed")
    echo(f"{'the next run' if found.taken_by is None else f'the current run ({found.taken_by})'} trains it to the end")


def _settings(values: Mapping[str, Any]) -> str:
    shown = (value if isinstance(value, str) else json.dumps(value) for value in values.values())
    return ", ".join(f"{path}={value}" for path, value in zip(values, shown, strict=True)) or "nothing"


def _conclude(outcome: Outcome) -> int:
    """Print how a search ended and return the exit code."""
    from imgcls_search.study.summary import summarise

    found = summarise(outcome.record)
    study = outcome.record.argument
    counts = found["trials"]
    echo(
        f"{outcome.ending}: {counted('trial', counts['total'])} ({counts['complete']} complete, {counts['pruned']} "
        f"pruned, {counts['fail']} failed), {sum(found['rejected'].values())} rejected before training"
    )
    for line in best_lines(found["best"], found["val_images"]):
        echo(f"{line} {outcome.record.where_scored}")
    if found["outlook"]:
        echo(going_on(found["outlook"]))
    if outcome.ending in ("interrupted", "terminated"):
        echo("run the same command again to resume")
        return 130 if outcome.ending == "interrupted" else 143
    if not found["best"]:
        raise NoResultError(f"study {found['study']!r} ended with no usable trial; see: imgcls-search status {study}")
    after = retraining_command("best.yaml", pretrains=of_features(outcome.record.objectives) is not None)
    if len(found["best"]) > 1:
        numbers = ", ".join(str(trial["trial"]) for trial in found["best"])
        echo(f"{len(found['best'])} trials are on the Pareto front; choose one of them: {numbers}")
        echo(f"next: imgcls-search front {study}; imgcls-search export {study} --trial N -o best.yaml")
    else:
        echo(f"next: imgcls-search export {study} -o best.yaml && {after}")
    echo(f"dashboard: imgcls-search dashboard {study}")
    return 0
