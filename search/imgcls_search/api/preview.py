"""Training images next to their augmented versions: augment_preview."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.options import PathLikeText, SpaceLike, as_data, changes_of, read_space_of, refuse_below
from imgcls_search.api.session import session
from imgcls_search.errors import UserError
from imgcls_search.measures import of_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgcls_search.space import Space


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A contact sheet of augmented images."""

    path: Path
    rows: int
    settings: tuple[str, ...]
    """The augmentation that was drawn, without operations that are off."""

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card

        if not self.path.is_file():
            return card("Augmented images", [f"{self.path}: the file is gone"])
        picture = base64.b64encode(self.path.read_bytes()).decode()
        lines = [str(self.path), ", ".join(self.settings) or "nothing is on"]
        return card("Augmented images", lines, f'<img src="data:image/png;base64,{picture}">')


def augment_preview(
    space: SpaceLike,
    output: PathLikeText,
    data: PathLikeText | None = None,
    *,
    rows: int = 8,
    seed: int = 0,
    first: bool = False,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    studies: PathLikeText = Path("studies"),
    progress: bool | None = None,
) -> Preview:
    """Draw training images next to their augmented versions, as a contact sheet that a notebook shows.

    Args:
        space: The path of a YAML file, or the same as nested dictionaries.
        output: The PNG file to write.
        data: Other images: a folder, a table, or a data set such as `digits`.
        rows: Number of images.
        seed: Seed of the configuration and of the augmentation.
        first: Use the first choice and the lowest value of each setting instead of random ones.
        changes: Values of the space to set, by path, such as `{"augment.policy": "trivial"}`.
        skip_unreadable: Leave out images that cannot be read.
        studies: The folder of the studies, where decoded images are kept.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the space, the images or the file is not usable.
    """
    refuse_below("rows", rows, 1)
    refuse_below("seed", seed, 0)
    found = read_space_of(
        space, changes_of(changes), None if data is None else as_data(data), skip_unreadable=skip_unreadable
    )
    with session(progress, uses_torch=True) as screens:
        return draw_sheet(
            found, Path(output), rows=rows, seed=seed, first=first, studies=Path(studies), say=screens.say
        )


def draw_sheet(
    space: Space,
    output: Path,
    *,
    rows: int,
    seed: int,
    first: bool,
    studies: Path,
    say: Callable[[str], None],
) -> Preview:
    """Write a contact sheet of one configuration of a space.

    Raises:
        UserError: the images or the file are not usable.
    """
    from imgcls_search.data import must_be_apart
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.preview import draw_config, write_preview

    if (objective := of_features(space.objectives)) is not None:
        raise UserError(
            f"{space.locate('study.objectives')}: study.objectives: {objective}: a search over the pretraining does "
            "not use augment; the settings in pretrain make its views"
        )
    config = space.first() if first or space.is_config else draw_config(space, seed)
    must_be_apart(config.component("data"), studies, "--studies")
    must_be_apart(config.component("data"), output, "-o")
    shown = write_preview(config, image_cache(studies), output, rows=rows, seed=seed, say=say)
    return Preview(path=output, rows=shown.rows, settings=tuple(shown.settings))
