"""Every setting of the space language with type, range, default and meaning, from the builders' signatures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict

from imgcls_search.errors import UserError, closest
from imgcls_search.signature import REQUIRED, Catalog, Fields, Leaf, OneOf
from imgcls_search.space.problems import join, plain, printable
from imgcls_search.space.study_section import DIRECTIONS, SIDES, limit_fields, study_fields

ANY = "*"
"""Placeholder in a path for any further name that a builder passes on."""


class Setting(TypedDict):
    """One setting, as plain JSON."""

    path: str
    kind: Literal["value", "choice", "option", "metric"]
    """A value; a section with several options; one such option; a metric as an objective or a limit."""

    allowed: str
    required: bool
    default: Any
    search: str | None
    """A recommended search range, None if there is none."""

    searchable: bool
    """False for settings that cannot be searched."""

    doc: str


def settings(catalog: Catalog, section: str | None = None) -> list[Setting]:
    """Return all settings in file order, or those at and below a path such as `training` or `model.vit`.

    Raises:
        UserError: no setting has this path.
    """
    found = list(_all(catalog))
    if section is None:
        return found
    below = [one for one in found if one["path"] == section or one["path"].startswith(f"{section}.")]
    if not below:
        near = closest(section, [*sections(found), *(one["path"] for one in found)])
        allowed = ", ".join(sections(found))
        raise UserError(f"{printable(section)}: no such section; allowed: {allowed}, or a path below one{near}")
    return below


def sections(found: Sequence[Setting]) -> list[str]:
    """Return the first parts of the paths, each once."""
    return list(dict.fromkeys(one["path"].partition(".")[0] for one in found))


def in_one_line(setting: Setting) -> str:
    """Return allowed values and the default in one line: `int >= 1; default: 4; worth searching: {int: [2, 8]}`."""
    if setting["kind"] in ("option", "metric"):
        return setting["allowed"]
    search = f"; worth searching: {setting['search']}" if setting["search"] else ""
    return f"{setting['allowed']}; {default(setting)}{search}{'' if setting['searchable'] else '; not searched'}"


def default(setting: Setting) -> str:
    """Return the default in words; empty for options and metrics."""
    if setting["kind"] in ("option", "metric"):
        return ""
    return "required" if setting["required"] else f"default: {json.dumps(setting['default'])}"


def _all(catalog: Catalog) -> Iterator[Setting]:
    yield from _below(study_fields(catalog), "study", searchable=False)
    has_default = catalog.default_metric in catalog.metrics
    yield _setting(
        "study.objectives",
        doc="metrics to optimize, each with its direction; several give a Pareto front",
        allowed="metrics with a direction, as in {accuracy: maximize, latency_ms: minimize}",
        default={catalog.default_metric: "maximize"} if has_default else REQUIRED,
    )
    directions = " or ".join(DIRECTIONS)
    for name, doc in {**catalog.metrics, **_of_classes(catalog)}.items():
        yield _setting(f"study.objectives.{name}", kind="metric", doc=doc, allowed=directions)
    yield from _below(catalog.config, "", searchable=True)
    yield from _below(limit_fields(catalog), "limits", searchable=False)
    sides = " and/or ".join(f"{side}: number" for side in SIDES)
    for name, doc in {**catalog.scores, **_of_classes(catalog)}.items():
        yield _setting(f"limits.{name}", kind="metric", doc=doc, allowed=sides)
    yield _setting(
        "start",
        doc="known-good configurations, tried first; what one leaves out is sampled",
        allowed="a list of configurations by path, as in [{model: vit, optimizer.adamw.lr: 1e-3}]",
        default=[],
    )


def _of_classes(catalog: Catalog) -> dict[str, str]:
    return {name: doc for name, (_, doc) in catalog.class_scores.items()}


def _below(fields: Fields, path: str, *, searchable: bool) -> Iterator[Setting]:
    """Yield the settings of a section, including those of its components."""
    others = {} if fields.others is None else {ANY: fields.others}
    for key, entry in {**fields.fields, **others}.items():
        yield from _entry(entry, join(path, key), searchable=searchable)


def _entry(entry: Leaf | OneOf | Fields, path: str, *, searchable: bool) -> Iterator[Setting]:
    match entry:
        case Fields():
            yield from _below(entry, path, searchable=searchable)
        case OneOf():
            free = searchable and not entry.fixed
            yield _setting(
                path,
                kind="choice",
                doc=entry.doc,
                allowed=", ".join(entry.options),
                default=REQUIRED if entry.default is None else entry.default,
                searchable=free,
            )
            for name, option in entry.options.items():
                below = join(path, name)
                yield _setting(below, kind="option", doc=option.doc, allowed=_keys(option), searchable=free)
                yield from _below(option, below, searchable=free)
        case Leaf():
            yield _setting(
                path,
                doc=entry.arg.doc,
                allowed=entry.describe(),
                default=entry.default,
                searchable=searchable and not entry.arg.fixed,
                search=entry.arg.search,
            )


def _keys(option: Fields) -> str:
    keys = [*option.fields, *([ANY] if option.others else [])]
    return f"keys {', '.join(keys)}" if keys else "no keys"


def _setting(
    path: str,
    *,
    doc: str,
    allowed: str,
    kind: Literal["value", "choice", "option", "metric"] = "value",
    default: Any = None,
    searchable: bool = False,
    search: str | None = None,
) -> Setting:
    required = default is REQUIRED
    return {
        "path": path,
        "kind": kind,
        "allowed": allowed,
        "required": required,
        "default": None if required else plain(default),
        "search": search if searchable else None,
        "searchable": searchable,
        "doc": doc,
    }
