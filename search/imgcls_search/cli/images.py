"""Commands for a data set without a space: inspect, backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls_search.api.options import images_of
from imgcls_search.cli.inspection import show_inspection, show_table
from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Group,
    Overrides,
    SkipUnreadable,
    Storage,
    Studies,
    WeightsDir,
    override,
)
from imgcls_search.cli.output import as_yaml, echo, make_screens, print_json, print_table, warn
from imgcls_search.errors import NoResultError, refuse_idle
from imgcls_search.rounding import measured, share

if TYPE_CHECKING:
    from imgcls_search.jobs.inspect.clean_table import CleanTable


class Suspects(str, Enum):
    """How --write treats images with suspicious labels."""

    mark = "mark"
    relabel = "relabel"
    drop = "drop"


def inspect(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder, a table, or a data set as in --data: digits, table:labels.csv, torchvision:STL10:sets.",
        ),
    ] = None,
    group: Group = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one setting of the data; may be repeated."),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Have no effect here: inspect always lists unreadable images and continues.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="HTML", help="Write this page; default: inspect-NAME.html."),
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Write no page.")] = False,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="CSV", help="Write a table without unreadable images and exact copies."),
    ] = None,
    suspects: Annotated[
        Suspects | None,
        typer.Option("--suspects", help="Choose what --write does with suspicious labels; default: mark."),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            min=0,
            max=1,
            help="Relabel or drop only if the likely label has this probability; default: 0.8.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --write replace a file.")] = False,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Look for wrong labels, which takes longest.")
    ] = True,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="STUDY", help="Judge labels with the best configuration of this study."),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(
            "--trial", min=0, help="Judge with this trial of the study; default: the confirmed one, or else the best."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="YAML|quick",
            help="Judge labels with this pretrained network, written as under `model` in a space, or with a quick "
            "model; default: for photographs the first network of `imgcls-search weights`, else the quick model.",
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    quick_epochs: Annotated[
        int | None,
        typer.Option(
            "--quick-epochs",
            min=1,
            help="Train the quick model for this many epochs; default: depends on the number of images.",
        ),
    ] = None,
    judge_test: Annotated[
        bool, typer.Option("--judge-test", help="Judge the labels of the sealed test split too.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Set the seed of folds and trainings; default: 0.")
    ] = None,
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Inspect a folder or table of images: counts, sizes, copies, and labels that are likely wrong.

    \b
    imgcls-search inspect photos
    imgcls-search inspect labels.csv --group patient -o page.html
    imgcls-search inspect photos --write clean.csv --suspects drop
    imgcls-search inspect photos --study vit-photos
    imgcls-search inspect photos --model '{resnet: {depth: 18, weights: imagenet}}'
    imgcls-search inspect digits --no-labels --json

    Labels are judged by models that have not seen the image: 5 folds, copies and groups kept together. The test
    split stays sealed: its images are compared with others, but its labels are not judged.
    """
    from imgcls_search.api.inspecting import Judging, inspected, look_at_labels
    from imgcls_search.config import expand_path

    judging = Judging(
        labels=labels,
        study=study,
        trial=trial,
        model=model,
        quick_epochs=quick_epochs,
        judge_test=judge_test,
        seed=seed,
    )
    if data is None:
        refuse_idle({"--group": group, "--set": overrides or None}, "without DATA")
    if no_page:
        refuse_idle({"--output": output}, "together with --no-page")
    of_table = {"--suspects": suspects, "--confidence": confidence, "--force": force}
    if write is None:
        refuse_idle(of_table, "without --write")
    if not labels:
        refuse_idle({**of_table, "--force": None}, "together with --no-labels")
    if suspects in (None, Suspects.mark):
        refuse_idle({"--confidence": confidence}, "without --suspects relabel or drop")
    from imgcls_search.jobs.inspect.clean_table import CONFIDENCE, check_target, write_clean
    from imgcls_search.jobs.inspect.inspection import take_inventory
    from imgcls_search.views.inspection import check_page, default_page, write_page

    component, settings = inspected(
        component_of(data, group, overrides, skip_unreadable) if data is not None else None, judging, studies, storage
    )
    images = take_inventory(component)
    page = None if no_page else output or default_page(images)
    if page is not None:
        check_page(images, page)
    if write is not None:
        file = component.args.get("file")
        read = None if file is None else expand_path(file, f"{component.path}.file")
        check_target(images.root, write, force=force, read=read)
    screens = make_screens(error=as_json)
    found = look_at_labels(images, component, settings, judging, studies=studies, screens=screens)
    table = None
    if write is not None:
        suspects = suspects or Suspects.mark
        table = write_clean(found, write, suspects.value, CONFIDENCE if confidence is None else confidence)
    size = write_page(found, page) if page is not None else 0
    if as_json:
        print_json({**found.to_dict(), "page": None if page is None else str(page), "written": _written(table, write)})
        return
    show_inspection(found)
    if table is not None and write is not None:
        show_table(table, write)
    if page is not None:
        echo(f"wrote {page}: {size / 1000:,.0f} KB, with pictures")
    elif not no_page:
        echo("no page: the working folder is one of the images; -o FILE writes it elsewhere")


