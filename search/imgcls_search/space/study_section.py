"""The parts of a file that control the search and cannot be searched themselves: `study` and `limits`."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.errors import UserError, closest
from imgcls_search.measures import bounds
from imgcls_search.signature import REQUIRED, Arg, Catalog, Fields, Leaf, OneOf
from imgcls_search.space.domains import At
from imgcls_search.space.parameters import Fixed
from imgcls_search.space.problems import Position, Report, show
from imgcls_search.space.sections import read_fields
from imgcls_search.space.tree import Branch, Group
from imgcls_search.space.yaml_nodes import MapNode, Node, ScalarNode

NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_RULE = "a letter or digit, then up to 99 letters, digits, '.', '_' or '-', without '..'"
_NAME_LEAF = Leaf(arg=Arg("name of the study"), types=(str,), literals=(None,), default=None)
DIRECTIONS = ("maximize", "minimize")
SIDES = ("at_least", "at_most")

Objectives = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """The study section with its defaults."""

    values: Mapping[str, Any]
    objectives: Objectives


def study_fields(catalog: Catalog) -> Fields:
    """Return the fields of a study section except `objectives`; `name` exists in any catalog."""
    known = {"name": _NAME_LEAF, **catalog.study.fields}
    known.pop("objectives", None)
    return Fields(fields=known, doc=catalog.study.doc)


def limit_fields(catalog: Catalog) -> Fields:
    """Return the fields of a limits section; no limit is required."""
    fields = {key: _optional(entry) for key, entry in catalog.limits.fields.items()}
    return Fields(fields=fields, doc=catalog.limits.doc)


def read_study(root: MapNode, catalog: Catalog, report: Report) -> Study:
    """Return the study section with its objectives."""
    node, at = _section(root, "study")
    group = read_fields(study_fields(catalog), node, at, report, also=("objectives",))
    given = node.values.get("objectives") if isinstance(node, MapNode) else None
    objectives = _read_objectives(given, at.below("objectives"), catalog, report)
    values = TrialConfig.from_dict({**group.document(), "objectives": dict(objectives)})
    return Study(values=values.tree, objectives=objectives)


def read_limits(root: MapNode, catalog: Catalog, report: Report) -> Mapping[str, float]:
    """Return the limits that are set, except those of scores."""
    node, at = _section(root, "limits")
    also = (*_score_names(node, catalog), *catalog.scores, *catalog.class_scores)
    document = read_fields(limit_fields(catalog), node, at, report, also=also).document()
    return MappingProxyType({key: value for key, value in document.items() if value is not None})


def read_score_limits(root: MapNode, catalog: Catalog, report: Report) -> Mapping[str, Mapping[str, float]]:
    """Return the score limits that are set, each with its sides."""
    node, at = _section(root, "limits")
    names = _score_names(node, catalog)
    assert isinstance(node, MapNode) or not names
    found = {name: _sides(name, node, at, report) for name in names if isinstance(node, MapNode)}
    return MappingProxyType({name: limit for name, limit in found.items() if limit})


def _score_names(node: Node | None, catalog: Catalog) -> list[str]:
    given = node.values if isinstance(node, MapNode) else {}
    return [name for name in given if name in catalog.scores or _is_class_score(name, catalog)]


ALIKE = 0.8
"""Words with at least this similarity (difflib's ratio) count as a typing error."""


def _is_class_score(name: str, catalog: Catalog) -> bool:
    """Tell whether a name is a class score, or a function in a module whose name is not a misspelled score."""
    fitting = [shown for shown, (pattern, _) in catalog.class_scores.items() if re.fullmatch(pattern, name, re.DOTALL)]
    heads = {re.split("[@:]", shown)[0] for shown in catalog.class_scores if shown.endswith(":CLASS")}
    is_typing_error = bool(difflib.get_close_matches(name.partition(":")[0], heads, n=1, cutoff=ALIKE))
    return any(shown.endswith(":CLASS") or not is_typing_error for shown in fitting)


def _sides(name: str, limits: MapNode, at: At, report: Report) -> Mapping[str, float]:
    """Return the sides of a score limit: `at_least`, `at_most` or both."""
    here, node = at.below(name, limits.keys[name]), limits.values[name]
    wanted = "at_least or at_most, as in {at_least: 0.9}"
    if not isinstance(node, MapNode) or not node.values:
        got = show(node.value) if isinstance(node, ScalarNode) else "a list or an empty mapping"
        report.add(node.position, here.path, f"{got} does not say on which side; write {wanted}")
        return {}
    found: dict[str, float] = {}
    for side, value in node.values.items():
        below = here.below(side, node.keys[side])
        if side not in SIDES:
            report.add(below.position, below.path, f"unknown key; allowed: {', '.join(SIDES)}{closest(side, SIDES)}")
        elif (problem := _bound_problem(name, value)) is not None:
            report.add(value.position, below.path, problem)
        elif isinstance(value, ScalarNode):
            found[side] = float(str(value.value))
    if found.get("at_least", -math.inf) > found.get("at_most", math.inf):
        report.add(node.position, here.path, "at_least must not be above at_most, which no trial could keep")
    return found


def _bound_problem(name: str, node: Node) -> str | None:
    """Return the problem with a bound of a score, None if there is none."""
    low, high = bounds(name) or (-math.inf, math.inf)
    value = node.value if isinstance(node, ScalarNode) else None
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    ):
        return None
    allowed = (
        f"a number from {low:g} to {high:g}" if math.isfinite(high) else "a number >= 0" if low == 0 else "a number"
    )
    got = show(value) if isinstance(node, ScalarNode) else "a list or a mapping"
    return f"{got} is not allowed; allowed: {allowed}"


