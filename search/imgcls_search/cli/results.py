"""Commands that show results: status, best, front, list, trials, compare."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search import durations
from imgcls_search.cli.options import STUDIES, AsJson, Storage, Studies, StudyName, study_files
from imgcls_search.cli.output import (
    MOST_FRONT,
    best_lines,
    echo,
    going_on,
    print_classes,
    print_json,
    print_some,
    print_table,
)
from imgcls_search.errors import UserError
from imgcls_search.rounding import measured, pairs, rounded, spread, without_long_numbers
from imgcls_search.trial import can_be_confirmed
from imgcls_search.words import counted, times

if TYPE_CHECKING:
    from imgcls_search.study.record import Record


def status(study: StudyName, studies: Studies = STUDIES, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the state of a study: trials by state, rejections, faults, failures, and the best trial so far.

    \b
    imgcls-search status vit-digits
    imgcls-search status vit-digits --json
    """
    from imgcls_search.study.record import load
    from imgcls_search.study.summary import STATES, pretraining_lines, summarise
    from imgcls_search.study.usage import usage_lines

    found = summarise(load(study_files(study, studies, storage)))
    if as_json:
        print_json(found)
        return
    counts = ", ".join(f"{found['trials'][state]} {state}" for state in STATES if found["trials"][state])
    spent = f" in {durations.show(found['training_seconds'])}" if found["training_seconds"] else ""
    echo(
        f"{study}: {counted('trial', found['trials']['total'])} ({counts or 'none yet'}), "
        f"{counted('epoch', found['epochs'])} trained{spent}"
    )
    echo(found["stands"] + ("; run it again to resume" if found["state"] == "interrupted" else ""))
    for line in pretraining_lines(found["backbones"], found["state"]):
        echo(line)
    print_some([f"rejected before training: {count} x {reason}" for reason, count in found["rejected"].items()])
    print_some([f"fault: {count} x {reason}" for reason, count in found["troubles"].items()])
    print_some([f"trial {failure['trial']} failed: {failure['reason']}" for failure in found["failures"]])
    for limit, count in found["over_limits"].items():
        echo(f"complete, but over a limit and so never best: {count} x {limit}")
    for line in best_lines(found["best"], found["val_images"]):
        echo(line)
    if found["outlook"]:
        echo(going_on(found["outlook"]))
    for line in usage_lines(found["usage"], found["hardware"]):
        echo(line)
    for request in found["requests"]:
        echo(f"request {request['id']} is waiting for a run")
    if found["test_openings"]:
        echo(f"the test split was opened {times(len(found['test_openings']))}")


def best(study: StudyName, studies: Studies = STUDIES, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the best trial of a study, or its Pareto front with several objectives.

    \b
    imgcls-search best vit-digits
    imgcls-search best vit-digits --json
    """
    from imgcls_search.study.activity import activity
    from imgcls_search.study.best import front
    from imgcls_search.study.record import load
    from imgcls_search.study.summary import describe

    record = load(study_files(study, studies, storage))
    found = [describe(trial, record) for trial in front(record)]
    confirmed, now = record.facts.get("confirmed"), activity(record)
    if as_json:
        print_json({"study": study, "state": now.state, "stands": str(now), "best": found, "confirmed": confirmed})
        return
    for trial in found[:MOST_FRONT]:
        values = pairs(trial["values"], record.val_images)
        echo(f"trial {trial['trial']}: {values}, {trial['sizes']['params']:,.0f} parameters")
        if scores := record.by_number[trial["trial"]].fold_scores:
            metric = record.objectives[0][0]
            shown = ", ".join(
                measured(metric, score, record.val_images and record.val_images // len(scores)) for score in scores
            )
            has_std = len(scores) > 1 and all(map(math.isfinite, scores))
            echo(f"  folds: {metric} {shown}" + (f", std {rounded(stdev(scores))}" if has_std else ""))
        for path, value in trial["params"].items():
            echo(f"  {path}: {without_long_numbers(str(value))}")
        for line in _as_deployed(trial["deployed"]):
            echo(f"  {line}")
        if trial["limited"]:
            echo(f"  limited: {pairs(trial['limited'], record.val_images)}")
        print_classes(trial["classes"])
    if len(found) > MOST_FRONT:
        where = f"imgcls-search front {record.argument}"
        echo(f"and {len(found) - MOST_FRONT:,} more on the front; --json and {where} have all")
    if now.state != "finished":
        echo(f"the search: {now}")
    echo(_trust(record, [trial["trial"] for trial in found]))


def front(
    study: StudyName,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Also draw it as a .png, .svg or .pdf.")
    ] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show the Pareto front of a study: the trials that no other trial beats in every objective.

    \b
    imgcls-search front compressed-digits
    imgcls-search front compressed-digits -o front.png
    imgcls-search front compressed-digits --json

    Trials that break a limit on a cost or a score (latency_ms, size_kb, recall:CLASS) are never on it.
    """
    from imgcls_search.study.record import load
    from imgcls_search.views.front import describe_front, draw_front

    record = load(study_files(study, studies, storage))
    found = describe_front(record)
    if output is not None:
        draw_front(record, output)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(trial["trial"]),
            *(measured(name, value, record.val_images) for name, value in trial["values"].items()),
            f"{trial['sizes']['params']:,.0f}",
        )
        for trial in found["front"]
    ]
    print_table(("trial", *((name, f"({how})") for name, how in found["objectives"].items()), "parameters"), rows)
    over = f"; over a limit: {len(found['over_limits'])}" if found["over_limits"] else ""
    echo(f"on the front: {len(rows)} of {counted('complete trial', found['complete'])}{over}")
    echo(f"details: imgcls-search best {record.argument}")
    if output is not None:
        echo(f"wrote {output}")