def backbones(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder, a table, or a data set as in --data.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="YAML",
            help="Try this network, written as under `model` in a space, with its weights; may be repeated.",
        ),
    ] = None,
    overrides: Overrides = None,
    skip_unreadable: SkipUnreadable = False,
    weights_dir: WeightsDir = None,
    studies: Studies = STUDIES,
    as_json: AsJson = False,
) -> None:
    """Compare pretrained networks on your images, without training them.

    \b
    imgcls-search backbones photos
    imgcls-search backbones labels.csv --set image.size=112 --weights-dir ~/weights
    imgcls-search backbones photos --model '{resnet: {depth: 18, weights: imagenet}}'

    Each network of `imgcls-search weights` computes features of every image once; they are stored in the studies
    folder. The scores on the validation split are those of a linear layer fitted to the features of the training
    images, and of the 10 nearest neighbours among them. The test split stays sealed.
    """
    from imgcls_search.api.backbones import models_at_hand, probe

    texts = model or models_at_hand()
    note_ambiguous(data)
    made = probe(
        texts,
        data,
        [override(entry) for entry in overrides or []],
        skip_unreadable=skip_unreadable,
        studies=studies,
        screens=make_screens(error=as_json),
    )
    if as_json:
        print_json({"backbones": list(made.found), "failed": list(made.failed)})
    else:
        _show_backbones(made.found)
        for one in made.failed:
            warn(f"{as_yaml(one['model'])}: {one['reason']}")
    if not made.found:
        raise NoResultError("no network could be used; the reasons are above")


def _show_backbones(found: Sequence[Mapping[str, Any]]) -> None:
    if not found:
        return
    rows = [
        (
            as_yaml(one["model"]),
            share(one["linear_accuracy"], one["images"]),
            share(one["linear_macro_f1"], one["images"]),
            share(one["knn_accuracy"], one["images"]),
            f"{one['features']:,}",
            measured("params", one["params"]),
            measured("macs", one["macs"]),
            f"{one['feature_seconds'] + one['fit_seconds']:,.1f} s",
        )
        for one in found
    ]
    print_table(("model", "linear", "macro F1", "nearest", "features", "parameters", "MACs", "took"), rows)
    echo(f"scores of {found[0]['images']:,} validation images; best: {as_yaml(found[0]['model'])}")


def component_of(data: str, group: str | None, overrides: Sequence[str] | None, skip_unreadable: bool) -> Any:
    """Return the data component for a command's arguments.

    Raises:
        UserError: an argument is invalid.
    """
    note_ambiguous(data)
    return images_of(data, group, [override(entry) for entry in overrides or []], skip_unreadable=skip_unreadable)


def note_ambiguous(data: str) -> None:
    """Print a note if a name is both a data set and a folder: the data set is used."""
    from imgcls_search.data import DATASETS

    if data in DATASETS and Path(data).is_dir():
        echo(f"note: {data} is the data set of that name; ./{data} is the folder", error=True)


def _written(table: CleanTable | None, path: Path | None) -> dict[str, Any] | None:
    if table is None:
        return None
    return {
        "path": str(path),
        "rows": table.rows,
        "marked": table.marked,
        "relabelled": table.relabelled,
        "left_out": dict(table.left_out),
        "empty_classes": list(table.empty_classes),
        "data": table.data,
        "set": list(table.settings),
    }
