"""Commands that look at results: confirm, reproduce, list, trials, compare, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from imgcls_search.cli.output import STUDIES, AsJson, Storage, Studies, StudyName, echo, pairs, print_json, print_table
from imgcls_search.errors import UserError


def confirm(
    study: StudyName,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of the best trials to train again.")] = 3,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Fresh seeds of each; as many again measure.")] = 3,
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="Train this trial only, for example one of a Pareto front.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Confirm anew; opens the test split once more.")] = False,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Train the best few on fresh seeds, say how much luck was in the winner, then open the test split once.

    \b
    imgcls-search confirm vit-digits
    imgcls-search confirm vit-digits --top 5 --seeds 4
    imgcls-search confirm compressed-digits --trial 12

    The chosen one is measured by seeds that had no part in the choice. An interrupted confirmation goes on.
    """
    from rich.console import Console

    from imgcls_search.cli.screen import TrainingScreen
    from imgcls_search.jobs.confirm import confirm as confirm_study
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    screen = TrainingScreen(Console(stderr=True, soft_wrap=True, highlight=False))
    found = confirm_study(
        find_study(studies, study, settle(storage)), top=top, seeds=seeds, again=again, watcher=screen, trial=trial
    )
    if as_json:
        print_json({"study": study, **found})
        return
    metric = found["metric"]
    rows = [
        (
            str(entry["trial"]),
            f"{entry['searched']:.4f}",
            f"{entry['mean']:.4f} ± {entry['ci95']:.4f}",
            "chosen" if entry["trial"] == found["chosen"] else "may be as good" if entry["is_tied"] else "",
        )
        for entry in found["ranking"]
    ]
    print_table(("trial", f"searched {metric}", f"fresh seeds (n={len(found['seeds']['choosing'])})", ""), rows)
    confirmed, luck, test = found["confirmed"], found["optimism"], found["test"]
    echo(
        f"trial {found['chosen']} is confirmed: validation {metric} {confirmed['mean']:.4f} ± {confirmed['ci95']:.4f} "
        f"(95 %, {len(found['scores'])} seeds that had no part in the choice; std {confirmed['std']:.4f})"
    )
    echo(f"optimism of its searched score: {luck['mean']:+.4f} ± {luck['ci95']:.4f} (better than it is by so much)")
    echo(f"test {metric}: {test['mean']:.4f} ± {test['ci95']:.4f} over seeds, {test['images']} images, opened once")


