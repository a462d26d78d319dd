"""Options and arguments that several commands share, and functions that apply them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls_search import durations, words
from imgcls_search.api.options import study_files_of, with_settings
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
STUDIES = words.STUDIES

SpaceFile = Annotated[
    Path,
    typer.Argument(metavar="SPACE", help="A search-space YAML file, or the name of a shipped space, for example vit."),
]


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the space; may be repeated."),
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
        help="Pretrain on these images without labels: folder:DIR, or train for the training images (default).",
    ),
]


MovedData = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME:PLACE", help="Read the images from here, if they moved: for example folder:photos."
    ),
]


SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out unreadable images, and list them.")]


Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="DURATION", help=f"Stop this call after this time: seconds, or {durations.EXAMPLES}."
    ),
]


Workers = Annotated[
    int | None, typer.Option("--workers", help="Run this many trials at a time; default: one per core or GPU.")
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
    """Views that `--tta` adds to each image; `mirror` is for images that keep their class when mirrored."""

    mirror = "mirror"
    shift = "shift"
    mirror_shift = "mirror_shift"


class ModelFormat(str, Enum):
    """Format in which `export --bundle` writes the model."""

    onnx = "onnx"
    openvino = "openvino"
    executorch = "executorch"


WeightsDir = Annotated[
    Path | None,
    typer.Option(
        "--weights-dir",
        metavar="DIR",
        callback=_use_weights,
        help="Look for pretrained weights in this folder first; default: $IMGCLS_WEIGHTS.",
    ),
]
"""Takes effect immediately, for this process and its child processes."""


def read(
    path: Path,
    overrides: list[str] | None,
    data: str | None,
    name: str | None,
    *,
    skip_unreadable: bool = False,
    unlabeled: str | None = None,
    workers: int | None = None,
    timeout: str | None = None,
) -> Space:
    """Read a space file and apply a command's options.

    Raises:
        SpaceError, UserError: the file or an option is invalid.
    """
    from imgcls_search.api.options import read_space_of

    changes = [override(text) for text in overrides or []]
    pairs = with_settings(changes, name=name, workers=workers, timeout=timeout)
    return read_space_of(path, pairs, data, skip_unreadable=skip_unreadable, unlabeled=unlabeled)


def override(text: str) -> tuple[str, str]:
    """Return the path and the value in the argument of one `--set`."""
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: needs PATH=VALUE, for example --set study.trials=10")
    return path, value


def study_files(study: str, studies: Path, storage: str | None) -> StudyFiles:
    """Return the files of a study by the name given to a command."""
    return study_files_of(study, studies, storage)
