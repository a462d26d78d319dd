"""Convert arguments that several functions share: a space, images, a study, a duration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from imgcls_search import durations
from imgcls_search.errors import UserError, refuse_idle

if TYPE_CHECKING:
    from imgcls_search.config import Component
    from imgcls_search.space import Space
    from imgcls_search.study.files import StudyFiles

SpaceLike: TypeAlias = "str | PathLike[str] | Mapping[str, Any]"
"""A YAML file, or the same as nested dictionaries."""

PathLikeText: TypeAlias = "str | PathLike[str]"

Duration: TypeAlias = "str | float"
"""Seconds, or a text such as `1h30m`."""

TABLES = (".csv", ".tsv", ".parquet")


def read_space_of(
    space: SpaceLike,
    changes: Sequence[tuple[str, str]] = (),
    data: str | None = None,
    *,
    skip_unreadable: bool = False,
    unlabeled: str | None = None,
) -> Space:
    """Return the space in a file or in nested dictionaries, after the changes of other arguments.

    Raises:
        SpaceError, UserError: the space or an argument is not allowed.
    """
    from imgcls_search.catalog import catalog, refuse_contradictions
    from imgcls_search.orchestrator.code_used import refuse_unfit
    from imgcls_search.study.address import refuse_password

    known, pairs = catalog(), list(changes)
    found = _parsed(space, known, pairs, data, unlabeled)
    if skip_unreadable:
        from imgcls_search.data import skipping_unreadable

        component = skipping_unreadable(found.first().component("data"))
        pairs = with_option(pairs, "--skip-unreadable", f"{component.path}.skip_unreadable", True)
        if "folder" in found.document["unlabeled"]:
            pairs = with_option(pairs, "--skip-unreadable", "unlabeled.folder.skip_unreadable", True)
        found = _parsed(space, known, pairs, data, unlabeled)
    refuse_contradictions(found)
    if found.document["pretrain"] == {"none": {}}:
        refuse_idle({"--unlabeled": unlabeled}, "without pretrain: simclr or imitate")
    refuse_unfit(found)
    refuse_password(found.study["storage"], found.locate("study"))
    return found


def _parsed(
    space: SpaceLike, known: Any, changes: Sequence[tuple[str, str]], data: str | None, unlabeled: str | None
) -> Space:
    from imgcls_search.space import parse_values, read_space

    if isinstance(space, Mapping):
        return parse_values(space, known, source="space", overrides=changes, data=data, unlabeled=unlabeled)
    if not isinstance(space, (str, PathLike)):
        raise UserError(f"space: got a {type(space).__name__}; allowed: the path of a YAML file, or a dictionary")
    return read_space(Path(space), known, overrides=changes, data=data, unlabeled=unlabeled)


def changes_of(changes: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return paths with values as YAML, as in `--set`.

    Raises:
        SpaceError: a value is not a plain one.
    """
    from imgcls_search.space.problems import Report
    from imgcls_search.space.value_nodes import node_of
    from imgcls_search.space.yaml_nodes import value_of

    found = []
    for path, value in (changes or {}).items():
        report = Report(f"changes: {path}")
        node = node_of(value, report)
        report.raise_any()
        found.append((path, json.dumps(value_of(node))))
    return found


def with_settings(
    changes: Sequence[tuple[str, str]],
    *,
    name: str | None = None,
    workers: int | None = None,
    timeout: Duration | None = None,
) -> list[tuple[str, str]]:
    """Return changes of a space, extended by name, number of workers and timeout.

    Raises:
        UserError: the timeout is not a duration, or a change is of the same setting.
    """
    found = list(changes)
    if workers is not None:
        found = with_option(found, "--workers", "study.workers", workers)
    if timeout is not None:
        found = with_option(found, "--timeout", "study.timeout", seconds_of(timeout, "--timeout"))
    if name is not None:
        found = with_option(found, "--name", "study.name", name)
    return found


def with_option(changes: Sequence[tuple[str, str]], option: str, path: str, value: Any) -> list[tuple[str, str]]:
    """Return changes of a space, extended by the setting of an option of its own.

    Raises:
        UserError: a change is of the same setting.
    """
    refuse_idle({f"--set {path}": dict(changes).get(path)}, f"together with {option}")
    return [*changes, (path, json.dumps(value))]


