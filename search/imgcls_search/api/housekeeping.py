"""Manage the files of studies: clean, and copies of a study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls_search.api.options import PathLikeText
from imgcls_search.errors import UserError

if TYPE_CHECKING:
    from imgcls_search.study.files import StudyFiles


def clean(
    studies: PathLikeText = Path("studies"), *, dry_run: bool = False, pretrained: bool = False
) -> dict[Path, int]:
    """Delete decoded images and features, which are computed again when needed; return the bytes of each folder.

    Args:
        studies: The folder of the studies; studies and weights are kept.
        dry_run: Delete nothing.
        pretrained: Delete pretrained networks too, which take a long time to train.

    Raises:
        StudyError: A search runs in the folder.
    """
    from imgcls_search.data import remove, stored
    from imgcls_search.executors.helper import backbone_cache, feature_cache, image_cache, teacher_cache
    from imgcls_search.study.files import refuse_if_any_runs

    root = Path(studies)
    if not dry_run:
        refuse_if_any_runs(root)
    found = {**stored(image_cache(root)), **stored(feature_cache(root))}
    for folder in (teacher_cache(root), *([backbone_cache(root)] if pretrained else [])):
        if folder.is_dir():
            found[folder] = sum(file.stat().st_size for file in folder.iterdir())
    if not dry_run:
        for folder in found:
            remove(folder)
    return found


def copy(files: StudyFiles, to: str, *, with_folder: bool = False) -> str:
    """Copy a study to a file, a folder or a database; return the name of its new location.

    Raises:
        StudyError: the location is taken, or the study is in use and would be moved.
        UserError: the address is invalid, or the folder cannot be copied there.
    """
    from imgcls_search.study.address import is_address, parse
    from imgcls_search.study.copy import copy_study, move_study

    if not is_address(to):
        # Path drops a trailing slash.
        place = Path(to) / files.database.name if to.endswith(os.sep) and not with_folder else Path(to)
        return str(copy_study(files, place, with_folder=with_folder))
    if with_folder:
        raise UserError(f"--with-folder: {files.folder} stays where it is when the study moves to a server")
    address = parse(to, "--to")
    move_study(files, address)
    return str(address)
