"""The command that combines several networks: ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    MovedData,
    Storage,
    Studies,
    StudyName,
    WeightsDir,
    study_files,
)
from imgcls_search.cli.output import echo, make_screens, print_json, print_table
from imgcls_search.words import argument


def ensemble(
    study: StudyName,
    picks: Annotated[
        int, typer.Option("--picks", min=2, help="Pick at most this many networks; one may be picked several times.")
    ] = 5,
    trial: Annotated[
        int | None,
        typer.Option(
            "--trial",
            min=0,
            help="Start from this trial, and compare with it; default: the confirmed one, or else the best.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write this weights file; default: ensemble.pt in the study."
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="Also write a bundle: a folder with one ONNX file.")
    ] = None,
    distill: Annotated[
        Path | None,
        typer.Option("--distill", metavar="DIR", help="Also train one network that learns from the ensemble."),
    ] = None,
    student: Annotated[
        int | None,
        typer.Option(
            "--student", min=0, help="With --distill: the trial whose configuration learns; default: --trial."
        ),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Score the ensemble and the best trial on the sealed test split.")
    ] = False,
    data: MovedData = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Combine the best networks of a study into one model, picked on the validation images.

    \b
    imgcls-search ensemble vit-digits
    imgcls-search ensemble vit-digits --picks 10 --test
    imgcls-search ensemble vit-digits --bundle model
    imgcls-search ensemble vit-digits --distill student --student 4

    Picks among the trials whose weights are kept (study.keep). The weights file works with evaluate and
    export --bundle, and as a teacher: distill: {file: {path: FILE}}.
    """
    from imgcls_search.api.ensembles import combine

    found = combine(
        study_files(study, studies, storage),
        make_screens(error=True),
        picks=picks,
        trial=trial,
        output=output,
        bundle=bundle,
        distill=distill,
        student=student,
        test=test,
        data=data,
    )
    if as_json:
        print_json(found.facts)
        return
    for line in found.left_out():
        echo(line)
    print_table(found.headings, found.rows())
    for line in found.lines():
        echo(line)
    if bundle is not None:
        echo(f"wrote {bundle}; next: imgcls-search predict {argument(bundle)} IMAGES...")
    else:
        echo(f"weights: {found.weights}; next: imgcls-search export {argument(found.weights)} --bundle DIR")