def reproduce(
    study: StudyName,
    trial: Annotated[int, typer.Option("--trial", min=0, help="The number of the trial.")],
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Other seeds that show the noise, if needed.")] = 3,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Train a trial again from what the study holds: identical, within the noise of seeds, or different.

    \b
    imgcls-search reproduce vit-digits --trial 7

    On a CPU with the same versions it is identical. Exit code 1 where it is different.
    """
    from rich.console import Console

    from imgcls_search.cli.screen import TrainingScreen
    from imgcls_search.jobs.reproduce import reproduce as train_again
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    screen = TrainingScreen(Console(stderr=True, soft_wrap=True, highlight=False))
    found = train_again(find_study(studies, study, settle(storage)), trial, seeds=seeds, watcher=screen)
    if as_json:
        print_json(found)
    else:
        echo(
            f"{found['verdict']}: trial {trial}, {found['epochs']} epochs, {found['metric']} was {found['then']:.6g}, "
            f"is now {found['now']:.6g}"
        )
        if found["verdict"] != "identical":
            echo(
                f"epoch {found['first_different_epoch']} is the first to differ; noise of seeds ± {found['margin']:.4g}"
            )
        for line in found["differs"]:
            echo(f"differs: {line}")
    raise typer.Exit(1 if found["verdict"] == "different" else 0)


def list_studies(studies: Studies = STUDIES, storage: Storage = None, as_json: AsJson = False) -> None:
    """List the studies of a folder: trials, the best so far, whether it was confirmed.

    \b
    imgcls-search list
    imgcls-search list --json
    """
    from imgcls_search.study.address import settle
    from imgcls_search.views.browse import list_studies as find

    at = settle(storage)
    found = find(studies, at)
    if as_json:
        print_json(found)
        return
    if not found:
        echo(f"no study in {at or studies}; start with: imgcls-search run spaces/vit.yaml")
        return
    rows = []
    for entry in found:
        if "problem" in entry:
            rows.append((entry["study"], "", "", entry["problem"]))
            continue
        top = entry["best"][0] if entry["best"] else None
        shown = f"trial {top['trial']}, {pairs(top['values'])}" if top else "none yet"
        counts = entry["trials"]
        state = f"{counts['total']} ({counts['complete']} complete)"
        confirmed = "" if entry["confirmed"] is None else f"trial {entry['confirmed']} confirmed"
        rows.append((entry["study"], state, shown, confirmed))
    print_table(("study", "trials", "best", ""), rows)


def trials(
    study: StudyName,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Only so many, best first.")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only one family of networks.")] = None,
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
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study
    from imgcls_search.views.browse import to_csv, trial_rows

    if as_json and as_csv:
        raise UserError("--json and --csv: only one of them")
    rows = trial_rows(find_study(studies, study, settle(storage)), top=top, family=family)
    if as_json:
        print_json(rows)
    elif as_csv:
        sys.stdout.write(to_csv(rows))
    else:
        headings = ("trial", "state", "epochs", "value", "parameters", "settings")
        print_table(headings, (_trial_cells(row) for row in rows))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A study, or a trial as STUDY:NUMBER.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same kind.")],
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Compare two trials or two studies: what differs, and what it did to the score.

    \b
    imgcls-search compare vit-digits:3 vit-digits:7
    imgcls-search compare vit-digits resnet-digits
    """
    from imgcls_search.study.address import settle
    from imgcls_search.views.browse import compare as find

    found = find(studies, first, second, settle(storage))
    if as_json:
        print_json(found)
        return
    if found["kind"] == "studies":
        for line in [*found["space"], *found["facts"]]:
            echo(line)
        counts = [
            f"{count['total']} trials, {epochs} epochs"
            for count, epochs in zip(found["trials"], found["epochs"], strict=True)
        ]
        echo(f"{first}: {counts[0]}; {second}: {counts[1]}")
        echo(_chosen(found))
        found = found["best"]
    for line in found["config"] or ["the configurations are equal"]:
        echo(line)
    rows = [
        (name, f"{entry['first']:,.6g}", f"{entry['second']:,.6g}", f"{entry['change']:+,.4g}")
        for name, entry in found["measured"].items()
    ]
    print_table(("", first, second, "change"), rows)
    if found["epochs"][0] != found["epochs"][1]:
        echo(f"they trained for {found['epochs'][0]} and {found['epochs'][1]} epochs: their scores do not compare")
    if found["noise"] is not None:
        echo(
            f"accuracies that differ by less than {found['noise']:.4f} may do so for the choice of images alone (95 %)"
        )


def _chosen(found: dict[str, Any]) -> str:
    """Return which trials stand for two studies; where several are on a front, by what they were chosen."""
    by, of = found["chosen"]["by"], found["chosen"]["of"]
    names = [
        f"trial {trial}" + (f" (of {count} on the front)" if count > 1 else "")
        for trial, count in zip(found["best"]["trials"], of, strict=True)
    ]
    if of == [1, 1]:
        return f"their best, {' and '.join(names)}:"
    rules = [f"{direction} {metric}" for metric, direction in by]
    if rules[0] == rules[1]:
        return f"their best by one objective ({rules[0]}), {' and '.join(names)}; others: compare STUDY:N STUDY:N"
    parts = [f"{name} by {rule}" for name, rule in zip(names, rules, strict=True)]
    return f"their best, each by its own first objective, {' and '.join(parts)}; others: compare STUDY:N STUDY:N"


def _trial_cells(row: dict[str, Any]) -> tuple[str, ...]:
    settings = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in row["params"].items()
    )
    state = row["state"] if row["state"] != "fail" else f"fail: {row['reason']}"
    return (
        str(row["trial"]),
        state,
        str(row["epochs"]),
        pairs(row["values"]),
        f"{row['sizes']['params']:,.0f}",
        settings,
    )


def report(
    study: StudyName,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="HTML", help="The page to write.")],
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="The trial that the page is about; default: the best.")
    ] = None,
    ablation: Annotated[bool, typer.Option("--ablation", help="Retrain the way to the winner, step by step.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Fresh seeds of each step of --ablation.")] = 3,
    studies: Studies = STUDIES,
    storage: Storage = None,
) -> None:
    """Write a study as one page that opens anywhere: the winner, why, how sure, its mistakes, how to go on.

    \b
    imgcls-search report vit-digits -o report.html
    imgcls-search report vit-digits -o report.html --ablation

    --ablation trains the first known-good setting and every change that leads from it to the winner, one by one.
    """
    from rich.console import Console

    from imgcls_search.cli.screen import TrainingScreen
    from imgcls_search.jobs.ablation import ablate
    from imgcls_search.jobs.export import must_be_writable
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study
    from imgcls_search.views.report import write_report

    files = find_study(studies, study, settle(storage))
    files.must_exist()
    must_be_writable(output)
    if ablation:
        screen = TrainingScreen(Console(stderr=True, soft_wrap=True, highlight=False))
        ablate(files, seeds=seeds, watcher=screen, trial=trial)
    size = write_report(files, output, trial)
    echo(f"wrote {output}: {size / 1e6:.1f} MB, one file that needs no network")


COMMANDS: dict[str, Callable[..., None]] = {
    "confirm": confirm,
    "reproduce": reproduce,
    "list": list_studies,
    "trials": trials,
    "compare": compare,
    "report": report,
}
