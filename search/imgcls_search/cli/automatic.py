"""The command that runs all steps from images to a model: auto."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search import durations
from imgcls_search.api.options import seconds_of
from imgcls_search.cli.drafting import DraftOverrides, Images, SafeFlips, safe_flips
from imgcls_search.cli.images import note_ambiguous
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Group,
    SkipUnreadable,
    Storage,
    Studies,
    WeightsDir,
    override,
)
from imgcls_search.cli.output import echo, make_screens, print_json
from imgcls_search.rounding import measured, spread, without_long_numbers
from imgcls_search.words import argument, times

if TYPE_CHECKING:
    from imgcls_search.automatic.automatic import Auto
    from imgcls_search.automatic.finding import AutoFinding, AutoScore, Baseline


def auto(
    data: Images,
    time: Annotated[
        str | None,
        typer.Option(
            "--time",
            metavar="DURATION",
            help=f"Total time over all calls: seconds, or {durations.EXAMPLES}; "
            "default: that of the earlier call, or 1h.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write all results to this folder; default: auto-NAME."),
    ] = None,
    flips: SafeFlips = None,
    group: Group = None,
    overrides: DraftOverrides = None,
    skip_unreadable: SkipUnreadable = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask questions.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Run this many trials at a time; default: what the drafted space says."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="auto|local|HOST:PORT", help="Search on a Ray cluster.")
    ] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    weights_dir: WeightsDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn images into a deployable model in a given time: init, run, confirm, export --bundle and report.

    \b
    imgcls-search auto photos --time 1h
    imgcls-search auto photos --time 2h        # later: continue for one more hour
    imgcls-search auto table:labels.csv --time 30m -o birds --flips horizontal --set study.seed=1 --json

    A first score and a usable model are ready after about a minute. After Ctrl-C or a kill, run the same command again
    to resume: --time counts over all calls.
    """
    from imgcls_search.api.automatically import deliver, prepare
    from imgcls_search.automatic.ledger import interruptible, process_began
    from imgcls_search.automatic.request import Interrupted

    note_ambiguous(data)
    changes = [override(entry) for entry in overrides or []]
    work = prepare(
        data,
        None if time is None else seconds_of(time, "--time"),
        make_screens(error=as_json),
        output=output,
        flips=None if flips is None else flips.value,
        ask_flips=safe_flips(flips, changes, yes=yes or as_json),
        group=group,
        changes=changes,
        skip_unreadable=skip_unreadable,
        workers=workers,
        cluster=cluster,
        studies=studies,
        storage=storage,
        started=process_began(),
    )
    try:
        with interruptible():
            found = deliver(work)
    except (KeyboardInterrupt, Interrupted) as stop:
        _say_how_to_go_on(work)
        ending = stop.ending if isinstance(stop, Interrupted) else "interrupted"
        raise typer.Exit(143 if ending == "terminated" else 130) from None
    if as_json:
        print_json(found)
        return
    _show(found)


def _say_how_to_go_on(work: Auto) -> None:
    """Print the commands that resume after a stop and that use the results so far."""
    from imgcls_search.automatic.bundling import trial_in

    echo(f"stopped in {work.ledger.step}; to resume: {shlex.join(['imgcls-search', *sys.argv[1:]])}", error=True)
    account, bundle = work.ledger.fact, work.output.bundle
    trial = trial_in(bundle, work.files.name) if work.files is not None and "bundled" in account else None
    if trial is not None:
        echo(f"usable now: imgcls-search predict {argument(bundle)} IMAGES... (trial {trial})", error=True)
    if "baseline" in account and work.files is not None:
        echo(f"the best so far: imgcls-search export {work.files.argument} --bundle DIR", error=True)


def _show(found: AutoFinding) -> None:
    chosen, metric = found["chosen"], found["metric"]
    ((family, _),) = chosen["model"].items()
    echo(
        f"chosen: trial {chosen['trial']} of {chosen['trials']}: {family}, {chosen['sizes']['params']:,.0f} parameters"
    )
    for path, value in chosen["params"].items():
        echo(f"  {path}: {without_long_numbers(str(value))}")
    echo(f"validation {metric}: {_score(metric, found['validation'])}")
    test = found["test"]
    if test is None:
        echo("test: not measured")
    else:
        opened = f"test split opened {times(found['test_openings'])}"
        echo(f"test {test['metric']}: {_score(test['metric'], test)}, {opened}")
    for entry in found["baselines"]:
        echo(f"compare: {_baseline(entry)}")
    if (better := found["unfinished"]) is not None:
        score = measured(metric, better["score"], found["validation"].get("images"))
        echo(
            f"unfinished: trial {better['trial']} had {metric} {score} after {better['epoch']} of {better['epochs']} "
            "epochs; a longer --time finishes it"
        )
    spent, given = found["time"]["spent"], found["time"]["given"]
    parts = ", ".join(f"{step} {durations.show(seconds)}" for step, seconds in spent.items() if seconds >= 0.5)
    total = sum(spent.values())
    over = f", {durations.show(total - given)} over" if total > given + 1 else ""
    echo(f"time: {durations.show(total)} of {durations.show(given, exact=True)}{over} ({parts})")
    for what, path in found["files"].items():
        echo(f"{what}: {path}")
    for what, command in found["next"].items():
        echo(f"{what}: {command}")


def _score(metric: str, found: AutoScore) -> str:
    images = found.get("images")
    if found["how"] == "seeds":
        shown = spread(metric, found["scores"], found["score"], found["ci95"], images)
        interval = ", 95 %" if len(found["scores"]) > 2 else ""
        return f"{shown} ({len(found['scores'])} new seeds{interval}, {images} images)"
    value = measured(metric, found["score"], images)
    if "low" not in found:
        return f"{value} ({images} images; somewhat too high, because the search chose by it)"
    low, high = (measured(metric, end, images) for end in (found["low"], found["high"]))
    return f"{value} (95 % interval {low} to {high} from sampling {images} images)"


def _baseline(entry: Baseline) -> str:
    score = f"{entry['metric']} {measured(entry['metric'], entry['score'], entry['images'])} ({entry['on']})"
    if "class" in entry:
        return f"{entry['name']}, {entry['class']}: {score}"
    return f"the baseline, trial {entry['trial']} after {durations.show(entry['after'])}: {score}"
