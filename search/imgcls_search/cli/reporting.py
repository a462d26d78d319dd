"""Commands that show a study as a page: report, dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgcls_search.cli.options import STUDIES, MovedData, Storage, Studies, StudyName, WeightsDir, study_files
from imgcls_search.cli.output import echo, make_screens, warn


def report(
    study: StudyName,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="HTML", help="Write this page.")],
    trial: Annotated[
        int | None,
        typer.Option("--trial", min=0, help="Report on this trial; default: the confirmed one, or else the best."),
    ] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Retrain the steps from the first configuration to the winner.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="With --ablation: use this many new seeds per step; default: 3."),
    ] = None,
    data: MovedData = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    weights_dir: WeightsDir = None,
) -> None:
    """Write a report of a study as one page: a verdict, why to believe it, mistakes, the search and its cost.

    \b
    imgcls-search report vit-digits -o report.html
    imgcls-search report vit-digits -o report.html --ablation

    Mistakes are shown with a map of where the network looked and the most similar training images.
    --ablation retrains the first start configuration and every change that leads from it to the winner, one by one.
    """
    from imgcls_search.api.writing import write_report

    size = write_report(
        study_files(study, studies, storage),
        output,
        make_screens(),
        trial=trial,
        ablation=ablation,
        seeds=seeds,
        data=data,
    )
    echo(f"wrote {output}: {size / 1e6:.1f} MB, one file that needs no network")


def dashboard(
    study: StudyName,
    studies: Studies = STUDIES,
    storage: Storage = None,
    host: Annotated[str, typer.Option("--host", help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Listen on this port; 0 picks a free one.")
    ] = 8080,
) -> None:
    """Open optuna-dashboard for a study, even while it runs, and print the address of its page.

    \b
    imgcls-search dashboard vit-digits
    imgcls-search dashboard vit-digits --port 9000
    """
    from imgcls_search.views.addresses import is_loopback
    from imgcls_search.views.dashboard import make_dashboard

    server = make_dashboard(study_files(study, studies, storage), host, port, warn)
    if not is_loopback(host):
        warn("anyone who can reach this address can read and delete studies")
    echo(f"optuna-dashboard on {server.address} (Ctrl-C ends it)")
    server.serve_forever()
