"""Parse YAML text into a space according to a catalog, and report all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls_search.errors import Problem, SpaceError
from imgcls_search.signature import Catalog, Fields
from imgcls_search.space import shipped
from imgcls_search.space.domains import At
from imgcls_search.space.overrides import with_data, with_value
from imgcls_search.space.problems import Position, Report, join
from imgcls_search.space.sections import read_fields
from imgcls_search.space.space import Space
from imgcls_search.space.start import read_start
from imgcls_search.space.study_section import read_limits, read_score_limits, read_study, study_name
from imgcls_search.space.value_nodes import node_of
from imgcls_search.space.yaml_nodes import ListNode, MapNode, ScalarNode, read

MAX_BYTES = 1_000_000


def read_space(
    path: Path,
    catalog: Catalog,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    data: str | None = None,
    unlabeled: str | None = None,
) -> Space:
    """Read a space from a file, or the shipped space of this name if the file does not exist.

    Raises:
        SpaceError: the file cannot be read, or its contents have problems.
    """
    return parse(
        _text(shipped.find(path)), catalog, source=str(path), overrides=overrides, data=data, unlabeled=unlabeled
    )


def parse(
    text: str,
    catalog: Catalog,
    *,
    source: str,
    overrides: Sequence[tuple[str, str]] = (),
    data: str | None = None,
    unlabeled: str | None = None,
) -> Space:
    """Return the space in a text, after the changes of `--data`, `--unlabeled` and `--set`.

    Raises:
        SpaceError: the contents have problems; it lists all of them.
    """
    report = Report(source)
    return _changed(_root(text, report), catalog, report, overrides, data, unlabeled)


def parse_values(
    values: Mapping[Any, Any],
    catalog: Catalog,
    *,
    source: str,
    overrides: Sequence[tuple[str, str]] = (),
    data: str | None = None,
    unlabeled: str | None = None,
) -> Space:
    """Return the space in nested mappings of plain values, as `parse` does for a text.

    Raises:
        SpaceError: the values have problems; it lists all of them.
    """
    report = Report(source)
    root = node_of(values, report)
    report.raise_any()
    assert isinstance(root, MapNode)
    return _changed(root, catalog, report, overrides, data, unlabeled)


def _changed(
    root: MapNode,
    catalog: Catalog,
    report: Report,
    overrides: Sequence[tuple[str, str]],
    data: str | None,
    unlabeled: str | None,
) -> Space:
    if data is not None:
        root = with_data(root, data, catalog.config.fields["data"], report)
    if unlabeled is not None:
        known = catalog.config.fields["unlabeled"]
        root = with_data(root, unlabeled, known, report, section="unlabeled")
    for path, value in overrides:
        root = with_value(root, path, value, report)
    space = _space(root, catalog, report)
    report.raise_any()
    return space


def _text(path: Path) -> str:
    def refuse(message: str) -> SpaceError:
        return SpaceError(str(path), [Problem(message=message)])

    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise refuse("is a directory; a YAML file is needed") from None
    except FileNotFoundError:
        raise refuse(f"no such file{shipped.hint(path)}") from None
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_BYTES:
        raise refuse(f"larger than {MAX_BYTES:,} bytes, which no space needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start} is {content[error.start]:#04x})") from None


def _root(text: str, report: Report) -> MapNode:
    root = read(text, report)
    match root:
        case MapNode():
            return root
        case ScalarNode(text="", quoted=False):
            report.add(Position(), "", "is empty; a space needs at least its data and its model")
        case ListNode() | ScalarNode():
            kind = "a list" if isinstance(root, ListNode) else "a single value"
            report.add(root.position, "", f"a space is a mapping of sections such as data and model, but got {kind}")
        case None:
            pass
    report.raise_any()
    raise AssertionError("a file that is no mapping has been reported")


def _space(root: MapNode, catalog: Catalog, report: Report) -> Space:
    at = At(position=root.position, path="")
    catalog = _for_its_data(root, catalog)
    tree = read_fields(catalog.config, root, at, report, also=("study", "limits", "start"))
    study = read_study(root, catalog, report)
    name, former_name = study_name(study, tree, root, report)
    return Space(
        name=name,
        former_name=former_name,
        source=report.source,
        study=study.values,
        objectives=study.objectives,
        limits=read_limits(root, catalog, report),
        score_limits=read_score_limits(root, catalog, report),
        start=read_start(root.values.get("start"), tree, report),
        root=tree,
        positions=dict(_places(root, "", report.source)),
    )


def _for_its_data(root: MapNode, catalog: Catalog) -> Catalog:
    """Return the catalog with the defaults for the data set in a file."""
    if catalog.of_data is None or "data" not in catalog.config.fields:
        return catalog
    # Problems of the data section are reported when the whole file is read.
    only = Fields(fields={"data": catalog.config.fields["data"]})
    given = MapNode(
        position=root.position,
        values={key: root.values[key] for key in ("data",) if key in root.values},
        keys={key: root.keys[key] for key in ("data",) if key in root.keys},
    )
    document = read_fields(only, given, At(position=root.position, path=""), Report("")).document()
    ((name, arguments),) = (document.get("data") or {"": {}}).items()
    return catalog.of_data(catalog, name, arguments)


def _places(node: MapNode, path: str, source: str) -> Iterator[tuple[str, str]]:
    for key, position in node.keys.items():
        below = join(path, key)
        # Command line values have no line; their origin describes them.
        place = f"{source}:{position.line}:{position.column}" if position.line else source
        yield below, position.origin or place
        value = node.values[key]
        if isinstance(value, MapNode):
            yield from _places(value, below, source)