def seconds_of(duration: Duration, option: str) -> float:
    """Return a duration in seconds.

    Raises:
        UserError: it is not a duration, or is too long for a clock.
    """
    seconds = durations.parse(str(duration))
    if not seconds or not math.isfinite(seconds):
        raise UserError(f"{option} {duration}: is not a duration > 0; allowed: seconds, or {durations.EXAMPLES}")
    if seconds > durations.LONGEST:
        raise UserError(f"{option} {duration}: is too long; allowed: at most {durations.LONGEST / 86_400:.0f}d")
    return seconds


def component_of_data(text: str | None, changes: Sequence[tuple[str, str]] = ()) -> Any:
    """Return the data component of a text such as `folder:photos`, checked as in a space file.

    Return None for None. `changes` are paths below `data` with new values.
    """
    if text is None:
        return None
    from imgcls_search.catalog import catalog
    from imgcls_search.space import parse

    # This space belongs to no study; its name would be made from the source's.
    unnamed = [("study.name", "unnamed"), *changes]
    space = parse("model: {lenet5: {}}", catalog(), source=f"--data {text}", overrides=unnamed, data=text)
    return space.first().component("data")


def images_of(
    data: PathLikeText,
    group: str | None = None,
    changes: Sequence[tuple[str, str]] = (),
    *,
    skip_unreadable: bool = False,
) -> Component:
    """Return the data component of a folder, a table, or a data set such as `digits`.

    Raises:
        UserError: an argument is not allowed.
    """
    text = as_data(data)
    name = text.partition(":")[0]
    strange = [path for path, _ in changes if not path.startswith("data.")]
    if strange:
        raise UserError(f"--set {strange[0]}: no such setting here; allowed: paths that begin with data.{name}.")
    given = list(changes)
    for option, key, value in (("--group", "group", group), ("--skip-unreadable", "skip_unreadable", skip_unreadable)):
        if value:
            if name not in ("folder", "table"):
                raise UserError(f"{option}: needs a folder or a table of images, got {name}")
            given = with_option(given, option, f"data.{name}.{key}", value)
    found: Component = component_of_data(text, given)
    return found


def as_data(data: PathLikeText) -> str:
    """Return images in the form of `--data`: a path becomes a folder or a table.

    Raises:
        UserError: it is neither a text nor a path.
    """
    from imgcls_search.data import DATASETS

    if not isinstance(data, (str, PathLike)):
        raise UserError(
            f"data: got a {type(data).__name__}; allowed: a folder, a table, or a data set such as digits; for images "
            "in memory write a function: {custom: {function: 'module:name'}}"
        )
    text = str(data)
    if isinstance(data, str) and text.partition(":")[0] in DATASETS:
        return text
    return f"table:{text}" if text.lower().endswith(TABLES) and not Path(text).is_dir() else f"folder:{text}"


def study_files_of(name: str, studies: PathLikeText, storage: str | None) -> StudyFiles:
    """Return the files of a study by its name.

    Raises:
        StudyError: the name is not allowed for a study.
    """
    from imgcls_search.study.address import settle
    from imgcls_search.study.files import find_study

    return find_study(Path(studies), name, settle(storage))


def unlabeled_of(images: PathLikeText | None) -> str | None:
    """Return pretraining images in the form of `--unlabeled`, None for those of the training split.

    Raises:
        UserError: they are neither a text nor a path.
    """
    return None if images is None or images == "train" else as_data(images)


def name_of(space: SpaceLike) -> str:
    """Return the name of a space for messages."""
    return "space" if isinstance(space, Mapping) else str(space)


def refuse_other(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        UserError: the value is not allowed.
    """
    if value not in allowed:
        raise UserError(f"{name}: {value!r} is not allowed; allowed: {', '.join(allowed)}")


def refuse_below(name: str, value: int, least: int) -> None:
    """Refuse a number below a minimum.

    Raises:
        UserError: the value is too small, or not a whole number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}: {value!r} is not allowed; allowed: a whole number >= {least}")