def study_name(study: Study, tree: Group, root: MapNode, report: Report) -> tuple[str, str | None]:
    """Return the study's name, and its name in earlier versions if it differs.

    The name is the one in the file, or else the file's own name with the data's: `vit-digits`, or `vit-my-photos` for a
    folder `My photos`.
    """
    node, _ = _section(root, "study")
    given = study.values.get("name")
    if given is not None:
        position = node.values["name"].position if isinstance(node, MapNode) and "name" in node.values else Position()
        _check_name(str(given), show(given), position, report)
        return str(given), None
    data = tree.children.get("data")
    options = data.options if isinstance(data, Branch) else {}
    stem = PurePath(report.source).stem
    # Only studies of folders had other names.
    former = "-".join([stem, *options]) if "folder" in options else ""
    name = "-".join([stem, *(_data_name(name, group, len(stem)) for name, group in options.items())])
    _check_name(name, f"{show(name)}, made of the file's name and the data's,", Position(), report)
    return name, former if former != name and NAME.fullmatch(former) else None


_PLACES = {"folder": "root", "table": "file"}
"""The argument of a data source that says where its images are, for sources named after it."""


def _data_name(name: str, group: Group, taken: int) -> str:
    """Return the data part of a study's name: the name of the folder, of the table, or of the data set."""
    address = group.children.get(_PLACES.get(name, ""))
    if not isinstance(address, Fixed) or not isinstance(address.value, str):
        return name
    return _slug_of_place(name, address.value)[: max(1, 99 - taken)].rstrip(".-_") or name


def name_of_images(data: Component) -> str:
    """Return a name for the images of a data section: that of their folder or table, or of the data set."""
    place = data.args.get(_PLACES.get(data.name, ""))
    return _slug_of_place(data.name, place) if place else data.name


def _slug_of_place(kind: str, place: str) -> str:
    """Return the slug of a folder, or of a table without its extension."""
    return slug(place if kind == "folder" else os.path.splitext(place)[0])  # noqa: PTH122


def slug(root: str) -> str:
    """Return a folder's name in a form allowed in study names: lower-case letters, digits, '.', '_' and '-'.

    A name in another script has no such letters; it becomes `folder` with a hash of the name.
    """
    # Use the path as written, links included: users know the folder by that name.
    try:
        path = expand_path(root, "data.folder.root")
    except UserError:
        # An unset variable is reported when the folder is opened; a space can be checked without it.
        path = Path(root)
    name = PurePath(os.path.abspath(path)).name  # noqa: PTH100
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    found = re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._]+", "-", plain)).strip("._-")
    if found or not name:
        return found or "folder"
    spelled = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return f"folder-{hashlib.sha256(spelled).hexdigest()[:6]}"


def _check_name(name: str, shown: str, position: Position, report: Report) -> None:
    if not NAME.fullmatch(name):
        report.add(position, "study.name", f"{shown} is not allowed; allowed: {_NAME_RULE}")


def _section(root: MapNode, key: str) -> tuple[Node | None, At]:
    return root.values.get(key), At(position=root.keys.get(key, root.position), path=key, fixed=True)


def _optional(entry: Leaf | OneOf | Fields) -> Leaf | OneOf | Fields:
    return replace(entry, default=None) if isinstance(entry, Leaf) and entry.default is REQUIRED else entry


def _read_objectives(node: Node | None, at: At, catalog: Catalog, report: Report) -> Objectives:
    metrics = ", ".join([*catalog.metrics, *catalog.class_scores])
    match node:
        case None | ScalarNode(value=None) if catalog.default_metric in catalog.metrics:
            return ((catalog.default_metric, "maximize"),)
        case MapNode() if node.values:
            given = {metric: _direction(metric, node, at, catalog, report) for metric in node.values}
            return tuple(given.items())
        case None | ScalarNode(value=None):
            report.add(at.position, at.path, f"required; metrics: {metrics}")
        case _:
            example = f"{{{catalog.default_metric}: maximize}}"
            report.add(node.position, at.path, f"takes metrics with a direction, as in {example}; metrics: {metrics}")
    return ()


def _direction(metric: str, objectives: MapNode, at: At, catalog: Catalog, report: Report) -> str:
    here = at.below(metric, objectives.keys[metric])
    if metric not in catalog.metrics and not _is_class_score(metric, catalog):
        known = ", ".join([*catalog.metrics, *catalog.class_scores])
        report.add(here.position, here.path, f"unknown metric; allowed: {known}{closest(metric, catalog.metrics)}")
    node = objectives.values[metric]
    value = node.value if isinstance(node, ScalarNode) else None
    if value not in DIRECTIONS:
        got = show(value) if isinstance(node, ScalarNode) else "a list or a mapping"
        near = closest(str(value), DIRECTIONS)
        report.add(node.position, here.path, f"{got} is not allowed; allowed: maximize, minimize{near}")
    return str(value)
