"""Merge several studies into one: merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls_search.api.options import PathLikeText, study_files_of
from imgcls_search.api.study import Study
from imgcls_search.errors import UserError

if TYPE_CHECKING:
    from imgcls_search.study.facts import MergedFrom
    from imgcls_search.study.files import StudyFiles


def merge(
    names: Sequence[str | Study],
    name: str,
    *,
    studies: PathLikeText = Path("studies"),
    storage: str | None = None,
) -> Study:
    """Merge studies of one space on the same images into a new one that has all their trials; they stay unchanged.

    Args:
        names: Two studies or more, as names or objects.
        name: The name of the new study.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.

    Raises:
        StudyError: A study is missing, in use, or has another space or data set; or the new name is taken.
    """
    if isinstance(names, (str, Study)) or not all(isinstance(one, (str, Study)) for one in names):
        raise UserError("merge: got something else than studies; allowed: a list of names, or of studies")
    sources = [one.files if isinstance(one, Study) else study_files_of(one, studies, storage) for one in names]
    target, _ = merge_studies(sources, name, Path(studies))
    return Study(target)


def merge_studies(sources: Sequence[StudyFiles], name: str, studies: Path) -> tuple[StudyFiles, list[MergedFrom]]:
    """Merge studies into a new one; return it, and the origin of its trials.

    Raises:
        StudyError: they cannot be merged, or the name is taken.
    """
    from imgcls_search.study.files import StudyFiles
    from imgcls_search.study.merge import merge as merge_all

    target = StudyFiles(studies, name, sources[0].address if sources else None)
    return target, merge_all(sources, target)
