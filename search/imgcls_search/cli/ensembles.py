"""The command that makes several networks one: ensemble."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls_search.api.options import component_of_data
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
from imgcls_search.cli.output import echo, make_console, print_json, print_table
from imgcls_search.errors import UserError
from imgcls_search.rounding import measured

if TYPE_CHECKING:
    from imgcls_search.jobs.ensemble.making import EnsembleSummary, Made
    from imgcls_search.jobs.ensemble.student import StudentSummary
    from imgcls_search.jobs.ensemble.testing import TestSummary


def ensemble(
    study: StudyName,
    picks: Annotated[
        int, typer.Option("--picks", min=2, help="Pick at most this many networks; one may be picked several times.")
    ] = 5,
    trial: Annotated[
        int | None,
        typer.Option("--trial", min=0, help="Start from this trial, and compare with it; default: the best."),
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
    if student is not None and distill is None:
        raise UserError(f"--student {student}: goes with --distill DIR")
    from imgcls_search.jobs.bundle.deliver import refuse_taken
    from imgcls_search.jobs.ensemble.making import make
    from imgcls_search.jobs.ensemble.student import check_student, distil
    from imgcls_search.jobs.ensemble.testing import test as on_test
    from imgcls_search.views.screen import TrainingScreen, WorkScreen

    files, say = study_files(study, studies, storage), partial(echo, error=True)
    if bundle is not None:
        refuse_taken(bundle)
    if distill is not None:
        check_student(distill)
    with WorkScreen(make_console(error=True)) as work:
        made = make(
            files,
            picks=picks,
            winner=trial,
            weights=output,
            data=component_of_data(data),
            say=say,
            progress=work.show,
        )
    taught = tested = None
    if distill is not None:
        with TrainingScreen(make_console(error=True)) as screen:
            taught = distil(made, student, distill, screen)
    if test:
        say("measuring on the test split")
        tested = on_test(made, Path(taught["weights"]) if taught is not None else None, say)
    delivered = _deliver(made, bundle, studies, data) if bundle is not None else None
    if as_json:
        print_json({**made.summary, "student": taught, "test": tested, "bundle": delivered})
        return
    _print(made.summary)
    if taught is not None:
        _print_student(made.summary, taught)
    if tested is not None:
        _print_test(made.summary["metric"], tested)
    if bundle is not None:
        echo(f"wrote {bundle}; next: imgcls-search predict {bundle} IMAGES...")
    else:
        echo(f"weights: {made.weights}; next: imgcls-search export {made.weights} --bundle DIR")


def _deliver(made: Made, out: Path, studies: Path, data: str | None) -> Any:
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.bundle.deliver import deliver
    from imgcls_search.jobs.bundle.weights import from_weights
    from imgcls_search.views.screen import StepScreen

    say = partial(echo, error=True)
    # Where the study's images were found, which may be elsewhere than when its trials were trained.
    trained = from_weights(made.weights, made.library.winner_config.component("data"))
    with StepScreen(make_console(error=True)) as steps:
        return deliver(trained, out, image_cache(studies), say, steps.step, must_be_same=data is not None)


def _print(found: EnsembleSummary) -> None:
    metric, images = found["metric"], int(found["validation"]["images"])
    for number, reason in found["left_out"].items():
        echo(f"trial {number} is left out: {reason}")
    rows = [
        (
            str(member["trial"]),
            str(member["count"]),
            measured(metric, member["score"], images),
            f"{member['params']:,.0f}",
            f"{member['macs']:,.0f}",
            f"{member['latency_ms']:.3g}",
            f"{member['size_kb']:,.0f}",
        )
        for member in found["members"]
    ]
    totals = [("ensemble", str(found["picks"])), (f"best: trial {found['winner']}", "")]
    for (name, count), which in zip(totals, ("ensemble", "winner"), strict=True):
        sizes = found["sizes"][which]
        rows.append(
            (
                name,
                count,
                measured(metric, found["validation"][which], images),
                f"{sizes['params']:,.0f}",
                f"{sizes['macs']:,.0f}",
                f"{sizes['latency_ms']:.3g}",
                f"{sizes['size_kb']:,.0f}",
            )
        )
    print_table(("trial", "picks", f"validation {metric}", "parameters", "MACs", "ms an image", "KB"), rows)
    if len(found["members"]) == 1:
        echo(f"no other network improves on trial {found['winner']} on {images:,} validation images")
    else:
        echo(f"picked on these {images:,} validation images, so its score on them is optimistic; --test measures it")


def _print_student(found: EnsembleSummary, taught: StudentSummary) -> None:
    metric, images = found["metric"], int(found["validation"]["images"])
    score = measured(metric, taught["validation"], images)
    echo(
        f"student (trial {taught['trial']} taught by the ensemble): validation {metric} {score}, "
        f"{taught['params']:,.0f} parameters, {taught['macs']:,.0f} MACs: {taught['weights']}"
    )


def _print_test(metric: str, tested: TestSummary) -> None:
    images = tested["images"]
    names = [("ensemble", tested["ensemble"], tested["ensemble_minus_winner_95"])]
    if "student" in tested:
        names.append(("student", tested["student"], tested["student_minus_winner_95"]))
    winner = measured(metric, tested["winner"], images)
    for name, score, (low, high) in names:
        gap = measured(metric, score - tested["winner"], images)
        echo(
            f"test {metric}: {name} {measured(metric, score, images)}, best trial {winner}; difference {gap} "
            f"(95 % interval {low:+.4f} to {high:+.4f}, {images:,} images)"
        )
