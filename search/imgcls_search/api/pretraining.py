"""Pretrain a network without labels, outside a search: pretrain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.options import (
    PathLikeText,
    SpaceLike,
    as_data,
    changes_of,
    read_space_of,
    refuse_below,
    unlabeled_of,
)
from imgcls_search.api.session import session
from imgcls_search.errors import UserError

if TYPE_CHECKING:
    from imgcls_search.jobs.pretrain import PretrainedWeights, Pretraining

WEIGHTS = Path("backbone.pt")


def pretrain(
    space: SpaceLike,
    data: PathLikeText | None = None,
    *,
    out: PathLikeText = WEIGHTS,
    seed: int = 0,
    unlabeled: PathLikeText | None = None,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    studies: PathLikeText = Path("studies"),
    storage: str | None = None,
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> PretrainedWeights:
    """Pretrain the network of a space on images without labels, and write its weights.

    The section `pretrain` of the space sets the method. A search or a training starts from the file with
    `changes={"model.FAMILY.weights": "backbone.pt"}`. After an interrupt, the same call resumes.

    Args:
        space: The path of a YAML file, or the same as nested dictionaries.
        data: Other images: a folder, a table, or a data set such as `digits`.
        out: The weights file to write.
        seed: Seed of the initial weights and of all random draws.
        unlabeled: Images to pretrain on, whose labels are not used.
        changes: Values of the space to set, by path, such as `{"pretrain": "simclr"}`.
        skip_unreadable: Leave out images that cannot be read.
        studies: The folder of the studies, where decoded images are kept.
        storage: A PostgreSQL database of studies instead of SQLite files.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the space, the images or the file is not usable.
        NoResultError: The training diverged or failed.
    """
    refuse_below("seed", seed, 0)
    with session(progress, weights_dir, uses_torch=True) as screens, screens.training() as screen:
        from imgcls_search.jobs.pretrain import pretrain as pretrain_one

        wanted = pretraining_of(
            space,
            changes_of(changes),
            None if data is None else as_data(data),
            unlabeled_of(unlabeled),
            skip_unreadable=skip_unreadable,
            out=Path(out),
            seed=seed,
            studies=Path(studies),
            storage=storage,
        )
        return pretrain_one(wanted, screen)


def pretraining_of(
    space: SpaceLike,
    changes: Sequence[tuple[str, str]],
    data: str | None,
    unlabeled: str | None,
    *,
    skip_unreadable: bool,
    out: Path,
    seed: int,
    studies: Path,
    storage: str | None,
) -> Pretraining:
    """Return the pretraining to run, with its output file.

    Raises:
        UserError: the space does not configure a pretraining.
    """
    from imgcls_search.jobs.export import read_origin
    from imgcls_search.jobs.pretrain import Pretraining
    from imgcls_search.space import shipped
    from imgcls_search.study.address import settle

    found = read_space_of(space, changes, data, skip_unreadable=skip_unreadable, unlabeled=unlabeled)
    if found.document["pretrain"] == {"none": {}}:
        raise UserError(
            f"{found.locate('pretrain')}: pretrain: none; allowed: simclr or imitate, as with --set pretrain=simclr"
        )
    origin = None
    if not isinstance(space, Mapping):
        origin, _ = read_origin(shipped.find(Path(space)).read_text(encoding="utf-8"))
    return Pretraining(
        config=found.pretraining(), out=out, seed=seed, studies=studies, origin=origin, at=settle(storage)
    )
