"""Options and arguments that several commands take, and what they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls_search import durations
from imgcls_search.errors import UserError

if TYPE_CHECKING:
    from imgcls_search.space import Space
    from imgcls_search.study.files import StudyFiles

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The name of a study, for example vit-digits.")]
Studies = Annotated[Path, typer.Option("--studies", metavar="DIR", help="Folder of the studies.")]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="PostgreSQL database of the studies; default: $IMGCLS_STORAGE, else SQLite files.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
STUDIES = Path("studies")
SpaceFile = Annotated[
    Path,
    typer.Argument(metavar="SPACE", help="A search-space YAML file, or the name of a shipped space, for example vit."),
]


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value for this run; may be repeated."),
]


Group = Annotated[
    str | None,
    typer.Option(
        "--group", help="Keep groups in one split: a table's column, or a regular expression on a folder's paths."
    ),
]


Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME[:PLACE]", help="Use other images, for example folder:photos or table:labels.csv."
    ),
]


Unlabeled = Annotated[
    str | None,
    typer.Option(
        "--unlabeled",
        metavar="NAME[:PLACE]",
        help="Pretrain on these images without labels: folder:DIR, or train, the training images (default).",
    ),
]


MovedData = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME:PLACE", help="Where the images are now, for example folder:photos."),
]


SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out unreadable images, and list them.")]


Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="DURATION", help=f"Stop this call after this time: seconds, or {durations.EXAMPLES}."
    ),
]


Name = Annotated[
    str | None,
    typer.Option("--name", help="Name the study; default: SPACE-DATA or SPACE-FOLDER, as in vit-photos."),
]


def _use_weights(folder: Path | None) -> Path | None:
    if folder is not None:
        from imgcls_search.models.weights_files import add_folder

        add_folder(folder)
    return folder


class Views(str, Enum):
    """What `--tta` looks at beside each image itself; `mirror` is for classes that a mirrored image keeps."""

    mirror = "mirror"
    shift = "shift"
    mirror_shift = "mirror_shift"


class ModelFormat(str, Enum):
    """In which format `export --bundle` writes the model."""

    onnx = "onnx"
    openvino = "openvino"


WeightsDir = Annotated[
    Path | None,
    typer.Option(
        "--weights-dir",
        metavar="DIR",
        callback=_use_weights,
        help="Look for pretrained weights there first; default: $IMGCLS_WEIGHTS.",
    ),
]
"""Takes effect by itself, for this process and those that it starts."""


def read(
    path: Path,
    overrides: list[str] | None,
    data: str | None,
    name: str | None,
    *,
    skip_unreadable: bool = False,
    unlabeled: str | None = None,
) -> Space:
    """Return the space of a file, with what the options of a command change.

    Raises:
        SpaceError, UserError: the file, or an option, says something that is not allowed.
    """
    from imgcls_search.catalog import (
        catalog,
        refuse_idle_sections,
        refuse_of_pretraining,
        refuse_other_labels,
        refuse_two_averages,
        refuse_two_starts,
    )
    from imgcls_search.space import read_space
    from imgcls_search.study.address import refuse_password

    pairs = [override(text) for text in overrides or []]
    if name is not None:
        pairs.append(("study.name", json.dumps(name)))
    space = read_space(path, catalog(), overrides=pairs, data=data, unlabeled=unlabeled)
    if skip_unreadable:
        from imgcls_search.data import skipping_unreadable

        component = skipping_unreadable(space.first().component("data"))
        pairs.append((f"{component.path}.skip_unreadable", "true"))
        if "folder" in space.document["unlabeled"]:
            pairs.append(("unlabeled.folder.skip_unreadable", "true"))
        space = read_space(path, catalog(), overrides=pairs, data=data, unlabeled=unlabeled)
    refuse_two_starts(space)
    refuse_two_averages(space)
    refuse_idle_sections(space)
    refuse_of_pretraining(space)
    refuse_other_labels(space)
    refuse_password(space.study["storage"], space.locate("study"))
    return space


def data_component(text: str | None, changes: Sequence[tuple[str, str]] = ()) -> Any:
    """Return the data component that `--data` names, checked as a space file's would be; None where it is not given.

    `changes` are paths below `data`, with the values that they get.
    """
    if text is None:
        return None
    from imgcls_search.catalog import catalog
    from imgcls_search.space import parse

    # A study's name would be made of the source's; this space is no study's.
    unnamed = [("study.name", "unnamed"), *changes]
    space = parse("model: {lenet5: {}}", catalog(), source=f"--data {text}", overrides=unnamed, data=text)
    return space.first().component("data")


def with_options(overrides: list[str] | None, workers: int | None, timeout: str | None) -> list[str]:
    """Return what `--set` changes, with what `--workers` and `--timeout` stand for."""
    found = list(overrides or [])
    if workers is not None:
        found.append(f"study.workers={workers}")
    if timeout is not None:
        seconds = durations.parse(timeout)
        if not seconds or not math.isfinite(seconds):
            raise UserError(f"--timeout {timeout}: is no duration > 0; allowed: seconds, or {durations.EXAMPLES}")
        found.append(f"study.timeout={seconds!r}")
    return found


def override(text: str) -> tuple[str, str]:
    """Return the path and the value that one `--set` names."""
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: needs PATH=VALUE, for example --set study.trials=10")
    return path, value


def study_files(study: str, studies: Path, storage: str | None) -> StudyFiles:
    """Return where a study is that a command names."""
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    return find_study(studies, study, settle(storage))