def list_studies(studies: Studies = STUDIES, storage: Storage = None, as_json: AsJson = False) -> None:
    """List the studies of a folder with their trials, the best so far, and whether it is confirmed.

    \b
    imgcls-search list
    imgcls-search list --json
    """
    from imgcls_search.study.address import settle
    from imgcls_search.study.summary import state_in_words
    from imgcls_search.views.browse import list_studies as find

    at = settle(storage)
    found = find(studies, at)
    if as_json:
        print_json(found)
        return
    if not found:
        echo(f"no study in {at or studies}; start with: imgcls-search run vit")
        return
    rows = []
    for entry in found:
        if "problem" in entry:
            rows.append((entry["study"], "", "", "", entry["problem"]))
            continue
        top = entry["best"][0] if entry["best"] else None
        shown = f"trial {top['trial']}, {pairs(top['values'], entry['val_images'])}" if top else "none yet"
        counts = entry["trials"]
        state = f"{counts['total']} ({counts['complete']} complete)"
        confirmed = "" if entry["confirmed"] is None else f"trial {entry['confirmed']} confirmed"
        rows.append((entry["study"], state, state_in_words(entry), shown, confirmed))
    print_table(("study", "trials", "state", "best", ""), rows)


def trials(
    study: StudyName,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Show only this many, best first.")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Show only one family of networks.")] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
) -> None:
    """Show the trials of a study as a table.

    \b
    imgcls-search trials vit-digits --top 10
    imgcls-search trials mixed-digits --family resnet --csv
    """
    from imgcls_search.study.record import load
    from imgcls_search.views.browse import COLUMNS, cells_of, to_csv, trial_rows

    if as_json and as_csv:
        raise UserError("--json and --csv: only one of them")
    record = load(study_files(study, studies, storage))
    rows = trial_rows(record, top=top, family=family)
    if as_json:
        print_json(rows)
    elif as_csv:
        sys.stdout.write(to_csv(rows))
    else:
        print_table(COLUMNS, (cells_of(row, record.val_images) for row in rows))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A study, or a trial as STUDY:NUMBER.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another study, or another trial.")],
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Compare two trials or two studies: what differs in their settings, and in their scores.

    \b
    imgcls-search compare vit-digits:3 vit-digits:7
    imgcls-search compare vit-digits resnet-digits
    """
    from imgcls_search.api.comparing import compare as find

    found = find(first, second, studies=studies, storage=storage)
    if as_json:
        print_json(found.facts)
        return
    for line in found.differences():
        echo(line)
    print_table(("", first, second, "change"), found.rows())
    for line in found.notes():
        echo(line)


def _trust(record: Record, numbers: list[int]) -> str:
    """Return a line that says whether a winner is confirmed, and with what scores."""
    confirmed, images = record.facts.get("confirmed"), record.val_images
    if confirmed is None:
        which = " --trial N" if len(numbers) > 1 else ""
        says = f"not confirmed: scores are {record.where_scored} and partly luck"
        if not can_be_confirmed(record.objectives):
            return says
        return f"{says}; to confirm: imgcls-search confirm {record.argument}{which}"
    found, test = confirmed["confirmed"], confirmed["test"]
    metric = confirmed["metric"]
    scores = spread(metric, confirmed["scores"], found["mean"], found["ci95"], images)
    tested = spread(metric, test.get("scores", []), test["mean"], test["ci95"], test["images"])
    shown = f"{metric} {scores} on new seeds, test {tested}"
    if confirmed["chosen"] in numbers:
        return f"confirmed: trial {confirmed['chosen']}, {shown}"
    return f"not the confirmed winner, which is trial {confirmed['chosen']}: {shown}"


def _as_deployed(score: dict[str, float]) -> Iterable[str]:
    """Yield lines on the file, latency and sparsity of an exported network."""
    if {"size_kb", "archive_kb"} <= score.keys():
        yield f"file: {score['size_kb']:,.1f} KB, in a compressed archive {score['archive_kb']:,.1f} KB"
    if {"latency_ms", "latency_low_ms", "latency_high_ms"} <= score.keys():
        low, middle, high = (f"{score[f'latency_{name}ms']:.3g}" for name in ("low_", "", "high_"))
        yield f"latency: {middle} ms for one image on one thread (10 to 90 %: {low} to {high} ms)"
    if score.get("sparsity", 0) > 0:
        share = f"{score['sparsity']:.0%} of the weights"
        yield f"zeros: {share}; this makes the archive smaller, but not the file, and the network no faster"
