"""Commands that manage studies: copy, merge, clean."""

from __future__ import annotations

from typing import Annotated

import typer

from imgcls_search.cli.options import (
    STUDIES,
    AsJson,
    Storage,
    Studies,
    StudyName,
    study_files,
)
from imgcls_search.cli.output import echo, print_json
from imgcls_search.words import counted


def copy(
    study: StudyName,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FILE|DIR|URL", help="Copy to this file, folder or database; nothing is replaced."
        ),
    ],
    with_folder: Annotated[
        bool, typer.Option("--with-folder", help="Copy checkpoints and logs too; --to is then a folder.")
    ] = False,
    studies: Studies = STUDIES,
    storage: Storage = None,
) -> None:
    """Copy a study as it is at one moment, even during a run; a plain `cp` could miss trials.

    \b
    imgcls-search copy vit-digits --to backup.db
    imgcls-search copy vit-digits --to elsewhere/ --with-folder
    imgcls-search copy vit-digits --to postgresql://me@host/studies
    imgcls-search copy vit-digits --to studies/

    Pictures are copied, too. To PostgreSQL, and from there back into its folder, a study is moved: its checkpoints
    then belong to the study in the new database. No run may search it meanwhile.
    """
    from imgcls_search.api.housekeeping import copy as make_copy
    from imgcls_search.study.address import is_address

    files = study_files(study, studies, storage)
    made = make_copy(files, to, with_folder=with_folder)
    moved = f"; {files.folder} belongs to the study there now, and {files.store} stays as it was"
    echo(f"wrote {made}{moved if is_address(to) else ''}")


def merge(
    names: Annotated[
        list[str], typer.Argument(metavar="STUDY STUDY...", help="Studies of one space on the same images.")
    ],
    name: Annotated[str, typer.Option("-o", "--output", metavar="NAME", help="Name the new study.")],
    studies: Studies = STUDIES,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Merge studies into a new one that has all their trials; they stay unchanged.

    \b
    imgcls-search merge vit-monday vit-tuesday -o vit-both
    imgcls-search run spaces/vit.yaml --name vit-both --set study.trials=120

    Trials get new numbers, keep their weights, logs and pictures, and record where they come from. The studies may
    differ in seed, sampler, pruner and start configurations. Confirmations are not copied; openings of the test split
    are.
    """
    from imgcls_search.api.merging import merge_studies

    target, parts = merge_studies([study_files(each, studies, storage) for each in names], name, studies)
    if as_json:
        print_json({"study": name, "merged": parts})
        return
    for part in parts:
        last = part["first"] + part["trials"] - 1
        numbers = f"trials {part['first']} to {last}" if part["trials"] else "no trial"
        echo(f"{part['study']}: {numbers}")
    echo(f"wrote {target.store}: {sum(part['trials'] for part in parts)} trials")


def clean(
    studies: Studies = STUDIES,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, and delete nothing.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Delete pretrained networks too.")] = False,
) -> None:
    """Delete decoded images and features, which are computed again when needed; studies and weights are kept.

    \b
    imgcls-search clean --dry-run
    imgcls-search clean
    imgcls-search clean --pretrained

    Pretrained networks take a long time to train, so they are kept unless you add --pretrained.
    """
    from imgcls_search.api.housekeeping import clean as delete

    for folder, size in (found := delete(studies, dry_run=dry_run, pretrained=pretrained)).items():
        echo(f"{'would delete' if dry_run else 'deleted'} {folder}: {size / 1e6:,.1f} MB")
    echo(f"{sum(found.values()) / 1e6:,.1f} MB in {counted('folder', len(found))}")
